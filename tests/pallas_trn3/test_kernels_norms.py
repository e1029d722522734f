"""RMS norm and layer norm: values and derivatives against float64, MX results bit for bit, time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_trn3
from jax_trn3.hardware import TRAINIUM2, TRAINIUM3
from pallas_trn3.kernels import (
    layernorm,
    layernorm_mx,
    layernorm_reference,
    rmsnorm,
    rmsnorm_mx,
    rmsnorm_reference,
)
from pallas_trn3.timing import timeline_of

ROUNDING = {"float32": 2e-6, "bfloat16": 2**-8}
FUNCTIONS = {
    "rmsnorm": (rmsnorm, rmsnorm_reference, 1),
    "layernorm": (layernorm, layernorm_reference, 2),
}


def _operands(shape, dtype, lines):
    keys = jax.random.split(jax.random.key(0), 4)
    x = (2 * jax.random.normal(keys[0], shape) + 1).astype(dtype)
    return x, *(jax.random.normal(key, shape[-1:]) for key in keys[1 : 1 + lines])


def _exact(x, weight, bias=None):
    """In float64."""
    x = np.asarray(x, np.float64)
    if bias is None:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * np.float64(weight)
    apart = x - x.mean(-1, keepdims=True)
    normal = apart / np.sqrt((apart**2).mean(-1, keepdims=True) + 1e-5)
    return normal * np.float64(weight) + np.float64(bias)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("shape", "dtype"), [((300, 77), "float32"), ((1024, 514), "bfloat16")])
def test_values(name, shape, dtype):
    function, _, lines = FUNCTIONS[name]
    operands = _operands(shape, dtype, lines)
    y = jax.jit(function)(*operands)
    assert y.dtype == operands[0].dtype
    tolerance = 2 * ROUNDING[dtype]
    np.testing.assert_allclose(np.float64(y), _exact(*operands), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(300, 130)])
def test_derivatives(name, shape):
    """Against those of float64 in JAX on the CPU."""
    function, reference, lines = FUNCTIONS[name]
    operands = _operands(shape, "float32", lines)
    dy = jax.random.normal(jax.random.key(9), shape)
    _, back = jax.vjp(jax.jit(function), *operands)
    _, exactly = jax.vjp(reference, *operands)
    for found, wanted in zip(back(dy), exactly(dy)):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, atol=2e-6 * scale)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_in_float64(name):
    """By differences."""
    function, _, lines = FUNCTIONS[name]
    operands = _operands((6, 10), "float32", lines)
    dy = np.float64(jax.random.normal(jax.random.key(9), (6, 10)))
    _, back = jax.vjp(jax.jit(function), *operands)
    for place, found in enumerate(back(jnp.float32(dy))):
        shift = np.float64(jax.random.normal(jax.random.key(place), found.shape))
        moved = [np.float64(x) for x in operands]
        ends = []
        for h in (1e-6, -1e-6):
            there = [m + h * shift if k == place else m for k, m in enumerate(moved)]
            ends.append((_exact(*there) * dy).sum())
        slope = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose((np.float64(found) * shift).sum(), slope, rtol=1e-4, atol=1e-4)


def test_vmap_and_more_dimensions():
    x, weight, bias = _operands((2, 3, 40, 12), "float32", 2)
    wanted = _exact(x, weight, bias)
    found = jax.jit(layernorm)(x, weight, bias)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    mapped = jax.jit(jax.vmap(jax.vmap(lambda x: rmsnorm(x, weight))))(x)
    np.testing.assert_allclose(mapped, _exact(x, weight), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "format", "rule"),
    [
        ("layernorm", (300, 77), "float32", jnp.float8_e4m3fn, "ocp"),
        ("rmsnorm", (256, 640), "bfloat16", jnp.float8_e5m2, "neuron"),
    ],
)
def test_mx_results_are_those_of_quantize_mx(name, shape, dtype, format, rule):
    function, _, lines = FUNCTIONS[name]
    fused = {"rmsnorm": rmsnorm_mx, "layernorm": layernorm_mx}[name]
    operands = _operands(shape, dtype, lines)
    found = jax.jit(functools.partial(fused, dtype=format, scale_rule=rule))(*operands)
    plain = jax.jit(function)(*operands)
    wanted = jax_trn3.quantize_mx(plain.astype(jnp.bfloat16), -1, format, scale_rule=rule)
    if dtype == "float32":  # rounded once, not from the float32 result's rounding
        np.testing.assert_array_equal(plain.astype(jnp.bfloat16), jnp.bfloat16(plain))
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in ((found.data, wanted.data), (found.scale, wanted.scale)):
        np.testing.assert_array_equal(
            np.asarray(one).view(np.uint8), np.asarray(other).view(np.uint8)
        )


def test_under_the_checks(monkeypatch):
    monkeypatch.setenv("JAX_TRN3_CHECK", "1")
    x, weight, bias = _operands((140, 40), "float32", 2)
    found = jax.jit(layernorm)(x, weight, bias)
    np.testing.assert_allclose(found, _exact(x, weight, bias), rtol=1e-5, atol=1e-5)
    jax.jit(jax.grad(lambda x: rmsnorm(x, weight).sum()))(x).block_until_ready()


def test_what_is_refused():
    x = jnp.ones((4, 8))
    with pytest.raises(ValueError, match=r"shape \(4,\) for x of shape \(4, 8\)"):
        rmsnorm(x, jnp.ones(4))
    with pytest.raises(TypeError, match="layernorm of int8"):
        layernorm(x, jnp.ones(8), jnp.ones(8, jnp.int8))
    with pytest.raises(ValueError, match="mxfp4.*; allowed: float8_e4m3fn, float8_e5m2"):
        rmsnorm_mx(x, jnp.ones(8), dtype=jnp.float4_e2m1fn)
    with pytest.raises(ValueError, match="scale_rule='even'; allowed: 'ocp', 'neuron'"):
        rmsnorm_mx(x, jnp.ones(8), scale_rule="even")


@pytest.mark.parametrize(
    ("function", "dtype", "chip", "least"),
    [
        (rmsnorm, "bfloat16", TRAINIUM2, 0.8),
        (rmsnorm, "bfloat16", TRAINIUM3, 0.8),
        (rmsnorm, "float32", TRAINIUM3, 0.8),
        (layernorm, "float32", TRAINIUM2, 0.8),
        (layernorm, "float32", TRAINIUM3, 0.8),
        # Five passes over a row, by three engines.
        (layernorm, "bfloat16", TRAINIUM2, 0.75),
        (layernorm, "bfloat16", TRAINIUM3, 0.55),
    ],
)
def test_share_of_the_memory_bandwidth(function, dtype, chip, least):
    x, line = jax.ShapeDtypeStruct((16_384, 4_096), dtype), jax.ShapeDtypeStruct((4_096,), "f4")
    lines = [line] * (2 if function is layernorm else 1)
    timeline = timeline_of(function, x, *lines, chip=chip, active_cores=2)
    moved = 2 * x.size * x.dtype.itemsize
    share = moved / timeline.active_ps * 1e12 * chip.num_cores / chip.hbm_bandwidth_bytes_per_s
    assert share > least
