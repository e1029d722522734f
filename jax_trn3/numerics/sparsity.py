"""N:M structured sparsity: of every M neighbours along an axis, at most N are not zero.

The Tensor Engine of NeuronCore-v4 multiplies such an operand in packed form, N values and their
positions a block of M, along the contracting axis.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jax import lax

from .blocks import block_count, canonical_axis, merge_blocks, split_blocks

SPARSITY_PATTERNS: dict[str, tuple[int, int]] = {
    "4:16": (4, 16),
    "4:12": (4, 12),
    "4:8": (4, 8),
    "2:8": (2, 8),
    "2:4": (2, 4),
    "1:4": (1, 4),
    "1:2": (1, 2),
}
"""The patterns of the chip by name, as (N, M): neuron-core-v4.rst, AWS Neuron SDK 2.32."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "indices"],
    meta_fields=["pattern", "axis", "size"],
)
@dataclass(frozen=True, repr=False)
class NMSparse:
    """An array of which only N elements in every M along `axis` are kept: a pytree.

    `axis` counts from the end, so that vmap and scan may take leading dimensions away. The last
    block may be shorter than M; what is missing counts as zeros. `jax.grad` of a function of an
    NMSparse wants `allow_int=True`, or differentiate with respect to `values`.
    """

    values: jax.Array
    """Kept elements: blocks * N along `axis`, the other dimensions as in the dense array."""

    indices: jax.Array
    """uint8, of the shape of `values`: positions in the block, 0 to M - 1, ascending in a block.

    The hardware needs `index_bits` of the 8. A position beyond the block is no element.
    """

    pattern: str
    """One of SPARSITY_PATTERNS."""

    axis: int
    """The sparse axis, negative."""

    size: int
    """Elements along `axis` in the dense array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the dense array."""
        shape = list(self.values.shape)
        shape[self.axis] = self.size
        return tuple(shape)

    @property
    def ndim(self) -> int:
        """Dimensions of the dense array."""
        return self.values.ndim

    @property
    def dtype(self) -> Any:
        """The dtype of the elements."""
        return self.values.dtype

    @property
    def index_bits(self) -> int:
        """Bits that tell the positions in a block apart: 1 for M = 2, up to 4 for 12 and 16."""
        return (SPARSITY_PATTERNS[self.pattern][1] - 1).bit_length()

    def __repr__(self) -> str:
        where = f"pattern={self.pattern!r}, axis={self.axis}, size={self.size}"
        return f"NMSparse(values={_short(self.values)}, indices={_short(self.indices)}, {where})"


jax.export.register_pytree_node_serialization(
    NMSparse,
    serialized_name="jax_trn3.NMSparse",
    serialize_auxdata=lambda fields: json.dumps(fields).encode(),
    deserialize_auxdata=lambda data: tuple(json.loads(data)),
)


def _short(leaf: Any) -> str:
    """float32[8,64] for an array; a leaf may be anything while JAX handles the tree."""
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        return repr(leaf)
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def parse_pattern(pattern: str) -> tuple[int, int]:
    """(N, M) of a pattern such as "2:4".

    Raises:
      ValueError: the chip has no such pattern.
    """
    if pattern not in SPARSITY_PATTERNS:
        raise ValueError(
            f"unknown sparsity pattern {pattern!r}; allowed are {', '.join(SPARSITY_PATTERNS)}"
        )
    return SPARSITY_PATTERNS[pattern]


def prune_mask(x: jax.Array, pattern: str, axis: int = -1) -> jax.Array:
    """Which elements `prune` keeps: bool, of x's shape; see there."""
    x, axis = _checked(x, axis)
    n, m = parse_pattern(pattern)
    mask = _kept(split_blocks(_magnitudes(x), axis, m), axis, n)
    return merge_blocks(mask, axis, x.shape[axis])


def prune(x: jax.Array, pattern: str, axis: int = -1) -> jax.Array:
    """x with all but the N largest of every M elements along `axis` set to zero.

    The largest by magnitude; of equal ones the first. NaN is larger than infinity: it is kept, so
    that it is seen. A last block shorter than M keeps N, too. The gradient is masked as x is (for
    a straight-through one write `x + lax.stop_gradient(prune(x, pattern) - x)`).

    Args:
      x: array of real numbers, at least one dimension.
      pattern: "4:16", "4:12", "4:8", "2:8", "2:4", "1:4" or "1:2".
      axis: along which the blocks lie.

    Raises:
      ValueError: another pattern, or no such axis.
      TypeError: x is complex or boolean.
    """
    x = jnp.asarray(x)
    return jnp.where(prune_mask(x, pattern, axis), x, jnp.zeros((), x.dtype))


def pack_sparse(x: jax.Array, pattern: str, axis: int = -1) -> NMSparse:
    """`prune(x, pattern, axis)` in packed form; arguments and errors as there.

    If x is sparse already, nothing is lost. The gradient with respect to x is that of the values
    at the kept positions, and zero elsewhere.
    """
    x, axis = _checked(x, axis)
    n, m = parse_pattern(pattern)
    indices = _positions(_kept(split_blocks(_magnitudes(x), axis, m), axis, n), axis, n)
    blocks = split_blocks(x, axis, m)
    values = jnp.zeros(indices.shape, x.dtype)
    # One select a position, not a gather: it fuses, shards along with x, and its transpose does.
    for position in range(m):
        element = lax.slice_in_dim(blocks, position, position + 1, axis=axis + 1)
        values = jnp.where(indices == position, element, values)
    kept = indices.shape[axis] * n
    values, indices = (merge_blocks(blocks, axis, kept) for blocks in (values, indices))
    return NMSparse(values, indices, pattern, axis - x.ndim, x.shape[axis])


def unpack_sparse(sparse: NMSparse) -> jax.Array:
    """The dense array, of `sparse.shape` and `sparse.dtype`.

    Raises:
      ValueError: the parts do not belong together.
    """
    n, m = check_sparse(sparse)
    axis = sparse.axis + sparse.values.ndim
    values, indices = (split_blocks(x, axis, n) for x in (sparse.values, sparse.indices))
    shape = values.shape[: axis + 1] + (m,) + values.shape[axis + 2 :]
    position = lax.broadcasted_iota(jnp.uint8, shape, axis + 1)
    dense = jnp.zeros(shape, values.dtype)
    for k in range(n):
        here = lax.slice_in_dim(indices, k, k + 1, axis=axis + 1) == position
        dense = jnp.where(here, lax.slice_in_dim(values, k, k + 1, axis=axis + 1), dense)
    return merge_blocks(dense, axis, sparse.size)


def check_sparse(sparse: NMSparse) -> tuple[int, int]:
    """(N, M) of the pattern; ValueError if the parts of an NMSparse do not belong together."""
    n, m = parse_pattern(sparse.pattern)
    values, indices = sparse.values, sparse.indices
    if indices.shape != values.shape or indices.dtype != jnp.uint8:
        raise ValueError(
            f"indices of an NMSparse must be uint8 and shaped like its values, "
            f"{values.dtype}{list(values.shape)}; got {indices.dtype}{list(indices.shape)}"
        )
    if not -values.ndim <= sparse.axis < 0:
        raise ValueError(
            f"the axis of an NMSparse counts from the end, -{values.ndim} to -1 for values of "
            f"{values.ndim} dimensions; got {sparse.axis}"
        )
    kept = block_count(sparse.size, m) * n
    if values.shape[sparse.axis] != kept:
        raise ValueError(
            f"{sparse.size} elements in the pattern {sparse.pattern} have {kept} values along "
            f"axis {sparse.axis}; got values of the shape {list(values.shape)}"
        )
    return n, m


def _checked(x: Any, axis: int) -> tuple[jax.Array, int]:
    """x as an array, and the axis counted from the front."""
    x = jnp.asarray(x)
    if not (jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)):
        raise TypeError(f"only real numbers have an order of magnitude; got {x.dtype}")
    return x, canonical_axis(axis, x.ndim)


def _magnitudes(x: jax.Array) -> jax.Array:
    """Integers >= 0 in the order of |x|; those of NaN are the largest.

    The bits of a float without the sign are such integers, and know subnormals, which comparisons
    of floats flush to zero on some machines.
    """
    if jnp.issubdtype(x.dtype, jnp.unsignedinteger):
        return x
    if jnp.issubdtype(x.dtype, jnp.integer):
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        return jnp.abs(x).astype(unsigned)  # |-128| wraps to -128, which is 128 as uint8
    if x.dtype.itemsize == 1:
        x = x.astype(jnp.float32)  # not every float of 8 bits has its sign in the first
    bits = lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return bits & jnp.array(jnp.iinfo(bits.dtype).max >> 1, bits.dtype)


def _kept(magnitudes: jax.Array, axis: int, n: int) -> jax.Array:
    """Which elements of blocks are among the N largest of theirs: those that fewer than N beat.

    The zeros that fill a last block come last, so of equals its own elements are kept.
    """
    other, own = _pairs(magnitudes, axis)
    other_is_first = _pairs_in_order(other, axis)
    beaten = (other > own) | ((other == own) & other_is_first)
    return jnp.sum(beaten, axis + 1, dtype=jnp.uint8) < n


def _positions(kept: jax.Array, axis: int, n: int) -> jax.Array:
    """uint8 positions of the N kept elements of each block, ascending."""
    other, _ = _pairs(kept, axis)
    slot = jnp.sum(other & _pairs_in_order(other, axis), axis + 1, dtype=jnp.uint8)
    kept, slot = (lax.expand_dims(x, [axis + 1]) for x in (kept, slot))
    shape = kept.shape[: axis + 1] + (n,) + kept.shape[axis + 2 :]
    here = kept & (slot == lax.broadcasted_iota(jnp.uint8, shape, axis + 1))
    position = lax.broadcasted_iota(jnp.uint8, here.shape, axis + 2)
    return jnp.sum(jnp.where(here, position, 0), axis + 2, dtype=jnp.uint8)


def _pairs(blocks: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Every element of a block (at axis + 1) against every one (at axis + 2)."""
    return lax.expand_dims(blocks, [axis + 2]), lax.expand_dims(blocks, [axis + 1])


def _pairs_in_order(other: jax.Array, axis: int) -> jax.Array:
    """Of pairs, whether the one at axis + 1 stands before the one at axis + 2."""
    m = other.shape[axis + 1]
    shape = (1,) * (axis + 1) + (m, m) + (1,) * (other.ndim - axis - 3)
    first = lax.broadcasted_iota(jnp.uint8, shape, axis + 1)
    return first < lax.broadcasted_iota(jnp.uint8, shape, axis + 2)
