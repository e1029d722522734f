"""Where NeuronCore-v4 keeps MX operands in SBUF: quads of elements, and the tile of their scales.

A contraction over K elements is spread over P = K / 4 partitions, four elements to a word (x4
type): element k = q * P + p lies in partition p, slot q. The 8 partitions from 8g on, with their
4 slots, share a scale (32 elements), so that a block of the hardware is not 32 neighbours along K.

Sources: AWS Neuron SDK 2.32, nki/guides/architecture/trainium3_arch.rst,
nki/deep-dives/mxfp-matmul.rst, nki.isa.quantize_mx.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .formats import SCALE_DTYPE

SLOTS = 4
"""Elements of one partition that lie in one word."""

GROUP_PARTITIONS = 8
"""Partitions that share a scale; with SLOTS elements each, a block of 32."""

QUADRANT = 32
"""Partitions of a quadrant of SBUF."""

QUADRANT_SCALES = QUADRANT // GROUP_PARTITIONS
"""Partitions of a quadrant that hold the scales of its 32 data partitions."""

SCALE_OFFSETS = (0, 4, 8, 12)
"""Where in each quadrant a tensor's scales may start: four tensors can share a scale tile."""

MAX_PARTITIONS = 128
"""Partitions of SBUF."""


def to_quads(x: jax.Array) -> jax.Array:
    """[4P, F], contracting dimension first -> SBUF tile [P, 4F] of interleaved quads.

    Element (q * P + p, f) goes to (p, 4 * f + q); P is a multiple of 32, at most 128.
    """
    k, f = _two_dimensions("x", x)
    partitions = k // SLOTS
    _check_partitions(partitions, k == partitions * SLOTS, f"x of shape {x.shape}")
    return x.reshape(SLOTS, partitions, f).transpose(1, 2, 0).reshape(partitions, f * SLOTS)


def from_quads(tile: jax.Array) -> jax.Array:
    """The inverse of `to_quads`: [P, 4F] -> [4P, F]."""
    partitions, f = _tile_shape(tile)
    return tile.reshape(partitions, f, SLOTS).transpose(2, 0, 1).reshape(SLOTS * partitions, f)


def quads_to_blocks(tile: jax.Array) -> jax.Array:
    """SBUF tile [P, 4F] -> [4P, F] in which each 32 neighbours of dimension 0 share a scale.

    So quantize(quads_to_blocks(tile), axis=0) has the scales [P / 8, F] of the hardware's groups.
    Row 32g + 4i + q holds partition 8g + i, slot q.
    """
    partitions, f = _tile_shape(tile)
    return tile.reshape(partitions, f, SLOTS).transpose(0, 2, 1).reshape(partitions * SLOTS, f)


def blocks_to_quads(blocks: jax.Array) -> jax.Array:
    """The inverse of `quads_to_blocks`: [4P, F] -> [P, 4F]."""
    k, f = _two_dimensions("blocks", blocks)
    partitions = k // SLOTS
    _check_partitions(partitions, k == partitions * SLOTS, f"blocks of shape {blocks.shape}")
    return blocks.reshape(partitions, SLOTS, f).transpose(0, 2, 1).reshape(partitions, f * SLOTS)


def pack_x4(tile: jax.Array) -> jax.Array:
    """[P, 4F] of an 8-bit dtype -> [P, F] uint32, slot 0 in the lowest byte.

    The order of the slots within the word is that of memory on a little-endian machine; the
    hardware's is not published.
    """
    partitions, f = _tile_shape(tile)
    if tile.dtype.itemsize != 1 or tile.dtype.name.startswith(("float4", "int4", "uint4")):
        raise TypeError(f"tile is {tile.dtype}; allowed are dtypes of 8 bits")
    return lax.bitcast_convert_type(tile.reshape(partitions, f, SLOTS), jnp.uint32)


def unpack_x4(words: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The inverse of `pack_x4`: [P, F] uint32 -> [P, 4F] of an 8-bit dtype."""
    partitions, f = _two_dimensions("words", words)
    if words.dtype != jnp.uint32:
        raise TypeError(f"words is {words.dtype}; allowed is uint32")
    return lax.bitcast_convert_type(words, dtype).reshape(partitions, f * SLOTS)


def scatter_scales(scales: jax.Array, offset: int = 0, into: jax.Array | None = None) -> jax.Array:
    """Contiguous scales [P / 8, F] -> scale tile [P, F], as the matrix engine reads them.

    Row 4Q + j goes to partition 32Q + offset + j; data partitions 32Q + 8j .. 32Q + 8j + 7 use it.
    (With P = 32 and offset 0 the instructions also take the contiguous [4, F].)

    Args:
      scales: [P / 8, F], P a multiple of 32 and at most 128; float8_e8m0fnu or uint8.
      offset: 0, 4, 8 or 12.
      into: a tile [P, F] that keeps what else is in it; None is a tile of zero bytes.
    """
    rows, f = _two_dimensions("scales", scales)
    partitions = rows * GROUP_PARTITIONS
    _check_partitions(partitions, True, f"scales of shape {scales.shape}")
    _check_offset(offset)
    if scales.dtype not in (SCALE_DTYPE, np.dtype(np.uint8)):
        raise TypeError(f"scales is {scales.dtype}; allowed are {SCALE_DTYPE} and uint8")
    if into is None:
        zeros = jnp.zeros((partitions, f), jnp.uint8)
        into = lax.bitcast_convert_type(zeros, scales.dtype)
    if into.shape != (partitions, f) or into.dtype != scales.dtype:
        raise ValueError(
            f"into is {into.dtype}{list(into.shape)}; "
            f"these scales need {scales.dtype}{[partitions, f]}"
        )
    quadrants = into.reshape(partitions // QUADRANT, QUADRANT, f)
    part = scales.reshape(partitions // QUADRANT, QUADRANT_SCALES, f)
    return lax.dynamic_update_slice(quadrants, part, (0, offset, 0)).reshape(partitions, f)


def gather_scales(tile: jax.Array, offset: int = 0) -> jax.Array:
    """The inverse of `scatter_scales`: [P, F] -> contiguous scales [P / 8, F]."""
    partitions, f = _two_dimensions("tile", tile)
    _check_partitions(partitions, True, f"tile of shape {tile.shape}")
    _check_offset(offset)
    quadrants = tile.reshape(partitions // QUADRANT, QUADRANT, f)
    part = quadrants[:, offset : offset + QUADRANT_SCALES]
    return part.reshape(partitions // GROUP_PARTITIONS, f)


def _two_dimensions(name: str, x: jax.Array) -> tuple[int, int]:
    if x.ndim != 2:
        raise ValueError(f"{name} has the shape {x.shape}; allowed are two dimensions")
    return x.shape[0], x.shape[1]


def _tile_shape(tile: jax.Array) -> tuple[int, int]:
    """P and F of a tile [P, 4F]."""
    partitions, free = _two_dimensions("tile", tile)
    _check_partitions(partitions, True, f"tile of shape {tile.shape}")
    if free % SLOTS:
        raise ValueError(f"tile of shape {tile.shape}; its free size must be a multiple of {SLOTS}")
    return partitions, free // SLOTS


def _check_partitions(partitions: int, whole: bool, what: str) -> None:
    if not whole or partitions % QUADRANT or not 0 < partitions <= MAX_PARTITIONS:
        raise ValueError(
            f"{what} needs {partitions}{'' if whole else ' and a fraction'} partitions; "
            f"allowed are multiples of {QUADRANT} up to {MAX_PARTITIONS}"
        )


def _check_offset(offset: int) -> None:
    if offset not in SCALE_OFFSETS:
        raise ValueError(f"offset {offset}; allowed are {SCALE_OFFSETS}")
