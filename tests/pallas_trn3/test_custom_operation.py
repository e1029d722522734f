"""Operations of a kernel's own on GpSimdE: values, cost, what is refused."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn
from jax_trn3 import isa
from jax_trn3.hardware import TRAINIUM3
from pallas_trn3.timing import timeline_of


@pytest.fixture(autouse=True)
def _forgotten():
    """Names are taken for good; tests give theirs back."""
    before = set(isa.CUSTOM)
    yield
    for name in set(isa.CUSTOM) - before:
        del isa.CUSTOM[name]


def _called(operation, x, *others, dtype=jnp.float32, **constants):
    def kernel(*refs):
        operation(refs[-1], *refs[:-1], **constants)

    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, dtype),
        compiler_params=pltrn.CompilerParams(),
    )(x, *others)


def test_values_are_the_functions():
    def blend_a(x, y, *, share=0.5):
        return share * x.astype(jnp.float32) + (1 - share) * y

    blend = pltrn.gpsimd_operation(blend_a, cycles=3)
    x = jax.random.normal(jax.random.key(0), (128, 40), jnp.bfloat16)
    y = jax.random.normal(jax.random.key(1), (128, 40))
    result = jax.jit(lambda x, y: _called(blend, x, y, share=0.25))(x, y)
    wanted = 0.25 * np.float64(x) + 0.75 * np.float64(y)
    np.testing.assert_allclose(result, wanted, rtol=1e-6, atol=1e-6)
    assert _called(blend, x, y, dtype=jnp.bfloat16).dtype == jnp.bfloat16
    assert "share" in inspect.signature(blend).parameters


def test_integers_are_cast_as_engines_cast():
    ranks = pltrn.gpsimd_operation(lambda x: jnp.argsort(x, axis=1), cycles=10, name="ranks_b")
    x = jax.random.normal(jax.random.key(0), (64, 20))
    np.testing.assert_array_equal(_called(ranks, x, dtype=jnp.int32), np.argsort(x, axis=1))


def test_cost_by_element_and_by_shapes():
    x = jax.ShapeDtypeStruct((128, 4096), jnp.float32)
    by_element = pltrn.gpsimd_operation(lambda x: x + 1, cycles=7.5, name="costly_c")
    seen = []

    def cycles(dst, src):
        seen.append((dst, src))
        return 1_000_000

    by_shapes = pltrn.gpsimd_operation(lambda x: x + 2, cycles=cycles, name="costly_d")
    engine = TRAINIUM3.core.gpsimd
    for operation, wanted in (
        (by_element, engine.start_cycles + 7.5 * 4096),
        (by_shapes, 1_000_000),
    ):
        timeline = timeline_of(functools.partial(_called, operation), x)
        busy = timeline.engines["core0/gpsimd"].busy
        assert busy == pytest.approx(wanted / engine.clock_hz * 1e12, rel=1e-3)
    assert seen[0] == ((128, 4096), (128, 4096))


def test_under_the_checks():
    double = pltrn.gpsimd_operation(lambda x: 2 * x, cycles=1, name="double_e")

    def kernel(x, y):
        double(y, x)

    x = jnp.ones((32, 8))
    run = pl.pallas_call(kernel, out_shape=x, compiler_params=pltrn.CompilerParams(check=True))
    np.testing.assert_array_equal(jax.jit(run)(x), 2 * np.ones((32, 8)))


def test_what_is_refused():
    with pytest.raises(ValueError, match="already"):
        pltrn.gpsimd_operation(lambda x: x, cycles=1, name="iota")
    pltrn.gpsimd_operation(lambda x: x, cycles=1, name="own_f")
    with pytest.raises(ValueError, match="own_f"):
        pltrn.gpsimd_operation(lambda x: x, cycles=1, name="own_f")
    with pytest.raises(ValueError, match="identifier"):
        pltrn.gpsimd_operation(lambda x: x, cycles=1)
    with pytest.raises(ValueError, match="cycles=-1"):
        pltrn.gpsimd_operation(lambda x: x, cycles=-1, name="own_g")
    with pytest.raises(TypeError, match="any number"):
        pltrn.gpsimd_operation(lambda *x: x[0], cycles=1, name="own_g")
    with pytest.raises(TypeError, match="engine"):
        pltrn.gpsimd_operation(lambda x, *, engine: x, cycles=1, name="own_g")
    assert "own_g" not in isa.CUSTOM
    assert "own_f" not in list(isa.TABLE)


def test_psum_is_out_of_reach():
    copy = pltrn.gpsimd_operation(lambda x: x, cycles=1, name="copy_h")

    def kernel(x, y, psum):
        copy(psum, x)
        pltrn.tensor_copy(y, psum)

    x = jnp.ones((32, 8))
    with pytest.raises(isa.IllegalInstruction, match="psum"):
        pl.pallas_call(
            kernel, out_shape=x, scratch_shapes=[pltrn.PSUM((32, 8), jnp.float32)],
            compiler_params=pltrn.CompilerParams(),
        )(x)  # fmt: skip
