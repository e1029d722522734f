"""A mixture of experts: tokens travel to the experts that they chose, and back.

The way of JAX programs with places (capacity): each group of tokens fills for each expert so many
places, in the order of its tokens; tokens that find no place pass by. Shapes are static, experts
are one batched product, and a change of sharding from groups to experts is the all-to-all.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .layers import Layer, between, feed_forward, gated, inside, matrix
from .layout import BATCH, TOKENS, Layout
from .models import Model
from .parameters import divided


def places(model: Model, tokens: int) -> int:
    """Places of each expert for a group of tokens: whole blocks of 32, or a block of a
    microscaled gradient would go across groups, and groups across devices not be summed apart."""
    assert model.experts is not None
    experts = model.experts
    share = tokens * experts.per_token / experts.count * experts.capacity_factor
    return max(32, -(-int(share) // 32) * 32)


def mixture(x: jax.Array, layer: Layer, model: Model, layout: Layout) -> jax.Array:
    """Experts of `x` [sequences, tokens, width]. A group is what a device has of a sequence."""
    assert model.experts is not None
    experts, (sequences, tokens, width) = model.experts, x.shape
    parts = layout.sequence * layout.tensor
    groups = x.reshape(sequences, parts, tokens // parts, width)
    groups = layout.place(groups, BATCH, TOKENS, None, None)

    with jax.named_scope("router"):
        scores = groups.astype(jnp.float32) @ layer["router"].astype(jnp.float32)
    weights, chosen = jax.lax.top_k(jax.nn.sigmoid(scores), experts.per_token)
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    capacity = places(model, tokens // parts)
    slot = _each(_slots)(chosen, experts.count, capacity)

    sent = _each(_sent)(groups, slot, experts.count * capacity)
    sent = sent.reshape(sequences, parts, experts.count, capacity, width)
    sent = layout.place(sent, BATCH, TOKENS, None, None, None)
    done = layout.place(_experts(sent, layer, layout, experts.count), BATCH, TOKENS)
    done = done.reshape(sequences, parts, experts.count * capacity, width)
    mixed = _each(_back)(done, slot, weights.astype(x.dtype))
    mixed = between(mixed.reshape(x.shape), layout)
    if experts.shared_width:
        mixed += between(feed_forward(inside(x, layout), layer, layout, "shared_"), layout)
    return mixed


def _each(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The function for every group [sequences, parts]; numbers are for all."""

    def of_groups(*args: Any) -> jax.Array:
        axes = [None if isinstance(arg, int) else 0 for arg in args]
        return jax.vmap(jax.vmap(function, in_axes=axes), in_axes=axes)(*args)

    return of_groups


def _slots(chosen: jax.Array, count: int, capacity: int) -> jax.Array:
    """[tokens, per token] places among count * capacity; one beyond the last for none."""
    flat = chosen.reshape(-1)
    mine = jax.nn.one_hot(flat, count, dtype=jnp.int32)
    rank = jnp.sum((jnp.cumsum(mine, axis=0) - mine) * mine, axis=-1)
    return jnp.where(rank < capacity, flat * capacity + rank, count * capacity).reshape(
        chosen.shape
    )


def _sent(tokens: jax.Array, slot: jax.Array, size: int) -> jax.Array:
    """[places, width]: the token in each place."""
    number = jnp.broadcast_to(jnp.arange(slot.shape[0])[:, None], slot.shape)
    who = jnp.full(size, tokens.shape[0]).at[slot].set(number, mode="drop")
    return tokens.at[who].get(mode="fill", fill_value=0)


def _back(done: jax.Array, slot: jax.Array, weights: jax.Array) -> jax.Array:
    """[tokens, width]: what the experts made of each token, weighed."""
    found = done.at[slot.T].get(mode="fill", fill_value=0)
    choices = jnp.split(found * weights.T[..., None], slot.shape[1])
    return sum(choices[1:], start=choices[0])[0]


def _experts(sent: jax.Array, layer: Layer, layout: Layout, count: int) -> jax.Array:
    """[sequences, parts, experts, places, width] through each expert's SwiGLU."""
    who, columns = divided(count, layout)
    groups = (("replica", "fsdp"), "sequence", who)
    sent = layout.place(sent, *groups, None, None)
    both = jnp.einsum("specw,ewdi->specdi", sent, matrix(layer, "expert_gate_up", sent))
    inner = layout.place(gated(both, 4), *groups, None, columns)
    done = jnp.einsum("speci,eiw->specw", inner, matrix(layer, "expert_down", sent))
    return layout.place(done, *groups, None, None)
