"""Derivatives of mx_dot_general, also through scan and remat."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads
from mx_dot_oracle import (
    MATMUL,
    RANDOM,
    assert_within_accumulation,
    dot_of,
    draw_case,
    normal,
    product,
)

from jax_trn3 import dequantize_mx, mx_dot_general, quantize_mx

# 3 pairs of gradients each; compiling them takes the time.
SEEDS = int(os.environ.get("JAX_TRN3_TEST_SEEDS", "1"))
NO_FORMATS = {"lhs_dtype": None, "rhs_dtype": None}

X, W = normal(48, 96), normal(96, 40)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_drawn_gradients(seed: int) -> None:
    """Products of the cotangent and an operand, quantized along what *they* contract."""
    random = np.random.default_rng(1000 + seed)
    cases = [draw_case(random) for _ in range(3)]

    def pull_back(all_operands: Any, cotangents: Any) -> Any:
        pullbacks = [jax.vjp(dot_of(c), *x)[1] for c, x in zip(cases, all_operands)]
        return [pullback(cotangent) for pullback, cotangent in zip(pullbacks, cotangents)]

    cotangents = [case["cotangent"] for case in cases]
    results = jax.jit(pull_back)([case["operands"] for case in cases], cotangents)
    for case, cotangent, (lhs_gradient, rhs_gradient) in zip(cases, cotangents, results):
        left, right = zip(case["operands"], case["names"], case["formats"])
        contracted = "".join(n for n in right[1] if n in "pq")
        factor = cotangent, case["out"], case["gradient"] or left[2]
        expected = product(factor, right, left[1], contracted)
        assert_within_accumulation(lhs_gradient, expected, right[0].size)
        contracted = "".join(n for n in left[1] if n in "mn")
        factor = cotangent, case["out"], case["gradient"] or right[2]
        expected = product(factor, left, right[1], contracted)
        assert_within_accumulation(rhs_gradient, expected, left[0].size)


def test_gradient_beside_an_mx_array() -> None:
    """The constant is dequantized and quantized along the dimensions that the gradient contracts."""
    frozen = quantize_mx(W, 0)
    g = normal(48, 40)
    for wrap in (lambda f: f, jax.checkpoint):
        dot = wrap(lambda x: mx_dot_general(x, frozen, MATMUL))
        (gradient,) = jax.vjp(dot, X)[1](g)
        expected = product(
            (g, "mn", ml_dtypes.float8_e4m3fn),
            (dequantize_mx(frozen), "kn", ml_dtypes.float8_e4m3fn),
            "mk",
            "n",
        )
        assert_within_accumulation(gradient, expected, 40)
    with pytest.raises(TypeError, match="not differentiable with respect to an MXArray"):
        jax.grad(lambda w: mx_dot_general(X, w, MATMUL).sum(), allow_int=True)(frozen)


def test_derivatives_without_formats_are_the_dot_products() -> None:
    x, w = normal(3, 2, 5), normal(2, 4, 5)
    numbers = (((2, 1), (2, 0)), ((), ()))
    dot = lambda x, w: mx_dot_general(x, w, numbers, **NO_FORMATS)  # noqa: E731
    check_grads(dot, (x, w), order=2, modes=["fwd", "rev"], atol=2e-2, rtol=2e-2)
    plain = lambda x, w: lax.dot_general(x, w, numbers, lax.Precision.HIGHEST)  # noqa: E731
    for f in (jax.jacfwd, jax.jacrev):
        actual, expected = (jax.jit(f(g))(x, w) for g in (dot, plain))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_derivatives_on_the_grid_are_the_dot_products() -> None:
    """Small integers are on E4M3's grid in every direction: there, quantization changes nothing."""
    x = jnp.asarray(RANDOM.integers(-8, 9, (6, 64)), jnp.float32)
    w = jnp.asarray(RANDOM.integers(-8, 9, (64, 5)), jnp.float32)
    g = jnp.asarray(RANDOM.integers(-8, 9, (6, 5)), jnp.float32)
    mx, plain = (
        jax.vjp(lambda x, w, dot=dot: dot(x, w, MATMUL), x, w)
        for dot in (mx_dot_general, lax.dot_general)
    )
    chex.assert_trees_all_equal((mx[0], mx[1](g)), (plain[0], plain[1](g)))
    mx, plain = (
        jax.jvp(lambda x, w, dot=dot: dot(x, w, MATMUL), (x, w), (2 * x, w + 1))
        for dot in (mx_dot_general, lax.dot_general)
    )
    chex.assert_trees_all_equal(mx, plain)


class TestVariants(chex.TestCase):
    variant: Callable[..., Any]

    @chex.all_variants
    def test_value_and_gradients(self) -> None:
        def loss(x: jax.Array, w: jax.Array) -> jax.Array:
            return mx_dot_general(x, w, MATMUL, gradient_dtype=jnp.float8_e5m2).sum()

        actual = self.variant(jax.value_and_grad(loss, (0, 1)))(X, W)
        with jax.default_device(jax.devices("cpu")[0]):
            expected = jax.value_and_grad(loss, (0, 1))(np.asarray(X), np.asarray(W))
        chex.assert_trees_all_close(
            jax.tree.map(np.asarray, actual), jax.tree.map(np.asarray, expected), rtol=1e-3
        )


def test_scan_and_remat() -> None:
    weights = normal(3, 32, 32)

    def run(x: jax.Array, weights: jax.Array, wrap: Callable[..., Any]) -> jax.Array:
        layer = wrap(lambda x, w: (jnp.tanh(mx_dot_general(x, w, MATMUL)), None))
        return lax.scan(layer, x, weights)[0].sum()

    def unrolled(x: jax.Array, weights: jax.Array) -> jax.Array:
        for w in weights:
            x = jnp.tanh(mx_dot_general(x, w, MATMUL))
        return x.sum()

    x = normal(8, 32)
    expected = jax.jit(jax.grad(unrolled, (0, 1)))(x, weights)
    for wrap in (lambda f: f, jax.checkpoint):
        gradients = jax.jit(jax.grad(lambda x, w, wrap=wrap: run(x, w, wrap), (0, 1)))(x, weights)
        chex.assert_trees_all_close(gradients, expected, rtol=1e-3, atol=1e-5)


def test_frozen_mx_weights_in_scan_with_remat() -> None:
    weights = jax.vmap(lambda w: quantize_mx(w, 0))(normal(3, 32, 32))

    @jax.checkpoint
    def layer(x: jax.Array, w: Any) -> Any:
        return jnp.tanh(mx_dot_general(x, w, MATMUL)), None

    gradient = jax.jit(jax.grad(lambda x: lax.scan(layer, x, weights)[0].sum()))(normal(8, 32))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0
