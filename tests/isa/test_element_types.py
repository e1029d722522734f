"""Element types and how results are cast to them, against ml_dtypes."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from isa_cases import bits

from jax_trn3.isa import DTYPES, dtype_named, dtypes

# Names and sizes of nki.language, typed from its documentation.
BYTES = {
    "bool_": 1, "int8": 1, "int16": 2, "int32": 4, "uint8": 1, "uint16": 2, "uint32": 4,
    "float16": 2, "bfloat16": 2, "float32": 4, "tfloat32": 4, "float8_e4m3": 1, "float8_e4m3fn": 1,
    "float8_e5m2": 1, "float8_e8m0fnu": 1, "float8_e5m2_x4": 4, "float8_e4m3fn_x4": 4,
    "float4_e2m1fn_x4": 2,
}  # fmt: skip
V4_ONLY = {
    "float8_e4m3fn", "float8_e8m0fnu", "float8_e5m2_x4", "float8_e4m3fn_x4", "float4_e2m1fn_x4",
}  # fmt: skip
FLOATS = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3": ml_dtypes.float8_e4m3,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}


def cast(x, dtype):
    return np.asarray(dtypes.cast(jnp.asarray(x), dtype))


def test_names_sizes_and_generations():
    assert {name: dtype.bytes for name, dtype in DTYPES.items()} == BYTES
    assert {name for name, dtype in DTYPES.items() if dtype.since == 4} == V4_ONLY
    assert {dtype.packed for name, dtype in DTYPES.items() if name.endswith("_x4")} == {4}
    with pytest.raises(ValueError, match="unknown dtype 'float64'; known: bool_"):
        dtype_named("float64")


def everything(dtype):
    """All numbers of a small float type, the points between two of them, and their neighbours."""
    codes = np.arange(2 ** (8 * np.dtype(dtype).itemsize)).astype(f"u{np.dtype(dtype).itemsize}")
    numbers = codes.view(dtype).astype(np.float32)
    numbers = np.sort(numbers[np.isfinite(numbers)])
    between = ((numbers[1:].astype(np.float64) + numbers[:-1]) / 2).astype(np.float32)
    ends = np.float32([np.inf, -np.inf, np.nan, 3e38, -3e38])
    parts = [numbers, between, np.nextafter(between, np.inf), np.nextafter(between, -np.inf), ends]
    return np.concatenate([part.astype(np.float32) for part in parts])


@pytest.mark.parametrize("name", FLOATS)
def test_floats_are_rounded_to_nearest_even(name):
    x = everything(FLOATS[name])
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(FLOATS[name])
    got = cast(x, DTYPES[name])
    nan = np.isnan(want.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(got.astype(np.float32)), nan)
    np.testing.assert_array_equal(bits(got)[~nan], bits(want)[~nan])


def test_tfloat32_keeps_ten_bits_of_mantissa():
    x = np.float32([1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-10, 1 + 2**-12, -1 - 2**-11 - 2**-20])
    want = np.float32([1, 1 + 2 * 2**-10, 1 + 2**-10, 1, -1 - 2**-10])
    np.testing.assert_array_equal(cast(x, DTYPES["tfloat32"]), want)


@pytest.mark.parametrize("name", ["int8", "int16", "int32", "uint8", "uint16", "uint32"])
def test_floats_become_integers_rounded_and_clamped(name):
    limits = np.iinfo(name)
    x = np.float32(
        [0.5, 1.5, 2.5, -0.5, -1.5, 99.5, 3e9, -3e9, 1e20, -1e20, np.inf, -np.inf, np.nan]
    )
    rounded = np.where(np.isnan(x), 0, np.rint(x.astype(np.float64)))
    want = np.clip(rounded, limits.min, limits.max).astype(name)
    np.testing.assert_array_equal(cast(x, DTYPES[name]), want)


def test_integers_keep_their_low_bits_and_bools_say_whether_zero():
    x = np.int32([300, -1, 2**31 - 1, 0])
    np.testing.assert_array_equal(cast(x, DTYPES["uint8"]), x.astype(np.uint8))
    np.testing.assert_array_equal(cast(x, DTYPES["uint32"]), x.astype(np.uint32))
    np.testing.assert_array_equal(cast(x, DTYPES["float16"]), np.float16([300, -1, np.inf, 0]))
    np.testing.assert_array_equal(cast(np.float32([0, 0.1, np.nan]), DTYPES["bool_"]), [0, 1, 1])
