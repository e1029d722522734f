"""The parameters of a model: shapes, and what each dimension is divided by.

Matrices that multiply the same thing are one: queries, keys and values by group; gate and up.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from .layout import EXPERTS, SHARDED, Layout
from .models import Model

Shapes = dict[str, Any]
"""Names to `ShapeDtypeStruct`s, or to such."""

_Matrices = dict[str, tuple[tuple[int, ...], tuple[object, ...]]]
"""By name: shape, and what divides each dimension."""

_IN = (SHARDED, "tensor")
"""Matrices from the model's width to heads or an inner width ..."""

_OUT = ("tensor", SHARDED)
"""... and back."""


def parameters(model: Model, layout: Layout, dtype: object = jnp.float32) -> Shapes:
    """Shapes of all parameters; those of layers are stacked, for a scan."""

    def stacked(matrices: _Matrices, layers: int) -> Shapes:
        return {
            name: layout.shape((layers, *shape), dtype, None, *spec)
            for name, (shape, spec) in matrices.items()
        }

    both = attention(model)
    tree: Shapes = {}
    if model.dense_layers:
        tree["dense"] = stacked({**both, **feed_forward(model.width, model.ff_width)},
                                model.dense_layers)  # fmt: skip
    if model.expert_layers:
        tree["experts"] = stacked({**both, **experts(model, layout)}, model.expert_layers)
    table = (model.vocabulary, model.width)
    tree["embedding"] = layout.shape(table, dtype, *_OUT)
    tree["final_norm"] = layout.shape(table[1:], dtype, None)
    tree["lm_head"] = layout.shape(table[::-1], dtype, *_IN)
    return tree


def attention(model: Model) -> _Matrices:
    """Of one layer's attention, and its two norms."""
    width, inner = model.width, model.heads * model.head_dim
    matrices: _Matrices = {
        "attention_norm": ((width,), (None,)),
        "ff_norm": ((width,), (None,)),
        "out": ((inner, width), _OUT),
    }
    if model.latent is None:
        together = (model.kv_heads, model.heads // model.kv_heads + 2, model.head_dim)
        return matrices | {"qkv": ((width, *together), (SHARDED, "tensor", None, None))}
    latent, head = model.latent, model.head_dim
    narrow = latent.query_rank + latent.key_value_rank + latent.rotary_dim
    heads = (SHARDED, "tensor", None)
    return matrices | {
        "narrow": ((width, narrow), (SHARDED, None)),
        "query_norm": ((latent.query_rank,), (None,)),
        "query_up": ((latent.query_rank, model.heads, head + latent.rotary_dim), heads),
        "key_value_norm": ((latent.key_value_rank,), (None,)),
        "key_value_up": ((latent.key_value_rank, model.heads, 2 * head), heads),
    }


def feed_forward(width: int, inner: int, prefix: str = "") -> _Matrices:
    """Of a gated feed-forward layer."""
    return {
        f"{prefix}gate_up": ((width, 2, inner), (SHARDED, None, "tensor")),
        f"{prefix}down": ((inner, width), _OUT),
    }


def experts(model: Model, layout: Layout) -> _Matrices:
    """Of one layer's experts and router."""
    assert model.experts is not None
    count, inner, width = model.experts.count, model.experts.width, model.width
    who, columns = divided(count, layout)
    matrices: _Matrices = {
        "router": ((width, count), (None, None)),
        "expert_gate_up": ((count, width, 2, inner), (who, "fsdp", None, columns)),
        "expert_down": ((count, inner, width), (who, columns, "fsdp")),
    }
    if model.experts.shared_width:
        matrices |= feed_forward(width, model.experts.shared_width, "shared_")
    return matrices


def divided(count: int, layout: Layout) -> tuple[object, object]:
    """What divides experts, and what divides the width of each: many are divided by both axes."""
    many = count % (layout.expert * layout.tensor) == 0
    return (EXPERTS, None) if many else ("expert", "tensor")


def count(model: Model) -> int:
    """Parameters of a model."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters(model, Layout())))


def active(model: Model) -> int:
    """Parameters that a token is multiplied with: all matrices but those of other experts, and
    but the embedding's."""
    whole = count(model) - model.vocabulary * model.width
    if model.experts is None:
        return whole
    each = 3 * model.width * model.experts.width
    idle = model.experts.count - model.experts.per_token
    return whole - model.expert_layers * idle * each
