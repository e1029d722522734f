"""Softmax of rows: values and derivative against float64, shapes, what is refused, time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_trn3.hardware import TRAINIUM2, TRAINIUM3
from pallas_trn3.kernels import softmax, softmax_reference
from pallas_trn3.timing import timeline_of

ROUNDING = {"float32": 2e-6, "bfloat16": 2**-8, "float16": 2**-11}


def _exact(x):
    x = np.asarray(x, np.float64)
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _x(shape, dtype):
    return (3 * jax.random.normal(jax.random.key(0), shape)).astype(dtype)


@pytest.mark.parametrize(
    ("shape", "dtype", "exponentials"),
    [
        ((300, 77), "float32", "vector"),
        ((1024, 130), "bfloat16", "vector"),
        ((300, 130), "bfloat16", "scalar"),
        ((2, 5), "float16", "scalar"),
    ],
)
def test_values(shape, dtype, exponentials):
    x = _x(shape, dtype)
    y = jax.jit(functools.partial(softmax, exponentials=exponentials))(x)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(np.float64(y), _exact(x), rtol=2 * ROUNDING[dtype], atol=1e-7)


def test_the_reference():
    x = _x((40, 33), "float32")
    np.testing.assert_allclose(softmax_reference(x), _exact(x), rtol=2e-6)


def test_large_values_and_masked_ones():
    x = jnp.array([[1e4, 1e4 - 1, -jnp.inf], [-1e30, 0.0, 3.0]])
    np.testing.assert_allclose(jax.jit(softmax)(x), _exact(x), rtol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_derivative(dtype):
    x, dy = _x((200, 33), dtype), jax.random.normal(jax.random.key(1), (200, 33)).astype(dtype)
    _, back = jax.vjp(jax.jit(softmax), x)
    (dx,) = back(dy)
    # Of the rounded result, which is what the kernel goes back from.
    y, d = np.float64(jax.jit(softmax)(x)), np.float64(dy)
    exact = y * (d - (y * d).sum(-1, keepdims=True))
    np.testing.assert_allclose(np.float64(dx), exact, rtol=4 * ROUNDING[dtype], atol=1e-6)


def test_vmap_grad_and_axes():
    x = _x((3, 20, 11), "float32")
    np.testing.assert_allclose(jax.jit(jax.vmap(softmax))(x), _exact(x), rtol=2e-6)
    columns = np.moveaxis(_exact(np.moveaxis(x, 1, -1)), -1, 1)
    np.testing.assert_allclose(jax.jit(softmax, static_argnums=1)(x, 1), columns, rtol=2e-6)
    loss = jax.grad(lambda f, x: (f(x) ** 2).sum(), argnums=1)
    one, other = (jax.jit(loss, static_argnums=0)(f, x) for f in (softmax, softmax_reference))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_under_the_checks(monkeypatch):
    monkeypatch.setenv("JAX_TRN3_CHECK", "1")
    x = _x((140, 9), "float32")
    np.testing.assert_allclose(jax.jit(softmax)(x), _exact(x), rtol=2e-6)


def test_what_is_refused():
    with pytest.raises(TypeError, match="softmax of int32; allowed: float32"):
        softmax(jnp.ones((2, 3), jnp.int32))
    with pytest.raises(ValueError, match="exponentials='gpsimd'; allowed: 'vector', 'scalar'"):
        softmax(jnp.ones((2, 3)), exponentials="gpsimd")
    with pytest.raises(ValueError, match="a row takes .* bytes of an SBUF partition"):
        softmax(jnp.ones((2, 100_000)))


@pytest.mark.parametrize(
    ("dtype", "chip", "exponentials"),
    [
        ("bfloat16", TRAINIUM3, "vector"),
        ("float32", TRAINIUM3, "vector"),
        ("bfloat16", TRAINIUM2, "scalar"),
        ("float32", TRAINIUM2, "scalar"),
    ],
)
def test_large_ones_take_80_percent_of_the_memory_bandwidth(dtype, chip, exponentials):
    x = jax.ShapeDtypeStruct((16_384, 4_096), dtype)
    run = functools.partial(softmax, exponentials=exponentials)
    timeline = timeline_of(run, x, chip=chip, active_cores=2)
    moved = 2 * x.size * x.dtype.itemsize
    share = moved / timeline.active_ps * 1e12 * chip.num_cores / chip.hbm_bandwidth_bytes_per_s
    assert share > 0.8
