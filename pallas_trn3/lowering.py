"""`pallas_call` on platform trn3: a kernel stays whole in the program, its values attached.

In the program it is a `stablehlo.composite "trn3.pallas_call"` whose attribute `kernel` is a key of
`KERNELS` (`registry.py`); whoever asks what the program costs finds the kernel there.
"""

from __future__ import annotations

import functools
from typing import Any

from jax import lax
from jax._src.interpreters import mlir
from jax._src.pallas import mpmd, pallas_call

from jax_trn3.compiler.timing import extensions
from jax_trn3.ops import as_written
from jax_trn3.ops.cpu_rules import as_cpu

from . import static_checks
from .checked import evaluate as checked_evaluate
from .core_map import as_pallas_call
from .kernel import Kernel, kernel_of
from .memory import MemorySpace
from .params import CompilerParams, checked
from .registry import WHOLE, remember
from .tpu_info import answer
from .values import evaluate


def lower_kernels(platform: str) -> None:
    """Registers the lowerings of pallas_call and core_map for `platform`; once a process."""
    mlir.register_lowering(pallas_call.pallas_call_p, _pallas_call, platform=platform)
    mlir.register_lowering(mpmd.mpmd_map_p, _core_map, platform=platform)
    extensions.MODULES["pallas_trn3.timing.rule"] = None
    extensions.MODULES["pallas_trn3.kernels.attention_rule"] = None
    answer()


def _pallas_call(ctx: mlir.LoweringRuleContext, *args: Any, interpret: Any, **params: Any) -> Any:
    if interpret:  # the author wants JAX's interpreter
        with as_written(ctx) as inner:
            return pallas_call._pallas_call_lowering(inner, *args, interpret=interpret, **params)
    if params["jaxpr"].constvars:
        raise ValueError("a pallas_call that captures constants; pass them as operands")
    kernel = kernel_of(**params)
    static_checks.check(kernel)
    values = checked_evaluate if checked(kernel.params) else evaluate

    def whole(*operands: Any) -> list[Any]:
        key = remember(kernel)
        return lax.composite(lambda *xs, **_: values(kernel, *xs), WHOLE)(*operands, kernel=key)

    def plain(*operands: Any) -> list[Any]:
        return values(kernel, *operands)

    chosen = whole if _stays_whole(ctx, kernel) else plain
    with as_written(ctx) as inner:
        return mlir.lower_fun(chosen, multiple_results=True)(inner, *args)


def lower_elsewhere(platform: str = "cpu") -> None:
    """Lets kernels for a NeuronCore run on another platform, for their values, without the checks
    that cost time; JAX's rule takes all others."""

    def rule(ctx: mlir.LoweringRuleContext, *args: Any, interpret: Any, **params: Any) -> Any:
        kernel = kernel_of(**params)
        if interpret or not _is_ours(kernel):
            return pallas_call._pallas_call_lowering(ctx, *args, interpret=interpret, **params)
        if checked(kernel.params):
            raise NotImplementedError(
                f"kernel {kernel.name} is to be checked on platform {platform}; checks run on trn3 "
                "alone: put its operands there, jax.device_put(x, jax.devices('trn3')[0])"
            )
        static_checks.check(kernel)
        run = functools.partial(evaluate, kernel)
        return mlir.lower_fun(run, multiple_results=True)(ctx, *args)

    mlir.register_lowering(pallas_call.pallas_call_p, rule, platform=platform)


def _is_ours(kernel: Kernel) -> bool:
    spaces = [getattr(v.aval, "memory_space", None) for v in kernel.jaxpr.invars]
    return (
        isinstance(kernel.params, CompilerParams)
        or any(isinstance(space, MemorySpace) for space in spaces)
        or static_checks.issues(kernel.jaxpr)
    )


def _stays_whole(ctx: mlir.LoweringRuleContext, kernel: Kernel) -> bool:
    module = ctx.module_context
    static = all(n is not None for n in kernel.grid)
    return static and len(module.platforms) == 1 and not module.shape_poly_state.dim_vars


def _core_map(ctx: mlir.LoweringRuleContext, *args: Any, **params: Any) -> Any:
    if not params["interpret"]:
        call = as_pallas_call(ctx.avals_in, **params)
        return _pallas_call(ctx, *args, interpret=False, **call)
    cpu = as_cpu(ctx)
    with as_written(cpu) as inner:
        results = mpmd._mpmd_map_fallback_lowering(inner, *args, **params)
    if cpu.tokens_out is not None:
        ctx.set_tokens_out(cpu.tokens_out)
    return results
