"""The loss of a model on tokens: layers scanned, recomputed in the backward pass."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from .experts import mixture
from .layers import Layer, attention, between, feed_forward, inside, rms_norm
from .layout import BATCH, Layout
from .models import Model


def loss(params: dict[str, Any], tokens: jax.Array, model: Model, layout: Layout) -> jax.Array:
    """Mean negative log-likelihood of [sequences, tokens + 1] integers."""
    before, after = tokens[:, :-1], tokens[:, 1:]
    x = embed(params["embedding"].astype(model.dtype), before, layout)
    for kind in ("dense", "experts"):
        if kind in params:
            x = _layers(x, params[kind], kind, model, layout)
    x = inside(rms_norm(x, params["final_norm"]), layout)
    with jax.named_scope("lm_head"):
        logits = (x @ params["lm_head"].astype(x.dtype)).astype(jnp.float32)
    logits = layout.place(logits, BATCH, "sequence", "tensor")
    right = jnp.sum(jnp.where(_is(after, logits.shape[-1]), logits, 0.0), axis=-1)
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - right)


def embed(table: jax.Array, tokens: jax.Array, layout: Layout) -> jax.Array:
    """Rows of a table divided along its rows: a product with ones and zeros, as MaxText's
    use_iota_embed; a gather could not be divided so, nor could the scatter of its gradient."""
    with jax.named_scope("embedding"):
        ones = layout.place(
            _is(tokens, table.shape[0]).astype(table.dtype), BATCH, "sequence", "tensor"
        )
        return between(ones @ table, layout)


def _is(tokens: jax.Array, vocabulary: int) -> jax.Array:
    """[..., vocabulary]: whether each token is that one."""
    return tokens[..., None] == jnp.arange(vocabulary, dtype=tokens.dtype)


def _layers(x: jax.Array, stacked: Layer, kind: str, model: Model, layout: Layout) -> jax.Array:
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
    def layer(x: jax.Array, one: Layer) -> tuple[jax.Array, None]:
        normed = between(rms_norm(x, one["attention_norm"]), layout)
        x = x + between(attention(normed, one, model, layout), layout)
        normed = rms_norm(x, one["ff_norm"])
        if kind == "experts":
            return x + mixture(between(normed, layout), one, model, layout), None
        return x + between(feed_forward(inside(normed, layout), one, layout), layout), None

    return jax.lax.scan(layer, x, stacked)[0]
