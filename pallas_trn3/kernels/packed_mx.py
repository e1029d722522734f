"""MX operands as the tensor engine's tiles have them, packed once and used many times.

A word is four values of the contracted axis, k = 4 p to 4 p + 3 in partition p of a tile of 512;
the scales of a tile lie in four partitions of each of its quadrants (`numerics.hardware_layout`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jax_trn3.numerics import SCALE_DTYPE, MXArray, element_format
from jax_trn3.numerics.hardware_layout import MAX_PARTITIONS, QUADRANT, QUADRANT_SCALES, SLOTS

Side = Literal["lhs", "rhs"]

BLOCK = 32
"""Values that share a scale."""

_QUADRANTS = MAX_PARTITIONS // QUADRANT
_READ = ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn")
"""Formats that the tensor engine reads."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["words", "scales"],
    meta_fields=["side", "contracted"],
)
@dataclass(frozen=True)
class PackedMX:
    """An operand of `matmul` in MX, as `pack_mx` makes it."""

    words: Any
    """[K / 4, F, 4], K in whole quadrants."""

    scales: Any
    """uint8 [4, 4, tiles, F]: by quadrant, partition in it, tile of K."""

    side: Side
    """Whether it is the [M, K] or the [K, N] of a product; F is M or N."""

    contracted: int
    """K, as it was."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the array."""
        free = self.words.shape[-2]
        return (free, self.contracted) if self.side == "lhs" else (self.contracted, free)

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    @property
    def dtype(self) -> Any:
        """Of the elements."""
        return self.words.dtype


def pack_mx(x: MXArray, side: Side) -> PackedMX:
    """An MXArray as `matmul` wants it; for weights, which are packed once.

    **Arguments:**

    - `x`: [M, K] ("lhs") or [K, N] ("rhs") in blocks of 32 along K; MXFP8 or MXFP4.

    **Raises:** `ValueError` for other blocks, `TypeError` for another format.
    """
    axis = -1 if side == "lhs" else -2
    if x.ndim != 2 or x.axis - x.ndim * (x.axis >= 0) != axis or x.block_size != BLOCK:
        raise ValueError(
            f"an MXArray of shape {x.shape} in blocks of {x.block_size} along axis {x.axis}; as "
            f"{side} it is of two dimensions, in blocks of {BLOCK} along axis {axis}"
        )
    if x.format.dtype.name not in _READ:
        raise TypeError(f"{side} is {x.format.name}; the tensor engine reads {', '.join(_READ)}")
    data, scale = (x.data.T, x.scale.T) if side == "lhs" else (x.data, x.scale)
    k, free = data.shape
    codes = _padded(_bits(data), SLOTS * QUADRANT)
    words = codes.reshape(-1, SLOTS, free).transpose(0, 2, 1)
    scales = _padded(lax.bitcast_convert_type(scale, jnp.uint8), _QUADRANTS * QUADRANT_SCALES)
    by_tile = scales.reshape(-1, _QUADRANTS, QUADRANT_SCALES, free)
    return PackedMX(_of_bits(words, x.data.dtype), by_tile.transpose(1, 2, 0, 3), side, k)


def unpack_mx(packed: PackedMX) -> MXArray:
    """The MXArray that was packed."""
    k, free = packed.contracted, packed.words.shape[1]
    codes = _bits(packed.words).transpose(0, 2, 1).reshape(-1, free)[:k]
    scales = packed.scales.transpose(2, 0, 1, 3).reshape(-1, free)[: -(-k // BLOCK)]
    data = _of_bits(codes, packed.words.dtype)
    scale = lax.bitcast_convert_type(scales, SCALE_DTYPE)
    format = element_format(packed.words.dtype)
    if packed.side == "lhs":
        return MXArray(data.T, scale.T, format=format, axis=-1)
    return MXArray(data, scale, format=format, axis=-2)


def part_of(x: PackedMX, start: int, size: int) -> PackedMX:
    """`size` values of K from a whole tile on."""
    tile = SLOTS * MAX_PARTITIONS
    rows = -(-size // (SLOTS * QUADRANT)) * QUADRANT
    words = x.words[start // SLOTS : start // SLOTS + rows]
    scales = x.scales[:, :, start // tile : -(-(start + size) // tile)]
    return PackedMX(words, scales, x.side, size)


def with_one_more(x: PackedMX) -> PackedMX:
    """One row of F more, whatever it holds."""
    words = jnp.concatenate([x.words, x.words[:, -1:]], axis=1)
    scales = jnp.concatenate([x.scales, x.scales[..., -1:]], axis=-1)
    return PackedMX(words, scales, x.side, x.contracted)


def _padded(x: jax.Array, step: int) -> jax.Array:
    return jnp.pad(x, ((0, -x.shape[0] % step), (0, 0)))


def _bits(x: jax.Array) -> jax.Array:
    """What XLA:CPU pads without changing it: it can neither pad float4 nor keep all NaNs."""
    if x.dtype.itemsize == 1 and "float8" in x.dtype.name:
        return lax.bitcast_convert_type(x, jnp.uint8)
    return x.astype(jnp.float32)


def _of_bits(x: jax.Array, dtype: Any) -> jax.Array:
    return lax.bitcast_convert_type(x, dtype) if x.dtype == jnp.uint8 else x.astype(dtype)
