"""Transposes: through the tensor engine and PSUM, or by the DMA engines on their way to SBUF."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn
from jax_trn3.isa.dtypes import PLAIN, as_bits, from_bits

from .catalogue import CATALOGUE, Entry
from .loops import pieces, tiled, turn
from .results import copied_out, result

Engine = Literal["tensor", "dma"]

_SIDE, _LENGTH = 128, 512
"""Of what the tensor engine transposes at once, and of what is moved at once."""

_LONG = 2048
"""Of rows that the DMA engines write back: pieces of 4 KiB and more."""

_ON_TENSOR = ("bfloat16", "float16", "float32")
"""Types that the tensor engine transposes into the same type."""


def transpose(x: jax.Array, *, engine: Engine = "dma") -> jax.Array:
    """`x.T`, bits as they are (of a NaN under "tensor", that it is one).

    **Arguments:**

    - `x`: [M, N]. "tensor": bfloat16, float16 or float32; "dma": any type of 8 to 32 bits that
      engines know.
    - `engine`: Who transposes. The tensor engine's results go through PSUM and are copied out by
      VectorE and ScalarE; the DMA engines need no other, but stand at a share of their throughput.

    **Returns:** [N, M].

    **Raises:** `TypeError` for another dtype, `ValueError` for another rank or engine.
    """
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"x has the shape {x.shape}; a transpose takes [M, N], sizes >= 1")
    allowed = {"tensor": _ON_TENSOR, "dma": PLAIN}
    if engine not in allowed:
        raise ValueError(f"engine={engine!r}; allowed: tensor, dma")
    if x.dtype.name.replace("bool", "bool_") not in allowed[engine]:
        raise TypeError(f"x is {x.dtype}; engine {engine} transposes {', '.join(allowed[engine])}")
    return _transpose(x, engine)


def transpose_reference(x: jax.Array, *, engine: Engine = "dma") -> jax.Array:
    """The same in plain JAX."""
    del engine
    return x.T


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _transpose(x: jax.Array, engine: Engine) -> jax.Array:
    if engine == "tensor":
        return _moved(x, engine)
    # XLA:CPU moves narrow floats by way of wider ones, which changes the bits of a NaN.
    return from_bits(_moved(as_bits(x), engine), x.dtype)


def _moved(x: jax.Array, engine: Engine) -> jax.Array:
    m, n = x.shape
    parts, height = _LENGTH // _SIDE, min(n, _SIDE)
    if engine == "tensor":
        kernel: Any = _by_tensor_engine
        rows = min(m, _LENGTH)
        scratch = [
            pltrn.SBUF((2, parts, height, rows), x.dtype),
            pltrn.SBUF((2, parts, min(m, _SIDE), min(n, _LENGTH)), x.dtype),
            pltrn.PSUM((2, parts, height, rows), x.dtype),
        ]
    else:
        kernel, rows = _by_dma, min(m, _LONG)
        scratch = [pltrn.SBUF((2, parts, height, rows), x.dtype)]
    return pl.pallas_call(
        functools.partial(kernel, m=m, n=n),
        out_shape=result(x, (n, m), x.dtype),
        in_specs=[pl.BlockSpec(memory_space=pltrn.HBM)],
        out_specs=pl.BlockSpec(memory_space=pltrn.HBM),
        scratch_shapes=scratch,
        compiler_params=pltrn.CompilerParams(),
        name=f"transpose_{engine}",
    )(x)


def _forward(x: jax.Array, engine: Engine) -> tuple[jax.Array, None]:
    return _transpose(x, engine), None


def _backward(engine: Engine, _: None, cotangent: jax.Array) -> tuple[jax.Array]:
    return (_transpose(cotangent, engine),)


_transpose.defvjp(_forward, _backward)


def _by_dma(x: Any, out: Any, staged: Any, *, m: int, n: int) -> None:
    """Columns of x become rows in SBUF, and go back as they are."""
    across = -(-n // _LENGTH)

    def block(i: Any, m0: Any, rows: int, j: Any, n0: Any, columns: int) -> None:
        for part, (start, size) in enumerate(pieces(columns, _SIDE)):
            tile = staged.at[turn(i * across + j, 2), part, pl.ds(0, size), pl.ds(0, rows)]
            pltrn.dma_transpose(tile, x.at[pl.ds(m0, rows), pl.ds(n0 + start, size)])
            place = out.at[pl.ds(n0 + start, size), pl.ds(m0, rows)]
            pltrn.dma_copy(place, tile, engine="dma:scalar")

    tiled(m, _LONG, lambda *rows: tiled(n, _LENGTH, functools.partial(block, *rows)))


def _by_tensor_engine(
    x: Any, out: Any, staged: Any, loaded: Any, psum: Any, *, m: int, n: int
) -> None:
    """A block of [512, 512] at a time: 16 transposes, their results side by side in 4 banks."""
    across = -(-n // _LENGTH)

    def block(i: Any, m0: Any, rows: int, j: Any, n0: Any, columns: int) -> None:
        here = turn(i * across + j, 2)
        for row, (start, size) in enumerate(pieces(rows, _SIDE)):
            tile = loaded.at[here, row, pl.ds(0, size), pl.ds(0, columns)]
            pltrn.dma_copy(tile, x.at[pl.ds(m0 + start, size), pl.ds(n0, columns)])
        for part, (first, height) in enumerate(pieces(columns, _SIDE)):
            for row, (start, size) in enumerate(pieces(rows, _SIDE)):
                pltrn.nc_transpose(
                    psum.at[here, part, pl.ds(0, height), pl.ds(start, size)],
                    loaded.at[here, row, pl.ds(0, size), pl.ds(first, height)],
                )
            tile = (here, part, pl.ds(0, height), pl.ds(0, rows))
            copied_out(staged.at[tile], psum.at[tile], part)
            place = out.at[pl.ds(n0 + first, height), pl.ds(m0, rows)]
            pltrn.dma_copy(place, staged.at[tile], engine="dma:scalar")

    tiled(m, _LENGTH, lambda *rows: tiled(n, _LENGTH, functools.partial(block, *rows)))


def _enter() -> None:
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)
    for engine in ("tensor", "dma"):
        entry = Entry(functools.partial(transpose, engine=engine), (x,), "hbm")
        CATALOGUE[f"transpose bfloat16 4096x4096, {engine}"] = entry


_enter()
