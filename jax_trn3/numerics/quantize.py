"""Conversion to MX blocks and back.

Elements are rounded in the integer domain of float_bits.py: y = |x| / scale is a subtraction of
exponents, so nothing is rounded twice and no subnormal is flushed. All functions are elementwise
apart from the largest magnitude of each block, and compile to two passes over the array.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .blocks import (
    block_count,
    block_max,
    canonical_axis,
    check_block_size,
    merge_blocks,
    split_blocks,
    to_block_axis,
)
from .float_bits import (
    BIAS,
    EXPONENT_MASK,
    FLOAT_DTYPES,
    MAGNITUDE_MASK,
    MANTISSA_BITS,
    MIN_NORMAL,
    NAN,
    bits_of,
    extended,
    float32_bits,
    float_of,
    from_float32_bits,
    scaled_bits,
)
from .formats import BLOCK_SIZE, MXFP8_E4M3, SCALE_DTYPE, ElementFormat, element_format
from .scale_rules import NAN_BYTE, check_scale_rule, scale_bytes

ROUNDINGS = ("nearest_even", "stochastic")
"""Allowed values of `rounding`."""


def quantize(
    x: jax.Array,
    axis: int = -1,
    format: Any = MXFP8_E4M3,
    block_size: int = BLOCK_SIZE,
    scale_rule: str = "ocp",
    rounding: str = "nearest_even",
    random_bits: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Elements and scales of x in blocks along an axis (MX v1.0, section 6.3).

    What exceeds the format's largest number is clamped to it. A block that holds a NaN or an
    infinity gets the scale NaN, and elements NaN (0 in a format without NaN).

    Args:
      x: float32, bfloat16 or float16 of any shape with at least one dimension.
      axis: the dimension that is cut into blocks; the last block may be shorter.
      format: an ElementFormat, or the dtype or name of one.
      block_size: elements in a block, at least 1.
      scale_rule: a name in SCALE_RULES.
      rounding: "nearest_even", or "stochastic": up with the probability that is the distance to
        the number below in steps, to 2^-31 of a step; then with `random_bits`.
      random_bits: uint32, x's shape, uniform; only for stochastic rounding.

    Returns:
      data: format.storage_dtype, x's shape.
      scale: float8_e8m0fnu, x's shape but for ceil(n / block_size) along the axis.

    Raises:
      TypeError: x or random_bits are of another dtype.
      ValueError: any other argument is not one of those allowed.
    """
    fmt = element_format(format)
    bits, byte, random, axis = _blocks(x, axis, fmt, block_size, scale_rule, rounding, random_bits)
    codes = _codes(bits, to_block_axis(byte, axis), fmt, random)
    data = merge_blocks(codes.astype(jnp.uint8), axis, x.shape[axis])
    return _store(data, fmt), _scale_of_bytes(byte)


def dequantize(
    data: jax.Array,
    scale: jax.Array,
    axis: int = -1,
    format: Any = None,
    block_size: int = BLOCK_SIZE,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """scale * data, correctly rounded to dtype; beyond its range infinity, with a NaN scale NaN.

    Args:
      data, scale: as `quantize` returns them.
      axis, block_size: as given to `quantize`.
      format: that of data; None takes it from data.dtype.
      dtype: float32, bfloat16 or float16. Exact in float32.

    Raises:
      TypeError: data, scale or dtype are of another dtype.
      ValueError: the shapes don't belong together, or another argument is not allowed.
    """
    fmt = element_format(data.dtype if format is None else format)
    out_dtype = _check_float("dtype", dtype)
    axis = canonical_axis(axis, data.ndim)
    check_block_size(block_size)
    _check_parts(data, scale, axis, fmt, block_size)
    byte = lax.bitcast_convert_type(scale, jnp.uint8).astype(jnp.int32)
    codes = split_blocks(_load(data, fmt), axis, block_size)
    value, sign = _decode(codes, fmt)
    bits = _descale(value, to_block_axis(byte, axis)) | sign
    return from_float32_bits(merge_blocks(bits, axis, data.shape[axis]), out_dtype)


def quantize_dequantize(
    x: jax.Array,
    axis: int = -1,
    format: Any = MXFP8_E4M3,
    block_size: int = BLOCK_SIZE,
    scale_rule: str = "ocp",
    rounding: str = "nearest_even",
    random_bits: jax.Array | None = None,
    dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """Exactly dequantize(*quantize(x, ...), dtype), without the storage in between.

    Args and errors as in `quantize` and `dequantize`; dtype None is x's.
    """
    fmt = element_format(format)
    out_dtype = _check_float("dtype", x.dtype if dtype is None else dtype)
    bits, byte, random, axis = _blocks(x, axis, fmt, block_size, scale_rule, rounding, random_bits)
    out = _grid_bits(bits, to_block_axis(byte, axis), fmt, random)
    return from_float32_bits(merge_blocks(out, axis, x.shape[axis]), out_dtype)


def _blocks(
    x: jax.Array,
    axis: int,
    fmt: ElementFormat,
    block_size: int,
    scale_rule: str,
    rounding: str,
    random_bits: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array | None, int]:
    """Checks, then: float32 bits in blocks, codes of the scales, random bits in blocks, axis."""
    _check_float("x", x.dtype)
    axis = canonical_axis(axis, x.ndim)
    check_block_size(block_size)
    check_scale_rule(scale_rule)
    _check_rounding(x, rounding, random_bits)
    bits = split_blocks(float32_bits(x), axis, block_size)
    byte = scale_bytes(block_max(bits & MAGNITUDE_MASK, axis), fmt, scale_rule)
    random = None if random_bits is None else split_blocks(random_bits, axis, block_size)
    return bits, byte, random, axis


def _rounded(
    bits: jax.Array, byte: jax.Array, fmt: ElementFormat, random: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """|x| / scale as n * 2^(e - mantissa_bits): the exponent field of 2^e in place, and n.

    n <= 2^(mantissa_bits + 1); not yet saturated.
    """
    shift = (byte - BIAS) << MANTISSA_BITS
    # max first: the difference must not leave int32. Zero stays zero, or less than 2^-126.
    y = jnp.maximum(extended(bits & MAGNITUDE_MASK), shift) - shift
    e = jnp.maximum(y & EXPONENT_MASK, (fmt.emin + BIAS) << MANTISSA_BITS)
    if random is None:
        # The sum's last bit is worth 2^(e - mantissa_bits): the addition rounds to nearest even.
        magic = e + ((MANTISSA_BITS - fmt.mantissa_bits) << MANTISSA_BITS)
        return e, bits_of(float_of(y) + float_of(magic)) - magic
    return e, _rounded_stochastically(y, e, fmt, random)


def _rounded_stochastically(
    y: jax.Array, e: jax.Array, fmt: ElementFormat, random: jax.Array
) -> jax.Array:
    """floor(y / step + u), u uniform in [0, 1): y's significand plus random bits, shifted."""
    significand = ((y & (MIN_NORMAL - 1)) | MIN_NORMAL).astype(jnp.uint32)
    dropped = ((e - (y & EXPONENT_MASK)) >> MANTISSA_BITS) + (MANTISSA_BITS - fmt.mantissa_bits)
    # A significand of 24 bits and 31 random ones; what is further below loses its last bits.
    significand = significand >> jnp.clip(dropped - 31, 0, 31).astype(jnp.uint32)
    shift = jnp.minimum(dropped, 31).astype(jnp.uint32)
    noise = random & ((jnp.uint32(1) << shift) - 1)
    return ((significand + noise) >> shift).astype(jnp.int32)


def _codes(
    bits: jax.Array, byte: jax.Array, fmt: ElementFormat, random: jax.Array | None
) -> jax.Array:
    """Elements as int32, of which the low fmt.bits count."""
    e, n = _rounded(bits, byte, fmt, random)
    smallest = (fmt.emin + BIAS) << MANTISSA_BITS
    code = jnp.minimum(((e - smallest) >> (MANTISSA_BITS - fmt.mantissa_bits)) + n, fmt.max_code)
    nan_code = (1 << (fmt.bits - 1)) - 1 if fmt.has_nan else 0
    code = jnp.where(byte == NAN_BYTE, nan_code, code)
    if fmt.is_integer:
        return jnp.where(bits < 0, -code, code)
    return code | ((bits >> 31) & (1 << (fmt.bits - 1)))


def _grid_bits(
    bits: jax.Array, byte: jax.Array, fmt: ElementFormat, random: jax.Array | None
) -> jax.Array:
    """float32 bits of the values that `_codes` encodes."""
    e, n = _rounded(bits, byte, fmt, random)
    step = float_of(e - (fmt.mantissa_bits << MANTISSA_BITS))
    value = jnp.minimum(n.astype(jnp.float32) * step, fmt.max)
    sign = bits & ~MAGNITUDE_MASK
    if fmt.is_integer:
        sign = jnp.where(n == 0, 0, sign)
    return _descale(value, byte) | sign


def _descale(value: jax.Array, byte: jax.Array) -> jax.Array:
    """float32 bits of value * scale, without a sign; value is not negative."""
    exponent = jnp.minimum(byte - BIAS, BIAS)
    return jnp.where(byte == NAN_BYTE, NAN, scaled_bits(value, exponent))


def _decode(codes: jax.Array, fmt: ElementFormat) -> tuple[jax.Array, jax.Array]:
    """|element| as float32, and its sign bit in place, of int32 codes."""
    if fmt.is_integer:
        step = 2.0**-fmt.mantissa_bits
        return jnp.abs(codes).astype(jnp.float32) * step, codes & ~MAGNITUDE_MASK
    sign_bit = 1 << (fmt.bits - 1)
    code = codes & (sign_bit - 1)
    sign = (codes & sign_bit) << (32 - fmt.bits)
    field = code << (MANTISSA_BITS - fmt.mantissa_bits)
    bits = field + ((fmt.emin - 1 + BIAS) << MANTISSA_BITS)
    if fmt.has_inf:
        bits = jnp.where(code > fmt.max_code, field | EXPONENT_MASK, bits)
    elif fmt.has_nan:
        bits = jnp.where(code > fmt.max_code, NAN, bits)
    # Below 2^emin the exponent field is 0 and means emin, without the leading one.
    subnormal = code.astype(jnp.float32) * 2.0 ** (fmt.emin - fmt.mantissa_bits)
    return jnp.where(code < (1 << fmt.mantissa_bits), subnormal, float_of(bits)), sign


def _store(codes: jax.Array, fmt: ElementFormat) -> jax.Array:
    """uint8 codes as the format's storage dtype."""
    if fmt.bits == 4:
        codes = codes.astype(jnp.uint4)
    return lax.bitcast_convert_type(codes, fmt.storage_dtype)


def _load(data: jax.Array, fmt: ElementFormat) -> jax.Array:
    """int32 codes; sign-extended for int8."""
    if fmt.is_integer:
        return data.astype(jnp.int32)
    unsigned = jnp.uint4 if fmt.bits == 4 else jnp.uint8
    return lax.bitcast_convert_type(data, unsigned).astype(jnp.int32)


def _scale_of_bytes(byte: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(byte.astype(jnp.uint8), SCALE_DTYPE)


def _check_float(what: str, dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    name = jnp.dtype(dtype).name
    if name == "float64":
        raise TypeError(f"{what} is float64; cast to float32 first (MX is defined from float32)")
    if name not in FLOAT_DTYPES:
        raise TypeError(f"{what} is {name}; allowed are {', '.join(FLOAT_DTYPES)}")
    return dtype


def _check_rounding(x: jax.Array, rounding: str, random_bits: jax.Array | None) -> None:
    if rounding not in ROUNDINGS:
        raise ValueError(f"unknown rounding {rounding!r}; allowed are {', '.join(ROUNDINGS)}")
    if rounding == "nearest_even":
        if random_bits is not None:
            raise ValueError('random_bits given, but rounding is "nearest_even"')
        return
    if random_bits is None:
        raise ValueError('rounding "stochastic" needs random_bits: uint32, of the shape of x')
    if random_bits.dtype != jnp.uint32:
        raise TypeError(f"random_bits is {random_bits.dtype}; allowed is uint32")
    if random_bits.shape != x.shape:
        raise ValueError(f"random_bits has the shape {random_bits.shape}, x {x.shape}")


def _check_parts(
    data: jax.Array, scale: jax.Array, axis: int, fmt: ElementFormat, block_size: int
) -> None:
    if data.dtype != fmt.storage_dtype:
        raise TypeError(f"data is {data.dtype}; {fmt.name} is stored as {fmt.storage_dtype}")
    if scale.dtype != SCALE_DTYPE:
        raise TypeError(f"scale is {scale.dtype}; allowed is {SCALE_DTYPE}")
    count = block_count(data.shape[axis], block_size)
    expected = (*data.shape[:axis], count, *data.shape[axis + 1 :])
    if scale.shape != expected:
        raise ValueError(
            f"scale has the shape {scale.shape}; data of shape {data.shape} in blocks of "
            f"{block_size} along axis {axis} has scales of shape {expected}"
        )
