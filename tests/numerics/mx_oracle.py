"""MX conversion after the text of the OCP specification v1.0, in numpy's integers.

Written apart from jax_trn3.numerics and knowing nothing of it: the tests and
tools/check_mx_formats.py hold that against this, and against PyPI's gfloat.
"""

from dataclasses import dataclass

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class Spec:
    """A row of table 1 and of section 5.3 of the specification."""

    dtype: type
    exponent_bits: int
    mantissa_bits: int
    bias: int
    gfloat: gfloat.FormatInfo
    finite_codes: int
    """Codes 0 .. finite_codes - 1 (without sign) are numbers; those above infinity or NaN."""


SPECS = {
    "mxfp8_e4m3": Spec(ml_dtypes.float8_e4m3fn, 4, 3, 7, gfloat.formats.format_info_ocp_e4m3, 127),
    "mxfp8_e5m2": Spec(ml_dtypes.float8_e5m2, 5, 2, 15, gfloat.formats.format_info_ocp_e5m2, 124),
    "mxfp6_e3m2": Spec(ml_dtypes.float6_e3m2fn, 3, 2, 3, gfloat.formats.format_info_ocp_e3m2, 32),
    "mxfp6_e2m3": Spec(ml_dtypes.float6_e2m3fn, 2, 3, 1, gfloat.formats.format_info_ocp_e2m3, 32),
    "mxfp4_e2m1": Spec(ml_dtypes.float4_e2m1fn, 2, 1, 1, gfloat.formats.format_info_ocp_e2m1, 8),
    "mxint8": Spec(np.int8, 0, 6, 0, gfloat.formats.format_info_ocp_int8, 128),
}

NAN_SCALE = 255


def numbers(spec: Spec) -> np.ndarray:
    """The values of the codes without sign, ascending."""
    code = np.arange(spec.finite_codes)
    if spec.exponent_bits == 0:  # int8, "implied scale of 2^-6"
        return code / 64
    exponent, mantissa = code >> spec.mantissa_bits, code & ((1 << spec.mantissa_bits) - 1)
    fraction = mantissa / 2.0**spec.mantissa_bits
    return np.where(
        exponent == 0,
        np.ldexp(fraction, 1 - spec.bias),
        np.ldexp(1 + fraction, exponent - spec.bias),
    )


def decompose(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finite float32 |x| = m * 2^q with integers m < 2^24."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.int64)
    field, mantissa = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    return np.where(field == 0, mantissa, mantissa | 0x800000), np.maximum(field, 1) - 150


def bit_length(m: np.ndarray) -> np.ndarray:
    return np.frexp(m.astype(np.float64))[1].astype(np.int64)  # exact: m < 2^53


def shift_round_even(m: np.ndarray, places: np.ndarray) -> np.ndarray:
    """m / 2^places, to the nearest integer, ties to even; places may be negative."""
    left = m << np.clip(-places, 0, 30)
    places = np.clip(places, 0, 60)
    floor = left >> places
    rest = left - (floor << places)
    half = (np.int64(1) << places) >> 1
    up = (rest > half) | ((rest == half) & (places > 0) & (floor & 1 == 1))
    return floor + up


def scale_exponent(m: np.ndarray, q: np.ndarray, spec: Spec, rule: str) -> np.ndarray:
    """The rules for nonzero amax = m * 2^q, not clamped."""
    largest = numbers(spec)[-1]
    emax = int(np.frexp(largest)[1]) - 1
    amax = np.ldexp(m.astype(np.float64), q)  # exact
    floor = bit_length(m) - 1 + q
    match rule:
        case "ocp":
            return floor - emax
        case "neuron":
            return floor - (emax - 1)
        case "ceil":
            return np.where(amax == np.ldexp(1.0, floor), floor, floor + 1) - emax
        case "rceil":  # the least exponent for which nothing exceeds the largest number
            return np.where(amax > np.ldexp(largest, floor - emax), floor + 1, floor) - emax
        case "even":
            places = bit_length(m) - 1 - spec.mantissa_bits
            rounded = shift_round_even(m, places)
            return bit_length(rounded) - 1 + places + q - emax
    raise AssertionError(rule)


def scales(blocks: np.ndarray, spec: Spec, rule: str) -> np.ndarray:
    """E8M0 codes for blocks along the last axis."""
    finite = np.isfinite(blocks).all(-1)
    amax = np.abs(np.where(finite[..., None], blocks, 0)).max(-1)
    m, q = decompose(amax)
    exponent = np.where(m == 0, -127, scale_exponent(np.maximum(m, 1), q, spec, rule))
    return np.where(finite, np.clip(exponent, -127, 127) + 127, NAN_SCALE)


def elements(blocks: np.ndarray, scale: np.ndarray, spec: Spec) -> np.ndarray:
    """Codes with sign (section 6.3: rounded to nearest even, clamped), 0 in a NaN block."""
    finite = (scale != NAN_SCALE)[..., None]
    x = np.where(finite, blocks, 0).astype(np.float32)
    s = np.where(finite, scale[..., None].astype(np.int64) - 127, 0)
    m, q = decompose(x)
    emin = 0 if spec.exponent_bits == 0 else 1 - spec.bias
    exponent = np.maximum(bit_length(m) - 1 + q - s, emin)
    n = shift_round_even(m, exponent - spec.mantissa_bits + s - q)
    value = np.ldexp(n.astype(np.float64), exponent - spec.mantissa_bits)
    table = numbers(spec)
    value = np.minimum(value, table[-1])
    code = np.searchsorted(table, value)
    assert (table[code] == value).all()
    if spec.exponent_bits == 0:
        return np.where(np.signbit(x), -code, code)
    sign = 1 << (spec.exponent_bits + spec.mantissa_bits)
    return np.where(np.signbit(x), code | sign, code)


def values(codes: np.ndarray, spec: Spec) -> np.ndarray:
    """Elements as float64, by ml_dtypes."""
    if spec.dtype is np.int8:
        return codes / 64.0
    return codes.astype(np.uint8).view(spec.dtype).astype(np.float64)


def gfloat_values(blocks: np.ndarray, scale: np.ndarray, spec: Spec) -> np.ndarray:
    """Elements as float64, by gfloat; 0 in a NaN block."""
    finite = (scale != NAN_SCALE)[..., None]
    x = np.where(finite, blocks, 0).astype(np.float64)
    y = np.ldexp(x, 127 - np.where(finite, scale[..., None].astype(np.int64), 127))
    if spec.dtype is np.int8:  # gfloat uses -2, too
        y = np.clip(y, -127 / 64, 127 / 64)
    return gfloat.round_ndarray(spec.gfloat, y, sat=True)


def all_bfloat16() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(ml_dtypes.bfloat16)


def random_float32(n: int, seed: int) -> np.ndarray:
    """Random bit patterns: half of them wild, half with exponents alike in groups of 32."""
    rng = np.random.default_rng(seed)
    wild = rng.integers(0, 1 << 32, n // 2, dtype=np.uint32)
    field = np.repeat(rng.integers(0, 256, n // 64), 32)
    field = np.clip(field - rng.integers(0, 12, field.size), 0, 255).astype(np.uint32)
    low = rng.integers(0, 1 << 23, field.size, dtype=np.uint32)
    sign = rng.integers(0, 2, field.size, dtype=np.uint32) << 31
    alike = sign | (field << 23) | low
    # NaN and infinity in some blocks only, or nearly all the wild ones would be NaN.
    wild = np.where((wild >> 23) & 0xFF == 0xFF, wild ^ np.uint32(0x40000000), wild)
    return np.concatenate([wild, alike]).view(np.float32)


def edges() -> np.ndarray:
    """[n, 32] float32: amax with each significand of 7 bits and its two float32 neighbours, with
    exponents at both ends and in the middle, infinity included; the others up to amax."""
    field = np.array([0, 1, 2, 3, 5, 8, 16, 100, 127, 128, 200, 240, 252, 253, 254, 255])
    significand = np.arange(0, 1 << 23, 1 << 16)
    amax = (field[:, None] << 23) + significand
    amax[-1] = 0xFF << 23  # infinity instead of NaN
    amax = (amax[..., None] + np.array([-1, 0, 1])).clip(0, 0xFF << 23).astype(np.uint32)
    rng = np.random.default_rng(0)
    blocks = np.repeat(amax.reshape(-1, 1), 32, 1) - rng.integers(0, 1 << 27, (amax.size, 32))
    blocks = blocks.clip(0)
    blocks[np.arange(amax.size), rng.integers(0, 32, amax.size)] = amax.ravel()
    sign = rng.integers(0, 2, blocks.shape) << 31
    return (blocks | sign).astype(np.uint32).view(np.float32)
