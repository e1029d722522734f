"""How many programs with collectives may be in flight at once.

XLA:CPU runs each device's part of a program on a thread of its own, and a part that reaches a
collective keeps its thread until all the others have arrived. When parts of several programs hold
all threads and none of them is complete, nothing moves any more, and after 40 seconds XLA ends the
process. (jaxlib 0.10's CPU backend does that to any loop over a collective that does not wait for
its results; 0.12's did not in our runs.) So the inner client gets a thread for every part of every
program that may be in flight, and a dispatch beyond that waits for the oldest program.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_MANY_DEVICES = 16  # beyond, threads are dearer than a deeper queue is worth


def limit_for(num_devices: int) -> int:
    """Programs in flight at once on so many devices."""
    return 4 if num_devices <= _MANY_DEVICES else 2


@contextlib.contextmanager
def enough_threads(num_devices: int) -> Iterator[None]:
    """Within this, XLA:CPU clients are made with a thread for every part of a program.

    The size of their thread pool can be set in no other way than by PJRT_NPROC in the environment.
    """
    saved = os.environ.get("PJRT_NPROC")
    # One program more than the limit: the one that a dispatch is waiting for.
    threads = max((limit_for(num_devices) + 1) * num_devices, os.cpu_count() or 1)
    os.environ["PJRT_NPROC"] = str(threads)
    try:
        yield
    finally:
        if saved is None:
            del os.environ["PJRT_NPROC"]
        else:
            os.environ["PJRT_NPROC"] = saved
