"""Attention in blocks of queries and keys, forward, tangent and backward, as FlashAttention-2 does.

No array of T x S is made unless one is given (a bias, a mask). The softmax runs along with the
blocks of keys: a larger maximum rescales what was summed so far. The maximum and the sum of each
row are all that the derivatives need to compute the probabilities again. (They are kept apart:
in max + log(sum) of a row that sees no key, float32 loses the sum.)

Values are those of jax.nn.dot_product_attention. Blocks in which no query sees a key are left out,
unless a row sees no key at all: its softmax is over the masked ones.

All functions are pure and can be traced; forward mode can differentiate them, reverse mode cannot
(loops of no fixed length): attention_plain.py is what can be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from .attention_blocks import (
    Attention,
    Operands,
    Tiling,
    add_block,
    add_logits_block,
    block,
    key_blocks,
    logits_block,
    may_skip_keys_of_masked_rows,
    pad,
    pad_operands,
    put_block,
    tiling,
)
from .attention_logits import (
    MASKED,
    block_logits,
    logits_dtype,
    scores,
    transposed,
    valid_queries,
    weighted,
)
from .quantize import quantize_dequantize


class Softmax(NamedTuple):
    """Attention, and what its derivatives need.

    out: [B, K, G, T, D], of the dtype of the operands.
    row_max, row_sum: [B, K, G, T] in float32 (float64 for float64): exp(logits - row_max) / row_sum
      are the probabilities, row_max + log(row_sum) is the log-sum-exp.
    """

    out: Any
    row_max: Any
    row_sum: Any


def attend(operands: Operands, attention: Attention) -> Softmax:
    """softmax(scale * query @ key^T + bias, masked) @ value.

    operands: query, key and value of one dtype, float32, bfloat16, float16 or float64.
    """
    cut = _cut(operands, attention)
    tiles = cut.tiles
    value = _rounded(cut.padded.value, 2, attention)
    out = _zeros(cut.padded.query, value.shape[-1], value.dtype)
    row = jnp.zeros_like(out[..., 0], dtype=cut.dtype)

    def put_rows(i: Any, result: Softmax, first: Any, last: Any) -> Softmax:
        new = _attend_rows(cut, value, i, first, last)
        return Softmax(*(put_block(x, y, 3, i) for x, y in zip(result, new)))

    def sweep(i: Any, result: Softmax) -> Softmax:
        return put_rows(i, result, *key_blocks(i, operands, attention, tiles))

    result = _loop(0, tiles.row_blocks, tiles.row_blocks, sweep, Softmax(out, row, row))
    if may_skip_keys_of_masked_rows(operands, attention, tiles):
        again = _sees_nothing(result.row_max, operands, tiles)
        order = jnp.argsort(~again)
        result = lax.fori_loop(
            np.int32(0),
            jnp.sum(again, dtype=np.int32),
            lambda n, result: put_rows(order[n], result, 0, tiles.column_blocks),
            result,
        )
    result = Softmax(*(x[:, :, :, : tiles.queries] for x in result))
    return _without_padded_queries(result, operands)


def attend_tangent(
    operands: Operands, attention: Attention, softmax: Softmax, tangents: Operands
) -> Any:
    """The derivative of attend(operands, attention).out along `tangents`, in which it is linear.

    softmax: what attend gave.
    tangents: of query, key, value, bias and sinks, shaped as these; None for zero.
    """
    cut = _cut(operands, attention)
    tiles = cut.tiles
    move = _score_operands(pad_operands(tangents, tiles), attention)
    value = _rounded(cut.padded.value, 2, attention)
    value_dot = move.value if move.value is None else _rounded(move.value, 2, attention)
    find_probabilities = _probabilities(cut, softmax)
    spread = _key_ranges(cut, softmax)

    def tangent_of_rows(i: Any, out: Any) -> Any:
        queries = block(cut.scored.query, 3, i, tiles.rows)

        def visit(j: Any, sums: Any) -> Any:
            p, seen, slope = find_probabilities(i, j)
            px = _logits_tangent(cut, move, i, j, slope)
            if px is not None:
                px = p * (px if seen is None else jnp.where(seen, px, 0))
                values = block(value, 2, j, tiles.columns)
                more = _weighted(px, values, attention, cut.dtype)
                sums = sums[0] + more, sums[1] + jnp.sum(px, axis=-1)
            if value_dot is not None:
                more = _weighted(p, block(value_dot, 2, j, tiles.columns), attention, cut.dtype)
                sums = sums[0] + more, sums[1]
            return sums

        zeros = _zeros(queries, value.shape[-1], cut.dtype)
        first, last = spread(i)
        new, mean = _loop(first, last, tiles.column_blocks, visit, (zeros, zeros[..., 0]))
        old_out = block(pad(softmax.out, 3, tiles.rows), 3, i, tiles.rows)
        new = new - mean[..., None] * old_out.astype(cut.dtype)
        return put_block(out, new, 3, i)

    out = _zeros(cut.padded.query, value.shape[-1], cut.dtype)
    out = _loop(0, tiles.row_blocks, tiles.row_blocks, tangent_of_rows, out)
    out = out[:, :, :, : tiles.queries]
    if tangents.sinks is not None:
        moved = _sink_probability(operands, softmax) * _per_head(tangents.sinks, cut.dtype)
        out = out - moved[..., None] * softmax.out.astype(cut.dtype)
    return _only_valid(out, operands).astype(softmax.out.dtype)


def attend_backward(
    operands: Operands,
    attention: Attention,
    softmax: Softmax,
    cotangent: Any,
    wrt: Collection[str] = ("query", "key", "value"),
) -> Operands:
    """The gradients of sum(cotangent * attend(operands, attention).out).

    softmax: what attend gave.
    cotangent: shaped as softmax.out.
    wrt: of "query", "key", "value", "bias", "sinks".
    Returns the gradients of these, each of its operand's shape and dtype; None for the others.
    """
    cut = _cut(operands, attention)
    tiles, dtype = cut.tiles, cut.dtype
    cotangent = _only_valid(cotangent, operands)
    # The mean of a row's gradients by its probabilities.
    mean = jnp.sum(cotangent.astype(dtype) * softmax.out.astype(dtype), axis=-1)
    step = _backward_step(cut, softmax, cotangent, mean)
    spread = _key_ranges(cut, softmax)

    def rows(i: Any, gradients: Operands) -> Operands:
        queries = block(cut.scored.query, 3, i, tiles.rows)
        start = gradients._replace(query=jnp.zeros_like(queries, dtype=dtype))
        first, last = spread(i)
        sums = _loop(first, last, tiles.column_blocks, lambda j, g: step(i, j, g), start)
        return sums._replace(query=put_block(gradients.query, sums.query, 3, i))

    wanted = {name: getattr(cut.padded, name) for name in ("query", "key", "value")}
    if "bias" in wrt:
        wanted["bias"] = cut.padded.bias
    zeros = Operands(**{"bias": None} | {k: jnp.zeros_like(x, dtype) for k, x in wanted.items()})
    sums = _loop(0, tiles.row_blocks, tiles.row_blocks, rows, zeros)
    if "sinks" in wrt:
        moved = -jnp.sum(_sink_probability(operands, softmax) * mean, axis=3)
        shared = operands.sinks.shape[0] == 1
        sums = sums._replace(sinks=jnp.sum(moved, axis=0, keepdims=True) if shared else moved)
    return Operands(
        **{
            name: getattr(sums, name)[tuple(map(slice, x.shape))].astype(x.dtype)
            if name in wrt
            else None
            for name, x in operands._asdict().items()
        }
    )


@dataclasses.dataclass(frozen=True)
class _Cut:
    """Operands cut into blocks.

    padded: the operands in whole blocks.
    scored: these, the query and the key as they are multiplied with each other.
    dtype: of logits and of sums.
    """

    padded: Operands
    scored: Operands
    attention: Attention
    tiles: Tiling
    dtype: Any

    def logits(self, i: Any, j: Any) -> tuple[Any, Any, Any]:
        """block_logits of block (i, j)."""
        rows, columns = self.tiles.positions(i, j)
        operands = self.scored._replace(
            query=block(self.scored.query, 3, i, self.tiles.rows),
            key=block(self.scored.key, 2, j, self.tiles.columns),
            bias=logits_block(self.padded.bias, i, j, self.tiles),
            mask=logits_block(self.padded.mask, i, j, self.tiles),
        )
        return block_logits(operands, self.attention, rows, columns, self.tiles.keys)


def _cut(operands: Operands, attention: Attention) -> _Cut:
    tiles = tiling(operands)
    padded = pad_operands(operands, tiles)
    scored = _score_operands(padded, attention)
    return _Cut(padded, scored, attention, tiles, logits_dtype(operands))


def _score_operands(operands: Operands, attention: Attention) -> Operands:
    """Query and key as they are multiplied with each other."""
    query, key = operands.query, operands.key
    return operands._replace(
        query=None if query is None else _rounded(query, 4, attention),
        key=None if key is None else _rounded(key, 3, attention),
    )


def _rounded(x: Any, axis: int, attention: Attention) -> Any:
    """`x` as a factor of a product that contracts `axis`."""
    if attention.precision != "mxfp8":
        return x
    return quantize_dequantize(x.astype(jnp.float32), axis).astype(x.dtype)


def _weighted(weights: Any, values: Any, attention: Attention, dtype: Any) -> Any:
    """weights @ values; weights are rounded to the dtype of the values, as the engine has them."""
    weights = _rounded(weights.astype(values.dtype), 4, attention)
    return weighted(weights, values, dtype)


def _attend_rows(cut: _Cut, value: Any, i: Any, first: Any, last: Any) -> Softmax:
    """Row block i over the key blocks [first, last)."""

    def visit(j: Any, running: Softmax) -> Softmax:
        x, *_ = cut.logits(i, j)
        row_max = jnp.maximum(running.row_max, jnp.max(x, axis=-1))
        # The barrier keeps XLA from computing the exponentials once for each of their two uses.
        p = lax.optimization_barrier(jnp.exp(x - row_max[..., None]))
        shrink = jnp.exp(running.row_max - row_max)
        more = _weighted(p, block(value, 2, j, cut.tiles.columns), cut.attention, cut.dtype)
        return Softmax(
            running.out * shrink[..., None] + more,
            row_max,
            running.row_sum * shrink + jnp.sum(p, axis=-1),
        )

    queries = block(cut.scored.query, 3, i, cut.tiles.rows)
    out = _zeros(queries, value.shape[-1], cut.dtype)
    # Finite, so that logits of minus infinity weigh nothing.
    row_max = jnp.full_like(out[..., 0], np.finfo(cut.dtype).min)
    row_sum = jnp.zeros_like(row_max)
    if cut.padded.sinks is not None:
        sinks = _per_head(cut.padded.sinks, cut.dtype)
        row_max = jnp.maximum(row_max, sinks)
        row_sum = jnp.exp(sinks - row_max)
    start = Softmax(out, row_max, row_sum)
    sums = _loop(first, last, cut.tiles.column_blocks, visit, start)
    return sums._replace(out=(sums.out / sums.row_sum[..., None]).astype(value.dtype))


def _probabilities(cut: _Cut, softmax: Softmax) -> Callable[[Any, Any], tuple[Any, Any, Any]]:
    """A function of (i, j): the block's probabilities, what is seen, the slope of block_logits."""
    # Rows behind the last query have no probabilities.
    row_max = pad(softmax.row_max, 3, cut.tiles.rows, np.inf)[..., None]
    inverse = pad(1 / softmax.row_sum, 3, cut.tiles.rows)[..., None]

    def probabilities(i: Any, j: Any) -> tuple[Any, Any, Any]:
        x, seen, slope = cut.logits(i, j)
        highest, factor = (block(y, 3, i, cut.tiles.rows) for y in (row_max, inverse))
        return lax.optimization_barrier(jnp.exp(x - highest) * factor), seen, slope

    return probabilities


def _backward_step(
    cut: _Cut, softmax: Softmax, cotangent: Any, mean: Any
) -> Callable[[Any, Any, Operands], Operands]:
    """A function of (i, j, gradients) that adds block (i, j) to them; .query is of row block i."""
    tiles, attention, dtype = cut.tiles, cut.attention, cut.dtype
    cotangent = pad(cotangent, 3, tiles.rows)
    mean = pad(mean, 3, tiles.rows)[..., None]
    # What is multiplied, as it is rounded along the axis that the product contracts.
    value_by_feature = _rounded(cut.padded.value, 3, attention)
    cotangent_by_feature = _rounded(cotangent, 4, attention)
    cotangent_by_query = _rounded(cotangent, 3, attention)
    query_by_query = _rounded(cut.padded.query, 3, attention)
    key_by_key = _rounded(cut.padded.key, 2, attention)
    find_probabilities = _probabilities(cut, softmax)

    def rows_of(x: Any, i: Any) -> Any:
        return block(x, 3, i, tiles.rows)

    def columns_of(x: Any, j: Any) -> Any:
        return block(x, 2, j, tiles.columns)

    def step(i: Any, j: Any, gradients: Operands) -> Operands:
        p, seen, slope = find_probabilities(i, j)
        by_probability = scores(
            rows_of(cotangent_by_feature, i), columns_of(value_by_feature, j), dtype
        )
        by_logit = p * (by_probability - rows_of(mean, i))
        if seen is not None:
            by_logit = jnp.where(seen, by_logit, 0)
        bias = gradients.bias
        if bias is not None:
            bias = add_logits_block(bias, by_logit, i, j)
        narrow = cut.padded.query.dtype
        by_product = (by_logit * slope).astype(narrow)
        p = _rounded(p.astype(narrow), 3, attention)
        by_key = _rounded(by_product, 3, attention)
        key = transposed(by_key, rows_of(query_by_query, i), dtype)
        value = transposed(p, rows_of(cotangent_by_query, i), dtype)
        query = _weighted(by_product, columns_of(key_by_key, j), attention, dtype)
        return gradients._replace(
            query=gradients.query + query,
            key=add_block(gradients.key, key, 2, j),
            value=add_block(gradients.value, value, 2, j),
            bias=bias,
        )

    return step


def _logits_tangent(cut: _Cut, move: Operands, i: Any, j: Any, slope: Any) -> Any:
    """The derivative of block (i, j) of the logits, before they are masked; None if it is zero."""
    tiles, dtype = cut.tiles, cut.dtype
    x = None
    for query, key in ((move.query, cut.scored.key), (cut.scored.query, move.key)):
        if query is not None and key is not None:
            rows, columns = block(query, 3, i, tiles.rows), block(key, 2, j, tiles.columns)
            more = scores(rows, columns, dtype)
            x = more if x is None else x + more
    if x is not None:
        x = x * slope
    if move.bias is not None:
        bias = logits_block(move.bias, i, j, tiles).astype(dtype)
        x = bias if x is None else x + bias
    return x


def _key_ranges(cut: _Cut, softmax: Softmax) -> Callable[[Any], tuple[Any, Any]]:
    """A function of i: the key blocks [first, last) in which row block i has probabilities."""
    tiles = cut.tiles

    def ranges(i: Any) -> tuple[Any, Any]:
        return key_blocks(i, cut.padded, cut.attention, tiles)

    if not may_skip_keys_of_masked_rows(cut.padded, cut.attention, tiles):
        return ranges
    everywhere = _sees_nothing(pad(softmax.row_max, 3, tiles.rows), cut.padded, tiles)

    def ranges_or_all(i: Any) -> tuple[Any, Any]:
        first, last = ranges(i)
        return (
            jnp.where(everywhere[i], 0, first),
            jnp.where(everywhere[i], tiles.column_blocks, last),
        )

    return ranges_or_all


def _sees_nothing(row_max: Any, operands: Operands, tiles: Tiling) -> Any:
    """Of each block of rows: whether the softmax of one is over masked keys. [row blocks] bool."""
    positions = jnp.arange(row_max.shape[3], dtype=np.int32)[None, None, None]
    nothing = (row_max <= MASKED) & (positions < tiles.queries)
    if operands.query_seq_lengths is not None:
        nothing = nothing & valid_queries(operands, row_max.shape[3])
    nothing = jnp.any(nothing, axis=(0, 1, 2))
    return jnp.any(nothing.reshape(tiles.row_blocks, -1), axis=1)


def _without_padded_queries(result: Softmax, operands: Operands) -> Softmax:
    """Queries behind query_seq_lengths: zeros, the softmax of a row that sees no key."""
    if operands.query_seq_lengths is None:
        return result
    valid = valid_queries(operands, operands.query.shape[3])
    dtype = result.row_max.dtype
    row_max, row_sum = jnp.asarray(MASKED, dtype), jnp.asarray(operands.key.shape[2], dtype)
    if operands.sinks is not None:
        sinks = _per_head(operands.sinks, dtype)
        row_max, row_sum = jnp.maximum(sinks, row_max), jnp.where(sinks > row_max, 1, row_sum)
    return Softmax(
        _only_valid(result.out, operands),
        jnp.where(valid, result.row_max, row_max),
        jnp.where(valid, result.row_sum, row_sum),
    )


def _only_valid(out: Any, operands: Operands) -> Any:
    """`out` with zeros for queries behind query_seq_lengths."""
    if operands.query_seq_lengths is None:
        return out
    return jnp.where(valid_queries(operands, out.shape[3])[..., None], out, 0)


def _sink_probability(operands: Operands, softmax: Softmax) -> Any:
    """[B, K, G, T]"""
    sinks = _per_head(operands.sinks, softmax.row_max.dtype)
    return jnp.exp(sinks - softmax.row_max) / softmax.row_sum


def _per_head(sinks: Any, dtype: Any) -> Any:
    """[B or 1, K, G] to the rank of row_max."""
    return sinks.astype(dtype)[..., None]


def _zeros(query: Any, features: int, dtype: Any) -> Any:
    """[B, K, G, T, features], placed as the query is on a mesh."""
    zeros = jnp.zeros_like(query, dtype=dtype)
    if query.shape[-1] == features:
        return zeros
    return jnp.broadcast_to(zeros[..., :1], (*query.shape[:-1], features))


def _loop(first: Any, last: Any, most: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    """fori_loop; a loop over one block is no loop."""
    if most == 1:
        return body(0, start)
    return lax.fori_loop(jnp.int32(first), jnp.int32(last), body, start)
