"""What a trained model writes."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .data import Tokens
from .model import GPT
from .train import put_batch


@nnx.jit(static_argnums=3)
def generate(
    model: GPT, prompt: jax.Array, key: jax.Array, length: int, temperature: float = 0.7
) -> jax.Array:
    """Let `model` continue `prompt: int32[B, T]` by `length` bytes, `int32[B, length]`.

    Each byte is drawn from the softmax of the logits divided by `temperature`, the model seeing
    the `T` bytes before it.
    """

    def next_byte(window: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        byte = jax.random.categorical(key, model(window)[:, -1] / temperature)
        return jnp.concatenate([window[:, 1:], byte[:, None]], axis=1), byte

    _, written = jax.lax.scan(next_byte, prompt, jax.random.split(key, length))
    return written.T


def sample(model: GPT, prompts: Tokens, *, seed: int, length: int = 300) -> list[tuple[str, str]]:
    """Pairs of a prompt and what `model` writes behind it, of `prompts: int32[B, T]`."""
    written = np.asarray(generate(model, put_batch(prompts), jax.random.key(seed), length))
    return [(decode(before), decode(after)) for before, after in zip(prompts, written, strict=True)]


def decode(tokens: Tokens) -> str:
    """Return the text of `tokens: int32[T]`, U+FFFD standing for what a terminal cannot show."""
    text = tokens.astype(np.uint8).tobytes().decode("utf-8", errors="replace")
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)
