"""One more token for every user: gpt-oss's layers on a cache of keys and values.

All users are equally far; biases are left out. A batch is divided over chips ("expert"), the heads
of a user over the cores of a chip ("tensor"); an expert lies on one core, and tokens travel to it
(GShard's products with ones and zeros, cheap for a single token a user). Experts' weights are
MXFP4, as published, their products with activations in MXFP8; or bfloat16 or float8, for chips
without.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

import jax_trn3
from jax_trn3.numerics import MXFP4_E2M1

from .layers import gated, matrix, rms_norm, rotary
from .layout import Layout
from .models import Model

Weights = Literal["mxfp4", "bfloat16", "float8"]
"""What experts' weights are kept in."""

_USERS = ("replica", "expert")
_EXPERTS = ("tensor", "expert")
_BLOCK = 32
Tree = dict[str, Any]


def decode_step(
    model: Model, layout: Layout, users: int, context: int, weights: Weights = "mxfp4"
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The step, jitted, and the shapes of its arguments: parameters, the cache, which it replaces,
    how far all users are, and their last tokens. It returns the cache and the next tokens.

    **Raises:** `ValueError` where the layout does not divide the model or the users.
    """
    assert model.experts is not None
    assert model.window is not None
    step = functools.partial(_step, model=model, layout=layout)
    arguments = (
        _parameters(model, layout, weights),
        _cache(model, layout, users, context),
        layout.shape((), jnp.int32),
        layout.shape((users,), jnp.int32, _USERS),
    )
    return jax.jit(step, donate_argnums=1), arguments


def _parameters(model: Model, layout: Layout, weights: Weights) -> Tree:
    """Layers in pairs: one that sees a window, one that sees everything."""
    assert model.experts is not None
    width, inner, count = model.width, model.experts.width, model.experts.count
    groups = (model.kv_heads, model.heads // model.kv_heads + 2, model.head_dim)
    plain: dict[str, tuple[tuple[int, ...], tuple[object, ...]]] = {
        "attention_norm": ((width,), ()),
        "ff_norm": ((width,), ()),
        "sinks": ((model.heads,), ("tensor",)),
        "qkv": ((width, *groups), (None, "tensor")),
        "out": ((model.heads * model.head_dim, width), ("tensor",)),
        "router": ((width, count), ()),
    }
    pairs = (model.layers // 2, 2)
    layers: Tree = {
        name: layout.shape((*pairs, *shape), model.dtype, None, None, *spec)
        for name, (shape, spec) in plain.items()
    }
    for name, shape in (("gate_up", (count, width, 2 * inner)), ("down", (count, inner, width))):
        layers[name] = _expert_weights((*pairs, *shape), layout, weights)
    table = (model.vocabulary, model.width)
    return {
        "layers": layers,
        "embedding": layout.shape(table, model.dtype, None, "tensor"),
        "final_norm": layout.shape(table[1:], model.dtype),
        "lm_head": layout.shape(table[::-1], model.dtype, None, "tensor"),
    }


def _expert_weights(shape: tuple[int, ...], layout: Layout, weights: Weights) -> Any:
    """[..., experts, in, out]; microscaled in blocks along "in"."""
    spec = (None, None, _EXPERTS)
    if weights == "mxfp4":
        blocks = (*shape[:-2], -(-shape[-2] // _BLOCK), shape[-1])
        return jax_trn3.MXArray(
            layout.shape(shape, jnp.float4_e2m1fn, *spec),
            layout.shape(blocks, jnp.float8_e8m0fnu, *spec),
            format=MXFP4_E2M1,
            axis=-2,
        )
    return layout.shape(shape, {"float8": jnp.float8_e4m3fn}.get(weights, jnp.bfloat16), *spec)


def _cache(model: Model, layout: Layout, users: int, context: int) -> Tree:
    """Keys and values [pairs, 2, users, tokens, heads, head_dim] of both kinds of layers; a window
    is a ring."""
    assert model.window is not None

    def shape(tokens: int) -> jax.ShapeDtypeStruct:
        sizes = (model.layers // 2, 2, users, tokens, model.kv_heads, model.head_dim)
        return layout.shape(sizes, model.dtype, None, None, _USERS, None, "tensor")

    return {"window": shape(min(model.window, context)), "all": shape(context)}


def _step(
    params: Tree, cache: Tree, position: jax.Array, tokens: jax.Array,
    *, model: Model, layout: Layout,
) -> tuple[Tree, jax.Array]:  # fmt: skip
    x = layout.place(params["embedding"][tokens], _USERS, "tensor")
    x = layout.place(x, _USERS, None)

    def pair(carry: tuple[jax.Array, Tree, jax.Array], two: Tree) -> tuple[Any, None]:
        x, cache, number = carry
        for place, kind in enumerate(("window", "all")):
            layer = jax.tree.map(lambda leaf, place=place: leaf[place], two)
            mixed, cache[kind] = _attention(x, layer, cache[kind], number, position, model, layout)
            x = layout.place(x + mixed, _USERS, None)
            x = layout.place(x + _mixture(x, layer, model, layout), _USERS, None)
        return (x, cache, number + 1), None

    (x, cache, _), _ = jax.lax.scan(pair, (x, dict(cache), jnp.int32(0)), params["layers"])
    x = rms_norm(x, params["final_norm"])
    logits = layout.place(x @ params["lm_head"], _USERS, "tensor")
    return cache, _largest(logits, layout)


def _attention(
    x: jax.Array, layer: Tree, cache: jax.Array, number: jax.Array, position: jax.Array,
    model: Model, layout: Layout,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Of one new token on the cache of layer pair `number`; and the cache with that token."""
    users, group = x.shape[0], model.heads // model.kv_heads
    normed = rms_norm(x, layer["attention_norm"])
    together = jnp.einsum("bw,wgnh->bgnh", normed, matrix(layer, "qkv", x))
    query, key, value = jnp.split(together, [group, group + 1], axis=2)
    query = query.reshape(users, 1, model.heads, model.head_dim)
    key, value = (part.reshape(users, 1, model.kv_heads, -1) for part in (key, value))
    here = position[None]
    new = jnp.stack([rotary(key, here), value])[None]
    new = layout.place(new, None, None, _USERS, None, "tensor", None)
    at = (number, 0, 0, position % cache.shape[3], 0, 0)
    cache = jax.lax.dynamic_update_slice(cache, new, at)
    key, value = jax.lax.dynamic_index_in_dim(cache, number, keepdims=False)
    mixed = jax_trn3.dot_product_attention(
        rotary(query, here), key, value, sinks=layer["sinks"].astype(x.dtype)
    )
    mixed = layout.place(mixed, _USERS, None, "tensor", None)
    return mixed.reshape(users, -1) @ matrix(layer, "out", x), cache


def places(mean: float, most: int) -> int:
    """Places of an expert that `mean` tokens visit by chance: three standard deviations more."""
    return max(1, min(most, math.ceil(mean + 3 * math.sqrt(mean))))


def _mixture(x: jax.Array, layer: Tree, model: Model, layout: Layout) -> jax.Array:
    assert model.experts is not None
    experts, (users, width) = model.experts, x.shape
    groups = layout.replica * layout.expert
    here = rms_norm(x, layer["ff_norm"]).reshape(groups, users // groups, width)
    here = layout.place(here, _USERS, None, None)
    capacity = places(here.shape[1] * experts.per_token / experts.count, here.shape[1])

    scores = here.astype(jnp.float32) @ layer["router"].astype(jnp.float32)
    best, chosen = jax.lax.top_k(scores, experts.per_token)
    picks = layout.place(jax.nn.one_hot(chosen, experts.count), _USERS, None, None, None)
    rank = layout.place(_ranks(picks), _USERS, None, None, None)
    goes, weight = _routes(picks, rank, jax.nn.softmax(best), capacity)
    goes, weight = (layout.place(y.astype(x.dtype), _USERS, None, "tensor", None)
                    for y in (goes, weight))  # fmt: skip

    spread = ("replica", _EXPERTS, None, None)
    sent = jnp.einsum("gtec,gtw->gecw", goes, here)
    sent = layout.place(layout.place(sent, _USERS, "tensor", None, None), *spread)
    both = _product(sent, layer["gate_up"]).reshape(*sent.shape[:3], 2, -1)
    done = layout.place(_product(gated(both, 3), layer["down"]), *spread)
    done = layout.place(done, _USERS, "tensor", None, None)
    return jnp.einsum("gtec,gecw->gtw", weight, done).reshape(x.shape)


def _ranks(picks: jax.Array) -> jax.Array:
    """[groups, tokens, per token, experts]: how many have picked the expert before."""
    flat = picks.reshape(picks.shape[0], -1, picks.shape[3])
    return (jnp.cumsum(flat, axis=1) - flat).reshape(picks.shape)


def _routes(
    picks: jax.Array, rank: jax.Array, weights: jax.Array, capacity: int
) -> tuple[jax.Array, jax.Array]:
    """[groups, tokens, experts, places]: ones where a token goes, and its weights there."""
    place = jax.nn.one_hot(jnp.sum(rank * picks, -1).astype(jnp.int32), capacity)
    each = picks[..., None] * place[..., None, :]
    return jnp.sum(each, axis=2), jnp.sum(each * weights[..., None, None], axis=2)


def _product(x: jax.Array, weights: Any) -> jax.Array:
    """[groups, experts, places, in] times [experts, in, out]."""
    rows = jnp.swapaxes(x, 0, 1).reshape(x.shape[1], -1, x.shape[3])
    numbers = (((2,), (1,)), ((0,), (0,)))
    if isinstance(weights, jax_trn3.MXArray):
        out = jax_trn3.mx_dot_general(rows, weights, numbers, preferred_element_type=x.dtype)
    else:
        out = jax.lax.dot_general(
            rows.astype(weights.dtype), weights, numbers, preferred_element_type=jnp.float32
        ).astype(x.dtype)
    return jnp.swapaxes(out.reshape(x.shape[1], x.shape[0], x.shape[2], -1), 0, 1)


def _largest(logits: jax.Array, layout: Layout) -> jax.Array:
    """[users]: the largest of each row, found part by part, as the parts lie."""
    parts = logits.reshape(logits.shape[0], layout.tensor, -1)
    parts = layout.place(parts, _USERS, "tensor", None)
    best, where = jnp.max(parts, axis=-1), jnp.argmax(parts, axis=-1)
    best, where = (layout.place(y, _USERS, None) for y in (best, where))
    part = jnp.argmax(best, axis=-1)
    inside = jnp.take_along_axis(where, part[:, None], axis=-1)[:, 0]
    return part * parts.shape[2] + inside
