"""The library's kernels in place of what the compiler makes of JAX's own products, where better.

    from pallas_trn3.kernels import compiler_rules
    compiler_rules.install()

From then on `jax.lax.ragged_dot` on trn3 is `expert_matmul`: values and time. Without it every
expert multiplies every row, masked: with 16 experts of 2048 x 2048 and 16,384 rows an estimate says
ten times as long.

Plain products and `trn3.mx_dot_general` keep the compiler's plans. They are the same programs in
all but details (from 512^3 to 8192^3 bfloat16 products differ by 2 %, MX ones from 2048^3 by 5 %,
in either direction), are faster where rows are few or MX operands small (by 8 and up to 32 %), are
planned faster than a kernel is traced, and take in what is fused to them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax._src.lax import lax as lax_internal
from jax.interpreters import mlir

from jax_trn3.ops import as_written

from .moe import expert_matmul

PLATFORM = "trn3"

_ROWS_BY_GROUP = lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), [0], [0])
"""[T, K] and [E, K, N], rows ragged: what `jax.lax.ragged_dot` asks for."""


def install() -> None:
    """Lowers ragged_dot to the kernel, in programs that are lowered from now on."""
    jax.devices(PLATFORM)  # JAX knows the platform once it has been asked for
    mlir.register_lowering(lax_internal.ragged_dot_general_p, _lowered, platform=PLATFORM)


def uninstall() -> None:
    """JAX's own lowering again."""
    own = mlir.lower_fun(lax_internal._ragged_dot_general_impl, multiple_results=False)
    mlir.register_lowering(lax_internal.ragged_dot_general_p, own, platform=PLATFORM)


def suits(lhs: Any, rhs: Any, group_sizes: Any, params: dict[str, Any]) -> bool:
    """Whether the kernel computes this ragged_dot_general."""
    numbers = params["ragged_dot_dimension_numbers"]
    plain = params.get("group_offset") is None and params.get("out_sharding") is None
    default = params.get("precision") in (None, (lax.Precision.DEFAULT,) * 2)
    wide = lhs.dtype == jnp.float32 or default
    known = lhs.dtype == rhs.dtype and lhs.dtype.name in ("bfloat16", "float16", "float32")
    shaped = group_sizes.ndim == 1 and 0 not in (*lhs.shape, *rhs.shape)
    return numbers == _ROWS_BY_GROUP and plain and wide and known and shaped


def _lowered(ctx: Any, lhs: Any, rhs: Any, group_sizes: Any, **params: Any) -> Any:
    function: Any = lax_internal._ragged_dot_general_impl
    x, y, sizes = ctx.avals_in
    if suits(x, y, sizes, params):
        preferred = params["preferred_element_type"]

        def function(x: Any, y: Any, sizes: Any, **_: Any) -> Any:
            return expert_matmul(x, y, sizes, preferred_element_type=preferred)

    with as_written(ctx) as inner:
        lower = mlir.lower_fun(function, multiple_results=False)
        return lower(inner, lhs, rhs, group_sizes, **params)
