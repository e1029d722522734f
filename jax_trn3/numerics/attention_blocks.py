"""How attention is cut into blocks: their sizes, which of them count, and slices of arrays."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from .formats import BLOCK_SIZE

# Logits of all heads held at a time (4 MiB in float32), and the longest sides of a block of them:
# what XLA:CPU ran fastest, benchmarks/attention.py.
_TILE_ELEMENTS = 2**20
_LONGEST = 256
_SHORTEST = 128


@dataclasses.dataclass(frozen=True)
class Attention:
    """Which attention is computed; what is no array of it.

    scale: of the products of queries and keys.
    is_causal: query t sees no key s > t.
    local_window_size: (left, right); query t sees the keys t - left <= s <= t + right.
    logits_soft_cap: c makes c * tanh(x / c) of a scaled product x, before the bias is added.
    precision: None, or "mxfp8": the operands of each product are rounded to MXFP8 (E4M3) in blocks
      along the axis of its contraction.
    """

    scale: float
    is_causal: bool = False
    local_window_size: tuple[int, int] | None = None
    logits_soft_cap: float | None = None
    precision: str | None = None


class Operands(NamedTuple):
    """The arrays of attention: batch B, K key/value heads, G query heads to each, T x S positions.

    query: [B, K, G, T, H]. key: [B, K, S, H]. value: [B, K, S, D].
    bias: added to the logits; [B, K, G, T, S], where each size may also be 1.
    mask: boolean, True where a query sees a key; a shape as bias may have.
    sinks: [B, K, G] or [1, K, G], logits of a key without a value that every query sees.
    query_seq_lengths: [B] integers; the results of later queries are 0.
    key_value_seq_lengths: [B] integers; no query sees later keys.
    """

    query: Any
    key: Any
    value: Any
    bias: Any = None
    mask: Any = None
    sinks: Any = None
    query_seq_lengths: Any = None
    key_value_seq_lengths: Any = None


@dataclasses.dataclass(frozen=True)
class Tiling:
    """T queries in blocks of `rows`, S keys in blocks of `columns`; the last ones are padded."""

    queries: int
    keys: int
    rows: int
    columns: int

    @property
    def row_blocks(self) -> int:
        return 1 if self.rows == self.queries else -(-self.queries // self.rows)

    @property
    def column_blocks(self) -> int:
        return 1 if self.columns == self.keys else -(-self.keys // self.columns)

    def positions(self, i: Any, j: Any) -> tuple[Any, Any]:
        """Of the queries and keys of block (i, j): [1, 1, 1, rows, 1], [1, 1, 1, 1, columns]."""
        rows = i * self.rows + jnp.arange(self.rows, dtype=jnp.int32)
        columns = j * self.columns + jnp.arange(self.columns, dtype=jnp.int32)
        return rows.reshape(1, 1, 1, -1, 1), columns.reshape(1, 1, 1, 1, -1)


def tiling(operands: Operands) -> Tiling:
    """The blocks of these operands (arrays or their shapes)."""
    batch, kv_heads, group, queries, _ = operands.query.shape
    keys = operands.key.shape[2]
    heads = kv_heads * group * (batch if isinstance(batch, int) else 1)
    columns = _block_length(keys, _longest(_TILE_ELEMENTS // (heads * _LONGEST)))
    held = heads * columns if isinstance(columns, int) else heads
    return Tiling(queries, keys, _block_length(queries, _longest(_TILE_ELEMENTS // held)), columns)


def _longest(room: int) -> int:
    return min(_LONGEST, max(_SHORTEST, room))


def _block_length(length: Any, longest: int) -> Any:
    """At most `longest`, and blocks of about the same length, whole MX blocks in each.

    What is not longer is one block, and so is a length that is a symbol (jax.export).
    """
    if not isinstance(length, int) or length <= longest:
        return length
    blocks = -(-length // longest)
    return -(-length // (blocks * BLOCK_SIZE)) * BLOCK_SIZE


def pad(x: Any, axis: int, block: Any, value: float = 0) -> Any:
    """`x` with `value`s behind it along `axis`, up to whole blocks; as it is if its size is 1."""
    size = x.shape[axis]
    if size in (1, block) or size % block == 0:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -size % block)
    return jnp.pad(x, widths, constant_values=value)


def pad_operands(operands: Operands, tiles: Tiling) -> Operands:
    """The operands that there are in whole blocks."""
    rows, columns = tiles.rows, tiles.columns
    axes: dict[str, dict[int, Any]] = {
        "query": {3: rows},
        "key": {2: columns},
        "value": {2: columns},
        "bias": {3: rows, 4: columns},
        "mask": {3: rows, 4: columns},
    }
    padded = {}
    for name, blocks in axes.items():
        x = getattr(operands, name)
        if x is not None:
            for axis, length in blocks.items():
                x = pad(x, axis, length)
            padded[name] = x
    return operands._replace(**padded)


def block(x: Any, axis: int, i: Any, length: Any) -> Any:
    """The i-th block of `x` along `axis`; all of it if its size is 1 or the block's."""
    if x.shape[axis] in (1, length):
        return x
    return lax.dynamic_slice_in_dim(x, i * length, length, axis)


def logits_block(x: Any, i: Any, j: Any, tiles: Tiling) -> Any:
    """Block (i, j) of a bias or a mask, or None."""
    return None if x is None else block(block(x, 3, i, tiles.rows), 4, j, tiles.columns)


def put_block(x: Any, new: Any, axis: int, i: Any) -> Any:
    """`x` with its i-th block along `axis` replaced."""
    if x.shape == new.shape:
        return new
    return lax.dynamic_update_slice_in_dim(x, new, i * new.shape[axis], axis)


def add_block(x: Any, more: Any, axis: int, i: Any) -> Any:
    """`x` with `more` added to its i-th block along `axis`."""
    return put_block(x, block(x, axis, i, more.shape[axis]) + more, axis, i)


def add_logits_block(x: Any, more: Any, i: Any, j: Any) -> Any:
    """`x`, the gradient of a bias, with `more` added, which is block (i, j) of the logits'."""
    shared = [axis for axis, size in enumerate(x.shape) if size == 1 and more.shape[axis] != 1]
    more = jnp.sum(more, axis=shared, keepdims=True)
    starts = [np.int32(0)] * 5
    for axis, number in ((3, i), (4, j)):
        if axis not in shared:
            starts[axis] = jnp.int32(number * more.shape[axis])
    old = lax.dynamic_slice(x, starts, more.shape)
    return lax.dynamic_update_slice(x, old + more, starts)


def key_blocks(i: Any, operands: Operands, attention: Attention, tiles: Tiling) -> tuple[Any, Any]:
    """[first, last) of the key blocks that some query of block i may see."""
    start = i * tiles.rows
    stop = jnp.minimum(start + tiles.rows, tiles.queries)
    left, right = reach(attention, tiles)
    first = jnp.maximum(start - left, 0) // tiles.columns
    last = jnp.minimum(
        jnp.maximum(stop - 1 + right + tiles.columns, 0) // tiles.columns, tiles.column_blocks
    )
    if operands.key_value_seq_lengths is not None:
        longest = jnp.max(operands.key_value_seq_lengths)
        last = jnp.minimum(last, (longest + tiles.columns - 1) // tiles.columns)
    if operands.query_seq_lengths is not None:
        last = jnp.where(start < jnp.max(operands.query_seq_lengths), last, first)
    return first, last


def reach(attention: Attention, tiles: Tiling) -> tuple[Any, Any]:
    """(left, right): query t sees no keys but t - left <= s <= t + right."""
    everything = tiles.queries + tiles.keys
    left = right = everything
    if attention.local_window_size is not None:
        # Windows beyond everything: int32 positions must not overflow.
        left, right = (max(-everything, min(w, everything)) for w in attention.local_window_size)
    return left, min(right, 0) if attention.is_causal else right


def may_skip_keys_of_masked_rows(operands: Operands, attention: Attention, tiles: Tiling) -> bool:
    """Whether there may be a query that sees no key, and blocks that key_blocks leaves out."""
    if tiles.column_blocks == 1:
        return False
    restricted = attention.is_causal or attention.local_window_size is not None
    lengths = operands.key_value_seq_lengths is not None
    if lengths or (restricted and (operands.mask is not None or operands.bias is not None)):
        return True
    left, right = reach(attention, tiles)
    return restricted and (-left > right or right < 0 or tiles.queries - left > tiles.keys)
