"""MXArray: an array in an MX format, as JAX sees it a pytree of its elements and its scales."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .formats import BLOCK_SIZE, ElementFormat
from .quantize import dequantize


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["data", "scale"],
    meta_fields=["format", "axis", "block_size"],
)
@dataclass(frozen=True, repr=False)
class MXArray:
    """Elements and shared scales; the value of an element is its block's scale times itself.

    Leaves may be anything that stands for an array (ShapeDtypeStruct, a sharding, None): nothing
    is checked when one is made.
    """

    data: Any
    """Elements, format.storage_dtype, of the array's shape."""

    scale: Any
    """float8_e8m0fnu, of the same shape but for ceil(n / block_size) along the axis."""

    format: ElementFormat = field(kw_only=True)
    """The elements' format."""

    axis: int = field(default=-1, kw_only=True)
    """The dimension cut into blocks, negative: counted from the end, so that vmap and scan may
    take away leading dimensions."""

    block_size: int = field(default=BLOCK_SIZE, kw_only=True)
    """Elements that share a scale."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array, which is that of `data`."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.data.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The elements' dtype, e.g. float8_e4m3fn (also of float6, which is stored as uint8)."""
        return self.format.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.data.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of elements and scales as JAX stores them (a float4 or float6 takes a byte)."""
        return self.data.nbytes + self.scale.nbytes

    def dequantize(self, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
        """The values, as float32 (exact), bfloat16 or float16."""
        return dequantize(self.data, self.scale, self.axis, self.format, self.block_size, dtype)

    def transpose(self, permutation: Sequence[int]) -> "MXArray":
        """The dimensions permuted as in jnp.transpose; blocks stay blocks."""
        order = [p % self.ndim for p in permutation]
        axis = order.index(self.axis % self.ndim) - self.ndim
        data, scale = jnp.transpose(self.data, order), jnp.transpose(self.scale, order)
        return MXArray(data, scale, format=self.format, axis=axis, block_size=self.block_size)

    def __repr__(self) -> str:
        shape = getattr(self.data, "shape", None)
        what = f"shape={shape}" if shape is not None else f"data={self.data}, scale={self.scale}"
        return (
            f"MXArray({self.format.name}, {what}, axis={self.axis}, block_size={self.block_size})"
        )
