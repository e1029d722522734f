"""Pallas kernels, interpreted: pallas_call needs no interpret=True on the platform.

JAX's interpreter turns a kernel into XLA operations, grid step by grid step. (Kernels on the
engines of a NeuronCore are to come, with pallas_trn3.) A kernel says itself what its products are:
matmul_precision does not reach into it.
"""

from __future__ import annotations

from typing import Any

from jax._src.interpreters import mlir
from jax._src.pallas import mpmd, pallas_call

from .cpu_rules import as_cpu
from .precision_setting import as_written


def interpret_kernels(platform: str) -> None:
    """Registers the lowerings of pallas_call and core_map for `platform`; once a process."""
    mlir.register_lowering(pallas_call.pallas_call_p, _pallas_call, platform=platform)
    mlir.register_lowering(mpmd.mpmd_map_p, _core_map, platform=platform)


def _pallas_call(
    ctx: mlir.LoweringRuleContext, *args: Any, interpret: Any = False, **params: Any
) -> Any:
    with as_written(ctx) as inner:
        return pallas_call._pallas_call_lowering(
            inner, *args, interpret=interpret or True, **params
        )


def _core_map(ctx: mlir.LoweringRuleContext, *args: Any, **params: Any) -> Any:
    cpu = as_cpu(ctx)
    with as_written(cpu) as inner:
        results = mpmd._mpmd_map_fallback_lowering(inner, *args, **params)
    if cpu.tokens_out is not None:
        ctx.set_tokens_out(cpu.tokens_out)
    return results
