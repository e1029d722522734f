"""The table of formats, against ml_dtypes and gfloat; names; what is refused."""

import jax
import jax.numpy as jnp
import ml_dtypes
import mx_oracle as oracle
import numpy as np
import pytest

from jax_trn3 import numerics
from jax_trn3.numerics import ELEMENT_FORMATS, dequantize, element_format, quantize

X = np.ones((2, 64), np.float32)
BITS = np.zeros((2, 64), np.uint32)


@pytest.mark.parametrize("fmt", ELEMENT_FORMATS, ids=lambda f: f.name)
def test_table(fmt):
    info = oracle.SPECS[fmt.name].gfloat
    assert (fmt.bits, fmt.emax) == (info.k, info.emax)
    assert fmt.has_nan == (info.num_nans > 0)
    assert fmt.has_inf == (info.num_posinfs > 0)
    assert fmt.max_code == oracle.SPECS[fmt.name].finite_codes - 1
    assert fmt.max == oracle.numbers(oracle.SPECS[fmt.name])[-1]
    if not fmt.is_integer:
        of_ml_dtypes = ml_dtypes.finfo(fmt.dtype)
        assert fmt.max == float(of_ml_dtypes.max)
        assert 2.0**fmt.emin == float(of_ml_dtypes.smallest_normal)
        step = 2.0 ** (fmt.emin - fmt.mantissa_bits)
        assert step == float(of_ml_dtypes.smallest_subnormal)


@pytest.mark.parametrize("fmt", ELEMENT_FORMATS, ids=lambda f: f.name)
def test_every_code_with_every_scale(fmt):
    """2^8 codes by 2^8 scales, those that quantize never makes included."""
    spec = oracle.SPECS[fmt.name]
    codes = np.arange(1 << fmt.bits, dtype=np.uint8)
    data = codes.view(np.int8) if fmt.is_integer else codes.view(fmt.storage_dtype)
    scale = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu)
    grid = np.repeat(data[:, None], 256, 1)
    element = oracle.values(codes.view(np.int8) if fmt.is_integer else codes, spec)
    exact = np.ldexp(element[:, None], np.arange(256)[None] - 127)
    exact[:, 255] = np.nan
    for dtype in (np.float32, ml_dtypes.bfloat16, np.float16):
        got = jax.jit(lambda d, s, t=dtype: dequantize(d, s, 1, fmt, 1, t))(
            grid, np.repeat(scale[None], len(codes), 0)
        )
        with np.errstate(over="ignore"):
            wanted = exact.astype(np.float32).astype(dtype)  # exact in float32, or infinite
        np.testing.assert_array_equal(np.isnan(np.asarray(got)), np.isnan(wanted))
        number = ~np.isnan(wanted)
        unsigned = np.uint32 if dtype is np.float32 else np.uint16
        np.testing.assert_array_equal(
            np.asarray(got)[number].view(unsigned), wanted[number].view(unsigned)
        )


def test_names_and_dtypes():
    for fmt in ELEMENT_FORMATS:
        for name in (fmt, fmt.name, fmt.dtype, fmt.dtype.name, fmt.dtype.type):
            assert element_format(name) is fmt
    assert element_format(jnp.float8_e5m2) is numerics.MXFP8_E5M2
    assert element_format("mxfp8") is numerics.MXFP8_E4M3
    assert element_format("mxfp4") is numerics.MXFP4_E2M1


@pytest.mark.parametrize(
    "wrong", ["fp8", "mxfp6", jnp.float8_e4m3fnuz, np.float32, None, 8, "float32"]
)
def test_no_such_format(wrong):
    with pytest.raises(ValueError, match=r"unknown MX format .*mxfp8_e4m3 \(dtype float8_e4m3fn\)"):
        quantize(X, format=wrong)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X.astype(np.float64)}, TypeError, "cast to float32 first"),
        ({"x": X.astype(np.int32)}, TypeError, "int32; allowed are float32, bfloat16, float16"),
        ({"axis": 2}, ValueError, "axis 2 of an array of 2 dimensions; allowed are -2..1"),
        ({"axis": -3}, ValueError, "allowed are -2..1"),
        ({"x": np.float32(1), "axis": 0}, ValueError, "at least one dimension"),
        ({"axis": 1.0}, TypeError, "integer"),
        ({"block_size": 0}, ValueError, "block_size 0; allowed"),
        ({"block_size": 32.0}, TypeError, "integer"),
        ({"scale_rule": "floor"}, ValueError, "'floor'; allowed are ocp, neuron, rceil, ceil, even"),
        ({"rounding": "up"}, ValueError, "'up'; allowed are nearest_even, stochastic"),
        ({"rounding": "stochastic"}, ValueError, "needs random_bits"),
        ({"random_bits": BITS}, ValueError, 'rounding is "nearest_even"'),
        ({"rounding": "stochastic", "random_bits": BITS.astype(np.int32)}, TypeError, "uint32"),
        ({"rounding": "stochastic", "random_bits": BITS[:1]}, ValueError, r"shape \(1, 64\)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("function", [quantize, numerics.quantize_dequantize])
def test_bad_arguments_of_quantize(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(**{"x": X} | arguments)


def test_bad_arguments_of_dequantize():
    data, scale = jax.jit(quantize)(X)
    for arguments, error, message in [
        ((data, scale[:, :1]), ValueError, r"shape \(2, 1\).*scales of shape \(2, 2\)"),
        ((data, data), TypeError, "scale is float8_e4m3fn"),
        ((data, scale, -1, "mxfp8_e5m2"), TypeError, "stored as float8_e5m2"),
        ((data, scale, -1, None, 16), ValueError, "blocks of 16"),
        ((data, scale, -1, None, 32, jnp.int8), TypeError, "dtype is int8"),
        ((data, scale, -1, None, 32, np.float64), TypeError, "cast to float32 first"),
        ((data.view(jnp.uint8), scale), ValueError, "unknown MX format"),
    ]:
        with pytest.raises(error, match=message):
            dequantize(*arguments)
