"""dot_product_attention: jax.nn's, fused: nothing of T x S is held, forward or backward."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jax_trn3.numerics import FLOAT_DTYPES

from .attention_primitives import bind_attention

_DTYPES = (*FLOAT_DTYPES, "float64")
_PRECISIONS = (None, "default", "mxfp8")


def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: Literal["xla"] | None = None,
    return_residual: bool = False,
    precision: Literal["default", "mxfp8"] | None = None,
    logits_soft_cap: float | None = None,
    sinks: ArrayLike | None = None,
) -> Any:
    """softmax(scale * query @ key^T + bias) @ value: `jax.nn.dot_product_attention`, fused.

    Computed in blocks, forward and backward (FlashAttention-2): memory grows with T + S, and
    blocks that `is_causal`, `local_window_size` or the lengths mask as a whole cost nothing. In the
    program it is one operation, `trn3.dot_product_attention`. Values, those of rows that see no key
    included (they average all values), are those of `jax.nn.dot_product_attention`; float64 is
    computed in float64 throughout. All derivatives exist, those of higher order at the memory of
    a block of queries against all keys.

    Args:
      query: [B, T, N, H] or [T, N, H]; float32, bfloat16, float16 or float64.
      key, value: [B, S, K, H] or [S, K, H], of query's dtype. N is a multiple of K: K == N is
        multi-head, K < N grouped-query and K == 1 multi-query attention.
      bias: added to the logits; broadcastable to [B, N, T, S].
      mask: boolean, True where a query sees a key; broadcastable to [B, N, T, S].
      scale: a number; None is 1 / sqrt(H).
      is_causal: query t sees the keys s <= t.
      query_seq_lengths, key_value_seq_lengths: [B] integers. Results of later queries are 0, later
        keys are not seen.
      local_window_size: (left, right), or one number for both: query t sees the keys
        t - left <= s <= t + right.
      implementation: None, or "xla": jax.nn.dot_product_attention's own, which is not fused and has
        none of the arguments below.
      return_residual: return also the log-sum-exp of the logits, [B, T, N] or [T, N] in query's
        dtype, through which no gradient flows.
      precision: None or "default": products of the operands' dtype, accumulated in float32.
        "mxfp8": the factors of each product, the gradients' ones too, are rounded to MXFP8 (E4M3,
        blocks of 32 along the axis that the product contracts, scale rule "ocp"). Derivatives of
        second order take the rounding for the identity.
      logits_soft_cap: c > 0: the scaled products x become c * tanh(x / c), before bias and mask.
      sinks: [N]: each head's logit of a key that all queries see, and that has no value
        (attention sinks: they take their share of the softmax). Differentiable.

    Returns:
      [B, T, N, H] or [T, N, H]; with return_residual a tuple of that and the residual.

    Raises:
      ValueError, TypeError: a shape, a dtype or an option that is not one of the above.
    """
    _check_options(precision, logits_soft_cap, implementation, sinks)
    if implementation == "xla":
        return jax.nn.dot_product_attention(
            query, key, value, bias, mask, scale=scale, is_causal=is_causal,
            query_seq_lengths=query_seq_lengths, key_value_seq_lengths=key_value_seq_lengths,
            local_window_size=local_window_size, implementation="xla",
            return_residual=return_residual,
        )  # fmt: skip
    shape = jnp.shape(query)
    arrays = {"query": _rank_4(query), "key": _rank_4(key), "value": _rank_4(value)}
    _check_operands(arrays)
    logits = _logits_shape(arrays)
    optional = {
        "bias": None if bias is None else _bias(bias, logits),
        "mask": None if mask is None else _mask(mask, logits),
        "sinks": None if sinks is None else _sinks(sinks, logits),
        "query_seq_lengths": _lengths("query_seq_lengths", query_seq_lengths, logits),
        "key_value_seq_lengths": _lengths("key_value_seq_lengths", key_value_seq_lengths, logits),
    }
    arrays |= {name: x for name, x in optional.items() if x is not None}
    out, row_max, row_sum = bind_attention(
        _vary_alike(arrays),
        scale=_scale(scale, arrays["query"].shape[-1]),
        is_causal=bool(is_causal),
        local_window_size=_window(local_window_size),
        logits_soft_cap=None if logits_soft_cap is None else float(logits_soft_cap),
        precision=None if precision == "default" else precision,
    )
    out = jnp.reshape(out, shape)
    if not return_residual:
        return out
    residual = lax.stop_gradient(row_max + jnp.log(row_sum)).astype(out.dtype)
    return out, jnp.reshape(jnp.swapaxes(residual, 1, 2), shape[:-1])


def _rank_4(x: ArrayLike) -> jax.Array:
    x = jnp.asarray(x)
    return jnp.expand_dims(x, tuple(range(max(0, 4 - x.ndim))))


def _check_options(precision: Any, cap: Any, implementation: Any, sinks: Any) -> None:
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be None, 'default' or 'mxfp8', got {precision!r}")
    if cap is not None and not (_is_number(cap) and 0 < cap < math.inf):
        raise ValueError(f"logits_soft_cap must be a positive number or None, got {cap!r}")
    if implementation not in (None, "xla"):
        raise ValueError(
            f"implementation must be None (fused) or 'xla' (jax.nn.dot_product_attention's own), "
            f"got {implementation!r}"
        )
    if implementation == "xla" and not (precision in (None, "default") and cap is sinks is None):
        raise ValueError(
            "implementation='xla' has no precision, logits_soft_cap or sinks; leave it None"
        )


def _check_operands(arrays: dict[str, jax.Array]) -> None:
    query, key, value = arrays.values()
    for name, x in arrays.items():
        if x.ndim != 4:
            raise ValueError(
                f"{name} must be of rank 3 or 4 ([B, length, heads, features]), got {x.shape}"
            )
        if x.dtype.name not in _DTYPES:
            raise TypeError(f"{name} is {x.dtype}; allowed are {', '.join(_DTYPES)}")
        if x.dtype != key.dtype:
            raise ValueError(f"{name} dtype should be {key.dtype}, as of key, but got {x.dtype}")
    batch, keys, kv_heads, features = key.shape
    if value.shape != key.shape:
        raise ValueError(f"value shape should be {key.shape}, as of key, but got {value.shape}")
    if query.shape[0] != batch or query.shape[3] != features:
        raise ValueError(
            f"query shape should be ({batch}, T, N, {features}) for key {key.shape}, but got "
            f"{query.shape}"
        )
    if kv_heads == 0 or query.shape[2] % kv_heads:
        raise ValueError(
            "The number of query heads must be a multiple of key/value heads, but got "
            f"{query.shape[2]} vs {kv_heads}"
        )
    if keys == 0:
        raise ValueError(f"key must have a position to attend to, got shape {key.shape}")
    _check_whole_sequences(arrays)


def _check_whole_sequences(arrays: dict[str, jax.Array]) -> None:
    for name, x in arrays.items():
        for axis in (1, 3):
            if (mesh_axes := _explicit_axes(x, axis)) is not None:
                raise ValueError(
                    f"axis {axis} of {name} is sharded over {mesh_axes!r}; batch (0) and heads (2) "
                    "may be sharded, sequences and features may not: jax.sharding.reshard it first"
                )


def _explicit_axes(x: jax.Array, axis: int) -> Any:
    """The mesh axes of type Explicit over which an axis is sharded."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    return None if sharding is None else sharding.spec[axis]


def _logits_shape(arrays: dict[str, jax.Array]) -> tuple[Any, ...]:
    batch, queries, heads, _ = arrays["query"].shape
    return batch, heads, queries, arrays["key"].shape[1]


def _bias(bias: ArrayLike, logits: Sequence[Any]) -> jax.Array:
    x = _rank_4(bias)
    if x.dtype == np.bool_:
        raise TypeError("bias is boolean; a boolean mask is the argument mask")
    if not jnp.issubdtype(x.dtype, np.floating):
        x = x.astype(np.float32)
    return _check_broadcast("bias", x, logits)


def _mask(mask: ArrayLike, logits: Sequence[Any]) -> jax.Array:
    x = _rank_4(mask)
    if x.dtype != np.bool_:
        raise ValueError(
            f"mask dtype should be bool, but got {x.dtype}; an additive mask is the argument bias"
        )
    return _check_broadcast("mask", x, logits)


def _check_broadcast(name: str, x: jax.Array, logits: Sequence[Any]) -> jax.Array:
    if x.ndim != 4 or any(size not in (1, whole) for size, whole in zip(x.shape, logits)):
        raise ValueError(
            f"{name} shape should be broadcastable to [B, N, T, S] = {tuple(logits)}, but got "
            f"{x.shape}"
        )
    return x


def _sinks(sinks: ArrayLike, logits: Sequence[Any]) -> jax.Array:
    x = jnp.asarray(sinks)
    if x.shape != (logits[1],):
        raise ValueError(f"sinks shape should be [N] = ({logits[1]},), but got {x.shape}")
    if not jnp.issubdtype(x.dtype, np.floating):
        raise TypeError(f"sinks must be floating point, got {x.dtype}")
    return x[None]


def _lengths(name: str, lengths: ArrayLike | None, logits: Sequence[Any]) -> jax.Array | None:
    if lengths is None:
        return None
    x = jnp.asarray(lengths)
    if x.shape != (logits[0],):
        raise ValueError(f"{name} shape should be [B] = ({logits[0]},), but got {x.shape}")
    if not jnp.issubdtype(x.dtype, np.integer):
        raise ValueError(f"{name} dtype should be an integer one, but got {x.dtype}")
    return x.astype(np.int32)


def _scale(scale: Any, features: int) -> float:
    if scale is None:
        return 1 / math.sqrt(features)
    if not _is_number(scale):
        raise TypeError(
            f"scale must be a number, not an array, got {scale!r}; multiply query with the array, "
            "and give scale=1.0"
        )
    return float(scale)


def _window(window: Any) -> tuple[int, int] | None:
    if window is None:
        return None
    pair = (window, window) if isinstance(window, numbers.Integral) else tuple(window)
    if len(pair) != 2 or not all(isinstance(size, numbers.Integral) for size in pair):
        raise ValueError(
            f"local_window_size must be an int or a pair of ints (left, right), got {window!r}"
        )
    return int(pair[0]), int(pair[1])


def _is_number(x: Any) -> bool:
    concrete = not isinstance(x, jax.core.Tracer) and np.ndim(x) == 0
    return concrete and isinstance(np.asarray(x).item(), int | float)


def _vary_alike(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """In shard_map: all arrays varying over the axes that one varies over, as loops require it."""
    axes = {name: jax.typeof(x).manual_axis_type.varying for name, x in arrays.items()}
    everywhere = frozenset[Any]().union(*axes.values())

    def vary(name: str, x: jax.Array) -> jax.Array:
        missing = tuple(sorted(everywhere - axes[name], key=str))
        return lax.pcast(x, missing, to="varying") if missing else x

    return {name: vary(name, x) for name, x in arrays.items()}
