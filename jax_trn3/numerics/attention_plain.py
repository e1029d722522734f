"""Attention in JAX's terms, which has derivatives of any order in either mode.

Block by block of queries, each against all keys; a block is computed again where its derivative
is, so that memory grows with S, not with T x S. It takes no notice of what is masked, nor of the
precision: to second order, rounding to MXFP8 counts as the identity.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .attention_blocks import Attention, Operands, Tiling, block, logits_block, pad_operands
from .attention_logits import block_logits, logits_dtype, valid_queries, weighted

_TILE_ELEMENTS = 2**21


def attend_plain(operands: Operands, attention: Attention) -> Any:
    """What attention.attend gives as `out`: [B, K, G, T, D]."""
    tiles = _tiling(operands)
    padded = pad_operands(operands, tiles)

    def rows(i: Any) -> Any:
        positions = tiles.positions(i, 0)
        cut = padded._replace(
            query=block(padded.query, 3, i, tiles.rows),
            bias=logits_block(padded.bias, i, 0, tiles),
            mask=logits_block(padded.mask, i, 0, tiles),
        )
        x, *_ = block_logits(cut, attention, *positions, tiles.keys)
        p = _softmax(x, operands.sinks).astype(operands.value.dtype)
        return weighted(p, operands.value, logits_dtype(operands))

    if tiles.row_blocks == 1:
        out = rows(0)
    else:
        out = jnp.moveaxis(lax.map(jax.checkpoint(rows), jnp.arange(tiles.row_blocks)), 0, 3)
        out = out.reshape(*out.shape[:3], -1, out.shape[-1])[:, :, :, : tiles.queries]
    if operands.query_seq_lengths is not None:
        out = jnp.where(valid_queries(operands, tiles.queries)[..., None], out, 0)
    return out.astype(operands.value.dtype)


def _tiling(operands: Operands) -> Tiling:
    batch, kv_heads, group, queries, _ = operands.query.shape
    keys = operands.key.shape[2]
    rows = queries
    if all(isinstance(size, int) for size in (batch, queries, keys)):
        rows = max(16, _TILE_ELEMENTS // max(1, batch * kv_heads * group * keys))
    return Tiling(queries, keys, queries if rows >= queries else rows, keys)


def _softmax(x: Any, sinks: Any) -> Any:
    if sinks is None:
        return jax.nn.softmax(x, axis=-1)
    sinks = sinks.astype(x.dtype)[:, :, :, None, None]
    highest = lax.stop_gradient(jnp.maximum(jnp.max(x, axis=-1, keepdims=True), sinks))
    exp = jnp.exp(x - highest)
    return exp / (jnp.sum(exp, axis=-1, keepdims=True) + jnp.exp(sinks - highest))
