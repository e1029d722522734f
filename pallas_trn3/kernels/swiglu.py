"""A gated MLP in one kernel: silu(x @ gate) * (x @ up) @ down, weights streamed.

The hidden values never leave SBUF. They are computed transposed, hidden features in partitions:
weights are the stationary operand of the first two products, rows of `x` the moving one, and the
result is the stationary operand of the third as it lies. ScalarE takes silu out of PSUM, VectorE
multiplies with the other product.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn

from .catalogue import CATALOGUE, Entry
from .loops import pieces, tiled, turn
from .matmul import matmul
from .results import alike, copied_out, result

_SIDE, _COLUMNS = 128, 512
"""Partitions, and float32 in a bank of PSUM."""

_FEATURES = 256
"""Hidden features at a time: two results of each product, while two others are copied out."""

_ROW_BYTES = 152 * 1024
"""Of a partition, for the rows of `x` and their hidden values; the rest is for weights."""

_BUFFERS = 16
"""Tiles of weights in rotation."""


def swiglu(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    """`(silu(x @ gate) * (x @ up)) @ down`.

    **Arguments:**

    - `x`: [..., S, D], bfloat16 or float16.
    - `gate`, `up`: [D, F]. `down`: [F, E]. All of x's dtype.

    **Returns:** [..., S, E] of x's dtype; sums are float32, hidden values of x's dtype. Derivatives
    with respect to all four are made of `matmul`s.

    **Raises:** `TypeError` for other dtypes; `ValueError` for shapes that do not match, or D and F
    of which not even 128 rows fit in SBUF.
    """
    names = {array.dtype.name for array in (x, gate, up, down)}
    if len(names) > 1 or not names <= {"bfloat16", "float16"}:
        raise TypeError(
            f"swiglu of {', '.join(sorted(names))}; all operands are bfloat16, or all float16"
        )
    shaped = gate.ndim == down.ndim == 2 and gate.shape == up.shape and x.ndim >= 2
    if not shaped or (x.shape[-1], gate.shape[1]) != (gate.shape[0], down.shape[0]):
        raise ValueError(
            f"x {x.shape}, gate {gate.shape}, up {up.shape}, down {down.shape}; they are "
            "[..., S, D], [D, F], [D, F], [F, E]"
        )
    x, gate, up, down = alike(x, gate, up, down)
    flat = x.reshape(-1, x.shape[-1])
    return _swiglu(flat, gate, up, down).reshape(*x.shape[:-1], down.shape[1])


def swiglu_reference(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    """The same in plain JAX."""
    product = functools.partial(
        jnp.matmul, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    wide = [array.astype(jnp.float32) for array in (x, gate, up, down)]
    hidden = jax.nn.silu(product(wide[0], wide[1])) * product(wide[0], wide[2])
    rounded = hidden.astype(x.dtype).astype(jnp.float32)
    return product(rounded, wide[3]).astype(x.dtype)


@jax.custom_vjp
def _swiglu(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    (m, d), f, e = x.shape, gate.shape[1], down.shape[1]
    tiles = -(-d // _SIDE) + -(-f // _SIDE)
    fitting = _ROW_BYTES // (tiles * x.dtype.itemsize)
    rows = next((count for count in (512, 256, 128) if count <= fitting), None)
    if rows is None:
        raise ValueError(
            f"swiglu of D={d} and F={f}: SBUF holds {fitting} rows of them, 128 are needed; "
            "split F and add up the results"
        )
    cut = _Cut(m, d, f, e, min(rows, m))
    hbm = pl.BlockSpec(memory_space=pltrn.HBM)
    width, columns = min(_FEATURES, f), min(_COLUMNS, e)
    return pl.pallas_call(
        functools.partial(_kernel, cut=cut),
        out_shape=result(x, (m, e), x.dtype),
        in_specs=[hbm] * 4,
        out_specs=hbm,
        scratch_shapes=[
            pltrn.SBUF((-(-d // _SIDE), _SIDE, cut.rows), x.dtype),
            pltrn.SBUF((-(-f // _SIDE), _SIDE, cut.rows), x.dtype),
            pltrn.SBUF((_BUFFERS, _SIDE, width), x.dtype),
            pltrn.SBUF((_BUFFERS, _SIDE, width), x.dtype),
            pltrn.SBUF((_BUFFERS, _SIDE, columns), x.dtype),
            pltrn.PSUM((2, 4, _SIDE, _COLUMNS), jnp.float32),
            pltrn.SBUF((2, _SIDE, cut.rows), jnp.float32),
            pltrn.SBUF((4, _SIDE, columns), x.dtype),
        ],
        compiler_params=pltrn.CompilerParams(),
        name="swiglu",
    )(x, gate, up, down)


def _forward(*operands: jax.Array) -> tuple[jax.Array, Any]:
    return _swiglu(*operands), operands


def _backward(kept: Any, cotangent: jax.Array) -> Any:
    """Hidden values are computed again, so that they need not be kept."""
    x, gate, up, down = kept
    wide = functools.partial(matmul, preferred_element_type=jnp.float32)
    hidden, slope = jax.vjp(lambda g, u: jax.nn.silu(g) * u, wide(x, gate), wide(x, up))
    moved = [move.astype(x.dtype) for move in slope(wide(cotangent, down.T))]
    dx = wide(moved[0], gate.T) + wide(moved[1], up.T)
    return (
        dx.astype(x.dtype),
        matmul(x.T, moved[0]),
        matmul(x.T, moved[1]),
        matmul(hidden.astype(x.dtype).T, cotangent),
    )


_swiglu.defvjp(_forward, _backward)


@dataclass(frozen=True)
class _Cut:
    """Sizes, and the rows of a group."""

    m: int
    d: int
    f: int
    e: int
    rows: int


def _kernel(
    x: Any, gate: Any, up: Any, down: Any, out: Any, xt: Any, hidden: Any, gates: Any, ups: Any,
    downs: Any, psum: Any, activated: Any, staged: Any, *, cut: _Cut,
) -> None:  # fmt: skip
    """xt, hidden: by 128 features, [features, rows]. gates, ups, downs: weights in rotation."""
    depth, blocks = -(-cut.d // _SIDE), -(-cut.f // _FEATURES)
    tiles, wide = -(-cut.f // _SIDE), -(-cut.e // _COLUMNS)

    def group(g: Any, m0: Any, rows: int) -> None:
        def load(i: Any, k0: Any, size: int) -> None:
            here = xt.at[i, pl.ds(0, size), pl.ds(0, rows)]
            pltrn.dma_transpose(here, x.at[pl.ds(m0, rows), pl.ds(k0, size)], engine="dma:gpsimd")

        tiled(cut.d, _SIDE, load)
        tiled(cut.f, _FEATURES, functools.partial(features, g, rows))
        tiled(cut.e, _COLUMNS, functools.partial(results, g, m0, rows))

    def features(g: Any, rows: int, b: Any, f0: Any, width: int) -> None:
        """Hidden values of some features, transposed."""
        bank = psum.at[turn(g * blocks + b, 2)]
        parts = pieces(width, _SIDE)

        def multiply(i: Any, k0: Any, size: int) -> None:
            slot = turn((g * blocks + b) * depth + i, _BUFFERS)
            place = (pl.ds(k0, size), pl.ds(f0, width))
            near = [held.at[slot, pl.ds(0, size), pl.ds(0, width)] for held in (gates, ups)]
            for ref, far, queue in zip(near, (gate, up), ("dma:sync", "dma:gpsimd")):
                pltrn.dma_copy(ref, far.at[place], engine=queue)
            moving = xt.at[i, pl.ds(0, size), pl.ds(0, rows)]
            for part, (start, length) in enumerate(parts):
                for which, ref in enumerate(near):
                    pltrn.nc_matmul(
                        bank.at[2 * part + which, pl.ds(0, length), pl.ds(0, rows)],
                        ref.at[:, pl.ds(start, length)],
                        moving,
                        accumulate=i > 0,
                    )

        tiled(cut.d, _SIDE, multiply)
        for part, (_, length) in enumerate(parts):
            whole = (pl.ds(0, length), pl.ds(0, rows))
            silu = activated.at[part, *whole]
            pltrn.activation(silu, bank.at[2 * part, *whole], op="silu")
            pltrn.tensor_tensor(
                hidden.at[b * (_FEATURES // _SIDE) + part, *whole],
                silu,
                bank.at[2 * part + 1, *whole],
                op="multiply",
            )

    def results(g: Any, m0: Any, rows: int, n: Any, e0: Any, columns: int) -> None:
        bank = psum.at[turn(g * wide + n, 2)]
        parts = pieces(rows, _SIDE)

        def multiply(i: Any, f0: Any, size: int) -> None:
            slot = turn((g * wide + n) * tiles + i, _BUFFERS)
            weights = downs.at[slot, pl.ds(0, size), pl.ds(0, columns)]
            pltrn.dma_copy(weights, down.at[pl.ds(f0, size), pl.ds(e0, columns)], engine="dma:sync")
            for row, (start, length) in enumerate(parts):
                pltrn.nc_matmul(
                    bank.at[row, pl.ds(0, length), pl.ds(0, columns)],
                    hidden.at[i, pl.ds(0, size), pl.ds(start, length)],
                    weights,
                    accumulate=i > 0,
                )

        tiled(cut.f, _SIDE, multiply)
        for row, (start, length) in enumerate(parts):
            tile = (pl.ds(0, length), pl.ds(0, columns))
            copied_out(staged.at[row, *tile], bank.at[row, *tile], row)
            place = out.at[pl.ds(m0 + start, length), pl.ds(e0, columns)]
            pltrn.dma_copy(place, staged.at[row, *tile], engine="dma:gpsimd")

    tiled(cut.m, cut.rows, group)


def _enter() -> None:
    shapes = ((4096, 4096), (4096, 14336), (4096, 14336), (14336, 4096))
    operands = tuple(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)
    CATALOGUE["swiglu bfloat16 4096 tokens, 4096 to 14336"] = Entry(swiglu, operands)


_enter()
