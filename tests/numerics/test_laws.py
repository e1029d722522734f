"""What holds for every input: drawn arrays, axes, formats, rules, and both roundings."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_trn3 import numerics
from jax_trn3.numerics import ELEMENT_FORMATS, SCALE_RULES, scale_rules

formats = st.sampled_from(ELEMENT_FORMATS)
rules = st.sampled_from(["ocp", "rceil"])  # tests/numerics/test_quantize.py has all, bit for bit
seeds = st.integers(0, 2**32 - 1)

# The laws below use one shape along one axis, so that each format and rule compiles once.
SHAPE = (4, 64)
STATIC = ("axis", "format", "scale_rule", "rounding")
quantize = jax.jit(numerics.quantize, static_argnames=STATIC)
dequantize = jax.jit(numerics.dequantize, static_argnames=("axis", "format", "dtype"))
on_the_grid = jax.jit(numerics.quantize_dequantize, static_argnames=(*STATIC, "dtype"))


def draw(seed, shape=SHAPE, spread=20):
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        return np.ldexp(rng.standard_normal(shape), rng.integers(-spread, spread, shape)).astype(
            "f4"
        )


def scale_bytes(scale):
    return np.asarray(scale).view(np.uint8).astype(int)


CASES = [((70,), 0), ((2, 33, 5), 1), ((2, 33, 5), -1), ((64, 3), 0), ((1, 1), -2), ((2, 0), 1)]


@pytest.mark.parametrize(("shape", "axis"), CASES)
@pytest.mark.parametrize("fmt", ELEMENT_FORMATS[1::2], ids=lambda f: f.name)
def test_shapes_and_both_ways_to_the_grid(fmt, shape, axis):
    x = draw(len(shape), shape)
    elements, scale = quantize(x, axis, fmt)
    wanted = list(shape)
    wanted[axis] = -(-shape[axis] // 32)
    assert (elements.shape, scale.shape) == (shape, tuple(wanted))
    one = np.asarray(dequantize(elements, scale, axis, fmt))
    assert one.tobytes() == np.asarray(on_the_grid(x, axis, fmt)).tobytes()
    # The same as along the last axis, filled up with zeros.
    moved = np.moveaxis(x, axis, -1)
    missing = -shape[axis] % 32
    padded = np.pad(moved, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    full_elements, full_scale = quantize(padded, -1, fmt)
    full_elements = np.asarray(full_elements)[..., : shape[axis]]
    np.testing.assert_array_equal(np.moveaxis(np.asarray(scale), axis, -1), full_scale)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(elements), axis, -1), full_elements)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("fmt", ELEMENT_FORMATS[1::2], ids=lambda f: f.name)
def test_both_ways_to_the_grid_in_16_bits(fmt, dtype):
    x = np.concatenate([draw(0), draw(1, spread=120)])  # subnormal and infinite results, too
    one = dequantize(*quantize(x, 1, fmt, scale_rule="neuron"), 1, fmt, dtype=dtype)
    other = on_the_grid(x, 1, fmt, scale_rule="neuron", dtype=dtype)
    assert one.dtype == other.dtype == dtype
    assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@settings(max_examples=30)
@given(seeds, formats, rules)
def test_error_is_half_a_step_or_saturation(seed, fmt, rule):
    x = draw(seed, spread=6)
    _, scale = quantize(x, 1, fmt, scale_rule=rule)
    s = np.repeat(np.exp2(scale_bytes(scale) - 127.0), 32, 1)
    y = np.asarray(on_the_grid(x, 1, fmt, scale_rule=rule)).astype(np.float64)
    ratio = np.abs(x.astype(np.float64)) / s
    exponent = np.maximum(np.frexp(ratio)[1] - 1, fmt.emin)
    step = np.ldexp(1.0, exponent - fmt.mantissa_bits) * s
    error = np.abs(x - y)
    assert (error[ratio <= fmt.max] <= step[ratio <= fmt.max] / 2).all()
    assert (np.abs(y)[ratio > fmt.max] == (fmt.max * s)[ratio > fmt.max]).all()
    assert (np.signbit(x) == np.signbit(y))[y != 0].all()
    if rule == "rceil":
        assert ratio.max() <= fmt.max  # nothing saturates


@settings(max_examples=30)
@given(seeds, formats)
def test_values_on_the_grid_stay(seed, fmt):
    """Quantizing again changes nothing with ocp: amax saturates below the next power of two, so
    that the scale stays. (With the other rules it may round up to one, and the scale with it.)"""
    x = draw(seed, spread=3)
    once = on_the_grid(x, 1, fmt)
    np.testing.assert_array_equal(once, on_the_grid(once, 1, fmt))
    np.testing.assert_array_equal(quantize(x, 1, fmt)[1], quantize(once, 1, fmt)[1])


@settings(max_examples=30)
@given(seeds, formats, rules, st.integers(-60, 60))
def test_powers_of_two_pass_through(seed, fmt, rule, k):
    x = draw(seed, spread=6)
    elements, scale = quantize(x, 1, fmt, scale_rule=rule)
    scaled_elements, scaled = quantize(np.ldexp(x, k), 1, fmt, scale_rule=rule)
    np.testing.assert_array_equal(scale_bytes(scaled), scale_bytes(scale) + k)
    np.testing.assert_array_equal(elements, scaled_elements)


@settings(max_examples=30)
@given(seeds, formats)
def test_rules_are_ordered(seed, fmt):
    amax = np.abs(draw(seed)).view(np.int32)
    by = {rule: np.asarray(scale_rules.scale_bytes(amax, fmt, rule)) for rule in SCALE_RULES}
    assert (by["ocp"] <= by["even"]).all()
    assert (by["ocp"] <= by["rceil"]).all()
    assert (by["rceil"] <= by["ceil"]).all()
    assert (by["even"] <= by["ceil"]).all()
    assert (by["ceil"] <= by["neuron"]).all()
    assert (by["neuron"] == by["ocp"] + 1).all()


def test_zeros_nan_and_infinity():
    x = np.zeros((5, 32), np.float32)
    x[1, 3], x[2, 4], x[3, 5] = np.nan, np.inf, -np.inf
    x[4] = -0.0
    for fmt, rule in zip(ELEMENT_FORMATS, itertools.cycle(SCALE_RULES)):
        data, scale = quantize(x, 1, fmt, scale_rule=rule)
        assert scale_bytes(scale)[:, 0].tolist() == [0, 255, 255, 255, 0]
        back = np.asarray(dequantize(data, scale, 1, fmt))
        assert np.isnan(back[1:4]).all()
        assert (back[[0, 4]] == 0).all()
        assert np.signbit(back[4]).all() == (not fmt.is_integer)


@settings(max_examples=30)
@given(seeds, formats)
def test_stochastic_rounding_is_unbiased(seed, fmt):
    """Of 2^d words, d bits of x / scale being dropped whose value is f, exactly f round up."""
    rng = np.random.default_rng(seed)
    x = draw(seed, spread=4)
    x = np.where(np.abs(x) < 2.0**-6, np.float32(0.5), x)  # what follows is for 31 bits or fewer
    _, scale = quantize(x, 1, fmt)
    s = np.repeat(scale_bytes(scale) - 127, 32, 1)
    y = np.abs(np.ldexp(x.astype(np.float64), -s))
    exponent = np.frexp(y)[1] - 1
    last = np.maximum(exponent, fmt.emin) - fmt.mantissa_bits  # the step is 2^last
    dropped = last - (exponent - 23)
    assert dropped.max() <= 31
    whole = np.ldexp(y, 23 - exponent).astype(np.int64)
    f = whole & ((1 << dropped) - 1)
    above = rng.integers(0, 1 << 32, SHAPE) & ~((1 << dropped) - 1)  # bits that do not count
    low = np.floor(np.ldexp(y, -last))
    for words, wanted in [
        (np.where(f > 0, (1 << dropped) - f, (1 << dropped) - 1), low + (f > 0)),
        (np.maximum((1 << dropped) - f - 1, 0), low),
    ]:
        random = ((words | above) % 2**32).astype(np.uint32)
        arguments = {"axis": 1, "format": fmt, "rounding": "stochastic", "random_bits": random}
        got = np.asarray(on_the_grid(x, **arguments))
        expected = np.minimum(np.ldexp(wanted, last), fmt.max)
        np.testing.assert_array_equal(got, np.copysign(np.ldexp(expected, s), x))
        np.testing.assert_array_equal(dequantize(*quantize(x, **arguments), 1, fmt), got)


def test_mean_of_stochastic_rounding():
    words = np.random.default_rng(0).integers(0, 2**32, (2000, *SHAPE), dtype=np.uint32)
    x = np.clip(draw(1, spread=3), -8, 8)
    x[:, ::32] = 16  # scale 2^-4
    many = np.broadcast_to(x, words.shape)
    y = np.asarray(on_the_grid(many, 2, rounding="stochastic", random_bits=words))
    step = np.exp2(np.maximum(np.floor(np.log2(np.abs(x))), -6 - 4) - 3)
    assert (np.abs(y.astype(np.float64).mean(0) - x) / step).max() < 5 * 0.5 / np.sqrt(2000)


def test_stochastic_rounding_far_below_the_grid():
    """2^-30 of the smallest step still rounds up, once in 2^30 words; zero never does."""
    x = np.zeros(32, np.float32)
    x[0], x[1] = 1.0, 2.0 ** (-17 - 30)  # scale 2^-8, step 2^-17
    stochastic = functools.partial(on_the_grid, rounding="stochastic")
    highest = np.full(32, 2**32 - 1, np.uint32)
    assert float(stochastic(x, random_bits=highest)[1]) == 2.0**-17
    assert float(stochastic(x, random_bits=highest - 2)[1]) == 0
    assert (np.asarray(stochastic(x, random_bits=highest))[2:] == 0).all()


def test_works_with_x64_and_strict_promotion():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        x, random = jnp.asarray(draw(0)), jnp.zeros(SHAPE, jnp.uint32)
        for fmt in ELEMENT_FORMATS:
            data, scale = jax.eval_shape(lambda x, f=fmt: numerics.quantize(x, 1, f), x)
            back = jax.eval_shape(lambda d, s, f=fmt: numerics.dequantize(d, s, 1, f), data, scale)
            assert (data.dtype, back.dtype) == (fmt.storage_dtype, jnp.float32)
            stochastic = functools.partial(
                numerics.quantize_dequantize, format=fmt, rounding="stochastic"
            )
            y = jax.eval_shape(lambda x, r, f=stochastic: f(x, random_bits=r), x, random)
            assert y.dtype == jnp.float32
