"""Routing and experts: against plain JAX, lax.top_k and lax.ragged_dot."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pallas_trn3.kernels import (
    expert_matmul,
    expert_matmul_reference,
    route,
    route_reference,
)


def drawn(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
    rng = np.random.default_rng(list(shape))
    return jnp.asarray(rng.normal(size=shape), jnp.float32).astype(dtype)


def as64(x: Any) -> np.ndarray:
    return np.asarray(x.astype(jnp.float32), np.float64)


@pytest.mark.parametrize(
    ("experts", "k", "normalize"), [(64, 8, True), (64, 8, False), (5, 2, True), (8, 1, False)]
)
def test_routes(experts: int, k: int, normalize: bool) -> None:
    logits = drawn(200, experts).at[3, :2].set(9.0)  # a tie
    gates, chosen = jax.jit(partial(route, k=k, normalize=normalize))(logits)
    np.testing.assert_array_equal(chosen, lax.top_k(logits, k)[1])
    exact = np.exp(as64(logits))
    picked = np.take_along_axis(exact, np.asarray(chosen), 1)
    total = picked if normalize else exact
    np.testing.assert_allclose(gates, picked / total.sum(1, keepdims=True), rtol=2e-6)
    wanted = route_reference(logits, k, normalize=normalize)
    np.testing.assert_allclose(gates, wanted[0], rtol=2e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_gates_have_a_derivative(normalize: bool) -> None:
    def slope(function: Any) -> Any:
        def loss(x: Any) -> Any:
            return jnp.sum(function(x, 2, normalize=normalize)[0] ** 2 * jnp.array([1.0, 3.0]))

        return jax.jit(jax.grad(loss))(drawn(30, 6))

    np.testing.assert_allclose(slope(route), slope(route_reference), atol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "tokens", "columns"),
    [([100, 0, 57, 30], 200, 520), ([0, 0, 1], 1, 3), ([520, 3, 600], 1600, 40)],
)
def test_experts(sizes: list[int], tokens: int, columns: int) -> None:
    groups = jnp.array(sizes, jnp.int32)
    lhs, rhs = drawn(tokens, 130), drawn(len(sizes), 130, columns)
    found = as64(jax.jit(expert_matmul)(lhs, rhs, groups))
    ends = np.cumsum(sizes)
    exact = np.zeros((tokens, columns))
    for e, (end, size) in enumerate(zip(ends, sizes)):
        exact[end - size : end] = as64(lhs)[end - size : end] @ as64(rhs)[e]
    np.testing.assert_allclose(found, exact, atol=1e-4)
    np.testing.assert_allclose(found, as64(lax.ragged_dot(lhs, rhs, groups)), atol=1e-4)
    np.testing.assert_allclose(found, as64(expert_matmul_reference(lhs, rhs, groups)), atol=1e-4)


def test_experts_derivatives_and_vmap() -> None:
    groups, lhs, rhs = jnp.array([20, 0, 35], jnp.int32), drawn(60, 33), drawn(3, 33, 40)

    def slopes(product: Any) -> Any:
        def loss(lhs: Any, rhs: Any) -> Any:
            return jnp.sum(jnp.sin(product(lhs, rhs, groups)))

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(lhs, rhs)

    for one, other in zip(slopes(expert_matmul), slopes(expert_matmul_reference)):
        np.testing.assert_allclose(one, other, atol=1e-4)
    twice = jax.vmap(expert_matmul, (0, None, 0))
    both = jax.jit(twice)(jnp.stack([lhs, -lhs]), rhs, jnp.stack([groups, groups]))
    np.testing.assert_allclose(both[0], -both[1], atol=1e-5)
    np.testing.assert_allclose(both[0], expert_matmul_reference(lhs, rhs, groups), atol=1e-4)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="allowed: 1 to 8"):
        route(drawn(3, 20), 9)
    with pytest.raises(TypeError, match="logits is int32"):
        route(jnp.zeros((3, 20), jnp.int32), 2)
    with pytest.raises(ValueError, match="integers"):
        expert_matmul(drawn(4, 3), drawn(2, 3, 5), jnp.array([4]))
    with pytest.raises(TypeError, match="both are"):
        expert_matmul(drawn(4, 3), drawn(2, 3, 5, dtype=jnp.bfloat16), jnp.array([4, 0]))
