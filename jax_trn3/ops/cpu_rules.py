"""The CPU's own lowering rules, taken over where the platform has none of its own.

JAX has no default rule for much of linear algebra, callbacks and checks, and the CPU's rules emit
calls (LAPACK among them) that XLA:CPU answers in this process.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

from jax import lax
from jax._src import dispatch
from jax._src.interpreters import mlir

# Importing these registers the CPU's rules, which must be there before they can be copied.
from jax._src import checkify, debugging, random  # noqa: F401  isort: skip
from jax._src.lax import linalg  # noqa: F401  isort: skip
from jax._src.lax.control_flow import conditionals  # isort: skip


def adopt_cpu_rules(platform: str) -> None:
    """Gives `platform` every lowering rule that JAX registered for the CPU alone."""
    ours = mlir._platform_specific_lowerings[platform]
    for primitive, rule in mlir._platform_specific_lowerings["cpu"].items():
        # The CPU's rule for dot_general only turns down algorithms that XLA:CPU has no kernel of.
        if primitive is not lax.dot_general_p:
            ours.setdefault(primitive, rule)
    # The accelerators' rule for memories; the CPU's drops the memory kind.
    mlir.register_lowering(
        dispatch.device_put_p, dispatch._tpu_gpu_device_put_lowering, platform=platform
    )
    _fall_back_on_cpu_branches(platform)
    if platform not in mlir._platforms_with_donation:
        mlir._platforms_with_donation.append(platform)


def as_cpu(ctx: mlir.LoweringRuleContext) -> mlir.LoweringRuleContext:
    """The context of a lowering for the CPU, for rules that look at the platform's name."""
    # A stand-in for the backend: the real CPU backend need not exist (JAX_PLATFORMS=trn3).
    module_context = ctx.module_context.replace(
        platforms=("cpu",), backend=SimpleNamespace(platform="cpu")
    )
    return dataclasses.replace(ctx, module_context=module_context)


def _fall_back_on_cpu_branches(platform: str) -> None:
    """lax.platform_dependent: the platform's own branch, the default, or else the CPU's."""

    def complete(branches: Any) -> Any:
        named = [name for names in branches if names is not None for name in names]
        if platform in named or None in branches:
            return branches
        return tuple((*names, platform) if "cpu" in names else names for names in branches)

    def platform_index(ctx: mlir.LoweringRuleContext, *, platforms: Any) -> Any:
        return conditionals._platform_index_lowering(ctx, platforms=complete(platforms))

    def cond(ctx: mlir.LoweringRuleContext, *args: Any, **params: Any) -> Any:
        if params.get("branches_platforms") is not None:
            params["branches_platforms"] = complete(params["branches_platforms"])
        return conditionals._cond_lowering(ctx, *args, **params)

    mlir.register_lowering(conditionals.platform_index_p, platform_index, platform=platform)
    mlir.register_lowering(conditionals.cond_p, cond, platform=platform)
