"""ragged_dot as the library's kernel: the same values, less time."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jax_trn3 import estimate
from pallas_trn3.kernels import compiler_rules


@pytest.fixture
def installed() -> Iterator[None]:
    compiler_rules.install()
    yield
    compiler_rules.uninstall()
    jax.clear_caches()


def drawn(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(list(shape)).normal(size=shape), jnp.float32)


def ragged(x: Any, y: Any, sizes: Any) -> Any:
    return lax.ragged_dot(x, y, sizes)


def test_values_derivatives_and_vmap(installed: None) -> None:
    x, y, sizes = drawn(50, 20), drawn(3, 20, 30), jnp.array([20, 0, 25], jnp.int32)
    assert "trn3.pallas_call" in jax.jit(ragged).lower(x, y, sizes).as_text()
    wanted = np.zeros((50, 30))
    wanted[:20], wanted[20:45] = x[:20] @ y[0], x[20:45] @ y[2]
    np.testing.assert_allclose(jax.jit(ragged)(x, y, sizes), wanted, atol=1e-4)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(ragged(x, y, sizes))))(x)
    np.testing.assert_allclose(slope[20:45], jnp.tile(y[2].sum(1), (25, 1)), atol=1e-4)
    # Batched ones are no kernel's, and stay JAX's.
    both = [jnp.stack(pair) for pair in ((x, -x), (y, y), (sizes, sizes))]
    twice = jax.jit(jax.vmap(ragged))(*both)
    np.testing.assert_allclose(twice[1], -wanted, atol=1e-4)


def test_takes_less_time() -> None:
    x, y = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((4096, 1024), (8, 1024, 1024)))
    sizes = jax.ShapeDtypeStruct((8,), jnp.int32)
    before = estimate(jax.jit(lambda *a: ragged(*a)), x, y, sizes).time_ps
    compiler_rules.install()
    try:
        after = estimate(jax.jit(lambda *a: ragged(*a)), x, y, sizes).time_ps
    finally:
        compiler_rules.uninstall()
        jax.clear_caches()
    assert after < before / 2
