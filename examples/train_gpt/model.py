"""A small GPT in Flax NNX, its heads and hidden units sharded over the mesh axis `tensor`.

Shapes are written with B batch, T positions, D width, N heads, H head size, V vocabulary.
The sharding is Megatron's: the first matmul of a block is split by columns, the second by rows,
so that a block needs one all-reduce forward and one backward.
"""

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

VOCABULARY = 256


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of the model."""

    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    mlp_factor: int = 4

    @property
    def head_size(self) -> int:
        """The share of the width that one head has."""
        return self.width // self.num_heads


def rotate(x: jax.Array) -> jax.Array:
    """Rotary position embedding of `x: [B, T, N, H]` (Su et al. 2021, arXiv:2104.09864)."""
    _, length, _, size = x.shape
    frequency = 1e4 ** -jnp.linspace(0, 1, size // 2, endpoint=False)
    angle = jnp.outer(jnp.arange(length, dtype=jnp.float32), frequency)[None, :, None]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


class Attention(nnx.Module):
    """Causal self-attention, `[B, T, D] -> [B, T, D]`."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs) -> None:
        heads = (config.num_heads, config.head_size)
        self.query_key_value = nnx.LinearGeneral(
            config.width,
            (3, *heads),
            use_bias=False,
            kernel_metadata={"out_sharding": (None, None, "tensor", None)},
            rngs=rngs,
        )
        self.out = nnx.LinearGeneral(
            heads,
            config.width,
            axis=(-2, -1),
            use_bias=False,
            kernel_init=residual_init(config),
            kernel_metadata={"out_sharding": ("tensor", None, None)},
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        query, key, value = jnp.moveaxis(self.query_key_value(x), 2, 0)  # [B, T, N, H] each
        attended = jax.nn.dot_product_attention(rotate(query), rotate(key), value, is_causal=True)
        return self.out(attended)


class MLP(nnx.Module):
    """Two matmuls with a GELU between, `[B, T, D] -> [B, T, D]`."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs) -> None:
        hidden = config.mlp_factor * config.width
        self.up = nnx.Linear(
            config.width,
            hidden,
            use_bias=False,
            kernel_metadata={"out_sharding": (None, "tensor")},
            rngs=rngs,
        )
        self.down = nnx.Linear(
            hidden,
            config.width,
            use_bias=False,
            kernel_init=residual_init(config),
            kernel_metadata={"out_sharding": ("tensor", None)},
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.gelu(self.up(x)))


class Block(nnx.Module):
    """A transformer layer with normalisation in front, `[B, T, D] -> [B, T, D]`."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs) -> None:
        self.attention_norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nnx.Module):
    """Bytes to the logits of each next byte, `int32[B, T] -> float32[B, T, V]`."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCABULARY, config.width, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.head = nnx.Linear(
            config.width,
            VOCABULARY,
            use_bias=False,
            kernel_init=nnx.initializers.normal(0.02),
            rngs=rngs,
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        chex.assert_rank(tokens, 2)
        x = jax.lax.with_sharding_constraint(self.embed(tokens), P("data"))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        chex.assert_shape(logits, (*tokens.shape, VOCABULARY))
        return logits


def residual_init(config: GPTConfig) -> nnx.Initializer:
    """Init for what is added to the residual stream: smaller the more layers add to it."""
    return nnx.initializers.variance_scaling(0.5 / config.num_layers, "fan_in", "normal")
