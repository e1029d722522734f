"""pallas_trn3.kernels.swiglu: values and derivatives, and how busy the tensor engine is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_trn3.hardware import TRAINIUM2, TRAINIUM3
from pallas_trn3.kernels import swiglu, swiglu_reference
from pallas_trn3.timing import timeline_of


def drawn(*shape: int) -> jax.Array:
    rng = np.random.default_rng(list(shape))
    scaled = rng.normal(size=shape) / np.sqrt(shape[-2])
    return jnp.asarray(scaled, jnp.float32).astype(jnp.bfloat16)


def as64(x: Any) -> np.ndarray:
    return np.asarray(x.astype(jnp.float32), np.float64)


def operands(s: int, d: int, f: int, e: int) -> list[jax.Array]:
    return [drawn(s, d), drawn(d, f), drawn(d, f), drawn(f, e)]


@pytest.mark.parametrize("sizes", [(1, 3, 5, 2), (150, 140, 300, 70), (520, 64, 128, 64)])
def test_values(sizes: tuple[int, int, int, int]) -> None:
    given = operands(*sizes)
    x, gate, up, down = map(as64, given)
    product = x @ gate
    exact = (product / (1 + np.exp(-product)) * (x @ up)) @ down
    for function in (swiglu, swiglu_reference):
        found = as64(jax.jit(function)(*given))
        np.testing.assert_allclose(found, exact, atol=2**-7 * np.abs(exact).max())


def test_derivatives_and_vmap() -> None:
    x, *weights = operands(40, 30, 70, 20)
    x = x.reshape(2, 20, 30)

    def loss(function: Any) -> Any:
        def of(x: Any, *weights: Any) -> Any:
            out = jax.vmap(function, (0, None, None, None))(x, *weights)
            return jnp.sum(jnp.cos(jnp.arange(20.0)) * out.astype(jnp.float32))

        return jax.jit(jax.grad(of, argnums=(0, 1, 2, 3)))

    found, wanted = (loss(f)(x, *weights) for f in (swiglu, swiglu_reference))
    for one, other in zip(found, wanted):
        np.testing.assert_allclose(as64(one), as64(other), atol=0.02 * np.abs(as64(other)).max())


def test_refusals() -> None:
    x, gate, up, down = operands(4, 3, 5, 2)
    with pytest.raises(TypeError, match="all operands"):
        swiglu(x.astype(jnp.float32), gate, up, down)
    with pytest.raises(ValueError, match="they are"):
        swiglu(x, gate, up, down.T)
    wide = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((1, 1), (1, 10**6), (10**6, 1))]
    with pytest.raises(ValueError, match="split F"):
        jax.eval_shape(swiglu, wide[0], wide[1], wide[1], wide[2])


@pytest.mark.parametrize("chip", [TRAINIUM2, TRAINIUM3])
def test_tensor_engine_is_busy(chip: Any) -> None:
    shapes = ((2048, 2048), (2048, 8192), (2048, 8192), (8192, 2048))
    given = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    timeline = timeline_of(swiglu, *given, chip=chip)
    assert timeline.engines["core0/tensor"].utilization >= 0.95
