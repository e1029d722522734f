"""Which programs ran how often, for whoever asks. Asking for nothing costs nothing: the shim counts
starts anyway, and programs are only remembered while somebody watches."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

_lock = threading.Lock()
_alive: weakref.WeakSet[Any] = weakref.WeakSet()
_watchers: list[list[Any]] = []


def remember(loaded: Any) -> None:
    """Notes a LoadedExecutable that was just made."""
    with _lock:
        _alive.add(loaded)
        for watcher in _watchers:
            watcher.append(loaded)


class Watch:
    """How often programs were started since the watch began."""

    def __init__(self, programs: list[Any]) -> None:
        self._programs = programs
        self._before = {id(loaded): loaded.runs[0] for loaded in programs}

    def runs(self) -> list[tuple[Any, int]]:
        """(LoadedExecutable, starts) of each program that was started, in the order of making."""
        counted = (
            (loaded, loaded.runs[0] - self._before.get(id(loaded), 0))
            for loaded in list(self._programs)
        )
        return [(loaded, count) for loaded, count in counted if count]


@contextlib.contextmanager
def watch() -> Iterator[Watch]:
    """Keeps every program that there is, or that is made meanwhile, alive and counted."""
    with _lock:
        programs = list(_alive)
        _watchers.append(programs)
    try:
        yield Watch(programs)
    finally:
        with _lock:
            _watchers[:] = [watcher for watcher in _watchers if watcher is not programs]
