"""The projections around attention: values and derivatives against plain JAX and numpy."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_trn3.kernels import (
    output_projection,
    output_projection_reference,
    qkv_projection,
    qkv_projection_reference,
)
from pallas_trn3.timing.find import _kernels


def drawn(*shape: int, dtype: Any = jnp.bfloat16) -> jax.Array:
    rng = np.random.default_rng(list(shape))
    return jnp.asarray(rng.normal(size=shape), jnp.float32).astype(dtype)


def as64(x: Any) -> np.ndarray:
    return np.asarray(x.astype(jnp.float32), np.float64)


X = (2, 70, 150)
WEIGHTS = ((150, 260), (150, 130), (150, 130))


def test_queries_keys_and_values_from_one_kernel() -> None:
    x, weights = drawn(*X), [drawn(*shape) for shape in WEIGHTS]
    for found, weight in zip(jax.jit(qkv_projection)(x, *weights), weights):
        exact = as64(x) @ as64(weight)
        assert found.shape == (2, 70, weight.shape[1])
        assert np.abs(as64(found) - exact).max() <= 2**-8 * np.abs(exact).max()
    jaxpr = jax.make_jaxpr(qkv_projection)(x, *weights)
    assert len(list(_kernels(jaxpr.jaxpr))) == 1


def test_in_mx_as_the_reference() -> None:
    x, weights = drawn(1, 4, 64), [drawn(64, 8) for _ in range(3)]
    found = jax.jit(partial(qkv_projection, precision="mxfp8"))(x, *weights)
    wanted = jax.jit(partial(qkv_projection_reference, precision="mxfp8"))(x, *weights)
    for one, other in zip(found, wanted):
        np.testing.assert_allclose(as64(one), as64(other), rtol=2**-7)


def loss(projection: Any, *operands: Any) -> Any:
    results = jax.tree.leaves(projection(*operands))
    return sum(jnp.sum(jnp.cos(jnp.arange(r.shape[-1])) * r.astype(jnp.float32)) for r in results)


@pytest.mark.parametrize(
    ("projection", "reference", "shapes"),
    [
        (qkv_projection, qkv_projection_reference, (X, *WEIGHTS)),
        (output_projection, output_projection_reference, (X, (150, 260), (2, 70, 260))),
    ],
)
def test_derivatives(projection: Any, reference: Any, shapes: Any) -> None:
    operands = [drawn(*shape, dtype=jnp.float32) for shape in shapes]
    every = tuple(range(len(operands)))
    found = jax.jit(jax.grad(partial(loss, projection), argnums=every))(*operands)
    wanted = jax.jit(jax.grad(partial(loss, reference), argnums=every))(*operands)
    for one, other in zip(found, wanted):
        scale = np.abs(as64(other)).max()
        np.testing.assert_allclose(as64(one), as64(other), atol=2e-6 * scale)


def test_output_is_added_to_the_residual() -> None:
    x, weight, residual = drawn(*X), drawn(150, 260), drawn(2, 70, 260, dtype=jnp.float32)
    found = jax.jit(output_projection)(x, weight, residual)
    exact = as64(residual) + as64(x) @ as64(weight)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(as64(found), exact, atol=1e-5 * np.abs(exact).max())
    again = jax.jit(jax.vmap(output_projection, (0, None, 0)))(x, weight, residual)
    np.testing.assert_array_equal(np.asarray(again), np.asarray(found))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="they are"):
        output_projection(drawn(2, 3), drawn(3, 4), drawn(2, 5))
    with pytest.raises(TypeError, match="allowed"):
        output_projection(drawn(2, 3).astype(int), drawn(3, 4).astype(int), drawn(2, 4))
    with pytest.raises(ValueError, match="matmul of"):
        qkv_projection(drawn(2, 3), drawn(4, 4), drawn(3, 4), drawn(3, 4))
