"""RMS norm and layer norm that leave their result in an MX format: one pass over HBM.

VectorE takes scales from 8 partitions of 4 neighbours each (`quantize_mx`), and blocks of an
`MXArray` are 32 neighbours of a row: so rows become columns on their way, four transposes at a time
making quads. Quads go to HBM as the tensor engine reads them, the row's columns in partitions.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn
from jax_trn3.numerics import MXArray, element_format

from .catalogue import CATALOGUE, Entry
from .norms import (
    _check,
    _line,
    _triples,
    line_row,
    normal_row,
    rms_row,
    spread,
    spread_scratch,
)
from .results import alike, result
from .rows import PARTITIONS, as_rows, columns, cut, everywhere, in_steps

_QUAD = 4
_WIDE = PARTITIONS * _QUAD
"""Columns of a row that become the partitions of a tile."""

_LAST = 100
"""Partitions from a tensor's first scale to its last one: 4 in each quadrant."""


def rmsnorm_mx(
    x: jax.Array,
    weight: jax.Array,
    eps: float = 1e-6,
    dtype: Any = jnp.float8_e4m3fn,
    *,
    scale_rule: str = "ocp",
) -> MXArray:
    """`jax_trn3.quantize_mx(rmsnorm(x, weight, eps), -1, dtype, scale_rule=scale_rule)`.

    Bit for bit. Of a float32 x the result is rounded to bfloat16 before it is quantized, as
    `quantize_mx` of the hardware takes 16 bits. Not differentiable, as no `MXArray` is.

    **Arguments:**

    - `dtype`: float8_e4m3fn or float8_e5m2, what NeuronCore-v4 quantizes to.
    - `scale_rule`: "ocp" or "neuron".

    **Raises:** as `rmsnorm`, and `ValueError` for another format or rule.
    """
    _check("rmsnorm_mx", x, weight)
    return _as_mx(x, _quantized("rmsnorm_mx", as_rows(x), [weight], eps, dtype, scale_rule), dtype)


def layernorm_mx(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    eps: float = 1e-5,
    dtype: Any = jnp.float8_e4m3fn,
    *,
    scale_rule: str = "ocp",
) -> MXArray:
    """`jax_trn3.quantize_mx(layernorm(x, weight, bias, eps), -1, dtype, scale_rule=scale_rule)`.

    As `rmsnorm_mx` otherwise.
    """
    _check("layernorm_mx", x, weight, bias)
    lines = [weight, bias]
    return _as_mx(x, _quantized("layernorm_mx", as_rows(x), lines, eps, dtype, scale_rule), dtype)


def _as_mx(x: jax.Array, quantized: tuple[jax.Array, jax.Array], dtype: Any) -> MXArray:
    """Quads [chunk, partition, row, slot] and scales [chunk, group, row] as rows."""
    quads, scales = quantized
    rows, n = x.size // x.shape[-1], x.shape[-1]
    data = jnp.transpose(quads, (2, 0, 1, 3)).reshape(quads.shape[2], -1)[:rows, :n]
    scale = jnp.transpose(scales, (2, 0, 1)).reshape(scales.shape[2], -1)[:rows, : -(-n // 32)]
    return MXArray(
        data.reshape(x.shape),
        jax.lax.bitcast_convert_type(scale, jnp.float8_e8m0fnu).reshape(*x.shape[:-1], -1),
        format=element_format(dtype),
    )


def _quantized(
    name: str, x: jax.Array, lines: list[jax.Array], eps: float, dtype: Any, scale_rule: str
) -> tuple[jax.Array, jax.Array]:
    if element_format(dtype).dtype not in (jnp.float8_e4m3fn, jnp.float8_e5m2):
        raise ValueError(
            f"{name} to {element_format(dtype).name}; allowed: float8_e4m3fn, float8_e5m2"
        )
    if scale_rule not in ("ocp", "neuron"):
        raise ValueError(f"{name}: scale_rule={scale_rule!r}; allowed: 'ocp', 'neuron'")
    narrow = x.dtype if x.dtype.itemsize == 2 else jnp.dtype(jnp.bfloat16)
    x, *lines = alike(jnp.pad(x, ((0, -x.shape[0] % PARTITIONS), (0, 0))), *lines)
    rows, n = x.shape
    chunks, size = -(-n // _WIDE), x.dtype.itemsize
    shared = -(-chunks // _QUAD)
    # Held: a row's result twice, what becomes of it, and its scales.
    held = 2 * 2 * chunks * _WIDE + 2 * chunks * _WIDE + 2 * shared * PARTITIONS
    held += 2 * 4 * n if len(lines) > 1 else 0
    fixed = 4 * n * (1 if len(lines) == 1 else 0) + 4 * n * 2 * len(lines) + 8 * 2 * _WIDE
    # Neighbouring rows are in neighbouring partitions here: in HBM, a partition's are one run.
    blocks = cut(name, rows, n * size, 0, held, fixed, most=4)
    steps, across = rows // (PARTITIONS * blocks.together), PARTITIONS * blocks.together
    tiles = 2 * blocks.together
    scratch = {
        "work": columns(n, jnp.float32, tiles if len(lines) > 1 else 1),
        "small": pltrn.SBUF((tiles, 2, PARTITIONS, len(lines)), jnp.float32),
        "triples": columns(_triples(n), jnp.float32, 2),
        "y": columns(chunks * _WIDE, narrow, tiles),
        "turned": pltrn.PSUM((4, PARTITIONS, PARTITIONS, _QUAD), narrow),
        # As many as ScalarE fills while VectorE has a row to scale.
        "wide": columns(_WIDE, narrow, min(chunks, 8)),
        "packed": pltrn.SBUF((2, chunks, PARTITIONS, across, _QUAD), element_format(dtype).dtype),
        "scale": pltrn.SBUF((2, shared, PARTITIONS, across), jnp.uint8),
    }
    quads, scales = pl.pallas_call(
        functools.partial(_kernel, eps=float(eps), scale_rule=scale_rule, lines=len(lines)),
        grid=(steps + len(lines),),
        in_specs=[
            pl.BlockSpec(
                (blocks.together, PARTITIONS, n),
                lambda i: (jnp.minimum(i, steps - 1), 0, 0),
                pipeline_mode=pl.Buffered(blocks.inputs),
            )
        ]
        + [everywhere((1, n)) for _ in lines],
        out_specs=[pl.BlockSpec(memory_space=pltrn.HBM)] * 2,
        out_shape=[
            result(x, (chunks, PARTITIONS, rows, _QUAD), element_format(dtype).dtype),
            result(x, (shared, PARTITIONS, rows), jnp.uint8),
        ],
        scratch_shapes=[*spread_scratch(n, len(lines)), scratch],
        compiler_params=pltrn.CompilerParams(),
        name=name,
    )(x.reshape(-1, PARTITIONS, n), *map(_line, lines))
    return quads, _scales(scales, chunks)


def _kernel(x: Any, *refs: Any, eps: float, scale_rule: str, lines: int) -> None:
    given, (quads, scales, ones, product, everywhere, own) = refs[:lines], refs[lines:]
    n, together = x.shape[-1], x.shape[0]
    y, small, work = own["y"], own["small"], own["work"]
    spread(given, ones, product, everywhere)
    _filled(y, own["scale"], n)

    def normal(g: int, slot: Any) -> None:
        normal_row(work.at[slot], x.at[g], small.at[slot], own["triples"].at[g % 2], eps)

    def on_line(g: int, slot: Any) -> None:
        result = y.at[slot, :, pl.ds(0, n)]
        line_row(result, work.at[slot], everywhere.at[0], everywhere.at[1])

    def scaled(g: int, slot: Any) -> None:
        result = y.at[slot, :, pl.ds(0, n)]
        rms_row(result, x.at[g], everywhere.at[0], work.at[0], small.at[slot], eps)

    def quantized(g: int, slot: Any) -> None:
        step = pl.program_id(0) - lines  # the first stage's block
        place = lax.rem(step, 2)
        packed, scale = own["packed"].at[place], own["scale"].at[place]
        rows = pl.ds(g * PARTITIONS, PARTITIONS)
        for k in range(packed.shape[0]):
            wide = own["wide"].at[k % own["wide"].shape[0]]
            _turned(wide, y.at[slot], own["turned"].at[k % 4], k)
            first = pl.ds(_QUAD * (k % _QUAD), _LAST)
            scale_part = scale.at[k // _QUAD, first, rows]
            pltrn.quantize_mx(packed.at[k, :, rows], wide, scale_part, scale_rule=scale_rule)
        if g == together - 1:
            here = pl.ds(step * packed.shape[2], packed.shape[2])
            for k in range(packed.shape[0]):
                pltrn.dma_copy(quads.at[k, :, here], packed.at[k], engine=f"dma:sync.quads{k % 4}")
            for k in range(scale.shape[0]):
                pltrn.dma_copy(scales.at[k, :, here], scale.at[k], engine="dma:gpsimd")

    stages = [(0, scaled)] if lines == 1 else [(0, normal), (1, on_line)]
    in_steps(together, *stages, (lines, quantized))


def _filled(y: Any, scale: Any, n: int) -> None:
    """What is behind a row's end is 0, and takes no part in a scale; between scales, too."""

    @pl.when(pl.program_id(0) == 0)
    def _() -> None:
        for place in range(scale.shape[0]):
            for k in range(scale.shape[1]):
                pltrn.memset(scale.at[place, k], value=0)
        for slot in range(y.shape[0] if n < y.shape[-1] else 0):
            pltrn.memset(y.at[slot, :, pl.ds(n, y.shape[-1] - n)], value=0.0)


def _turned(wide: Any, y: Any, turned: Any, k: int) -> None:
    """Columns 512 k + 4 p + slot of row r go to partition p, place 4 r + slot."""
    for slot in range(_QUAD):
        quad = y.at[:, pl.ds(_WIDE * k + slot, PARTITIONS, _QUAD)]
        pltrn.nc_transpose(turned.at[:, :, pl.ds(slot, 1)], quad)
    pltrn.tensor_copy(wide, turned, engine="scalar")


def _scales(tiles: jax.Array, chunks: int) -> jax.Array:
    """Scales [chunk, group of 8 partitions, row] out of tiles that four chunks share."""
    shared, _, rows = tiles.shape
    parts = tiles.reshape(shared, 4, 32, rows)[:, :, :16].reshape(shared, 4, _QUAD, 4, rows)
    return jnp.swapaxes(parts, 1, 2).reshape(shared * _QUAD, 16, rows)[:chunks]


_X, _LINE = (
    jax.ShapeDtypeStruct((16_384, 4_096), jnp.bfloat16),
    jax.ShapeDtypeStruct((4_096,), "f4"),
)
CATALOGUE["rmsnorm to MXFP8 16384x4096"] = Entry(rmsnorm_mx, (_X, _LINE), "hbm", ("trn3",))
CATALOGUE["layernorm to MXFP8 16384x4096"] = Entry(
    layernorm_mx, (_X, _LINE, _LINE), "hbm", ("trn3",)
)
