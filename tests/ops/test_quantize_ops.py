"""quantize_mx, dequantize_mx, quantize_dequantize_mx as JAX operations; values: tests/numerics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jax_trn3 import MXArray, dequantize_mx, quantize_dequantize_mx, quantize_mx

RANDOM = np.random.default_rng(0)
X = jnp.asarray(RANDOM.normal(size=(6, 70, 5)), jnp.float32)
DTYPES = [
    ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float6_e3m2fn,
    ml_dtypes.float6_e2m3fn, ml_dtypes.float4_e2m1fn, np.int8,
]  # fmt: skip


def on_e4m3_grid(x: Any, axis: int) -> np.ndarray:
    """By the rule "ocp", with ml_dtypes' casts."""
    rows = np.moveaxis(np.asarray(x, np.float32), axis, -1)
    n = rows.shape[-1]
    blocks = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, -n % 32)])
    blocks = blocks.reshape(*rows.shape[:-1], -1, 32)
    scale = 2.0 ** (np.frexp(np.abs(blocks).max(-1, keepdims=True))[1] - 9)
    elements = np.clip(blocks / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    values = (elements.astype(np.float64) * scale).reshape(*rows.shape[:-1], -1)[..., :n]
    return np.moveaxis(values, -1, axis)


def assert_same(actual: MXArray, expected: MXArray) -> None:
    assert (actual.format, actual.axis, actual.block_size) == (
        expected.format, expected.axis, expected.block_size,
    )  # fmt: skip
    for a, e in ((actual.data, expected.data), (actual.scale, expected.scale)):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(
            np.asarray(a).view(np.uint8), np.asarray(e).view(np.uint8), strict=True
        )


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_values_and_what_there_and_back_gives(axis: int) -> None:
    mx = quantize_mx(X, axis)
    assert mx.data.dtype == jnp.float8_e4m3fn
    assert mx.scale.dtype == jnp.float8_e8m0fnu
    assert mx.axis == axis % 3 - 3
    assert mx.scale.shape[axis] == -(-X.shape[axis] // 32)
    np.testing.assert_array_equal(dequantize_mx(mx), on_e4m3_grid(X, axis))
    np.testing.assert_array_equal(quantize_dequantize_mx(X, axis), on_e4m3_grid(X, axis))
    # in one program, where XLA could take the casts away
    both = jax.jit(lambda x: dequantize_mx(quantize_mx(x, axis)))
    np.testing.assert_array_equal(both(X), on_e4m3_grid(X, axis))


@pytest.mark.parametrize("dtype", DTYPES)
def test_formats_on_trn3_and_cpu(dtype: Any) -> None:
    there_and_back = jax.jit(
        lambda x: (quantize_mx(x, 1, dtype), quantize_dequantize_mx(x, 1, dtype))
    )
    mx, values = there_and_back(X)
    with jax.default_device(jax.devices("cpu")[0]):
        cpu, cpu_values = there_and_back(np.asarray(X))
    assert mx.dtype == dtype
    assert_same(mx, cpu)
    np.testing.assert_array_equal(values, cpu_values)
    np.testing.assert_array_equal(dequantize_mx(mx), values)


def test_dtypes_in_and_out() -> None:
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        x = X.astype(dtype)
        assert quantize_dequantize_mx(x).dtype == dtype
        assert dequantize_mx(quantize_mx(x), dtype).dtype == dtype
        np.testing.assert_array_equal(dequantize_mx(quantize_mx(x)), on_e4m3_grid(x, -1))


def test_stochastic_rounding() -> None:
    key = jax.random.key(1)
    options: dict[str, Any] = {"rounding": "stochastic", "key": key}
    x = jnp.full((4000, 32), 1.03125, jnp.float32).at[:, 0].set(1.875)  # a quarter of a step
    values = np.asarray(quantize_dequantize_mx(x, **options))[:, 1:]
    assert set(np.unique(values)) == {1.0, 1.125}
    assert abs(values.mean() - 1.03125) < 0.001
    np.testing.assert_array_equal(dequantize_mx(quantize_mx(x, **options))[:, 1:], values)
    keys = jax.random.split(key, 2)
    stacked = jax.vmap(lambda k: quantize_mx(x[:8], rounding="stochastic", key=k))(keys)
    for i in range(2):
        expected = quantize_mx(x[:8], rounding="stochastic", key=keys[i])
        assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], stacked), expected)


def test_vmap_keeps_the_operation_whole() -> None:
    for in_axis, axis in ((0, 0), (1, 1), (2, 0)):
        f = lambda x, axis=axis: quantize_mx(x, axis)  # noqa: E731
        stacked = jax.vmap(f, in_axis)(X)
        one = jax.tree.map(lambda leaf: leaf[2], stacked)
        assert_same(one, f(jnp.take(X, 2, in_axis)))
        np.testing.assert_array_equal(jax.vmap(dequantize_mx)(stacked)[2], dequantize_mx(one))
    program = jax.make_jaxpr(jax.vmap(quantize_dequantize_mx, 2, 2))(X)
    (equation,) = program.eqns
    assert equation.primitive.name == "trn3.quantize_dequantize_mx"
    assert equation.params["axis"] == 1


def test_program_holds_composites() -> None:
    f = jax.jit(lambda x: (quantize_dequantize_mx(x), dequantize_mx(quantize_mx(x))))
    text = f.lower(X).as_text()
    for name in ("quantize_dequantize_mx", "quantize_mx", "dequantize_mx"):
        assert f'stablehlo.composite "trn3.{name}"' in text


def test_straight_through_derivative() -> None:
    g = jnp.ones_like(X) * 3
    np.testing.assert_array_equal(jax.vjp(quantize_dequantize_mx, X)[1](g)[0], g)
    np.testing.assert_array_equal(jax.jvp(quantize_dequantize_mx, (X,), (g,))[1], g)
    remat = jax.checkpoint(lambda x: (quantize_dequantize_mx(x) ** 2).sum())
    np.testing.assert_array_equal(jax.jit(jax.grad(remat))(X), 2 * on_e4m3_grid(X, -1))
    stochastic = lambda x: quantize_dequantize_mx(  # noqa: E731
        x, rounding="stochastic", key=jax.random.key(0)
    ).sum()
    np.testing.assert_array_equal(jax.grad(stochastic)(X), jnp.ones_like(X))


def test_derivative_of_quantize_mx_is_an_error() -> None:
    for f in (
        lambda x: dequantize_mx(quantize_mx(x)).sum(),
        jax.jit(lambda x: dequantize_mx(quantize_mx(x)).sum()),
    ):
        with pytest.raises(TypeError, match=r"Use quantize_dequantize_mx .* or mx_dot_general"):
            jax.grad(f)(X)
    stopped = jax.grad(lambda x: (x + dequantize_mx(quantize_mx(jax.lax.stop_gradient(x)))).sum())
    np.testing.assert_array_equal(stopped(X), jnp.ones_like(X))
    mx = quantize_mx(X)
    with pytest.raises(TypeError, match="not differentiable"):
        jax.grad(lambda data: dequantize_mx(MXArray(data, mx.scale, format=mx.format)).sum())(
            mx.data
        )


class TestVariants(chex.TestCase):
    variant: Callable[..., Any]

    @chex.all_variants
    def test_quantize(self) -> None:
        values = self.variant(lambda x: dequantize_mx(quantize_mx(x, 1)))(X)
        np.testing.assert_array_equal(values, on_e4m3_grid(X, 1))


def test_scan_over_blocks_of_an_mx_array() -> None:
    mx = quantize_mx(X, 1)
    total, _ = jax.lax.scan(lambda c, m: (c + dequantize_mx(m), None), jnp.zeros(X.shape[1:]), mx)
    np.testing.assert_allclose(total, on_e4m3_grid(X, 1).sum(0), atol=1e-5)


@pytest.mark.parametrize("platform", ["trn3", "cpu"])
def test_sharded_jit(platform: str) -> None:
    devices = jax.devices(platform)
    n = min(4, len(devices))
    mesh = jax.make_mesh((n,), ("x",), devices=devices[:n], axis_types=(AxisType.Auto,))
    x = jnp.asarray(RANDOM.normal(size=(8, 128)), jnp.float32)
    for spec in (P("x"), P(None, "x")):
        for size in (128, 100):
            sharded = jax.device_put(
                x[:, :size], jax.NamedSharding(mesh, spec if size == 128 else P("x"))
            )
            assert_same(jax.jit(quantize_mx)(sharded), quantize_mx(x[:, :size]))


def test_explicit_mesh_axes() -> None:
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4], axis_types=(AxisType.Explicit,))
    x = jnp.asarray(RANDOM.normal(size=(8, 128)), jnp.float32)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, P(None, "x"))
        for options in ({}, {"rounding": "stochastic", "key": jax.random.key(0)}):
            mx = jax.jit(lambda x, o=options: quantize_mx(x, **o))(sharded)
            assert jax.typeof(mx.data).sharding.spec == P(None, "x")
            assert jax.typeof(mx.scale).sharding.spec == P(None, "x")
            assert jax.typeof(dequantize_mx(mx)).sharding.spec == P(None, "x")
        assert jax.typeof(quantize_dequantize_mx(sharded)).sharding.spec == P(None, "x")
        with pytest.raises(
            ValueError, match=r"axis 1 .* in 4 parts, across the boundary of a block of 64"
        ):
            quantize_mx(sharded, block_size=64)
        with pytest.raises(ValueError, match="across the boundary"):
            quantize_dequantize_mx(jax.device_put(x[:, :80], P(None, "x")))
    assert_same(mx, quantize_mx(x, rounding="stochastic", key=jax.random.key(0)))


def test_shard_map() -> None:
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
    x = jnp.asarray(RANDOM.normal(size=(8, 128)), jnp.float32)
    f = lambda x: dequantize_mx(quantize_mx(x, rounding="stochastic", key=jax.random.key(0)))  # noqa: E731
    mapped = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P(None, "x"), out_specs=P(None, "x")))
    np.testing.assert_array_equal(mapped(x)[:, :32], f(x[:, :32]))


def test_export_of_symbolic_shapes_for_several_platforms() -> None:
    n = jax.export.symbolic_shape("n")[0]
    f = jax.jit(lambda x: quantize_dequantize_mx(x, 1))
    exported = jax.export.export(f, platforms=["trn3", "cpu", "cuda"])(
        jax.ShapeDtypeStruct((6, n), np.float32)
    )
    again = jax.export.deserialize(exported.serialize())
    for size in (32, 70):
        x = X[..., 0][:, :size]
        np.testing.assert_array_equal(again.call(x), on_e4m3_grid(x, 1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": jnp.float32}, ValueError, "unknown MX format .* allowed are mxfp8_e4m3"),
        ({"x": np.ones((2, 32), np.int32)}, TypeError, "is int32; allowed are float32"),
        ({"scale_rule": "floor"}, ValueError, "unknown scale_rule 'floor'; allowed are ocp"),
        ({"rounding": "up"}, ValueError, "unknown rounding 'up'"),
        ({"rounding": "stochastic"}, ValueError, "'stochastic' with no key"),
        ({"key": jax.random.key(0)}, ValueError, "'nearest_even' with a key"),
        ({"block_size": 0}, ValueError, "block_size 0"),
        ({"axis": 3}, ValueError, "axis 3 of an array of 3 dimensions; allowed are -3..2"),
        ({"x": np.float32(1)}, ValueError, "axis -1 of a scalar"),
    ],
)
@pytest.mark.parametrize("function", [quantize_mx, quantize_dequantize_mx])
def test_errors(
    function: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(**{"x": X} | arguments)


def test_errors_of_dequantize_mx() -> None:
    mx = quantize_mx(X)
    no_mx_array: Any = X
    with pytest.raises(TypeError, match="allowed is an MXArray"):
        dequantize_mx(no_mx_array)
    with pytest.raises(TypeError, match="dtype is int32"):
        dequantize_mx(mx, jnp.int32)
    with pytest.raises(ValueError, match="scale has the shape"):
        dequantize_mx(MXArray(mx.data, mx.scale[:2], format=mx.format))
