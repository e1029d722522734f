"""AdamW in one pass: optax's step within float32's rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_trn3.hardware import TRAINIUM2, TRAINIUM3
from pallas_trn3.kernels import adamw, adamw_reference
from pallas_trn3.timing import timeline_of

HYPER = {"b1": 0.9, "b2": 0.98, "eps": 1e-7, "weight_decay": 0.05}


def _arrays(shape, dtype="float32"):
    keys = jax.random.split(jax.random.key(0), 4)
    p, m, v, g = (jax.random.normal(key, shape) for key in keys)
    return p.astype(dtype), 0.1 * m, 0.01 * v * v, g.astype(dtype)


def _exact(p, m, v, g, step, rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, weight_decay=1e-4):
    p, m, v, g = (np.asarray(x, np.float64) for x in (p, m, v, g))
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    change = m / (1 - b1**step) / (np.sqrt(v / (1 - b2**step) + eps_root) + eps)
    return p - rate * (change + weight_decay * p), m, v


@pytest.mark.parametrize("shape", [(300, 77), (3,), (2, 512, 260)])
@pytest.mark.parametrize("step", [1, 1000])
def test_values(shape, step):
    arrays = _arrays(shape)
    found = jax.jit(adamw)(*arrays, step, 1e-3)
    for one, other in zip(found, _exact(*arrays, step, 1e-3)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for one, other in zip(found, adamw_reference(*arrays, step, 1e-3)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_steps_of_optax():
    optimizer = optax.adamw(2e-3, **HYPER)
    p, *_ = _arrays((130, 50))
    params, state = p, optimizer.init(p)
    m = v = jnp.zeros_like(p)

    @jax.jit
    def both(params, state, p, m, v, step):
        grads = jnp.sin(params * step)
        updates, state = optimizer.update(grads, state, params)
        return (
            optax.apply_updates(params, updates),
            state,
            adamw(p, m, v, jnp.sin(p * step), step, 2e-3, **HYPER),
        )

    for step in range(1, 6):
        params, state, (p, m, v) = both(params, state, p, m, v, step)
    np.testing.assert_allclose(p, params, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(m, state[0].mu, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(v, state[0].nu, rtol=1e-5, atol=1e-7)


def test_bfloat16_parameters_with_float32_moments():
    arrays = _arrays((200, 40), "bfloat16")
    found = jax.jit(adamw)(*arrays, 3, 1e-2)
    assert [x.dtype.name for x in found] == ["bfloat16", "float32", "float32"]
    exact = _exact(*arrays, 3, 1e-2)
    np.testing.assert_allclose(np.float64(found[0]), exact[0], rtol=2**-8, atol=1e-6)
    np.testing.assert_allclose(found[2], exact[2], rtol=1e-5)


def test_moments_of_16_bits_are_rounded_where_they_are_kept():
    p, m, v, g = _arrays((150, 20))
    m, v = m.astype(jnp.bfloat16), v.astype(jnp.bfloat16)
    found = jax.jit(adamw)(p, m, v, g, 3, 1e-2)
    exact = _exact(p, m, v, g, 3, 1e-2)
    np.testing.assert_allclose(found[0], exact[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.float64(found[1]), exact[1], rtol=2**-8, atol=1e-8)


def test_memory_is_reused_and_the_rest_is_left():
    arrays = _arrays((128, 64))
    kept = [np.asarray(x) for x in arrays]
    wanted = jax.jit(adamw)(*arrays, 1, 1e-3)
    for one, other in zip(arrays, kept):
        np.testing.assert_array_equal(one, other)
    found = jax.jit(adamw, donate_argnums=(0, 1, 2))(*arrays, 1, 1e-3)
    for one, other in zip(found, wanted):
        np.testing.assert_array_equal(one, other)


def test_vmap_and_checks(monkeypatch):
    arrays = _arrays((3, 40, 5))
    found = jax.jit(jax.vmap(lambda *a: adamw(*a, 2, 1e-3)))(*arrays)
    for one, other in zip(found, _exact(*arrays, 2, 1e-3)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    monkeypatch.setenv("JAX_TRN3_CHECK", "1")
    checked = jax.jit(lambda *a: adamw(*a, 2, 1e-3))(*arrays)
    for one, other in zip(checked, found):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_what_is_refused():
    p, m, v, g = _arrays((4, 8))
    with pytest.raises(ValueError, match="they must be the same"):
        adamw(p, m, v, g[0], 1, 1e-3)
    with pytest.raises(TypeError, match="adamw of int32"):
        adamw(p, m, v, g.astype(jnp.int32), 1, 1e-3)
    empty = jnp.zeros((0, 4))
    assert adamw(empty, empty, empty, empty, 1, 1e-3)[0].shape == (0, 4)


@pytest.mark.parametrize("chip", [TRAINIUM2, TRAINIUM3], ids=["trn2", "trn3"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_share_of_the_memory_bandwidth(chip, dtype):
    shape = (8_192, 4_096)
    p, m = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape, "float32")
    step = jax.ShapeDtypeStruct((), "int32")
    timeline = timeline_of(lambda *a: adamw(*a, 1e-3), p, m, m, p, step, chip=chip, active_cores=2)
    moved = p.size * (3 * p.dtype.itemsize + 4 * 4)
    share = moved / timeline.active_ps * 1e12 * chip.num_cores / chip.hbm_bandwidth_bytes_per_s
    assert share > 0.8
