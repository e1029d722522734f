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
from .attention_logits import MASKED, block_logits, logits_dtype, product, valid_queries
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
    value = cut.rounded(cut.padded.value, 2)
    out = _zeros(cut.padded.query, cut.padded.value.shape[-1], operands.value.dtype)
    row = jnp.zeros_like(out[..., 0], dtype=cut.dtype)

    def put_rows(i: Any, result: Softmax, first: Any, last: Any) -> Softmax:
        new = _attend_rows(cut, value, i, first, last)
        return Softmax(*(put_block(x, y, 3, i) for x, y in zip(result, new)))

    def sweep(i: Any, result: Softmax) -> Softmax:
        return put_rows(i, result, *key_blocks(i, operands, attention, tiles))

    result = _loop(0, tiles.row_blocks, tiles.row_blocks, sweep, Softmax(out, row, row))
    if may_skip_keys_of_masked_rows(operands, attention, tiles):
        again = _sees_nothing(result.row_max[..., : tiles.queries], operands, tiles)
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
    """The derivative of attend(operands, attention).out in a direction, which is linear in it.

    softmax: what attend gave.
    tangents: of query, key, value, bias and sinks, shaped as these; None for zero.
    """
    cut = _cut(operands, attention)
    tiles = cut.tiles
    score = _cut(tangents._replace(query=tangents.query, key=tangents.key), attention, cut)
    ...


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
    ...
