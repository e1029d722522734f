"""Compilation against a topology that is not attached (jax.experimental.topologies)."""

from __future__ import annotations

from typing import Any

from jax._src import compiler as jax_compiler


def compile_without_devices(platform: str) -> None:
    """Keeps JAX from compiling for a topology through the client of attached devices; once a
    process.

    JAX does that for the sake of GPUs, which tune kernels on the real thing. jaxlib then waits for
    the compilation, which runs on another thread, without giving up the GIL: a deadlock where the
    compiler needs Python. And a program that only compiles need not start any device.
    """
    upstream = jax_compiler._get_cross_compile_backend

    def get_cross_compile_backend(compile_only_backend: Any) -> Any:
        if compile_only_backend.platform == platform:
            return None
        return upstream(compile_only_backend)

    jax_compiler._get_cross_compile_backend = get_cross_compile_backend
