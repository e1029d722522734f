"""Softmax of rows, and its derivative."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn

from .catalogue import CATALOGUE, Entry
from .rows import (
    as_rows,
    check_floats,
    columns,
    cut,
    in_steps,
    over_rows,
)


def softmax(
    x: jax.Array, axis: int = -1, *, exponentials: Literal["vector", "scalar"] = "vector"
) -> jax.Array:
    """`jax.nn.softmax(x, axis)`: exponentials of what is below the largest, over their sum.

    **Arguments:**

    - `x`: float32, bfloat16 or float16 of at least one dimension, none of size 0. Computed in
      float32 and rounded once.
    - `exponentials`: The engine that computes them: "vector" (NeuronCore-v4, four a cycle) or
      "scalar" (any).

    **Returns:** Of x's shape and dtype. Its derivative is a kernel, too.

    **Raises:** `TypeError` for another dtype, `ValueError` for rows that a partition cannot hold,
    an axis that x does not have, or another engine.
    """
    check_floats("softmax", x)
    if exponentials not in ("vector", "scalar"):
        raise ValueError(f"exponentials={exponentials!r}; allowed: 'vector', 'scalar'")
    moved = jnp.moveaxis(x, axis, -1)
    y = _softmax(exponentials, as_rows(moved)).reshape(moved.shape)
    return jnp.moveaxis(y, -1, axis)


def softmax_reference(x: jax.Array, axis: int = -1) -> jax.Array:
    """The same, in jax.numpy."""
    wide = x.astype(jnp.float32)
    e = jnp.exp(wide - wide.max(axis, keepdims=True))
    return (e / e.sum(axis, keepdims=True)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax(engine: str, x: jax.Array) -> jax.Array:
    rows, n = x.shape
    size = x.dtype.itemsize
    blocks = cut("softmax", rows, n * size, n * size, 2 * 4 * n)
    slots = 2 * blocks.together
    scratch = [
        columns(1, x.dtype, slots),  # a maximum of narrow numbers is found twice as fast
        columns(1, jnp.float32, slots),
        columns(1, jnp.float32, slots),
        columns(n, jnp.float32, slots),
    ]
    kernel = functools.partial(_forward, engine=engine, together=blocks.together)
    (y,) = over_rows(kernel, "softmax", [x], [], [(n, x.dtype)], blocks, scratch, late=True)
    return y


def _forward(
    x: Any, y: Any, largest: Any, negated: Any, total: Any, e: Any, *, engine: str, together: int
) -> None:
    def exponentials(g: int, slot: Any) -> None:
        row = x.at[:, pl.ds(g, 1)]
        pltrn.tensor_reduce(largest.at[slot], row, op="maximum", axis=(1, 2))
        if engine == "vector":
            pltrn.tensor_copy(negated.at[slot], largest.at[slot])
            pltrn.exponential(
                e.at[slot], row, negated.at[slot], total.at[slot], reduce_cmd="reset_reduce"
            )
        else:
            pltrn.tensor_scalar(negated.at[slot], largest.at[slot], -1.0, op0="multiply")
            pltrn.activation_reduce(
                e.at[slot], row, total.at[slot], negated.at[slot], op="exp", reduce_op="add"
            )

    def scaled(g: int, slot: Any) -> None:
        """By the engine that has no exponentials to compute."""
        row = y.at[:, pl.ds(g, 1)]
        pltrn.reciprocal(total.at[slot], total.at[slot])
        if engine == "vector":
            pltrn.activation(row, e.at[slot], scale=total.at[slot], op="copy")
        else:
            pltrn.tensor_scalar(row, e.at[slot], total.at[slot], op0="multiply")

    in_steps(together, (0, exponentials), (1, scaled))


def _softmax_forward(engine: str, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = _softmax(engine, x)
    return y, y


def _softmax_backward(engine: str, y: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    """dx = y (dy - sum(y dy))."""
    rows, n = y.shape
    size = y.dtype.itemsize
    blocks = cut("softmax", rows, 2 * n * size, n * size, 0, 2 * 4 * n)
    scratch = [columns(n, jnp.float32, 2), columns(1, jnp.float32, blocks.together)]
    kernel = functools.partial(_backward, together=blocks.together)
    (dx,) = over_rows(kernel, "softmax_backward", [y, dy], [], [(n, y.dtype)], blocks, scratch)
    return (dx,)


def _backward(y: Any, dy: Any, dx: Any, product: Any, total: Any, *, together: int) -> None:
    for g in range(together + 1):
        if g < together:
            row = pl.ds(g, 1)
            pltrn.tensor_tensor(
                product.at[g % 2], y.at[:, row], dy.at[:, row], op="multiply", engine="gpsimd"
            )
            # What it writes is not needed: the sum is.
            pltrn.activation_reduce(
                dx.at[:, row], product.at[g % 2], total.at[g], op="copy", reduce_op="add"
            )
        if g > 0:
            row = pl.ds(g - 1, 1)
            pltrn.scalar_tensor_tensor(
                dx.at[:, row], dy.at[:, row], total.at[g - 1], y.at[:, row],
                op0="subtract", op1="multiply",
            )  # fmt: skip


_softmax.defvjp(_softmax_forward, _softmax_backward)


def _entries() -> Iterator[tuple[str, Entry]]:
    for dtype in ("bfloat16", "float32"):
        x = jax.ShapeDtypeStruct((16_384, 4_096), dtype)
        scalar = functools.partial(softmax, exponentials="scalar")
        yield f"softmax {dtype} 16384x4096", Entry(softmax, (x,), "hbm", ("trn3",))
        yield f"softmax by ScalarE {dtype} 16384x4096", Entry(scalar, (x,), "hbm")
        back = functools.partial(_softmax_backward, "scalar")
        yield f"softmax derivative {dtype} 16384x4096", Entry(back, (x, x), "hbm")


CATALOGUE.update(_entries())
