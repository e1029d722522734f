"""The logits of a block of attention, as jax.nn.dot_product_attention defines them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from .attention_blocks import Attention, Operands

# What a query does not see has this logit (jax.nn.dot_product_attention's number), not minus
# infinity: the softmax of a query that sees nothing is uniform, not NaN.
MASKED = -0.7 * float(np.finfo(np.float32).max)


def logits_dtype(operands: Operands) -> Any:
    """float64 for float64 arrays, else float32."""
    return jnp.promote_types(operands.query.dtype, jnp.float32)


def block_logits(
    operands: Operands, attention: Attention, rows: Any, columns: Any, keys: Any
) -> tuple[Any, Any, Any]:
    """Logits of one block, what is seen, and the derivative of the logits by the products.

    operands: of the block; `query` and `key` as they are multiplied.
    rows, columns: positions, as of Tiling.positions.
    keys: how many keys there are; those behind are padding, and get minus infinity.
    Returns [B, K, G, rows, columns] each; None for "everything is seen".
    """
    dtype = logits_dtype(operands)
    x = scores(operands.query, operands.key, dtype) * attention.scale
    slope: Any = attention.scale
    if attention.logits_soft_cap is not None:
        tanh = jnp.tanh(x / attention.logits_soft_cap)
        x = attention.logits_soft_cap * tanh
        slope = attention.scale * (1 - tanh * tanh)
    if operands.bias is not None:
        x = x + operands.bias.astype(dtype)
    seen = _seen(operands, attention, rows, columns)
    if seen is not None:
        x = jnp.where(seen, x, jnp.asarray(MASKED, dtype))
    block = columns.shape[-1]
    if block != keys and keys % block:
        x = jnp.where(columns < keys, x, jnp.asarray(-jnp.inf, dtype))
    return x, seen, slope


def scores(queries: Any, keys: Any, dtype: Any) -> Any:
    """queries @ keys^T: [B, K, G, T, H] by [B, K, S, H] to [B, K, G, T, S]."""
    return _product("bkrh,bksh->bkrs", queries, keys, dtype)


def weighted(weights: Any, values: Any, dtype: Any) -> Any:
    """weights @ values: [B, K, G, T, S] by [B, K, S, D] to [B, K, G, T, D]."""
    return _product("bkrs,bksd->bkrd", weights, values, dtype)


def transposed(weights: Any, rows: Any, dtype: Any) -> Any:
    """weights^T @ rows, over all of a group: [B, K, G, T, S] by [B, K, G, T, D] to [B, K, S, D]."""
    lhs, rhs = _merged(weights), _merged(rows)
    batch, kv_heads, row, _ = jax.typeof(lhs).sharding.spec
    # On a mesh of explicit axes the sum over a sharded group must be asked for.
    out = None if row is None else PartitionSpec(batch, kv_heads, None, None)
    return jnp.einsum("bkrs,bkrd->bksd", lhs, rhs, preferred_element_type=dtype, out_sharding=out)


def _product(subscripts: str, rows: Any, rhs: Any, dtype: Any) -> Any:
    result = jnp.einsum(subscripts, _merged(rows), rhs, preferred_element_type=dtype)
    return result.reshape(*rows.shape[:4], -1)


def _merged(x: Any) -> Any:
    """With one axis of rows: of two, XLA:CPU would transpose the array before it multiplies."""
    return x.reshape(*x.shape[:2], -1, x.shape[4])


def _seen(operands: Operands, attention: Attention, rows: Any, columns: Any) -> Any:
    """Boolean, of a shape that broadcasts to the block's; None if there is nothing to mask."""
    conditions = [] if operands.mask is None else [operands.mask]
    if attention.is_causal:
        conditions.append(rows >= columns)
    if attention.local_window_size is not None:
        left, right = (min(max(w, -(2**30)), 2**30) for w in attention.local_window_size)
        conditions += [rows - left <= columns, columns <= rows + right]
    for lengths, positions in (
        (operands.query_seq_lengths, rows),
        (operands.key_value_seq_lengths, columns),
    ):
        if lengths is not None:
            conditions.append(positions < lengths[:, None, None, None, None])
    seen = None
    for condition in conditions:
        seen = condition if seen is None else jnp.logical_and(seen, condition)
    return seen


def valid_queries(operands: Operands, queries: int) -> Any:
    """Whether a query is within query_seq_lengths: [B, 1, 1, queries]."""
    positions = jnp.arange(queries, dtype=jnp.int32)[None, None, None]
    return positions < operands.query_seq_lengths[:, None, None, None]
