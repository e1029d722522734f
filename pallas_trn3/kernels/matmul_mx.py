"""Products in MXFP8 and MXFP4 on NeuronCore-v4: quantized on the way, or before.

A tile of K is 512 long: 128 partitions of quads, element k in partition k // 4, slot k % 4, so that
the 8 partitions of a scale are 32 neighbours along K, a block of an MXArray. Columns of `y` stay in
SBUF in MX; the first group of rows of `x` is multiplied with them as they come. A plain `x` is
transposed by the DMA engines into quads; of a plain `y` all engines but the tensor engine bring
rows together. VectorE quantizes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn
from jax_trn3.numerics import MXArray, dequantize
from jax_trn3.numerics.hardware_layout import QUADRANT, QUADRANT_SCALES, SLOTS
from jax_trn3.ops import mx_dot_general

from .loops import loaded_ahead, pieces, repeated, tiled, turn
from .packed_mx import PackedMX, Side, pack_mx, part_of, unpack_mx, with_one_more
from .results import copied_out, result

MX_FORMATS = {"mxfp8": "float8_e4m3fn", "mxfp8_e5m2": "float8_e5m2"}
"""Formats in which VectorE quantizes, by the name of the precision."""

ROWS, COLUMNS = 128, 512
_GROUP = 4
_WORD_BYTES = 5
"""Of four values with their scale, in a tile of scales as long as the data's."""

_STATIONARY_BYTES, _MOVING_BYTES = 40 * 1024, 160 * 1024
"""Of a partition, for two groups of rows of `x` and for the columns of `y`; the rest of 240 KiB is
for what is about to be quantized, and for results."""

_RAW = 3
"""Tiles of a plain `x` on their way."""

_BROUGHT_TOGETHER = ("vector", "scalar", "vector", "scalar")
"""Who copies the rows of each slot of a plain `y` into quads."""


Operand: TypeAlias = Any
"""A jax.Array, an MXArray or a PackedMX."""


def mx_matmul(x: Operand, y: Operand, format: str | None, dtype: Any, scale_rule: str) -> jax.Array:
    """`matmul` of [..., M, K] and [K, N] where an operand is, or is to be, in MX.

    **Arguments:**

    - `format`: Of what is quantized here, a value of `MX_FORMATS`; None: nothing is.

    **Raises:** `TypeError` and `ValueError` as `matmul` says.
    """
    if scale_rule not in ("ocp", "neuron"):
        raise ValueError(f"scale_rule={scale_rule!r}; VectorE quantizes by 'ocp' or 'neuron'")
    left, right = _packed(x, "lhs", format), _packed(y, "rhs", format)
    product = _mx_matmul(left, right, format, np.dtype(dtype), scale_rule)
    return product.reshape(*x.shape[:-1], y.shape[1])


def mx_matmul_reference(
    x: Operand, y: Operand, format: str | None, dtype: Any, scale_rule: str
) -> jax.Array:
    """The same as `jax_trn3.ops.mx_dot_general` has it."""
    numbers = (((x.ndim - 1,), (0,)), ((), ()))
    left, right = (unpack_mx(z) if isinstance(z, PackedMX) else z for z in (x, y))
    return mx_dot_general(
        left, right, numbers, None, jnp.float32, lhs_dtype=format, rhs_dtype=format,
        scale_rule=scale_rule,
    ).astype(dtype)  # fmt: skip


def _packed(x: Any, side: Side, format: str | None) -> Any:
    """An operand as the kernel takes it, of two dimensions."""
    if isinstance(x, PackedMX):
        if x.side != side:
            raise ValueError(f"the {side} of this product was packed as {x.side}")
        return x
    if isinstance(x, MXArray):
        if side == "lhs" and x.ndim > 2:
            parts = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (x.data, x.scale))
            own = x.axis - x.ndim * (x.axis >= 0)
            x = MXArray(*parts, format=x.format, axis=own, block_size=x.block_size)
        return pack_mx(x, side)
    if format is None:
        raise ValueError(f"the {side} is no MXArray; precision says how to quantize it")
    if x.dtype.name not in ("bfloat16", "float16"):
        raise TypeError(f"the {side} is {x.dtype}; VectorE quantizes bfloat16, float16: cast it")
    return x.reshape(-1, x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _mx_matmul(x: Any, y: Any, format: str | None, dtype: Any, scale_rule: str) -> jax.Array:
    """[M, K] @ [K, N], K cut where SBUF would not hold a group of rows."""
    most = _STATIONARY_BYTES // (2 * ROWS * _WORD_BYTES) * ROWS * SLOTS
    if x.shape[1] <= most:
        return _product(x, y, format, dtype, scale_rule)
    parts = [
        _product(
            _part(x, 1, start, size), _part(y, 0, start, size), format, jnp.float32, scale_rule
        )
        for start, size in pieces(x.shape[1], most)
    ]
    return functools.reduce(jnp.add, parts).astype(dtype)


def _part(x: Any, axis: int, start: int, size: int) -> Any:
    if isinstance(x, PackedMX):
        return part_of(x, start, size)
    return lax.slice_in_dim(x, start, start + size, axis=axis)


def _forward(x: Any, y: Any, format: Any, dtype: Any, scale_rule: str) -> tuple[jax.Array, Any]:
    return _mx_matmul(x, y, format, dtype, scale_rule), (x, y)


def _backward(format: Any, dtype: Any, scale_rule: str, kept: Any, cotangent: Any) -> Any:
    """Each gradient is quantized along what it contracts; what was packed is a constant."""
    x, y = kept
    grad = cotangent.astype(jnp.bfloat16)
    constant = [isinstance(z, PackedMX) for z in kept]
    left, right = (_values(z) if isinstance(z, PackedMX) else z for z in kept)
    dx: Any = jax.tree.map(jnp.zeros_like, x)
    dy: Any = jax.tree.map(jnp.zeros_like, y)
    if not constant[0]:
        dx = mx_matmul(grad, right.T, format, x.dtype, scale_rule)
    if not constant[1]:
        dy = mx_matmul(left.T, grad, format, y.dtype, scale_rule)
    return dx, dy


def _values(x: PackedMX) -> jax.Array:
    array = unpack_mx(x)
    return dequantize(array.data, array.scale, array.axis).astype(jnp.bfloat16)


_mx_matmul.defvjp(_forward, _backward)


# ---- operands as the kernel takes them ----


def _operand(x: Any, k_axis: int) -> tuple[jax.Array, ...]:
    """Plain: K in whole quadrants. Packed: words and scales."""
    if isinstance(x, PackedMX):
        return x.words, x.scales
    whole = [(0, 0), (0, 0)]
    whole[k_axis] = (0, -x.shape[k_axis] % (SLOTS * QUADRANT))
    return (jnp.pad(x, whole),)


@dataclass(frozen=True)
class _Cut:
    """How a product is cut."""

    m: int
    partitions: int
    """Of all of K: a fourth of it."""

    n: int
    rows: int
    """Of a group."""

    columns: int
    """Of y, that stay in SBUF."""

    scale_rule: str

    @property
    def tiles(self) -> int:
        """Along K."""
        return -(-self.partitions // ROWS)


def _cut(m: int, partitions: int, n: int, scale_rule: str) -> _Cut:
    tiles = -(-partitions // ROWS)
    fitting = _STATIONARY_BYTES // (2 * tiles * _WORD_BYTES * ROWS)
    rows = ROWS * next(count for count in (4, 2, 1) if count <= max(fitting, 1))
    columns = _MOVING_BYTES // (tiles * _WORD_BYTES) // COLUMNS * COLUMNS
    return _Cut(m, partitions, n, min(rows, m), min(n, max(COLUMNS, columns)), scale_rule)


def _product(x: Any, y: Any, format: str | None, dtype: Any, scale_rule: str) -> jax.Array:
    m, n = x.shape[0], y.shape[1]
    odd = m % 2  # the stationary operand's columns come in pairs
    if odd:
        x = with_one_more(x) if isinstance(x, PackedMX) else jnp.pad(x, ((0, 1), (0, 0)))
    left, right = _operand(x, 1), _operand(y, 0)
    if not isinstance(x, PackedMX):
        left = (left[0].reshape(m + odd, -1, SLOTS),)
    partitions = right[0].shape[0] // (1 if isinstance(y, PackedMX) else SLOTS)
    cut = _cut(m + odd, partitions, n, scale_rule)
    held = [side[0].dtype if len(side) == 2 else np.dtype(format) for side in (left, right)]
    panels, columns = -(-cut.columns // COLUMNS), min(COLUMNS, n)
    plain = [side[0].dtype for side in (left, right)]
    scratch = (
        pltrn.SBUF((2, cut.tiles, ROWS, cut.rows, SLOTS), held[0]),
        pltrn.SBUF(_scales_shape(left, 2, cut.tiles, cut.rows), jnp.uint8),
        pltrn.SBUF((panels, cut.tiles, ROWS, columns, SLOTS), held[1]),
        pltrn.SBUF(_scales_shape(right, panels, cut.tiles, columns), jnp.uint8),
        pltrn.PSUM((2, _GROUP, ROWS, columns), jnp.float32),
        pltrn.SBUF((_GROUP, ROWS, columns), dtype),
        (pltrn.SBUF((_RAW, ROWS, cut.rows, SLOTS), plain[0]),) if len(left) == 1 else (),
        (
            pltrn.SBUF((2, ROWS, SLOTS, columns), plain[1]),
            pltrn.SBUF((2, ROWS, columns, SLOTS), plain[1]),
        )
        if len(right) == 1
        else (),
    )
    hbm = pl.BlockSpec(memory_space=pltrn.HBM)
    out = pl.pallas_call(
        functools.partial(_kernel, cut=cut),
        out_shape=result(left[0], (m + odd, n), dtype),
        in_specs=[tuple(hbm for _ in left), tuple(hbm for _ in right)],
        out_specs=hbm,
        scratch_shapes=scratch,
        compiler_params=pltrn.CompilerParams(),
        name="matmul_mx",
    )(left, right)
    return out[:m] if odd else out


def _scales_shape(side: Any, slots: int, tiles: int, columns: int) -> tuple[int, ...]:
    """Scales come for all of K at once, or are made for one tile at a time."""
    return (slots, ROWS, tiles, columns) if len(side) == 2 else (slots, tiles, ROWS, columns)


# ---- the kernel ----


def _kernel(
    x: Any, y: Any, out: Any, xq: Any, xs: Any, yq: Any, ys: Any, psum: Any, staged: Any,
    x_plain: Any, y_plain: Any, *, cut: _Cut,
) -> None:  # fmt: skip
    """x, y: one Ref, plain, or data and scales, in HBM. xq, xs: MX by group in turn and tile along
    K; yq, ys: by columns and tile along K. x_plain, y_plain: what is about to be quantized."""
    groups = -(-cut.m // cut.rows)
    along_k = functools.partial(tiled, cut.partitions, ROWS)

    def load_x(first: Any, g: Any, m0: Any, rows: int) -> None:
        number = first + g
        slot, width = turn(number, 2), pl.ds(0, rows)
        if not x_plain:
            # At first ScalarE has nothing else to do; later its queue waits for results.
            queue = "dma:scalar" if isinstance(g, int) and g == 0 else "dma:gpsimd"
            _load_scales(xs.at[slot], x[1], pl.ds(m0, rows), width, queue)

        def tile(i: Any, p0: Any, partitions: int) -> None:
            part = pl.ds(0, partitions)
            near = xq.at[slot, i, part, width]
            if not x_plain:
                far = x[0].at[pl.ds(p0, partitions), pl.ds(m0, rows)]
                pltrn.dma_copy(near, far, engine="dma:gpsimd")
                return
            raw = x_plain[0].at[turn(number * cut.tiles + i, _RAW), part, width]
            for q in range(SLOTS):
                source = x[0].at[pl.ds(m0, rows), pl.ds(p0, partitions), q]
                queue = "dma:gpsimd" if q % 2 else "dma:scalar"
                pltrn.dma_transpose(raw.at[:, :, q], source, engine=queue)
            pltrn.quantize_mx(near, raw, xs.at[slot, i, part, width], scale_rule=cut.scale_rule)

        along_k(tile)

    def load_y(n0: Any, number: Any, n: Any, c0: Any, columns: int) -> None:
        width, place = pl.ds(0, columns), pl.ds(n0 + c0, columns)
        if not y_plain:
            _load_scales(ys.at[n], y[1], place, width, "dma:sync")

        def tile(i: Any, p0: Any, partitions: int) -> None:
            part = pl.ds(0, partitions)
            near = yq.at[n, i, part, width]
            if not y_plain:
                pltrn.dma_copy(near, y[0].at[pl.ds(p0, partitions), place], engine="dma:sync")
                return
            slot = turn((number + n) * cut.tiles + i, 2)
            raw, quads = (ref.at[slot, part] for ref in y_plain)
            rows = pl.ds(p0 * SLOTS, partitions * SLOTS)
            pltrn.dma_copy(raw.at[:, :, width], y[0].at[rows, place], engine="dma:sync")
            for q, engine in enumerate(_BROUGHT_TOGETHER):
                pltrn.tensor_copy(quads.at[:, width, q], raw.at[:, q, width], engine=engine)
            scales = ys.at[n, i, part, width]
            pltrn.quantize_mx(near, quads.at[:, width], scales, scale_rule=cut.scale_rule)

        along_k(tile)

    def results(
        n0: Any, count: Any, number: Any, m0: Any, rows: int, n: Any, c0: Any, columns: int
    ) -> None:
        """Of group `number` and the `n`-th columns; the `count`-th ones."""
        bank, slot = psum.at[turn(count, 2)], turn(number, 2)
        parts, width = pieces(rows, ROWS), pl.ds(0, columns)

        def multiply(i: Any, p0: Any, partitions: int) -> None:
            part = pl.ds(0, partitions)
            right_scales = ys.at[(n, i, part, width) if y_plain else (n, part, i, width)]
            for row, (start, size) in enumerate(parts):
                own = pl.ds(start, size)
                pltrn.nc_matmul_mx(
                    bank.at[row, pl.ds(0, size), width],
                    xq.at[slot, i, part, own],
                    yq.at[n, i, part, width],
                    xs.at[(slot, i, part, own) if x_plain else (slot, part, i, own)],
                    right_scales,
                    accumulate=i > 0,
                )

        along_k(multiply)
        for row, (start, size) in enumerate(parts):
            tile = (row, pl.ds(0, size), width)
            # Where VectorE quantizes, what it waits for must not keep results in PSUM.
            copied_out(staged.at[tile], bank.at[tile], 0 if x_plain or y_plain else row)
            place = out.at[pl.ds(m0 + start, size), pl.ds(n0 + c0, columns)]
            pltrn.dma_copy(place, staged.at[tile], engine="dma:scalar")

    panels = -(-cut.columns // COLUMNS)

    # Two groups share the columns as they come, so that loads keep up with products.
    lead = min(2, cut.m // cut.rows)
    rest = cut.m - lead * cut.rows

    def panel(p: Any, n0: Any, width: int) -> None:
        first = p * groups

        def load(g: Any, m0: Any, rows: int) -> None:
            load_x(first, g, m0, rows)

        def load_columns(n: Any, c0: Any, columns: int) -> None:
            load_y(n0, p * panels, n, c0, columns)
            if lead == 2 and isinstance(n, int) and n == 0:
                load(1, cut.rows, cut.rows)

        def multiply(g: Any, n: Any, c0: Any, columns: int) -> None:
            place = (first + g, g * cut.rows, cut.rows, n, c0, columns)
            results(n0, first * panels + n * lead + g, *place)

        def lead_columns(*columns: Any) -> None:
            repeated(0, lead, lambda g: multiply(g, *columns))

        def last_columns(*columns: Any) -> None:
            for g in range(lead - 1):
                multiply(g, *columns)
            if rest:
                load(lead, lead * cut.rows, min(cut.rows, rest))
            multiply(lead - 1, *columns)

        load(0, 0, cut.rows)
        loaded_ahead(width, COLUMNS, load_columns, lead_columns, last_columns)

        def group(g: Any, m0: Any, rows: int) -> None:
            number = first + lead + g

            def columns(n: Any, c0: Any, size: int) -> None:
                place = (number, lead * cut.rows + m0, rows, n, c0, size)
                results(n0, number * panels + n, *place)

            tiled(width, COLUMNS, columns)

        def load_next(g: Any, m0: Any, rows: int) -> None:
            load(lead + g, lead * cut.rows + m0, rows)

        if rest:
            loaded_ahead(rest, cut.rows, load_next, group, loaded=True)

    tiled(cut.n, cut.columns, panel)


def _load_scales(near: Any, far: Any, columns: Any, width: Any, queue: str) -> None:
    """Four partitions of each quadrant."""
    for quadrant in range(ROWS // QUADRANT):
        part = pl.ds(quadrant * QUADRANT, QUADRANT_SCALES)
        pltrn.dma_copy(near.at[part, :, width], far.at[quadrant, :, :, columns], engine=queue)
