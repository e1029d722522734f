"""Matrix products: bfloat16, float16, float32, float8 (two rows at a time) and MX.

Columns of `y` stay in SBUF, as many as fit; groups of rows of `x` are transposed by the DMA engines
on their way to SBUF, one group ahead of the product. Four results of [128, 512] are summed in PSUM
over all of K while VectorE and ScalarE copy out the four before. MX products: `matmul_mx.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn
from jax_trn3.isa.dtypes import FP8
from jax_trn3.numerics import SCALE_DTYPE, MXArray, element_format

from .catalogue import CATALOGUE, Entry
from .loops import pieces, tiled, turn
from .matmul_mx import MX_FORMATS, Operand, mx_matmul, mx_matmul_reference
from .packed_mx import PackedMX, Side, pack_mx
from .results import alike, copied_out, result

Precision = Literal["default", "mxfp8", "mxfp8_e5m2"]

ROWS, COLUMNS = 128, 512
"""Of a result in PSUM: partitions, and float32 in one bank."""

_GROUP = 4
"""Results that are summed at the same time: half of PSUM's banks."""

_STATIONARY_BYTES = 64 * 1024
"""Of a partition, for two groups of rows of `x`."""

_MOVING_BYTES = 128 * 1024
"""Of a partition, for the columns of `y` that stay; the rest of SBUF (208 KiB on Trainium2) is for
results."""

_MOST_COLUMNS = 1024
"""Of `y`, for several groups of rows: pieces of 2 KiB are nearly as fast as longer ones, and the
first product waits for them."""

_FLOATS = ("bfloat16", "float16", "float32", *FP8)


def matmul(
    x: Operand,
    y: Operand,
    *,
    precision: Precision = "default",
    preferred_element_type: jax.typing.DTypeLike | None = None,
    scale_rule: str = "ocp",
) -> jax.Array:
    """`jnp.matmul(x, y)` on the tensor engine; any sizes.

    **Arguments:**

    - `x`: [..., M, K], bfloat16, float16, float32 or float8, or an MXArray with blocks along K.
    - `y`: [K, N], likewise. An MXArray is brought into the tensor engine's order at every call,
      which takes longer than the product; do it once, `pack_mx(weights, "rhs")`, and use that.
    - `precision`: "default" multiplies what the operands hold and sums in float32; two float8
      operands in the double-row mode. "mxfp8" (elements float8_e4m3fn) and "mxfp8_e5m2" quantize
      bfloat16 and float16 operands on the way, in blocks of 32 along K. With an MXArray it must
      be one of these if the other operand is to be quantized; MXFP4 comes only as MXArray
      (`quantize_mx` has no such output).
    - `preferred_element_type`: Of the result; as in `jnp.matmul`. bfloat16 for MX.
    - `scale_rule`: Of blocks quantized here, "ocp" or "neuron" (`pltrn.quantize_mx`).

    **Returns:** [..., M, N]. Derivatives with respect to `x` and `y` are such products themselves
    (in MX quantized along their contraction); an MXArray is a constant.

    **Raises:** `TypeError` for other dtypes; `ValueError` for shapes that do not match.
    """
    if x.ndim < 2 or y.ndim != 2 or x.shape[-1] != y.shape[0] or 0 in (*x.shape, *y.shape):
        raise ValueError(
            f"matmul of {x.shape} and {y.shape}; x is [..., M, K] and y [K, N], sizes >= 1"
        )
    if precision not in ("default", *MX_FORMATS):
        raise ValueError(f"precision={precision!r}; allowed: default, {', '.join(MX_FORMATS)}")
    x, y = alike(x, y)
    if precision in MX_FORMATS or _in_mx(x) or _in_mx(y):
        dtype = jnp.dtype(preferred_element_type or jnp.bfloat16)
        return mx_matmul(x, y, MX_FORMATS.get(precision), dtype, scale_rule)
    x, y, dtype = _promoted(x, y, preferred_element_type)
    flat = x.reshape(-1, x.shape[-1])
    return _matmul(flat, y, dtype).reshape(*x.shape[:-1], y.shape[1])


def matmul_reference(
    x: Operand,
    y: Operand,
    *,
    precision: Precision = "default",
    preferred_element_type: jax.typing.DTypeLike | None = None,
    scale_rule: str = "ocp",
) -> jax.Array:
    """What `matmul` computes, in plain JAX."""
    if precision in MX_FORMATS or _in_mx(x) or _in_mx(y):
        dtype = jnp.dtype(preferred_element_type or jnp.bfloat16)
        return mx_matmul_reference(x, y, MX_FORMATS.get(precision), dtype, scale_rule)
    x, y, dtype = _promoted(x, y, preferred_element_type)
    wide = (x.astype(jnp.float32), y.astype(jnp.float32))
    return jnp.matmul(*wide, precision=jax.lax.Precision.HIGHEST).astype(dtype)


def _in_mx(x: Any) -> bool:
    return isinstance(x, (MXArray, PackedMX))


def _promoted(x: Any, y: Any, preferred: Any) -> tuple[jax.Array, jax.Array, Any]:
    """Operands that one instruction takes, and the result's type."""
    names = (x.dtype.name, y.dtype.name)
    for side, name in zip("xy", names):
        if name not in _FLOATS:
            raise TypeError(f"{side} is {name}; allowed: {', '.join(_FLOATS)}")
    if not (set(names) <= set(FP8) and preferred is not None):
        dtype = jnp.result_type(x, y)
        x, y = x.astype(dtype), y.astype(dtype)
    return x, y, jnp.dtype(preferred or x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x: jax.Array, y: jax.Array, dtype: Any) -> jax.Array:
    """[M, K] @ [K, N], K cut where SBUF would not hold a group of rows."""
    most = longest(x.dtype)
    if x.shape[1] <= most:
        return products(x, [y], dtype)[0]
    parts = [
        products(x[:, start : start + size], [y[start : start + size]], np.dtype(np.float32))[0]
        for start, size in pieces(x.shape[1], most)
    ]
    return functools.reduce(jnp.add, parts).astype(dtype)


def _forward(x: jax.Array, y: jax.Array, dtype: Any) -> tuple[jax.Array, Any]:
    return _matmul(x, y, dtype), (x, y)


def _backward(dtype: Any, kept: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, y = kept
    inner = jnp.result_type(cotangent, jnp.bfloat16) if x.dtype.name in FP8 else cotangent.dtype
    cotangent = cotangent.astype(inner)
    return (
        matmul(cotangent, y.T.astype(inner), preferred_element_type=x.dtype),
        matmul(x.T.astype(inner), cotangent, preferred_element_type=y.dtype),
    )


_matmul.defvjp(_forward, _backward)


# ---- the kernel ----


@dataclass(frozen=True)
class _Cut:
    """How products are cut."""

    m: int
    k: int
    widths: tuple[int, ...]
    """Columns of each y."""

    pairs: int
    """Values of K side by side in a partition (2 for float8)."""

    rows: int
    """Of a group."""

    columns: int
    """Of y, that stay in SBUF."""

    @property
    def wide(self) -> int:
        """Columns of y that are multiplied at once: with a group's rows they make four results."""
        return min(self.columns, _GROUP // -(-self.rows // ROWS) * COLUMNS)

    @property
    def depth(self) -> int:
        """Of a tile along K."""
        return ROWS * self.pairs

    @property
    def tiles(self) -> int:
        """Along K."""
        return -(-self.k // self.depth)


def longest(dtype: Any) -> int:
    """The longest K of one kernel: two groups of 128 rows of `x` fit in SBUF."""
    pairs = 2 if dtype.name in FP8 else 1
    return _STATIONARY_BYTES // (2 * ROWS * pairs * dtype.itemsize) * ROWS * pairs


def _cut(m: int, k: int, widths: tuple[int, ...], dtype: Any) -> _Cut:
    pairs = 2 if dtype.name in FP8 else 1
    column_bytes = -(-k // (ROWS * pairs)) * pairs * dtype.itemsize
    fitting = _STATIONARY_BYTES // (2 * column_bytes)
    rows = min(m, ROWS * next(r for r in (4, 2, 1) if r * ROWS <= max(fitting, ROWS)))
    most = max(COLUMNS, _MOVING_BYTES // column_bytes // COLUMNS * COLUMNS)
    cut = _Cut(m, k, widths, pairs, rows, min(max(widths), most))
    # Of one group of rows columns are used once: the next ones come as soon as they are.
    columns = cut.wide if m <= rows else min(cut.columns, _MOST_COLUMNS)
    return replace(cut, columns=columns)


def products(
    x: jax.Array, ys: Sequence[jax.Array], dtype: Any, residual: jax.Array | None = None
) -> list[jax.Array]:
    """[M, K] @ [K, N] for each y, `residual` [M, N] (of the only y) added in float32. K is at most
    `longest`; operands have dtypes that one instruction takes."""
    pairs = 2 if x.dtype.name in FP8 else 1
    if odd := -x.shape[1] % pairs:
        x = jnp.pad(x, ((0, 0), (0, odd)))
        ys = [jnp.pad(y, ((0, odd), (0, 0))) for y in ys]
    (m, k), widths = x.shape, tuple(y.shape[1] for y in ys)
    cut = _cut(m, k, widths, x.dtype)
    columns = min(COLUMNS, cut.columns)
    hbm = pl.BlockSpec(memory_space=pltrn.HBM)
    added = () if residual is None else (residual,)
    staged = [pltrn.SBUF((_GROUP, ROWS, columns), part.dtype) for part in added]
    (outs,) = pl.pallas_call(
        functools.partial(_kernel, cut=cut),
        out_shape=([result(x, (m, n), dtype) for n in widths],),
        in_specs=[hbm, [hbm for _ in ys], [hbm for _ in added]],
        out_specs=([hbm for _ in ys],),
        scratch_shapes=[
            pltrn.SBUF((2, cut.tiles, ROWS, pairs, cut.rows), x.dtype),
            pltrn.SBUF((cut.tiles, ROWS, pairs, cut.columns), ys[0].dtype),
            pltrn.PSUM((2, _GROUP, ROWS, columns), jnp.float32),
            pltrn.SBUF((_GROUP, ROWS, columns), dtype),
            staged,
        ],
        compiler_params=pltrn.CompilerParams(),
        name=f"matmul_{x.dtype.name}",
    )(x, list(ys), list(added))
    return list(outs)


def _kernel(
    x: Any, ys: Any, added: Any, outs: Any, xt: Any, resident: Any, psum: Any, staged: Any,
    terms: Any, *, cut: _Cut,
) -> None:  # fmt: skip
    """x [M, K], ys [K, N], outs [M, N] in HBM. xt: by group in turn and tile along K,
    [depth, rows]. resident: by tile along K, [depth, columns]."""
    groups, panels = -(-cut.m // cut.rows), -(-cut.columns // cut.wide)

    def panel(y: Any, out: Any, first: int, p: Any, n0: Any, width: int) -> None:
        def load(tile: Any, k0: Any, depth: int) -> None:
            partitions = depth // cut.pairs
            for j in range(cut.pairs):
                here = resident.at[tile, pl.ds(0, partitions), j, pl.ds(0, width)]
                rows = pl.ds(k0 + j * partitions, partitions)
                pltrn.dma_copy(here, y.at[rows, pl.ds(n0, width)], engine="dma:sync")

        tiled(cut.k, cut.depth, load)
        number = (first + p) * groups
        tiled(cut.m, cut.rows, functools.partial(group, out, number, n0, width))

    def group(out: Any, first: Any, n0: Any, width: int, g: Any, m0: Any, rows: int) -> None:
        held, number = xt.at[turn(first + g, 2)], first + g

        def load(tile: Any, k0: Any, depth: int) -> None:
            partitions = depth // cut.pairs
            for j in range(cut.pairs):
                here = held.at[tile, pl.ds(0, partitions), j, pl.ds(0, rows)]
                columns = pl.ds(k0 + j * partitions, partitions)
                source = x.at[pl.ds(m0, rows), columns]
                pltrn.dma_transpose(here, source, engine="dma:gpsimd")

        tiled(cut.k, cut.depth, load)

        def results(n: Any, c0: Any, columns: int) -> None:
            bank = psum.at[turn(number * panels + n, 2)]
            blocks = [
                (row, column) for row in pieces(rows, ROWS) for column in pieces(columns, COLUMNS)
            ]

            def multiply(tile: Any, k0: Any, depth: int) -> None:
                partitions = pl.ds(0, depth // cut.pairs)
                pair = slice(None) if cut.pairs == 2 else 0
                for place, ((start, size), (c, width)) in enumerate(blocks):
                    pltrn.nc_matmul(
                        bank.at[place, pl.ds(0, size), pl.ds(0, width)],
                        held.at[tile, partitions, pair, pl.ds(start, size)],
                        resident.at[tile, partitions, pair, pl.ds(c0 + c, width)],
                        accumulate=tile > 0,
                        perf_mode="double_row" if cut.pairs == 2 else "none",
                    )

            tiled(cut.k, cut.depth, multiply)
            for place, ((start, size), (c, width)) in enumerate(blocks):
                tile = (place, pl.ds(0, size), pl.ds(0, width))
                far = (pl.ds(m0 + start, size), pl.ds(n0 + c0 + c, width))
                if added:
                    term = terms[0].at[tile]
                    pltrn.dma_copy(term, added[0].at[far], engine="dma:gpsimd")
                    pltrn.tensor_tensor(staged.at[tile], bank.at[tile], term, op="add")
                else:
                    copied_out(staged.at[tile], bank.at[tile], place)
                pltrn.dma_copy(out.at[far], staged.at[tile], engine="dma:sync")

        tiled(width, cut.wide, results)

    first = 0
    for y, out, n in zip(ys, outs, cut.widths):
        tiled(n, cut.columns, functools.partial(panel, y, out, first))
        first += -(-n // cut.columns)


# ---- what is measured ----


def _enter() -> None:
    side = 4096
    for name in ("bfloat16", "float8_e5m2"):
        operand = jax.ShapeDtypeStruct((side, side), name)
        product = functools.partial(matmul, preferred_element_type=jnp.bfloat16)
        CATALOGUE[f"matmul {name} {side}^3"] = Entry(product, (operand, operand))
    plain = jax.ShapeDtypeStruct((side, side), jnp.bfloat16)
    activations, weights = _shapes(side, "lhs", "mxfp8"), _shapes(side, "rhs", "mxfp8")
    mx = functools.partial(matmul, precision="mxfp8")
    for what, operands in {
        "mxfp8, quantized on the way": (plain, plain),
        "mxfp8, weights quantized before": (plain, weights),
        "mxfp8, both quantized before": (activations, weights),
        "mxfp4 weights, mxfp8 on the way": (plain, _shapes(side, "rhs", "mxfp4")),
    }.items():
        CATALOGUE[f"matmul {side}^3 {what}"] = Entry(mx, operands, chips=("trn3",))


def _shapes(side: int, which: Side, format: str) -> PackedMX:
    """Of a square operand in MX."""
    square, axis = [side, side], -1 if which == "lhs" else -2
    found = element_format(format)
    data = jax.ShapeDtypeStruct(tuple(square), found.storage_dtype)
    square[axis] //= 32
    scale = jax.ShapeDtypeStruct(tuple(square), SCALE_DTYPE)
    array = MXArray(data, scale, format=found, axis=axis)
    packed: PackedMX = jax.eval_shape(lambda x: pack_mx(x, which), array)
    return packed


_enter()
