"""Conversions, bit for bit, against gfloat and against the specification in integers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import mx_oracle as oracle
import numpy as np
import pytest

from jax_trn3 import numerics
from jax_trn3.numerics import ELEMENT_FORMATS, SCALE_RULES, dequantize, quantize

FORMATS = [f.name for f in ELEMENT_FORMATS]


def codes_of(data):
    """Integer codes of elements as they are stored."""
    data = np.asarray(data)
    return data.astype(np.int64) if data.dtype == np.int8 else data.view(np.uint8).astype(np.int64)


def bits32(x):
    return np.asarray(x).astype(np.float32).view(np.uint32)


@functools.cache
def inputs():
    """[n, 32] float32: all bfloat16 in order, and shuffled with like exponents; random patterns."""
    ordered = oracle.all_bfloat16().astype(np.float32)
    random = oracle.random_float32(1 << 17, 0)
    drawn = np.concatenate([ordered, ordered[::2], ordered[1::2], random]).reshape(-1, 32)
    return np.concatenate([drawn, oracle.edges()])


@functools.cache
def expected(format, rule):
    """Scales, codes and exact values (NaN in NaN blocks) of `inputs()`, the same by both oracles."""
    spec, x = oracle.SPECS[format], inputs()
    scale = oracle.scales(x, spec, rule)
    codes = oracle.elements(x, scale, spec)
    elements = oracle.values(codes, spec)
    np.testing.assert_array_equal(elements, oracle.gfloat_values(x, scale, spec))
    exponent = np.where(scale == 255, 0, scale.astype(np.int64) - 127)
    value = np.ldexp(elements, exponent[:, None])
    value[scale == 255] = np.nan
    return scale, codes, value


def check(x, format, rule, compile, platform):
    """Codes, scales and values of x on a platform against `expected`."""
    scale, codes, value = expected(format, rule)
    fmt = numerics.element_format(format)
    x = jax.device_put(x, jax.devices(platform)[0])
    got, got_scale = compile(functools.partial(quantize, format=fmt, scale_rule=rule))(x)
    assert got.dtype == fmt.storage_dtype
    assert got_scale.dtype == jnp.float8_e8m0fnu
    got_scale_bytes = np.asarray(got_scale).view(np.uint8)[:, 0]
    np.testing.assert_array_equal(got_scale_bytes, scale)
    nan = scale == 255
    np.testing.assert_array_equal(codes_of(got)[~nan], codes[~nan])
    nan_code = {"mxfp8_e4m3": 0x7F, "mxfp8_e5m2": 0x7F}.get(format, 0)
    sign = (1 << (fmt.bits - 1)) - 1
    assert (codes_of(got)[nan] & sign == nan_code).all()
    back = compile(functools.partial(dequantize, format=fmt))(got, got_scale)
    direct = compile(
        functools.partial(
            numerics.quantize_dequantize, format=fmt, scale_rule=rule, dtype=jnp.float32
        )
    )(x)
    with np.errstate(over="ignore"):
        wanted32 = value.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(back), np.isnan(wanted32))
    np.testing.assert_array_equal(bits32(back)[~nan], bits32(wanted32)[~nan])
    np.testing.assert_array_equal(bits32(direct)[~nan], bits32(back)[~nan])
    assert np.isnan(direct[nan]).all()


@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize("format", FORMATS)
def test_float32_bit_for_bit(format, rule):
    check(inputs(), format, rule, jax.jit, "trn3")


@pytest.mark.parametrize(("format", "rule"), list(zip(FORMATS, itertools.cycle(SCALE_RULES))))
@pytest.mark.parametrize(
    ("platform", "compile"), [("trn3", lambda f: f), ("cpu", lambda f: f), ("cpu", jax.jit)],
    ids=["trn3-eager", "cpu-eager", "cpu-jit"],
)  # fmt: skip
def test_on_both_platforms_and_eagerly(format, rule, platform, compile):
    check(inputs(), format, rule, compile, platform)


@pytest.mark.parametrize("format", FORMATS)
def test_every_bfloat16_and_float16_without_rounding_first(format):
    for dtype in (ml_dtypes.bfloat16, np.float16):
        x = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(dtype).reshape(-1, 32)
        spec = oracle.SPECS[format]
        scale = oracle.scales(x.astype(np.float32), spec, "ocp")
        codes = oracle.elements(x.astype(np.float32), scale, spec)
        data, got = jax.jit(functools.partial(quantize, format=format))(x)
        np.testing.assert_array_equal(np.asarray(got).view(np.uint8)[:, 0], scale)
        np.testing.assert_array_equal(codes_of(data)[scale != 255], codes[scale != 255])
