"""JAX's own block-scaled products on trn3, against float64 products of their definition."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jax_trn3 import MXArray, dequantize_mx, mx_dot_general, quantize_mx

RANDOM = np.random.default_rng(0)
X = jnp.asarray(RANDOM.normal(size=(2, 32, 128)), jnp.float32)
Y = jnp.asarray(RANDOM.normal(size=(2, 16, 128)), jnp.float32)
NUMBERS = (((2,), (2,)), ((0,), (0,)))


def contract(x: Any, y: Any) -> np.ndarray:
    return np.einsum("bmk,bnk->bmn", np.float64(x), np.float64(y))


def quantized(array: jax.Array, dtype: Any = jnp.float8_e4m3fn) -> tuple[MXArray, np.ndarray]:
    mx = quantize_mx(array, -1, dtype)
    return mx, np.float64(dequantize_mx(mx))


def swap(mx: MXArray) -> tuple[jax.Array, jax.Array]:
    return jnp.swapaxes(mx.data, 1, 2), jnp.swapaxes(mx.scale, 1, 2)


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float4_e2m1fn])
def test_scaled_matmul_and_scaled_dot(dtype: Any) -> None:
    (x, x_values), (y, y_values) = quantized(X, dtype), quantized(Y, dtype)
    expected = contract(x_values, y_values)
    out = jax.nn.scaled_matmul(x.data, y.data, x.scale, y.scale)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, atol=1e-4)
    data, scale = swap(y)
    out = lax.scaled_dot(x.data, data, lhs_scale=x.scale, rhs_scale=scale)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, lax.scaled_dot(
        x.data, data, lhs_scale=x.scale, rhs_scale=scale, preferred_element_type=jnp.float32
    ).astype(jnp.bfloat16))  # fmt: skip
    np.testing.assert_allclose(np.float32(out), expected, rtol=0.01, atol=0.1)


def test_scales_at_both_ends_and_nan() -> None:
    """2^-127 is a subnormal float32, which XLA:CPU takes for 0; byte 255 is NaN."""
    ones = jnp.ones((1, 2, 32), jnp.float8_e4m3fn)
    small, large, nan = (
        lax.bitcast_convert_type(jnp.full((1, 2, 1), byte, jnp.uint8), jnp.float8_e8m0fnu)
        for byte in (0, 254, 255)
    )
    out = jax.nn.scaled_matmul(2 * ones, ones, small, large)
    np.testing.assert_array_equal(out, np.full((1, 2, 2), 64.0))
    assert np.isnan(jax.nn.scaled_matmul(ones, ones, nan, small)).all()


def test_dimension_numbers_with_scales_along_two_dimensions() -> None:
    lhs = jnp.asarray(RANDOM.normal(size=(3, 64, 4)), jnp.float8_e4m3fn)
    rhs = jnp.asarray(RANDOM.normal(size=(64, 4, 5)), jnp.float8_e4m3fn)
    scale = jnp.asarray(2.0 ** RANDOM.integers(-3, 4, (3, 2, 2)), jnp.float8_e8m0fnu)
    out = jax.jit(
        lambda a, b, s: lax.scaled_dot(
            a,
            b,
            lhs_scale=s,
            dimension_numbers=(((1, 2), (0, 1)), ((), ())),
            preferred_element_type=jnp.float32,
        )
    )(lhs, rhs, scale)
    scales = np.repeat(np.repeat(np.float64(scale), 32, 1), 2, 2)
    expected = np.einsum("mij,ijn->mn", np.float64(lhs) * scales, np.float64(rhs))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-4)


def mx_config(mode: str = "mxfp8") -> list[Any]:
    return [jax.nn.get_scaled_dot_general_config(mode)] * 3


def scaled(x: Any, y: Any, mode: str = "mxfp8") -> jax.Array:
    return jax.nn.scaled_dot_general(x, y, NUMBERS, configs=mx_config(mode))


def rceil(x: Any) -> np.ndarray:
    return np.float64(jax.jit(lambda x: dequantize_mx(quantize_mx(x, scale_rule="rceil")))(x))


def test_scaled_dot_general_is_mxfp8_of_the_rule_rceil() -> None:
    out = jax.jit(scaled)(X, Y)
    np.testing.assert_allclose(out, contract(rceil(X), rceil(Y)), atol=1e-4)
    np.testing.assert_allclose(scaled(X, Y), out, atol=1e-4)
    mine = mx_dot_general(X, Y, NUMBERS, scale_rule="rceil")
    np.testing.assert_allclose(out, mine, atol=1e-4)


def test_gradients_of_scaled_dot_general() -> None:
    g = jnp.asarray(RANDOM.normal(size=(2, 32, 64)), jnp.float32)
    y = jnp.asarray(RANDOM.normal(size=(2, 64, 128)), jnp.float32)
    lhs, rhs = jax.jit(lambda x, y, g: jax.vjp(scaled, x, y)[1](g))(X, y, g)
    transposed = [np.swapaxes(a, 1, 2) for a in (X, y, g)]
    np.testing.assert_allclose(lhs, contract(rceil(g), rceil(transposed[1])), atol=1e-3)
    np.testing.assert_allclose(rhs, contract(rceil(transposed[2]), rceil(transposed[0])), atol=1e-3)


def test_nvfp4() -> None:
    """Blocks of 16 elements E2M1 with a scale in E4M3."""

    def on_grid(x: Any) -> np.ndarray:
        blocks = np.asarray(x, np.float32).reshape(*x.shape[:-1], -1, 16)
        scale = (np.abs(blocks).max(-1, keepdims=True) / np.float32(6)).astype(
            ml_dtypes.float8_e4m3fn
        )
        scale = scale.astype(np.float32)
        elements = np.clip(blocks / scale, -6, 6).astype(ml_dtypes.float4_e2m1fn)
        return (elements.astype(np.float32) * scale).reshape(x.shape)

    expected = contract(on_grid(X), on_grid(Y))
    np.testing.assert_allclose(
        jax.jit(scaled, static_argnums=2)(X, Y, "nvfp4"), expected, atol=1e-3
    )
    gradient = jax.jit(jax.grad(lambda x: scaled(x, Y, "nvfp4").sum()))(X)
    assert gradient.shape == X.shape


@pytest.mark.parametrize("in_axes", [(0, None), (None, 0), (1, 2)])
def test_vmap(in_axes: tuple[int | None, int | None]) -> None:
    stacked = [a if d is None else jnp.stack([a, -a], d) for a, d in zip((X, Y), in_axes)]
    out = jax.jit(jax.vmap(scaled, in_axes))(*stacked)
    expected = contract(rceil(X), rceil(Y))
    np.testing.assert_allclose(out[0], expected, atol=1e-4)
    sign = 1 if None not in in_axes else -1
    np.testing.assert_allclose(out[1], sign * expected, atol=1e-4)


def test_vmap_of_scaled_matmul_along_later_axes() -> None:
    (x, x_values), (y, y_values) = quantized(X), quantized(Y)
    last = [jnp.stack([leaf, leaf], 3) for leaf in (x.data, x.scale)]
    out = jax.vmap(jax.nn.scaled_matmul, (3, None, 3, None))(last[0], y.data, last[1], y.scale)
    np.testing.assert_allclose(out[1], contract(x_values, y_values), atol=1e-4)


@pytest.mark.parametrize(
    "specs",
    [
        (P(None, "x"), P()),
        (P(None, None, "x"), P(None, None, "x")),
        (P(None, "x"), P(None, "x")),
    ],
)
def test_sharded(specs: tuple[P, P]) -> None:
    mesh = jax.make_mesh(
        (4,), ("x",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,)
    )
    x, y = (jax.device_put(a, jax.NamedSharding(mesh, s)) for a, s in zip((X, Y), specs))
    np.testing.assert_allclose(jax.jit(scaled)(x, y), contract(rceil(X), rceil(Y)), atol=1e-4)
    if specs[1] == P():
        mapped = jax.shard_map(scaled, mesh=mesh, in_specs=specs, out_specs=specs[0])
        np.testing.assert_allclose(jax.jit(mapped)(x, y), contract(rceil(X), rceil(Y)), atol=1e-4)


def test_derivatives_of_operands_that_can_have_them() -> None:
    y, y_values = quantized(Y)
    data, scale = swap(y)
    x_scale = jnp.asarray(2.0 ** RANDOM.integers(-3, 4, (2, 32, 4)), jnp.float8_e8m0fnu)
    scales = np.repeat(np.float64(x_scale), 32, 2)
    g = jnp.asarray(RANDOM.normal(size=(2, 32, 16)), jnp.float32)

    def dot(x: Any) -> jax.Array:
        return lax.scaled_dot(
            x, data, lhs_scale=x_scale, rhs_scale=scale, preferred_element_type=jnp.float32
        )

    def matmul(x: Any) -> jax.Array:
        return jax.nn.scaled_matmul(x, y.data, x_scale, y.scale)

    expected = np.einsum("bmn,bnk->bmk", np.float64(g), y_values) * scales
    for f in (dot, matmul, jax.checkpoint(dot)):
        (gradient,) = jax.jit(lambda x, g, f=f: jax.vjp(f, x)[1](g))(X, g)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)
    _, tangent = jax.jit(lambda x: jax.jvp(dot, (x,), (x,)))(X)
    np.testing.assert_allclose(tangent, contract(X * scales, y_values), rtol=1e-4, atol=1e-3)
    with pytest.raises(TypeError, match="rhs of dtype float8_e4m3fn, in which a gradient would"):
        jax.grad(lambda d: lax.scaled_dot(X, d, rhs_scale=scale).sum().astype(jnp.float32))(data)


def test_qwix_mxfp8() -> None:
    qwix = pytest.importorskip("qwix")
    x, w = X[0], Y[0].T

    def rows(a: Any, axis: int) -> Any:
        return qwix.quantize(a, "mxfp8", tiled_axes={axis: 32}, channelwise_axes=[1 - axis])

    left, right = rows(x, 1), rows(w, 0)
    out = qwix.dot_general(left, right, (((1,), (0,)), ((), ())))
    expected = np.float64(qwix.dequantize(left)) @ np.float64(qwix.dequantize(right))
    np.testing.assert_allclose(np.float32(out), expected, rtol=0.02, atol=0.1)
