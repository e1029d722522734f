"""The k largest of each row and where they are, eight at a time."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn

from .catalogue import CATALOGUE, Entry
from .rows import as_rows, check_floats, columns, cut, over_rows

_EIGHT = 8
_MOST = 8192
"""Columns searched at a time: half of what `max8` takes, so that loads go on beside it."""

_LOWEST = float(jnp.finfo(jnp.float32).min)


def top_k(operand: jax.Array, k: int, *, axis: int = -1) -> list[jax.Array]:
    """`jax.lax.top_k(operand, k, axis=axis)`: values from the largest on, and their indices.

    Of equal values the first comes first. As the engine compares numbers, -0 and 0 are equal, and
    float32's lowest finite number is equal to -inf where k > 8. A NaN is the largest, as JAX has
    it, but its index is -1: it equals nothing.

    **Arguments:**

    - `operand`: float32, bfloat16 or float16, of at least one dimension.
    - `k`: At most the size of the axis. Every eight take three passes of VectorE over the row.

    **Returns:** Values of operand's dtype, indices int32. The values have a derivative.

    **Raises:** `TypeError` for another dtype, `ValueError` for a k or axis that operand does not
    have, or k > 4096 of rows longer than 8192.
    """
    check_floats("top_k", operand)
    moved = jnp.moveaxis(operand, axis, -1)
    if not 0 <= k <= moved.shape[-1]:
        raise ValueError(f"top_k: k = {k} of {moved.shape[-1]} values along axis {axis}")
    if not k or not moved.size:
        shape = (*moved.shape[:-1], k)
        return [jnp.zeros(shape, operand.dtype), jnp.zeros(shape, jnp.int32)]
    values, places = _top_k(k, as_rows(moved))
    shape = (*moved.shape[:-1], k)
    return [jnp.moveaxis(y.reshape(shape), -1, axis) for y in (values, places)]


def top_k_reference(operand: jax.Array, k: int, *, axis: int = -1) -> list[jax.Array]:
    """The same, sorted."""
    order = jnp.argsort(-operand.astype(jnp.float32), axis=axis, stable=True)
    order = jax.lax.slice_in_dim(order, 0, k, axis=axis % operand.ndim)
    return [jnp.take_along_axis(operand, order, axis), order.astype(jnp.int32)]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _top_k(k: int, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, n = x.shape
    if n <= _MOST:
        return _searched(k, x)
    # The largest of all are among the largest of each part; the parts keep their order.
    if k > _MOST // 2:
        raise ValueError(f"top_k: k = {k} of {n} values; of more than {_MOST} at most {_MOST // 2}")
    parts = -(-n // _MOST)
    width = -(-n // parts)
    whole = jnp.pad(x, ((0, 0), (0, parts * width - n)), constant_values=-jnp.inf)
    values, places = _top_k(k, whole.reshape(rows * parts, width))
    places = places.reshape(rows, parts, k) + (jnp.arange(parts, dtype=jnp.int32) * width)[:, None]
    best, where = _top_k(k, values.reshape(rows, parts * k))
    return best, jnp.take_along_axis(places.reshape(rows, parts * k), where, 1)


@_top_k.defjvp
def _top_k_jvp(k: int, primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    values, places = _top_k(k, x)
    return (values, places), (
        jnp.take_along_axis(dx, places, 1),
        jnp.zeros(places.shape, jax.dtypes.float0),
    )


def _searched(k: int, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    if x.shape[1] < _EIGHT:
        edge = ((0, 0), (0, _EIGHT - x.shape[1]))
        x = jnp.pad(x, edge, constant_values=-jnp.inf)
    rows, n = x.shape
    found = -(-k // _EIGHT) * _EIGHT
    size = n * x.dtype.itemsize
    blocks = cut("top_k", rows, size, found * (x.dtype.itemsize + 4), 4 * found, 2 * 4 * n)
    scratch = [columns(n, jnp.float32, 2), columns(found, jnp.float32, blocks.together)]
    values, places = over_rows(
        functools.partial(_kernel, together=blocks.together), "top_k", [x], [],
        [(found, x.dtype), (found, jnp.uint32)], blocks, scratch,
    )  # fmt: skip
    places = jax.lax.bitcast_convert_type(places[:, :k], jnp.int32)
    if found > _EIGHT and x.dtype == jnp.float32:  # -inf was searched as the lowest number
        own = jnp.take_along_axis(x, jnp.maximum(places, 0), 1)
        return jnp.where(values[:, :k] == _LOWEST, own, values[:, :k]), places
    return values[:, :k], places


def _kernel(x: Any, values: Any, places: Any, left: Any, best: Any, *, together: int) -> None:
    rounds = values.shape[-1] // _EIGHT
    for g in range(together):
        row, rest = pl.ds(g, 1), x.at[:, pl.ds(g, 1)]
        if rounds > 1:  # what was found becomes -inf; nothing else is
            pltrn.tensor_scalar(left.at[g % 2], rest, _LOWEST, op0="maximum")
            rest = left.at[g % 2]
        for r in range(rounds):
            eight = pl.ds(_EIGHT * r, _EIGHT)
            pltrn.max8(best.at[g, :, eight], rest)
            pltrn.nc_find_index8(places.at[:, row, eight], rest, best.at[g, :, eight])
            if r < rounds - 1:
                pltrn.nc_match_replace8(rest, rest, best.at[g, :, eight], imm=float("-inf"))
        pltrn.tensor_copy(values.at[:, row], best.at[g], engine="scalar")


def _entry(k: int, rows: int, n: int) -> Entry:
    x = jax.ShapeDtypeStruct((rows, n), jnp.float32)
    return Entry(functools.partial(top_k, k=k), (x,), "vector")


CATALOGUE["top-8 float32 16384x2048"] = _entry(8, 16_384, 2_048)
CATALOGUE["top-64 float32 2048x8192"] = _entry(64, 2_048, 8_192)
