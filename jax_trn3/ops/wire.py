"""What collectives send in an MX format: bytes, the elements' and then the scales'."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jax_trn3.numerics import (
    BLOCK_SIZE,
    SCALE_DTYPE,
    ElementFormat,
    block_count,
    dequantize,
    element_format,
    quantize,
)

# Codes of 8, 6 and 4 bits fill whole bytes 1, 4 and 2 at a time.
_CODES_IN_A_WORD = {8: 1, 6: 4, 4: 2}


def encode(messages: jax.Array, format: str, scale_rule: str) -> jax.Array:
    """uint8 [..., bytes] of float messages [..., n], each in blocks of its own."""
    data, scale = quantize(messages, -1, format, BLOCK_SIZE, scale_rule)
    packed = _pack(data, element_format(format))
    return jnp.concatenate([packed, lax.bitcast_convert_type(scale, jnp.uint8)], axis=-1)


def decode(message: jax.Array, n: int, format: str) -> jax.Array:
    """The float32 values [..., n] of `encode`'s bytes."""
    fmt = element_format(format)
    split = message.shape[-1] - block_count(n, BLOCK_SIZE)
    data = _unpack(message[..., :split], n, fmt)
    scale = lax.bitcast_convert_type(message[..., split:], SCALE_DTYPE)
    return dequantize(data, scale, -1, fmt, BLOCK_SIZE)


def send(
    messages: jax.Array,
    move: Callable[[jax.Array], jax.Array],
    *,
    size: int,
    wire_format: str,
    scale_rule: str,
) -> tuple[jax.Array, jax.Array]:
    """float32 of what `move` brings of messages [..., n], and what of these the format lost.

    Among one device (size 1) nothing is sent, and nothing is lost. What an infinity or a NaN
    makes of its block is no loss that could be made good later: 0.
    """
    messages = messages.astype(jnp.float32)
    if size == 1:
        return move(messages), jnp.zeros_like(messages)
    message = encode(messages, wire_format, scale_rule)
    n = messages.shape[-1]
    lost = messages - decode(message, n, wire_format)
    return decode(move(message), n, wire_format), jnp.where(jnp.isfinite(lost), lost, 0.0)


def _pack(data: jax.Array, fmt: ElementFormat) -> jax.Array:
    """Codes side by side in bytes, the first in the lowest bits; filled up with zeros."""
    if fmt.bits == 8:
        return lax.bitcast_convert_type(data, jnp.uint8)
    codes = lax.bitcast_convert_type(data, jnp.uint4) if fmt.bits == 4 else data
    count = _CODES_IN_A_WORD[fmt.bits]
    padding = [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % count)]
    codes = jnp.pad(codes.astype(jnp.uint32), padding)
    shifts = fmt.bits * jnp.arange(count, dtype=jnp.uint32)
    words = codes.reshape(*codes.shape[:-1], codes.shape[-1] // count, count) << shifts
    word = jnp.sum(words, -1, keepdims=True, dtype=jnp.uint32)
    bytes_ = word >> (8 * jnp.arange(fmt.bits * count // 8, dtype=jnp.uint32))
    return bytes_.astype(jnp.uint8).reshape(*codes.shape[:-1], _bytes(codes.shape[-1], fmt))


def _unpack(packed: jax.Array, n: int, fmt: ElementFormat) -> jax.Array:
    """The inverse of _pack."""
    if fmt.bits == 8:
        return lax.bitcast_convert_type(packed, fmt.storage_dtype)
    count = _CODES_IN_A_WORD[fmt.bits]
    length = fmt.bits * count // 8
    words = packed.shape[-1] // length
    bytes_ = packed.astype(jnp.uint32).reshape(*packed.shape[:-1], words, length)
    word = jnp.sum(
        bytes_ << (8 * jnp.arange(length, dtype=jnp.uint32)), -1, keepdims=True, dtype=jnp.uint32
    )
    codes = word >> (fmt.bits * jnp.arange(count, dtype=jnp.uint32))
    codes = codes.reshape(*packed.shape[:-1], words * count)[..., :n] & ((1 << fmt.bits) - 1)
    if fmt.bits == 4:
        return lax.bitcast_convert_type(codes.astype(jnp.uint4), fmt.storage_dtype)
    return codes.astype(fmt.storage_dtype)


def _bytes(codes: int, fmt: ElementFormat) -> int:
    return codes * fmt.bits // 8
