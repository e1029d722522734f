"""Top-k: JAX's own values and indices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jax_trn3.hardware import TRAINIUM3
from pallas_trn3.kernels import top_k, top_k_reference
from pallas_trn3.timing import timeline_of


def _same(found, wanted):
    for one, other in zip(found, wanted):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize(
    ("shape", "dtype", "k"),
    [
        ((300, 77), "float32", 5),
        ((130, 200), "bfloat16", 12),
        ((3, 5), "float16", 5),
        ((512, 64), "float32", 8),
        ((3, 9_000), "float32", 9),
        ((10, 16), "float32", 16),
    ],
)
def test_values_and_indices(shape, dtype, k):
    x = jax.random.normal(jax.random.key(0), shape).astype(dtype)
    _same(jax.jit(lambda x: top_k(x, k))(x), lax.top_k(x, k))
    _same(top_k_reference(x, k), lax.top_k(x, k))


@pytest.mark.parametrize(("dtype", "k"), [("float32", 13), ("bfloat16", 3)])
def test_equal_values_and_infinities(dtype, k):
    x = jnp.round(2 * jax.random.normal(jax.random.key(0), (140, 40))) + 0.0  # no -0
    x = x.astype(dtype)
    x = x.at[:, ::2].set(-jnp.inf).at[5, 3].set(jnp.inf)
    _same(top_k(x, k), lax.top_k(x, k))


def test_nan_is_the_largest_and_has_no_place():
    values, places = top_k(jnp.array([[1.0, jnp.nan, 3.0]]), 2)
    assert np.isnan(values[0, 0])
    assert values[0, 1] == 3
    np.testing.assert_array_equal(places, [[-1, 2]])


def test_axis_vmap_and_none():
    x = jax.random.normal(jax.random.key(0), (3, 30, 6))
    values, places = top_k(x, 4, axis=1)
    wanted = lax.top_k(jnp.moveaxis(x, 1, -1), 4)
    _same([jnp.moveaxis(y, 1, -1) for y in (values, places)], wanted)
    _same(jax.vmap(lambda x: top_k(x, 2))(x), lax.top_k(x, 2))
    assert top_k(x, 0)[0].shape == (3, 30, 0)


def test_derivative():
    x = jax.random.normal(jax.random.key(0), (20, 33))
    found = jax.jit(jax.grad(lambda x: (top_k(x, 9)[0] ** 3).sum()))(x)
    wanted = jax.grad(lambda x: (lax.top_k(x, 9)[0] ** 3).sum())(x)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_under_the_checks(monkeypatch):
    monkeypatch.setenv("JAX_TRN3_CHECK", "1")
    x = jax.random.normal(jax.random.key(0), (130, 12))
    _same(jax.jit(lambda x: top_k(x, 10))(x), lax.top_k(x, 10))


def test_what_is_refused():
    with pytest.raises(ValueError, match="k = 9 of 8 values"):
        top_k(jnp.ones((2, 8)), 9)
    with pytest.raises(TypeError, match="top_k of int32"):
        top_k(jnp.ones((2, 8), jnp.int32), 2)
    with pytest.raises(ValueError, match="k = 5000 of 20000 values"):
        top_k(jnp.ones((2, 20_000)), 5_000)


def test_vector_engine_is_busy():
    x = jax.ShapeDtypeStruct((16_384, 2_048), "float32")
    timeline = timeline_of(lambda x: top_k(x, 8), x, chip=TRAINIUM3)
    assert timeline.engines["core0/vector"].busy / timeline.active_ps > 0.9
