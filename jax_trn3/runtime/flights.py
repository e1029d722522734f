"""How many programs with collectives may be in flight at once.

XLA:CPU runs each device's part of a program on a thread of its own, and a part that reaches a
collective keeps its thread until all the others have arrived. When parts of several programs hold
all threads and none of them is complete, nothing moves any more, and after 40 seconds XLA ends the
process. (jaxlib 0.10's CPU backend does that to any loop over a collective that does not wait for
its results; 0.12's has more threads.) So the inner client gets a thread for every part of every
program that may be in flight, and a dispatch beyond that waits for the oldest program.
"""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

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


class Flights:
    """Counts the programs in flight. A place is taken, then filled with the program's token."""

    def __init__(self, limit: int):
        self._limit = limit
        self._changed = threading.Condition()
        self._taken = 0  # places without a token yet
        self._tokens: collections.deque[Any] = collections.deque()

    def take_place(self) -> None:
        """Waits until there is room. Does not hold the lock meanwhile: the program it waits for may
        itself start others, from a host callback."""
        while True:
            with self._changed:
                if self._taken + len(self._tokens) < self._limit:
                    self._taken += 1
                    return
                if not self._tokens:
                    self._changed.wait()
                    continue
                oldest = self._tokens.popleft()
            with contextlib.suppress(Exception):  # whoever asks for its outputs will be told
                oldest.block_until_ready()

    def fill_place(self, token: Any | None) -> None:
        """The program has started (or has not: None)."""
        with self._changed:
            self._taken -= 1
            if token is not None:
                self._tokens.append(token)
            self._changed.notify()
