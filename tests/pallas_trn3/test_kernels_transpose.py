"""pallas_trn3.kernels.transpose: bits as they are, by either engine."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_trn3.kernels import transpose


def bits(x: Any) -> np.ndarray:
    array = np.asarray(x)
    return array.view(f"u{array.dtype.itemsize}")


def patterns(shape: tuple[int, int], dtype: str) -> jax.Array:
    """Any bits, NaNs and infinities among them."""
    size = np.dtype(jnp.dtype(dtype)).itemsize
    rng = np.random.default_rng(list(shape))
    raw = rng.integers(0, 2 ** (8 * size), shape, dtype=f"u{size}")
    return jnp.asarray(raw.view(jnp.dtype(dtype)))


@pytest.mark.parametrize("shape", [(3, 130), (700, 520)])
@pytest.mark.parametrize(
    ("engine", "dtype"),
    [
        ("tensor", "bfloat16"),
        ("tensor", "float32"),
        ("dma", "bfloat16"),
        ("dma", "float8_e5m2"),
        ("dma", "int32"),
    ],
)
def test_bits_move(shape: tuple[int, int], engine: Any, dtype: str) -> None:
    x = patterns(shape, dtype)
    found = jax.jit(partial(transpose, engine=engine))(x)
    if engine == "tensor":
        np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(x.T, np.float32))
    else:
        np.testing.assert_array_equal(bits(found), bits(x).T)


@pytest.mark.parametrize("engine", ["tensor", "dma"])
def test_derivative_and_vmap(engine: Any) -> None:
    x = jnp.arange(2 * 5 * 7, dtype=jnp.float32).reshape(2, 5, 7)
    batched = jax.vmap(partial(transpose, engine=engine))
    np.testing.assert_array_equal(jax.jit(batched)(x), np.swapaxes(np.asarray(x), 1, 2))
    slope = jax.jit(jax.grad(lambda x: jnp.sum(batched(x) * jnp.swapaxes(x, 1, 2))))(x)
    np.testing.assert_array_equal(slope, 2 * np.asarray(x))


def test_refusals() -> None:
    with pytest.raises(TypeError, match="tensor transposes bfloat16"):
        transpose(jnp.zeros((2, 2), jnp.int32), engine="tensor")
    with pytest.raises(ValueError, match="sizes >= 1"):
        transpose(jnp.zeros((2,)))
    with pytest.raises(ValueError, match="allowed: tensor, dma"):
        transpose(jnp.zeros((2, 2)), engine="vector")  # type: ignore[arg-type]
