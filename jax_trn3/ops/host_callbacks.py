"""Lowers pure_callback, io_callback, buffer_callback and the jax.debug functions as on the CPU.

JAX keeps a fixed list of platforms that have host callbacks; the platform shows the CPU's name
where that list is consulted. How the Python functions reach XLA is compiler/callbacks.py.
"""

from __future__ import annotations

from typing import Any

import jax.interpreters.mlir
from jax._src import buffer_callback, callback
from jax._src.interpreters import mlir

from .cpu_rules import as_cpu


def lower_host_callbacks(platform: str) -> None:
    """Lets `platform` through wherever JAX lowers a host callback; once a process."""
    emit = callback.emit_python_callback
    lower_buffer_callback = buffer_callback._buffer_callback_lowering

    def emit_python_callback(ctx: mlir.LoweringRuleContext, *args: Any, **kwargs: Any) -> Any:
        if tuple(ctx.module_context.platforms) == (platform,):
            ctx = as_cpu(ctx)
        return emit(ctx, *args, **kwargs)

    callback.emit_python_callback = emit_python_callback
    jax.interpreters.mlir.emit_python_callback = emit_python_callback
    mlir.register_lowering(
        buffer_callback.buffer_callback_p,
        lambda ctx, *args, **params: lower_buffer_callback(as_cpu(ctx), *args, **params),
        platform=platform,
    )
