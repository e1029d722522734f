"""Floats as integers: exact where XLA:CPU's arithmetic flushes float32 subnormals to zero.

A magnitude is a float's bits without the sign, as int32. It is *extended* when its exponent field
may be below 1, as if float32's normal range went on: 2^-149 has the field -22.
"""

import jax
import jax.numpy as jnp
from jax import lax

MAGNITUDE_MASK = 0x7FFFFFFF
EXPONENT_MASK = 0x7F800000
MANTISSA_BITS = 23
BIAS = 127
MIN_NORMAL = 1 << MANTISSA_BITS
INFINITY = 0x7F800000
NAN = 0x7FC00000

FLOAT_DTYPES = ("float32", "bfloat16", "float16")
"""Floats that float32 holds exactly, by name: what MX is defined from, and the engines take."""


def float_of(bits: jax.Array) -> jax.Array:
    """float32 with these bits."""
    return lax.bitcast_convert_type(bits, jnp.float32)


def bits_of(x: jax.Array) -> jax.Array:
    """int32 bits of a float32."""
    return lax.bitcast_convert_type(x, jnp.int32)


def float32_bits(x: jax.Array) -> jax.Array:
    """The int32 bits of float32(x), subnormals kept; x is float32, bfloat16 or float16."""
    if x.dtype == jnp.bfloat16:
        high = lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32)
        return lax.bitcast_convert_type(high << 16, jnp.int32)
    return bits_of(x.astype(jnp.float32))  # subnormals of float16 are normal in float32


def from_float32_bits(bits: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """float32 bits as float32, bfloat16 or float16, rounded to nearest even, subnormals kept."""
    if dtype == jnp.bfloat16:
        rounded = lax.bitcast_convert_type(bits, jnp.uint32)
        rounded = rounded + 0x7FFF + ((rounded >> 16) & 1)
        return lax.bitcast_convert_type((rounded >> 16).astype(jnp.uint16), jnp.bfloat16)
    return float_of(bits).astype(dtype)


def extended(magnitude: jax.Array) -> jax.Array:
    """Extended magnitude of a magnitude; that of zero has the field -149."""
    # A subnormal is n * 2^-149, and float32(n) is normal.
    normalized = bits_of(magnitude.astype(jnp.float32)) - (149 << MANTISSA_BITS)
    return jnp.where(magnitude < MIN_NORMAL, normalized, magnitude)


def power_of_two(exponent: jax.Array) -> jax.Array:
    """float32 2^exponent for -126 <= exponent <= 127."""
    return float_of((exponent + BIAS) << MANTISSA_BITS)


def scaled_bits(value: jax.Array, exponent: jax.Array) -> jax.Array:
    """Bits of value * 2^exponent, correctly for subnormal results and those beyond float32 (inf).

    value: float32, 0, normal and >= 2^-22, or NaN; exponent: int32 in -127..127, broadcast to it.
    The result must be exact, which it is for elements of MX formats.
    """
    half = exponent >> 1
    product = bits_of(value * power_of_two(half) * power_of_two(exponent - half))
    # A subnormal result is n * 2^-149, its bits are n; adding 2^23 leaves n in the mantissa.
    n = value * power_of_two(jnp.minimum(exponent + 149, 127))
    subnormal = bits_of(n + float(1 << MANTISSA_BITS)) - ((BIAS + MANTISSA_BITS) << MANTISSA_BITS)
    return jnp.where(n < float(1 << MANTISSA_BITS), subnormal, product)
