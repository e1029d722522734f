"""matmul_precision: against products in float64 of operands that numpy quantizes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

import jax_trn3
from jax_trn3 import matmul_precision

ELEMENTS = {"mxfp8": (ml_dtypes.float8_e4m3fn, 8), "mxfp4": (ml_dtypes.float4_e2m1fn, 2)}
PRECISIONS = ["bf16", "mxfp8", "mxfp4"]


def on_grid(x, axis: int, precision: str) -> np.ndarray:
    """float64 values of x as bfloat16, or in MX blocks of 32 along `axis` (OCP MX v1.0, 6.3)."""
    x = np.moveaxis(np.asarray(x, np.float64), axis, -1)
    if precision == "bf16":
        return np.moveaxis(x.astype(ml_dtypes.bfloat16).astype(np.float64), -1, axis)
    element, emax = ELEMENTS[precision]
    largest = float(ml_dtypes.finfo(element).max)
    out = np.empty_like(x)
    for start in range(0, x.shape[-1], 32):
        block = x[..., start : start + 32]
        amax = np.abs(block).max(-1, keepdims=True)
        scale = np.where(amax > 0, 2.0 ** (np.floor(np.log2(np.where(amax, amax, 1))) - emax), 1)
        elements = np.clip(block / scale, -largest, largest).astype(element)
        out[..., start : start + 32] = elements.astype(np.float64) * scale
    return np.moveaxis(out, -1, axis)


def random(*shape: int, seed: int = 0, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def assert_equal_up_to_sums(actual, expected: np.ndarray) -> None:
    """Equal within what float32 sums of a few hundred terms, and results in actual.dtype, lose."""
    eps = max(2e-6, float(ml_dtypes.finfo(actual.dtype).eps) / 2)
    actual = np.asarray(actual, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=2 * eps, atol=eps * np.abs(expected).max())


# Values


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_product_of_operands_on_the_grid(precision: str, dtype) -> None:
    x, w = random(24, 70, dtype=dtype), random(70, 40, dtype=dtype)
    with matmul_precision(precision):
        out = jax.jit(jnp.matmul)(x, w)
    assert out.dtype == dtype
    assert_equal_up_to_sums(out, on_grid(x, 1, precision) @ on_grid(w, 0, precision))


def test_default_is_float32() -> None:
    x, w = random(24, 70), random(70, 40)
    assert_equal_up_to_sums(jax.jit(jnp.matmul)(x, w), x.astype(np.float64) @ w)


@pytest.mark.parametrize("precision", ["bf16", "mxfp8"])
def test_contraction_of_several_dimensions_batches_and_none(precision: str) -> None:
    x, w = random(3, 5, 12, 7), random(12, 3, 5, 6)
    with matmul_precision(precision):
        several = lax.dot_general(x, w, (((2, 1), (0, 2)), ((0,), (1,))))
        outer = jnp.einsum("i,j->ij", x[0, 0, 0], w[0, 0, 0])
    # 60 terms, in the order in which the dimensions are named: two blocks of 32, 28.
    a = np.einsum("bckd->bdkc", x).reshape(3, 7, 60)
    b = np.einsum("kbce->bekc", w).reshape(3, 6, 60)
    expected = np.einsum("bdk,bek->bde", on_grid(a, 2, precision), on_grid(b, 2, precision))
    assert_equal_up_to_sums(several, expected)
    column, row = x[0, 0, 0][:, None], w[0, 0, 0][:, None]
    assert_equal_up_to_sums(outer, on_grid(column, 1, precision) @ on_grid(row, 1, precision).T)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_are_quantized_along_their_own_contraction(precision: str) -> None:
    x, w, g = random(40, 70), random(70, 33), random(40, 33)
    with matmul_precision(precision):
        _, vjp = jax.vjp(jnp.matmul, x, w)
        dx, dw = vjp(g)
    assert_equal_up_to_sums(dx, on_grid(g, 1, precision) @ on_grid(w, 1, precision).T)
    assert_equal_up_to_sums(dw, on_grid(x, 0, precision).T @ on_grid(g, 0, precision))


CONV = {"window_strides": (1, 2), "padding": ((1, 1), (0, 2)), "rhs_dilation": (2, 1)}


def conv(x, w, **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, dimension_numbers=numbers, **CONV, **options)


def conv_on_cpu(x, w, **options):
    """float64 convolution, NHWC, by JAX on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        return conv(jnp.asarray(x), jnp.asarray(w), **options)


def test_transposed_gradient_in_bfloat16() -> None:
    """jaxlib 0.10's CPU backend has no transposed product of bfloat16 with a float32 result."""
    x, w = random(8, 16), random(16, 4)
    with matmul_precision("bf16"):
        gradient = jax.jit(jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w))))(w)
    y = np.tanh(on_grid(x, 1, "bf16") @ on_grid(w, 0, "bf16"))
    expected = on_grid(x.T, 1, "bf16") @ on_grid(1 - y**2, 0, "bf16")
    np.testing.assert_allclose(np.asarray(gradient), expected, atol=0.02)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_convolution_and_its_gradients(precision: str) -> None:
    x, w = random(3, 6, 9, 40), random(2, 3, 40, 36)
    with matmul_precision(precision):
        out, vjp = jax.vjp(jax.jit(conv), x, w)
        g = random(*out.shape, seed=1)
        dx, dw = vjp(g)
    assert_equal_up_to_sums(out, conv_on_cpu(on_grid(x, 3, precision), on_grid(w, 2, precision)))
    # The gradients sum over output features, and over the batch.
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        _, by_x = jax.vjp(lambda x: conv(x, on_grid(w, 3, precision)), np.float64(x))
        _, by_w = jax.vjp(lambda w: conv(on_grid(x, 0, precision), w), np.float64(w))
        (expected_dx,) = by_x(on_grid(g, 3, precision))
        (expected_dw,) = by_w(on_grid(g, 0, precision))
    assert_equal_up_to_sums(dx, expected_dx)
    assert_equal_up_to_sums(dw, expected_dw)


@pytest.mark.parametrize("groups", [{"feature_group_count": 2}, {"batch_group_count": 3}])
def test_grouped_convolution(groups: dict[str, int]) -> None:
    x, w = random(3, 6, 9, 80), random(2, 3, 80 // groups.get("feature_group_count", 1), 36)
    with matmul_precision("mxfp8"):
        out = conv(x, w, **groups)
    # 80 features are two groups of 32 + 8, or blocks of 32 + 32 + 16.
    size = w.shape[2]
    x = np.concatenate([on_grid(x[..., i : i + size], 3, "mxfp8") for i in range(0, 80, size)], 3)
    assert_equal_up_to_sums(out, conv_on_cpu(x, on_grid(w, 2, "mxfp8"), **groups))


def test_ragged_dot() -> None:
    x, w, sizes = random(12, 40), random(3, 40, 8), np.array([3, 5, 4], np.int32)
    with matmul_precision("mxfp8"):
        out = jax.jit(lax.ragged_dot)(x, w, sizes)
    group = np.repeat(np.arange(3), sizes)
    plain = np.einsum("mk,mkn->mn", x.astype(np.float64), w[group])
    error = np.abs(np.asarray(out) - plain).max() / np.abs(plain).max()
    assert 1e-3 < error < 0.1


# What is left alone


def same_as_default(function: Callable, *arguments) -> bool:
    """Whether the program is, to the letter, the one at "default"."""
    default = jax.jit(function).lower(*arguments).as_text()
    with matmul_precision("mxfp4"):
        return jax.jit(function).lower(*arguments).as_text() == default


def dot_with(precision) -> Callable:
    return lambda x, w: jnp.matmul(x, w, precision=precision)


@pytest.mark.parametrize(
    "precision",
    [
        lax.Precision.HIGHEST,
        lax.Precision.HIGH,
        (lax.Precision.DEFAULT, lax.Precision.HIGHEST),
        lax.DotAlgorithmPreset.F32_F32_F32,
        "float32",
        "F32_F32_F32",
    ],
)
def test_explicit_precision_is_honoured(precision) -> None:
    x, w = random(8, 40), random(40, 8)
    assert same_as_default(dot_with(precision), x, w)
    assert same_as_default(jax.grad(lambda x, w: dot_with(precision)(x, w).sum()), x, w)


def test_precision_of_jax_config_is_honoured() -> None:
    x, w = random(8, 40), random(40, 8)
    with jax.default_matmul_precision("float32"):
        assert same_as_default(jnp.matmul, x, w)
    with jax.default_matmul_precision("bfloat16"):  # that is Precision.DEFAULT
        assert not same_as_default(jnp.matmul, x, w)
    assert not same_as_default(dot_with(lax.DotAlgorithmPreset.DEFAULT), x, w)


def test_highest_in_convolutions() -> None:
    x, w = random(2, 8, 6), random(4, 8, 3)
    assert same_as_default(
        lambda x, w: lax.conv(x, w, (1,), "SAME", precision=lax.Precision.HIGHEST), x, w
    )
    assert not same_as_default(lambda x, w: lax.conv(x, w, (1,), "SAME"), x, w)


@pytest.mark.parametrize("dtype", ["int32", "complex64", "float8_e4m3fn", "float64"])
def test_other_dtypes(dtype: str) -> None:
    with jax.enable_x64(True):
        x = jnp.ones((8, 8), dtype)
        assert same_as_default(lambda x: lax.dot(x, x, preferred_element_type=x.dtype), x)


def test_empty_products() -> None:
    assert same_as_default(jnp.matmul, np.ones((3, 0), np.float32), np.ones((0, 4), np.float32))


def test_operations_that_say_what_they_compute_in() -> None:
    from jax.experimental import pallas as pl

    x, w = random(32, 40), random(40, 32)
    numbers = (((1,), (0,)), ((), ()))
    formats = {"lhs_dtype": jnp.float6_e2m3fn, "rhs_dtype": None}

    def kernel(x, w, out):
        out[...] = jnp.dot(x[...], w[...])

    call = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct((32, 32), np.float32))
    assert same_as_default(lambda x, w: jax_trn3.mx_dot_general(x, w, numbers, **formats), x, w)
    assert same_as_default(call, x, w)
    assert same_as_default(jnp.linalg.qr, x)


def test_program_at_default_is_that_of_the_cpu() -> None:
    def loss(w, x):
        return jnp.sum(jax.nn.relu(lax.conv(x, w, (1,), "SAME")) @ x[0].T)

    w, x = random(8, 8, 3), random(2, 8, 6)
    programs = [
        jax.jit(jax.grad(loss)).trace(w, x).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("trn3", "cpu")
    ]
    assert programs[0] == programs[1]


def test_other_platforms_are_unaffected_in_the_same_process() -> None:
    cpu = jax.devices("cpu")[0]
    x, w = (jax.device_put(a, cpu) for a in (random(8, 40), random(40, 8)))
    plain = jax.jit(jnp.matmul)(x, w)
    with matmul_precision("mxfp4"):
        np.testing.assert_array_equal(jax.jit(jnp.matmul)(x, w), plain)
        there = jax.jit(jnp.matmul)(*(jax.device_put(a, jax.devices("trn3")[0]) for a in (x, w)))
    assert np.abs(np.asarray(there) - plain).max() > 0.1


# The setting


def level(x, w) -> str:
    """The precision that a product of x and w ran in."""
    out = np.asarray(level.product(x, w), np.float64)
    errors = {"default": np.abs(out - np.float64(x) @ w).max()}
    for p in PRECISIONS:
        errors[p] = np.abs(out - on_grid(x, 1, p) @ on_grid(w, 0, p)).max()
    return min(errors, key=errors.__getitem__)


X, W = random(8, 40), random(40, 8)


def test_change_of_the_setting_is_part_of_the_cache_key() -> None:
    level.product = product = jax.jit(lambda x, w: x @ w)
    assert level(X, W) == "default"
    for precision in (*PRECISIONS, "default", *PRECISIONS):
        with matmul_precision(precision):
            assert level(X, W) == precision
    assert level(X, W) == "default"
    assert product._cache_size() == 4


def test_exceptions_are_part_of_the_cache_key() -> None:
    def named(x, w):
        with jax.named_scope("router"):
            return x @ w

    level.product = product = jax.jit(named)
    for scopes, expected in ((), "mxfp8"), ("router", "default"), (["other"], "mxfp8"):
        with matmul_precision("mxfp8", except_scopes=scopes):
            assert level(X, W) == expected
    assert product._cache_size() == 3


def test_nested_contexts_and_decorator() -> None:
    level.product = jnp.matmul

    @matmul_precision("mxfp8")
    def decorated() -> str:
        return level(X, W)

    with matmul_precision("mxfp4"):
        with matmul_precision("bf16"):
            assert level(X, W) == "bf16"
            assert decorated() == "mxfp8"
        assert level(X, W) == "mxfp4"
        with pytest.raises(ZeroDivisionError), matmul_precision("default"):
            _ = 1 // 0
        assert level(X, W) == jax.config.jax_trn3_matmul_precision == "mxfp4"
    assert decorated() == "mxfp8"
    assert level(X, W) == "default"


def test_exceptions_of_an_outer_context_hold_unless_given() -> None:
    def named(x, w):
        with jax.named_scope("router"):
            return x @ w

    level.product = jax.jit(named)
    with matmul_precision("mxfp8", except_scopes="router"):
        with matmul_precision("mxfp4"):
            assert level(X, W) == "default"
        with matmul_precision("mxfp4", except_scopes=()):
            assert level(X, W) == "mxfp4"


def test_contexts_belong_to_a_thread() -> None:
    level.product = jax.jit(jnp.matmul)
    seen, inside, checked = {}, threading.Event(), threading.Event()

    def other() -> None:
        with matmul_precision("mxfp8"):
            inside.set()
            checked.wait(30)
            seen["other"] = level(X, W)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(30)
    seen["main"] = level(X, W)
    checked.set()
    thread.join()
    assert seen == {"main": "default", "other": "mxfp8"}


def test_jax_config_update() -> None:
    level.product = jax.jit(jnp.matmul)
    jax.config.update("jax_trn3_matmul_precision", "mxfp8")
    try:
        assert level(X, W) == "mxfp8"
        with matmul_precision("default"):
            assert level(X, W) == "default"
    finally:
        jax.config.update("jax_trn3_matmul_precision", "default")
    assert level(X, W) == "default"


ENVIRONMENT = """
import jax, numpy as np
x, w = (np.random.default_rng(i).normal(size=(64, 64)).astype(np.float32) for i in range(2))
def f(x, w):
    with jax.named_scope("head"):
        return x @ w
y = jax.jit(f)(x, w)
print(jax.config.jax_trn3_matmul_precision, np.abs(y - np.float64(x) @ w).max() > 0.1)
"""


def test_environment_variable(run_python, tmp_path: Path) -> None:
    # One compilation cache for all, which must not mix them up.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def run(**environment: str) -> list[str]:
        process = run_python(ENVIRONMENT, **cache, **environment)
        assert process.returncode == 0, process.stderr
        return process.stdout.split()

    name = "JAX_TRN3_MATMUL_PRECISION"
    assert run(**{name: "mxfp8"}) == ["mxfp8", "True"]
    assert run(**{name: "mxfp8", f"{name}_EXCEPT_SCOPES": "router,head"}) == ["mxfp8", "False"]


def test_wrong_environment_variable(run_python) -> None:
    process = run_python(ENVIRONMENT, JAX_TRN3_MATMUL_PRECISION="fp8")
    error = process.stderr
    assert "RuntimeError: Unable to initialize backend 'trn3'" in error
    assert "unknown matmul precision 'fp8'; allowed are default, bf16, mxfp8, mxfp4" in error
    assert "JAX_TRN3_MATMUL_PRECISION" in error
    # Who does not use the platform is not troubled.
    process = run_python(
        "import jax, jax_trn3; print(jax.numpy.ones(3) @ jax.numpy.ones(3))",
        JAX_TRN3_MATMUL_PRECISION="fp8",
        JAX_PLATFORMS="cpu",
    )
    assert process.stdout == "3.0\n", process.stderr


def test_options_are_flags_of_absl(run_python) -> None:
    code = """
import jax, jax_trn3
from absl import app
jax.config.config_with_absl()
app.run(lambda _: print(jax.config.jax_trn3_matmul_precision, jax.config.jax_trn3_matmul_precision_except_scopes))
"""
    flags = [
        "--jax_trn3_matmul_precision=mxfp8",
        "--jax_trn3_matmul_precision_except_scopes=head,router",
    ]
    process = run_python(["-c", code, *flags])
    assert process.stdout.split() == ["mxfp8", "head,router"], process.stderr


def test_module_can_be_imported_twice(run_python) -> None:
    code = """
import importlib, jax_trn3.ops.precision_setting as module
again = importlib.reload(module)
with again.matmul_precision("mxfp8"):
    import jax
    print(jax.config.jax_trn3_matmul_precision)
"""
    assert run_python(code).stdout == "mxfp8\n"


@pytest.mark.parametrize("value", ["fp8", "MXFP8", None, 8])
def test_unknown_precision(value) -> None:
    match = "unknown matmul precision .*; allowed are default, bf16, mxfp8, mxfp4"
    with pytest.raises(ValueError, match=match):
        matmul_precision(value)  # at once, not when the context is entered
    with pytest.raises(ValueError, match=match):
        jax.config.update("jax_trn3_matmul_precision", value)
    assert jax.config.jax_trn3_matmul_precision == "default"


@pytest.mark.parametrize("scopes", ["a,,b", [""], ["a,b"], [3], 3])
def test_wrong_scopes(scopes) -> None:
    with pytest.raises(ValueError, match="except_scopes must be patterns of name scopes"):
        matmul_precision("mxfp8", except_scopes=scopes)
