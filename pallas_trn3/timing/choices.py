"""Casts, and choices between arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from .arrays import Array, temporary
from .elementwise import as_large, number_of
from .emission import copy, evacuated, issue, redirected
from .scalars import UNKNOWN
from .views import laid, stored
from .walk import Scope, Walker


def cast(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> list[Any]:
    """Another type: nothing if it is wider, else part of what made the value."""
    value, (var,) = args[0], equation.outvars
    dtype = var.aval.dtype
    if not isinstance(value, Array):
        return [value]
    if value.view in ("fill", "iota", "affine", "transposed") or _wider(dtype, value.dtype):
        return [value.of(value.shape, dtype)]
    if value.view in ("column", "row"):
        return [value.of(value.shape, dtype)]
    value = stored(walker, value)
    found = temporary(walker, value.shape, dtype, "cast", layout=value.layout)
    if _last_use(scope, equation.invars[0]) and redirected(walker, value, found.pieces):
        found.made = value.made
        return [found]
    for dst, src in zip(found.pieces, value.pieces):
        copy(walker, dst, src)
    return [found]


def _last_use(scope: Scope, var: Any) -> bool:
    return list(scope.readers(var))[-1:] == [scope.place] and var not in scope.jaxpr.invars


def _wider(to: Any, of: Any) -> bool:
    if to == of:
        return True
    floats = [jnp.issubdtype(t, jnp.floating) for t in (to, of)]
    if of == jnp.bool_ or (floats[0] and not floats[1]):
        return True
    return floats == [True, True] and jnp.dtype(to).itemsize > jnp.dtype(of).itemsize


def select(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> list[Any]:
    """`select_n`: by a pattern on GpSimdE where the choice is one, else by a mask on VectorE."""
    (var,) = equation.outvars
    shape, dtype = var.aval.shape, var.aval.dtype
    which, *cases = (
        as_large(walker, a, v.aval.shape, shape) for a, v in zip(args, equation.invars)
    )
    if not isinstance(which, Array):
        answer = walker.ranges.decided(which) if which is not UNKNOWN else None
        return [cases[int(answer)] if answer is not None else cases[-1]]
    arrays = [c for c in cases if isinstance(c, Array) and c.view != "fill"]
    if which.view in ("mask",) and len(arrays) <= 1:
        data = stored(walker, arrays[0] if arrays else cases[0], shape, dtype)
        return [_masked(walker, data, int(which.number or 1), shape, dtype)]
    mask = stored(walker, which)
    full = [stored(walker, c, shape, dtype) for c in arrays] or [
        stored(walker, cases[0], shape, dtype)
    ]
    data = full[-1]
    found = temporary(walker, shape, dtype, layout=data.layout)
    mask = laid(walker, mask, data.layout)
    for k, dst in enumerate(found.pieces):
        src = data.pieces[k]
        if len(full) == 1:
            issue(walker, "select_reduce", dst, mask.pieces[k], src, 0.0, engine="vector")
            continue
        first = laid(walker, full[0], data.layout).pieces[k]
        if first.dtype != dst.dtype:
            issue(walker, "select_reduce", dst, mask.pieces[k], src, 0.0, engine="vector")
            issue(walker, "tensor_copy", dst, first, engine="vector")
            continue
        issue(walker, "tensor_copy", dst, src, engine="vector")
        issue(walker, "tensor_copy_predicated", dst, first, mask.pieces[k])
    return [found]


def _masked(walker: Walker, data: Array, times: int, shape: Sequence[int], dtype: Any) -> Array:
    data = evacuated(walker, data)
    found = temporary(walker, shape, dtype, layout=data.layout)
    for dst, src in zip(found.pieces, data.pieces):
        for time in range(times):
            issue(
                walker, "affine_select", dst, dst if time else src, pattern=[[1, dst.free_size]],
                channel_multiplier=1, on_false_value=0.0, cmp_op="greater_equal",
            )  # fmt: skip
    return found


def clamp(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> list[Any]:
    """Both bounds in one instruction, where they are numbers."""
    low, value, high = args
    (var,) = equation.outvars
    value = stored(walker, value, var.aval.shape, var.aval.dtype)
    found = temporary(walker, var.aval.shape, var.aval.dtype, layout=value.layout)
    bounds = [v if isinstance(v, (int, float)) else 0.0 for v in map(number_of, (low, high))]
    for dst, src in zip(found.pieces, value.pieces):
        issue(
            walker, "tensor_scalar", dst, src, *bounds, op0="maximum", op1="minimum",
            engine="vector",
        )  # fmt: skip
    return [found]
