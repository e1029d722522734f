"""A small transformer over bytes in plain JAX, its matmuls done by the `dot_general` it is given.

Shapes are written with B batch, T positions, D width, N heads, H head size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from .naive import DotGeneral

VOCABULARY = 256
OUTLIER_EVERY = 128
"""Of so many input channels of a matmul, one can be an outlier."""

Params = dict[str, Any]


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model."""

    width: int = 64
    num_layers: int = 2
    num_heads: int = 2
    mlp_factor: int = 4
    max_len: int = 64


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Draw parameters, float32; those of the layers are stacked along their first axis."""
    width, hidden, layers = config.width, config.mlp_factor * config.width, config.num_layers
    keys = iter(jax.random.split(key, 7))

    def normal(*shape: int, std: float) -> jax.Array:
        return std * jax.random.normal(next(keys), shape)

    residual = (2 * layers) ** -0.5  # so that the sum over the layers does not grow with them
    return {
        "embed": normal(VOCABULARY, width, std=1.0),
        "position": normal(config.max_len, width, std=0.1),
        "layers": {
            "attention_norm": jnp.ones((layers, width)),
            "query_key_value": normal(layers, width, 3 * width, std=width**-0.5),
            "out": normal(layers, width, width, std=residual * width**-0.5),
            "mlp_norm": jnp.ones((layers, width)),
            "up": normal(layers, width, hidden, std=width**-0.5),
            "down": normal(layers, hidden, width, std=residual * hidden**-0.5),
        },
        "norm": jnp.ones(width),
        "head": normal(width, VOCABULARY, std=0.02),
    }


def logits(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    dot_general: DotGeneral = lax.dot_general,
    outlier: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
    """Logits of each next byte, `int32[B, T] -> float32[B, T, V]`.

    In front of each matmul of activations and weights, one channel in 128 is multiplied by
    `outlier` and its row of weights divided by it. If that is a power of two, the function is the
    same in float32, bit by bit; but a format now meets the outlier channels that large language
    models grow by themselves (Dettmers et al. 2022, arXiv:2208.07339).
    """

    def linear(x: jax.Array, weight: jax.Array) -> jax.Array:
        scale = jnp.where(is_outlier(x.shape[-1]), outlier, 1.0)
        return dot_general(x * scale, weight / scale[:, None], (((2,), (0,)), ((), ())))

    def attention(x: jax.Array, weights: Params) -> jax.Array:
        batch, length, width = x.shape
        mixed = linear(x, weights["query_key_value"])
        heads = mixed.reshape(batch, length, 3, config.num_heads, width // config.num_heads)
        query, key, value = jnp.moveaxis(heads, (2, 3), (0, 2))  # [B, N, T, H] each
        scores = dot_general(query, key, (((3,), (3,)), ((0, 1), (0, 1)))) * key.shape[-1] ** -0.5
        causal = jnp.tril(jnp.ones((length, length), bool))
        shares = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
        attended = dot_general(shares, value, (((3,), (2,)), ((0, 1), (0, 1))))
        return linear(jnp.moveaxis(attended, 1, 2).reshape(x.shape), weights["out"])

    def layer(x: jax.Array, weights: Params) -> tuple[jax.Array, None]:
        x = x + attention(rms_norm(x, weights["attention_norm"]), weights)
        hidden = jax.nn.gelu(linear(rms_norm(x, weights["mlp_norm"]), weights["up"]))
        return x + linear(hidden, weights["down"]), None

    x = params["embed"][tokens] + params["position"][: tokens.shape[1]]
    x, _ = lax.scan(layer, x, params["layers"])
    return linear(rms_norm(x, params["norm"]), params["head"])


def is_outlier(size: int) -> NDArray[np.bool_]:
    """Which of `size` channels are outliers: the middle one of every 128, or of fewer."""
    period = min(size, OUTLIER_EVERY)
    return np.arange(size) % period == period // 2


def rms_norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    """Scale each vector `[..., D]` to a root mean square of `gain: [D]`."""
    return x * gain * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
