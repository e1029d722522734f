"""Layers of a transformer as functions of parameters and activations [sequences, tokens, width]."""

from typing import Any

import jax
import jax.numpy as jnp

import jax_trn3

from .layout import BATCH, HEADS, TOKENS, Layout
from .models import Model

Layer = dict[str, Any]
"""Parameters of one layer."""


def rms_norm(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x` over its root mean square along the last axis, in float32."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-5)
    return (wide * scale * weight).astype(x.dtype)


def rotary(x: jax.Array, positions: jax.Array, base: float = 500_000.0) -> jax.Array:
    """Rotates pairs (k, k + half) of [..., tokens, heads, head_dim] by their positions."""
    half = x.shape[-1] // 2
    frequencies = base ** -(jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    left, right = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x.dtype)


def matrix(layer: Layer, name: str, x: jax.Array) -> jax.Array:
    """A parameter in the type that `x` is computed in."""
    return layer[name].astype(x.dtype)


def attention(x: jax.Array, layer: Layer, model: Model, layout: Layout) -> jax.Array:
    """Causal self-attention of whole sequences; `x` lies as `between` layers."""
    if model.latent is None:
        query, key, value = _grouped(inside(x, layout), layer, model)
    else:
        query, key, value = _latent(x, layer, model, layout)
    query, key, value = (layout.place(y, BATCH, None, HEADS, None) for y in (query, key, value))
    scale = query.shape[-1] ** -0.5
    mixed = jax_trn3.dot_product_attention(query, key, value, is_causal=True, scale=scale)
    mixed = layout.place(mixed[..., : model.head_dim], BATCH, None, HEADS, None)
    return mixed.reshape(*x.shape[:2], -1) @ matrix(layer, "out", x)


def _grouped(x: jax.Array, layer: Layer, model: Model) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values of grouped-query attention."""
    group = model.heads // model.kv_heads
    together = jnp.einsum("btw,wgnh->btgnh", x, matrix(layer, "qkv", x))
    query, key, value = (
        part.reshape(*x.shape[:2], -1, model.head_dim)
        for part in jnp.split(together, [group, group + 1], axis=3)
    )
    positions = jnp.arange(x.shape[1])
    return rotary(query, positions), rotary(key, positions), value


def _latent(
    x: jax.Array, layer: Layer, model: Model, layout: Layout
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of latent attention: heads of content and position, values padded to the same size. What is
    narrow is computed where the tokens lie, and travels in place of them."""
    assert model.latent is not None
    latent, positions = model.latent, jnp.arange(x.shape[1])
    ranks = [latent.query_rank, latent.query_rank + latent.key_value_rank]
    narrow = between(x @ matrix(layer, "narrow", x), layout)
    for_query, for_both, turned = jnp.split(narrow, ranks, axis=-1)
    turned = inside(turned, layout)

    for_query = inside(rms_norm(for_query, layer["query_norm"]), layout)
    query = jnp.einsum("btr,rnh->btnh", for_query, matrix(layer, "query_up", x))
    content, of_query = jnp.split(query, [model.head_dim], axis=-1)
    query = jnp.concatenate([content, rotary(of_query, positions)], axis=-1)

    for_both = inside(rms_norm(for_both, layer["key_value_norm"]), layout)
    both = jnp.einsum("btr,rnh->btnh", for_both, matrix(layer, "key_value_up", x))
    content, value = jnp.split(both, 2, axis=-1)
    turned = rotary(turned[:, :, None], positions)
    turned = jnp.broadcast_to(turned, (*content.shape[:3], latent.rotary_dim))
    key = jnp.concatenate([content, turned], axis=-1)
    value = jnp.pad(value, ((0, 0), (0, 0), (0, 0), (0, latent.rotary_dim)))
    return query, key, value


def feed_forward(x: jax.Array, layer: Layer, layout: Layout, prefix: str = "") -> jax.Array:
    """SwiGLU."""
    both = jnp.einsum("btw,wci->btci", x, matrix(layer, f"{prefix}gate_up", x))
    inner = layout.place(gated(both, 2), BATCH, "sequence", "tensor")
    return inner @ matrix(layer, f"{prefix}down", x)


def gated(both: jax.Array, axis: int) -> jax.Array:
    """SiLU of the first half of `axis`, which is 2, times the second."""
    gate, up = (part.squeeze(axis) for part in jnp.split(both, 2, axis=axis))
    return gate * jax.nn.sigmoid(gate) * up


def between(x: jax.Array, layout: Layout) -> jax.Array:
    """Activations as they lie between layers: a sequence divided, too (sequence parallelism)."""
    return layout.place(x, BATCH, TOKENS, None)


def inside(x: jax.Array, layout: Layout) -> jax.Array:
    """The same as a layer needs them, whole along "tensor"."""
    return layout.place(between(x, layout), BATCH, "sequence", None)
