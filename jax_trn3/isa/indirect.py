"""Gathering and scattering along the free axis by offsets in SBUF (NeuronCore-v4).

`NkiTensor.indirect(index)`: partitions work in groups of neighbours, and offset `i` of a group is
`index[i % G, i // G]` of its partitions, G being the group's size
(nki/api/nki/language/__init__.py). All of a group's partitions use its offsets. How many offsets
an index of fewer partitions than a group holds, and what two equal offsets of a scatter leave, is
not documented: we take all that are there, and the last one stays.
"""

import jax
import jax.numpy as jnp

from .dtypes import as_bits, from_bits
from .operand import Access

_GROUP = {"tensor": 32}  # the others: 16 (nki/api/nki/language/__init__.py, indirect)


def group_partitions(engine: str) -> int:
    """Partitions that share their offsets."""
    return _GROUP.get(engine, 16)


def offsets(index: Access, engine: str) -> int:
    """Offsets that each partition gets out of an index tile."""
    return min(index.partitions, group_partitions(engine)) * index.free_size


def partition_offsets(index: jax.Array, engine: str) -> jax.Array:
    """Index tile [P, K] -> [P, G * K]: the offsets of each partition, in order."""
    partitions = index.shape[0]
    group = min(partitions, group_partitions(engine))
    flat = jnp.reshape(index, (partitions // group, group, -1)).astype(jnp.int32)
    rows = jnp.swapaxes(flat, 1, 2).reshape(partitions // group, -1)
    return jnp.repeat(rows, group, axis=0)


def gather(data: jax.Array, index: jax.Array, engine: str) -> jax.Array:
    """Tile [P, ...] -> [P, offsets]: element `i` is the one at the partition's offset `i`.

    The index may have more partitions (that of MX data is also that of its scales). A packed tile
    keeps its last axis of 4 (`data` is then [P, F, 4]).
    """
    where = partition_offsets(index, engine)[: data.shape[0]]
    gathered = jax.vmap(lambda row, at: row[at])(as_bits(data), where)
    return from_bits(gathered, data.dtype)


def scatter(previous: jax.Array, values: jax.Array, index: jax.Array, engine: str) -> jax.Array:
    """`previous` with the values [P, offsets] at the offsets of `index`."""
    where = partition_offsets(index, engine)
    put = jax.vmap(lambda row, at, new: row.at[at].set(new))
    return from_bits(put(as_bits(previous), where, as_bits(values)), previous.dtype)
