"""Registers a Platform with JAX."""

from __future__ import annotations

import atexit
import dataclasses
import threading
import time
from typing import Any

from jax._src import compiler as jax_compiler
from jax._src import xla_bridge

from . import _shim
from .api import Platform


def _close() -> None:
    _shim.close()
    if threading.active_count() > 1:
        time.sleep(_GRACE_S)


# Registered after JAX's own handlers and so run before them, while threads can still wait for the
# GIL: once the interpreter finalizes, a thread that asks for it is killed inside C++. Daemon
# threads that were waiting for the platform get a moment to come out of there.
_GRACE_S = 0.05
atexit.register(_close)


def register(name: str, platform: Platform, *, priority: int) -> None:
    """Makes `platform` the JAX platform `name`.

    priority: JAX's default platform is the one with the highest among those that start; the CPU has
    0, accelerators 400. A negative one leaves the default alone.

    A platform that cannot start does not stand in the way of programs that do not ask for it: JAX
    reports the reason only when the platform is asked for by name.
    """
    _shim.set_platform(platform)
    xla_bridge.register_plugin(name, library_path=_shim.__file__, priority=priority, options={})
    _refuse_compilation_after_fork(name)
    registration = xla_bridge._backend_factories[name]
    xla_bridge._backend_factories[name] = dataclasses.replace(
        registration, fail_quietly=True, experimental=False
    )


def _refuse_compilation_after_fork(name: str) -> None:
    """In a fork, jaxlib would hand a compilation to threads that are not there, and wait.

    (All else that the platform cannot do there is refused by the shim.)
    """
    upstream = jax_compiler.backend_compile_and_load

    def backend_compile_and_load(backend: Any, *args: Any, **kwargs: Any) -> Any:
        if backend.platform == name and _shim.is_forked():
            raise RuntimeError(
                f"this process was forked from one that uses {name}, and cannot compile; start "
                'processes by spawning them (multiprocessing.get_context("spawn")), or fork before '
                "the platform is first used"
            )
        return upstream(backend, *args, **kwargs)

    jax_compiler.backend_compile_and_load = backend_compile_and_load
