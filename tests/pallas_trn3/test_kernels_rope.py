"""Rotary position embedding: both pairings, against complex numbers in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_trn3.hardware import TRAINIUM2, TRAINIUM3
from pallas_trn3.kernels import rope, rope_angles, rope_reference
from pallas_trn3.timing import timeline_of


def _exact(x, cos, sin, interleaved):
    x = np.asarray(x, np.float64)
    half = x.shape[-1] // 2
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    turn = (np.float64(cos) + 1j * np.float64(sin))[:, None]
    turned = (a + 1j * b) * turn
    parts = turned.real, turned.imag
    return (np.stack(parts, -1) if interleaved else np.concatenate(parts, -1)).reshape(x.shape)


def _operands(shape, dtype):
    x = jax.random.normal(jax.random.key(0), shape).astype(dtype)
    return x, *rope_angles(jnp.arange(shape[-3]) + 7, shape[-1])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 300, 3, 64), "float32"), ((1, 1024, 2, 10), "bfloat16"), ((5, 1, 6), "float32")],
)
def test_values(shape, dtype, interleaved):
    operands = _operands(shape, dtype)
    found = jax.jit(functools.partial(rope, interleaved=interleaved))(*operands)
    assert found.dtype == operands[0].dtype
    tolerance = 2**-8 if dtype == "bfloat16" else 1e-6
    exact = _exact(*operands, interleaved)
    np.testing.assert_allclose(np.float64(found), exact, rtol=tolerance, atol=tolerance)
    plain = rope_reference(*operands, interleaved=interleaved)
    np.testing.assert_allclose(np.float64(plain), exact, rtol=tolerance, atol=tolerance)


def test_angles():
    cos, sin = rope_angles(jnp.array([0, 1, 100]), 8, theta=100.0)
    angles = np.array([0, 1, 100])[:, None] / 100.0 ** (np.arange(4) / 4)
    np.testing.assert_allclose(cos, np.cos(angles), atol=2e-5)
    np.testing.assert_allclose(sin, np.sin(angles), atol=2e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_derivatives(interleaved):
    operands = _operands((2, 140, 2, 16), "float32")
    dy = jax.random.normal(jax.random.key(1), operands[0].shape)
    turn = functools.partial(rope, interleaved=interleaved)
    _, back = jax.vjp(jax.jit(turn), *operands)
    _, wanted = jax.vjp(functools.partial(rope_reference, interleaved=interleaved), *operands)
    for one, other in zip(back(dy), wanted(dy)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)


def test_many_heads_are_cut_into_blocks():
    operands = _operands((1, 20, 6, 2048), "float32")
    found = jax.jit(rope)(*operands)
    np.testing.assert_allclose(found, _exact(*operands, False), rtol=1e-6, atol=1e-6)


def test_vmap_and_checks(monkeypatch):
    x, cos, sin = _operands((3, 2, 30, 2, 8), "float32")
    mapped = jax.jit(jax.vmap(lambda x: rope(x, cos, sin)))(x)
    np.testing.assert_allclose(mapped, _exact(x, cos, sin, False), rtol=1e-6, atol=1e-6)
    monkeypatch.setenv("JAX_TRN3_CHECK", "1")
    checked = jax.jit(functools.partial(rope, interleaved=True))(x, cos, sin)
    np.testing.assert_allclose(checked, _exact(x, cos, sin, True), rtol=1e-6, atol=1e-6)


def test_what_is_refused():
    x, cos, sin = _operands((2, 30, 2, 8), "float32")
    with pytest.raises(ValueError, match=r"cos of shape \(29, 4\) for x of \(2, 30, 2, 8\)"):
        rope(x, cos[1:], sin)
    with pytest.raises(ValueError, match="even features"):
        rope(x[..., 1:], cos, sin)
    with pytest.raises(TypeError, match="rope of int32"):
        rope(x.astype(jnp.int32), cos, sin)


@pytest.mark.parametrize(
    ("dtype", "chip", "least"),
    [
        ("float32", TRAINIUM2, 0.8),
        ("float32", TRAINIUM3, 0.8),
        ("bfloat16", TRAINIUM2, 0.8),
        # Three passes over the features, by two engines.
        ("bfloat16", TRAINIUM3, 0.6),
    ],
)
def test_share_of_the_memory_bandwidth(dtype, chip, least):
    x = jax.ShapeDtypeStruct((4, 4_096, 32, 128), dtype)
    table = jax.ShapeDtypeStruct((4_096, 64), "float32")
    timeline = timeline_of(rope, x, table, table, chip=chip, active_cores=2)
    moved = 2 * x.size * x.dtype.itemsize
    share = moved / timeline.active_ps * 1e12 * chip.num_cores / chip.hbm_bandwidth_bytes_per_s
    assert share > least
