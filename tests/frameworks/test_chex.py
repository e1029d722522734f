"""Chex: a step of training in every variant that chex knows, against the CPU backend."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


def step(w: jax.Array, x: jax.Array) -> jax.Array:
    loss = lambda w: jnp.mean(jnp.tanh(x @ w) ** 2)  # noqa: E731
    return w - 0.1 * jax.grad(loss)(w)


def expected(w: Any, x: Any) -> np.ndarray:
    with jax.default_device(jax.devices("cpu")[0]):
        return np.asarray(jax.jit(step)(w, x))


class TestVariants(chex.TestCase):
    variant: Callable[..., Any]

    @chex.all_variants
    def test_step_is_the_cpus(self) -> None:
        w = np.ones((4, 3), np.float32)
        actual = self.variant(step)(w, X)
        chex.assert_trees_all_close(np.asarray(actual), expected(w, X), rtol=1e-5)


def test_asserts_look_at_values_on_the_platform() -> None:
    tree = {"a": jnp.arange(3.0), "b": [jnp.ones((2, 2))]}
    chex.assert_trees_all_equal(tree, jax.tree.map(np.asarray, tree))
    chex.assert_tree_all_finite(tree)
    chex.assert_shape(tree["b"][0], (2, 2))
    with np.testing.assert_raises(AssertionError):
        chex.assert_trees_all_equal(tree, jax.tree.map(lambda x: x + 1, tree))


def test_function_is_traced_once() -> None:
    counted = jax.jit(chex.assert_max_traces(lambda x: x + 1, n=1))
    for i in range(3):
        counted(jnp.float32(i))
