"""pallas_trn3.kernels.matmul, plain types: values, sizes, derivatives, transformations, time."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_trn3.hardware import TRAINIUM2, TRAINIUM3
from pallas_trn3.kernels import matmul, matmul_reference
from pallas_trn3.timing import timeline_of


def drawn(*shape: int, dtype: Any = jnp.bfloat16, seed: int = 0) -> jax.Array:
    rng = np.random.default_rng([seed, *shape])
    return jnp.asarray(rng.normal(size=shape), jnp.float32).astype(dtype)


def as64(x: Any) -> np.ndarray:
    return np.asarray(x.astype(jnp.float32), np.float64)


def check(product: Any, x: Any, y: Any, rounding: float) -> None:
    """Within float32's error of a sum of K products, and the result's own rounding."""
    left, right = as64(x), as64(y)
    exact, room = left @ right, np.abs(left) @ np.abs(right)
    error = np.abs(as64(product) - exact)
    assert (error <= rounding * np.abs(exact) + 2**-22 * room + 1e-30).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (130, 200, 515)])
def test_values(dtype: str, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    x, y = drawn(m, k, dtype=dtype), drawn(k, n, dtype=dtype)
    product = jax.jit(matmul)(x, y)
    assert (product.dtype, product.shape) == (dtype, (m, n))
    check(product, x, y, float(jnp.finfo(dtype).eps))
    check(matmul_reference(x, y), x, y, float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_takes_two_rows_at_a_time(dtype: str) -> None:
    x, y = drawn(130, 333, dtype=dtype), drawn(333, 20, dtype=dtype)
    product = jax.jit(partial(matmul, preferred_element_type=jnp.float32))(x, y)
    check(product, x, y, 0)
    jaxpr = str(jax.make_jaxpr(partial(matmul, preferred_element_type=jnp.float32))(x, y))
    assert "double_row" in jaxpr


def test_groups_of_rows_and_panels_of_columns() -> None:
    """More rows than a group, more columns than a bank of PSUM, K in several tiles."""
    x, y = drawn(1100, 256), drawn(256, 1100)
    check(jax.jit(matmul)(x, y), x, y, 2**-8)


def test_long_contraction_is_cut() -> None:
    x, y = drawn(3, 9000, dtype=jnp.float32), drawn(9000, 5, dtype=jnp.float32)
    check(jax.jit(matmul)(x, y), x, y, 2**-23)


def test_result_type_and_leading_dimensions() -> None:
    x, y = drawn(2, 3, 40), drawn(40, 5, dtype=jnp.float32)
    assert jax.eval_shape(matmul, x, y) == jax.eval_shape(jnp.matmul, x, y)
    wide = jax.jit(partial(matmul, preferred_element_type=jnp.float32))(x, y.astype(jnp.bfloat16))
    assert (wide.dtype, wide.shape) == (jnp.float32, (2, 3, 5))


def test_vmap() -> None:
    x, y = drawn(3, 40, 70), drawn(3, 70, 20)
    product = jax.jit(jax.vmap(matmul))(x, y)
    for b in range(3):
        check(product[b], x[b], y[b], 2**-8)


def test_derivatives() -> None:
    x, y, t = drawn(40, 70, dtype="float32"), drawn(70, 20, dtype="float32"), drawn(40, 20)

    def loss(product: Any, x: Any, y: Any) -> Any:
        return jnp.sum(product(x, y) * t.astype(jnp.float32))

    dx, dy = jax.jit(jax.grad(partial(loss, matmul), argnums=(0, 1)))(x, y)
    check(dx, t, y.T, 2**-22)
    check(dy, x.T, t, 2**-22)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: matmul(drawn(2, 3), drawn(4, 5)), ValueError, "x is .* and y"),
        (
            lambda: matmul(drawn(2, 3), drawn(3, 5), precision="high"),
            ValueError,
            "allowed: default",
        ),
        (lambda: matmul(drawn(2, 3).astype(int), drawn(3, 5)), TypeError, "x is int32"),
        (lambda: matmul(jnp.zeros((0, 3)), jnp.zeros((3, 5))), ValueError, "sizes >= 1"),
    ],
)
def test_refusals(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("chip", [TRAINIUM2, TRAINIUM3])
def test_tensor_engine_is_busy(chip: Any) -> None:
    """4096^3 in bfloat16: 95 % of the whole time, start and stop of the program included; and of
    what the engine could do at most."""
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)
    timeline = timeline_of(matmul, x, x, chip=chip)
    assert timeline.engines["core0/tensor"].utilization >= 0.95
    assert 2 * 4096**3 / timeline.time_s >= 0.95 * chip.core.peak_flops("bfloat16")


def test_float8_is_twice_as_fast() -> None:
    times = []
    for dtype in (jnp.bfloat16, jnp.float8_e5m2):
        x = jax.ShapeDtypeStruct((4096, 4096), dtype)
        product = partial(matmul, preferred_element_type=jnp.bfloat16)
        times.append(timeline_of(product, x, x, chip=TRAINIUM2).time_s)
    assert times[0] / times[1] == pytest.approx(2, rel=0.1)
