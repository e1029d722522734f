"""The study of MXFP8: its naive formats, its model, its statistics, and all of it in quick mode."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.stats
from jax import lax
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax_trn3
from examples.mxfp8_study import model, naive, outlier_demo, statistics, study, train
from examples.mxfp8_study.precisions import FLOAT32, MXFP8, Precision

SCRIPT = str(Path(__file__).parents[2] / "examples" / "mxfp8_training.py")
E4M3 = ml_dtypes.float8_e4m3fn
RunPython = Callable[..., Any]
TINY = model.ModelConfig(width=32, num_layers=1, num_heads=2, max_len=16)


@pytest.fixture(autouse=True)
def usual_promotion() -> Iterator[None]:
    """Promote as JAX does by default: Optax multiplies integers with floats."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def drawn(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def cast(x: NDArray[np.float32], dtype: type, largest: float) -> NDArray[np.float32]:
    """The oracle: numpy and ml_dtypes."""
    clipped = np.clip(x, -largest, largest)
    rounded = np.rint(clipped) if dtype is np.int8 else clipped
    return rounded.astype(dtype).astype(np.float32)


def absmax(x: NDArray[np.float32], dtype: type, largest: float) -> NDArray[np.float32]:
    scale = np.max(np.abs(x)) / np.float32(largest)
    return cast(x / scale, dtype, largest) * scale


def microscaled(
    x: NDArray[np.float32], dtype: type, largest: float, emax: int
) -> NDArray[np.float32]:
    """Section 6.3 of the MX specification, blocks of 32."""
    blocks = x.reshape(-1, 32)
    _, exponent = np.frexp(np.abs(blocks).max(axis=1, keepdims=True))
    scale = np.ldexp(np.float32(1), exponent - 1 - emax)
    if dtype is np.int8:  # steps of 2^-6
        return (cast(blocks / scale * 64, np.int8, 127) / 64 * scale).reshape(-1)
    return (cast(blocks / scale, dtype, largest) * scale).reshape(-1)


ELEMENTS = {
    "E4M3": (E4M3, 448.0, 8),
    "INT8": (np.int8, 127.0, 0),
    "E2M1": (ml_dtypes.float4_e2m1fn, 6.0, 2),
}


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_naive_formats_are_those_of_ml_dtypes(element: str, scale: float) -> None:
    dtype, largest, _ = ELEMENTS[element]
    midpoints = np.arange(-460, 460, 0.25, dtype=np.float32)
    for x in (drawn(999) * np.float32(scale), midpoints, np.zeros(4, np.float32)):
        found = naive.cast(jnp.asarray(x), np.dtype(dtype))
        np.testing.assert_array_equal(found, cast(x, dtype, largest))
        if x.any():
            found = naive.absmax(jnp.asarray(x), np.dtype(dtype))
            # XLA may multiply by a reciprocal: a value on a midpoint can go the other way.
            exact = np.isclose(found, absmax(x, dtype, largest), rtol=1e-6, atol=0)
            assert exact.mean() > 0.99
    assert not np.asarray(naive.absmax(jnp.zeros(4), np.dtype(dtype))).any()


@pytest.mark.parametrize(
    ("shapes", "numbers", "forward", "to_lhs", "to_rhs"),
    [
        (((5, 7), (7, 3)), (((1,), (0,)), ((), ())), "ik,kj->ij", "ij,kj->ik", "ik,ij->kj"),
        (
            ((2, 5, 7), (2, 3, 7)),
            (((2,), (2,)), ((0,), (0,))),
            "bik,bjk->bij",
            "bij,bjk->bik",
            "bik,bij->bjk",
        ),
    ],
)
@pytest.mark.parametrize("way", ["cast", "absmax"])
def test_naive_product_and_its_gradients(
    shapes: tuple[tuple[int, ...], ...],
    numbers: naive.DimensionNumbers,
    forward: str,
    to_lhs: str,
    to_rhs: str,
    way: str,
) -> None:
    dot_general = {"cast": naive.cast_dot_general, "absmax": naive.absmax_dot_general}[way]
    oracle = {"cast": cast, "absmax": absmax}[way]

    def q(x: NDArray[np.float32]) -> NDArray[np.float64]:
        return oracle(x, E4M3, 448.0).astype(np.float64)

    lhs, rhs = (drawn(*shape, seed=seed) for seed, shape in enumerate(shapes))
    out, transpose = jax.vjp(lambda *xs: dot_general(*xs, numbers), lhs, rhs)
    cotangent = drawn(*out.shape, seed=2)
    grads = jax.jit(transpose)(cotangent)
    np.testing.assert_allclose(out, np.einsum(forward, q(lhs), q(rhs)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        grads[0], np.einsum(to_lhs, q(cotangent), q(rhs)), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        grads[1], np.einsum(to_rhs, q(lhs), q(cotangent)), rtol=1e-5, atol=1e-5
    )


def test_naive_product_refuses_other_dtypes() -> None:
    x = jnp.ones((2, 2), jnp.bfloat16)
    with pytest.raises(TypeError, match="float32, not bfloat16"):
        naive.cast_dot_general(x, x, (((1,), (0,)), ((), ())))


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("magnitude", outlier_demo.MAGNITUDES)
def test_outlier_demo_is_what_numpy_finds(magnitude: str, element: str) -> None:
    dtype, largest, emax = ELEMENTS[element]
    x = outlier_demo.values(outlier_demo.MAGNITUDES[magnitude])
    assert x[outlier_demo.OUTLIER_AT] == 100 * outlier_demo.MAGNITUDES[magnitude]
    expected = {
        "cast": cast(x, dtype, largest),
        "absmax": absmax(x, dtype, largest),
        "microscaling": microscaled(x, dtype, largest, emax),
    }
    near = [i for i in range(32, 64) if i != outlier_demo.OUTLIER_AT]
    far = [*range(32), *range(64, 128)]
    for way, q in expected.items():
        row = outlier_demo.row(magnitude, element, way)
        for found, where in ((row.near, near), (row.far, far)):
            noise = np.sum((q - x)[where].astype(np.float64) ** 2)
            ratio = np.sum(x[where].astype(np.float64) ** 2) / noise
            assert found == pytest.approx(10 * np.log10(ratio), abs=0.05)
        assert row.lost == np.mean(q[near + far] == 0)
        error = abs(q - x)[outlier_demo.OUTLIER_AT] / x[outlier_demo.OUTLIER_AT]
        assert row.outlier_error == pytest.approx(error, abs=1e-6)


def test_outlier_channels_change_nothing_in_float32() -> None:
    params = model.init_params(TINY, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 256, (2, 16))
    logits = jax.jit(lambda outlier: model.logits(TINY, params, tokens, outlier=outlier))
    plain, with_outliers = logits(jnp.float32(1)), logits(jnp.float32(2.0**12))
    assert plain.shape == (2, 16, 256)
    np.testing.assert_array_equal(plain, with_outliers)


def test_a_byte_does_not_see_those_after_it() -> None:
    params = model.init_params(TINY, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 256, (1, 16))
    other = np.where(np.arange(16) < 10, tokens, 255 - tokens)
    logits = jax.jit(lambda tokens: model.logits(TINY, params, tokens))
    difference = np.abs(logits(tokens) - logits(other)).max(axis=(0, 2))
    assert (difference[:10] == 0).all()
    assert (difference[10:] > 0).all()


def test_gradients_of_all_seeds_are_those_of_each_on_the_cpu() -> None:
    mesh = train.seed_mesh(2)
    config = train.TrainConfig(steps=1, seeds=(3, 5), batch_size=2)
    first_state = train.first_state_of(TINY, config, mesh, nudged=False)
    params, _ = first_state(np.asarray(config.seeds, np.uint32))
    tokens = np.random.default_rng(0).integers(0, 256, (2, 2, 17)).astype(np.int32)
    weights = np.random.default_rng(1).random((2, 2, 16)).astype(np.float32)
    program = train.gradients_in(FLOAT32, TINY, mesh)
    factors = np.float32(1), np.float32(2.0**-20)
    losses, grads = program(params, *train.on_devices(mesh, tokens, weights), *factors)

    def loss(params: model.Params, seed: int) -> jax.Array:
        logits = model.logits(TINY, params, tokens[seed, :, :-1], lax.dot_general)
        shares = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(shares, tokens[seed, :, 1:, None], axis=-1)[..., 0]
        return -(picked * weights[seed]).mean()

    with jax.default_device(jax.devices("cpu")[0]):
        for index, seed in enumerate(config.seeds):
            own = jax.tree.map(lambda x, i=index: np.asarray(x)[i], params)
            drawn_here = model.init_params(TINY, jax.random.key(seed))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), own, drawn_here)
            value, expected = jax.jit(jax.value_and_grad(loss), static_argnums=1)(own, index)
            assert losses[index] == pytest.approx(float(value), rel=1e-5)
            for found, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(expected)):
                np.testing.assert_allclose(found[index], wanted, rtol=1e-3, atol=1e-6)


def test_mxfp8_by_setting_is_mxfp8_by_dot_general() -> None:
    mesh = train.seed_mesh(1)
    explicit = Precision("", "", dot_general=jax_trn3.mx_dot_general)
    config = train.TrainConfig(steps=1, seeds=(0,))
    params, _ = train.first_state_of(TINY, config, mesh, nudged=False)(np.zeros(1, np.uint32))
    tokens = np.random.default_rng(0).integers(0, 256, (1, 2, 17)).astype(np.int32)
    batch = train.on_devices(mesh, tokens, np.ones((1, 2, 16), np.float32))
    factors = np.float32(1), np.float32(1)
    by_precision = [
        train.gradients_in(precision, TINY, mesh)(params, *batch, *factors)
        for precision in (MXFP8, explicit)
    ]
    for one, other in zip(*(jax.tree.leaves(found) for found in by_precision)):
        scale = np.abs(one).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-2 * scale)
        assert np.abs(one - other).mean() < 1e-4 * scale


def test_scenarios_take_powers_of_two_only() -> None:
    with pytest.raises(ValueError, match=r"outlier 100\.0 is not a power of two"):
        train.Scenario("", "", outlier=100.0)
    with pytest.raises(ValueError, match="loss_scale"):
        train.Scenario("", "", loss_scale=-2.0)


def test_comparison_is_students_paired_t() -> None:
    reference = np.array([2.0, 2.1, 1.9, 2.2, 2.05])
    losses = reference + [0.11, 0.09, 0.12, 0.1, 0.08]
    found = statistics.compare(losses, reference)
    test = scipy.stats.ttest_rel(losses, reference)
    low, high = test.confidence_interval(statistics.CONFIDENCE)
    assert found.difference.mean - found.half_width == pytest.approx(low)
    assert found.difference.mean + found.half_width == pytest.approx(high)
    assert found.relative == pytest.approx(0.1 / np.std(reference, ddof=1))
    assert found.verdict == "worse"
    assert statistics.compare(reference, losses).verdict == "better"
    assert statistics.compare(reference, reference).verdict == "indistinguishable"
    mixed = reference + [0.1, -0.1, 0.1, -0.1, 0.02]
    assert statistics.compare(mixed, reference).verdict == "indistinguishable"
    assert statistics.compare(losses * np.nan, reference).verdict == "diverged"
    assert statistics.compare(reference, losses * np.nan).verdict == "diverged"


def test_numbers_that_json_does_not_have_are_null() -> None:
    assert study.finite({"a": [1.0, float("nan")], "b": (-float("inf"),)}) == {
        "a": [1.0, None],
        "b": [None],
    }


def test_quick_study_end_to_end(run_python: RunPython, tmp_path: Path) -> None:
    done = run_python(
        [SCRIPT, "--quick", "--out", str(tmp_path)],
        timeout=280,
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",  # most of the time is spent compiling
    )
    assert done.returncode == 0, done.stderr
    for name in ("loss_curves.png", "gradients.png", "outlier.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "study.json").read_text())
    assert found["platform"] == "trn3"
    losses = {(r["scenario"], r["precision"]): r for r in found["training"]}
    assert len(losses) == 6
    for run in losses.values():
        assert np.shape(run["curve"]) == (2, 8)
        assert np.isfinite(run["curve"]).all()
    float32, mxfp8 = (losses["base", name]["curve"] for name in ("float32", "MXFP8"))
    assert np.mean(float32, axis=0)[-1] < np.mean(float32, axis=0)[0] - 0.3
    assert float32 == losses["outlier channels", "float32"]["curve"]
    difference = np.abs(np.subtract(float32, mxfp8))
    assert difference.max() > 0  # the setting has had its effect
    assert difference.max() < 0.1
    assert mxfp8 != losses["outlier channels", "MXFP8"]["curve"]
    by_rule = {r["rule"]: r["decibels"] for r in found["tensors"] if r["format"] == "mxfp8_e4m3"}
    assert by_rule["ocp"]["normal"]["mean"] == pytest.approx(30.5, abs=0.3)
    assert by_rule["neuron"]["normal"]["mean"] == pytest.approx(31.5, abs=0.3)
    assert "verdict" in done.stdout
    assert "float32" in done.stdout


def test_other_platforms_are_refused(run_python: RunPython) -> None:
    done = run_python([SCRIPT, "--quick"], JAX_PLATFORMS="cpu")
    assert done.returncode != 0
    assert "set JAX_PLATFORMS=trn3,cpu" in done.stderr
