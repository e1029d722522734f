"""pallas_trn3.kernels.matmul in MX: quantized on the way or before, against mx_dot_general."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_trn3.hardware import TRAINIUM3
from jax_trn3.numerics import SCALE_DTYPE, MXArray, dequantize, element_format
from jax_trn3.ops import quantize_mx
from pallas_trn3.kernels import PackedMX, matmul, matmul_reference, pack_mx, unpack_mx
from pallas_trn3.timing import timeline_of


def drawn(*shape: int, seed: int = 0) -> jax.Array:
    rng = np.random.default_rng([seed, *shape])
    values = rng.normal(size=shape) * np.exp2(rng.integers(-8, 8, shape))
    return jnp.asarray(values, jnp.float32).astype(jnp.bfloat16)


def as64(x: Any) -> np.ndarray:
    if isinstance(x, MXArray):
        x = dequantize(x.data, x.scale, x.axis)
    return np.asarray(x.astype(jnp.float32), np.float64)


def check(product: Any, x: MXArray, y: MXArray) -> None:
    """Within float32's error of a sum of products of what the formats hold."""
    left, right = as64(x), as64(y)
    room = np.abs(left) @ np.abs(right) + 1e-30
    assert (np.abs(as64(product) - left @ right) / room).max() <= 2**-24 * (left.shape[1] + 2)


wide = partial(matmul, preferred_element_type=jnp.float32)


@pytest.mark.parametrize(
    ("precision", "format", "scale_rule"),
    [("mxfp8", "mxfp8_e4m3", "ocp"), ("mxfp8_e5m2", "mxfp8_e5m2", "neuron")],
)
def test_quantized_on_the_way(precision: Any, format: str, scale_rule: str) -> None:
    x, y = drawn(131, 200), drawn(200, 30)
    product = jax.jit(partial(wide, precision=precision, scale_rule=scale_rule))(x, y)
    left = quantize_mx(x, -1, format, scale_rule=scale_rule)
    check(product, left, quantize_mx(y, 0, format, scale_rule=scale_rule))


@pytest.mark.parametrize("shape", [(1100, 128, 64), (140, 600, 520)])
def test_groups_tiles_and_columns(shape: tuple[int, int, int]) -> None:
    """Three groups of rows, the last one smaller; two tiles along K, and two banks of columns."""
    m, k, n = shape
    x, y = drawn(m, k), drawn(k, n)
    product = jax.jit(partial(wide, precision="mxfp8"))(x, y)
    check(product, quantize_mx(x, -1), quantize_mx(y, 0))


@pytest.mark.parametrize("format", ["mxfp8_e4m3", "mxfp4_e2m1"])
def test_quantized_before(format: str) -> None:
    x, y = quantize_mx(drawn(33, 200), -1, format), quantize_mx(drawn(200, 30), 0, format)
    check(jax.jit(wide)(x, y), x, y)
    weights = jax.jit(partial(pack_mx, side="rhs"))(y)
    one = jax.jit(partial(wide, precision="mxfp8"))(drawn(34, 200, seed=1), weights)
    check(one, quantize_mx(drawn(34, 200, seed=1)), y)
    back = unpack_mx(weights)
    np.testing.assert_array_equal(as64(back), as64(y))
    assert (back.format, back.axis % 2) == (y.format, y.axis % 2)


def test_packed_weights_are_constants() -> None:
    x, y = drawn(6, 64), drawn(64, 10)
    weights = pack_mx(quantize_mx(y, 0), "rhs")

    def loss(product: Any, x: Any, y: Any) -> Any:
        return jnp.sum(jnp.sin(jnp.arange(10.0)) * product(x, y, precision="mxfp8"))

    found = jax.jit(jax.grad(partial(loss, matmul)))(x, weights)
    wanted = jax.jit(jax.grad(partial(loss, matmul_reference)))(x, weights)
    np.testing.assert_allclose(as64(found), as64(wanted), atol=2**-7 * np.abs(as64(wanted)).max())


def test_long_contraction_is_cut() -> None:
    x, y = quantize_mx(drawn(2, 17000)), quantize_mx(drawn(17000, 3), 0)
    check(jax.jit(wide)(x, y), x, y)


def test_equals_mx_dot_general() -> None:
    x, y = drawn(2, 20, 100), drawn(100, 30)
    found = jax.jit(partial(matmul, precision="mxfp8"))(x, y)
    wanted = jax.jit(partial(matmul_reference, precision="mxfp8"))(x, y)
    np.testing.assert_allclose(as64(found), as64(wanted), rtol=2**-7, atol=1e-3)


def test_vmap_and_derivatives() -> None:
    x, y = drawn(2, 20, 40), drawn(2, 40, 30)

    def loss(product: Any, x: Any, y: Any) -> Any:
        batched = jax.vmap(partial(product, precision="mxfp8"))(x, y)
        return jnp.sum(jnp.sin(jnp.arange(30.0)) * batched.astype(jnp.float32))

    found = jax.jit(jax.grad(partial(loss, matmul), argnums=(0, 1)))(x, y)
    wanted = jax.jit(jax.grad(partial(loss, matmul_reference), argnums=(0, 1)))(x, y)
    for one, other in zip(found, wanted):
        scale = np.abs(as64(other)).max()
        np.testing.assert_allclose(as64(one), as64(other), atol=2**-7 * scale)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, y: matmul(x.astype("float32"), y, precision="mxfp8"), TypeError, "cast it"),
        (lambda x, y: matmul(quantize_mx(x), y), ValueError, "rhs is no MXArray"),
        (lambda x, y: wide(quantize_mx(x, 0), quantize_mx(y, 0)), ValueError, "axis -1"),
        (lambda x, y: wide(quantize_mx(x, -1, "int8"), quantize_mx(y, 0)), TypeError, "mxint8"),
        (lambda x, y: matmul(x, y, precision="mxfp8", scale_rule="even"), ValueError, "'ocp' or"),
    ],
)
def test_refusals(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(drawn(64, 64), drawn(64, 64))


def shapes(side: Any) -> PackedMX:
    axis, square = -1 if side == "lhs" else -2, [4096, 4096]
    data = jax.ShapeDtypeStruct(tuple(square), jnp.float8_e4m3fn)
    square[axis] //= 32
    scale = jax.ShapeDtypeStruct(tuple(square), SCALE_DTYPE)
    array = MXArray(data, scale, format=element_format("mxfp8"), axis=axis)
    return jax.eval_shape(partial(pack_mx, side=side), array)


@pytest.mark.parametrize(("where", "least"), [("weights", 0.95), ("both", 0.95), ("none", 0.9)])
def test_tensor_engine_is_busy(where: str, least: float) -> None:
    """4096^3, from the first instruction to the last result: weights, or both, quantized before;
    or both on the way."""
    plain = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)
    x = shapes("lhs") if where == "both" else plain
    y = plain if where == "none" else shapes("rhs")
    timeline = timeline_of(partial(matmul, precision="mxfp8"), x, y, chip=TRAINIUM3)
    assert timeline.engines["core0/tensor"].busy >= least * timeline.active_ps
