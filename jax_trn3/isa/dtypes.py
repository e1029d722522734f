"""The element types that engines know, by NKI's names (nki/api/nki.language.rst, "Data types")."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax


@dataclass(frozen=True)
class DType:
    """One element type.

    A packed type (`float8_e4m3fn_x4`) is a container that engines move as one element and the
    tensor engine reads as four (nki/api/nki.api.shared.rst, "Packed").
    """

    name: str
    """NKI's name."""

    bytes: int
    """Size of an element (of a packed type: of the container), bytes."""

    numpy: np.dtype[Any]
    """What holds a value (of a packed type: one of the four)."""

    packed: int = 1
    """Values in an element."""

    since: int = 2
    """Generation of NeuronCore that has it first."""


def _dtype(name: str, dtype: Any, packed: int = 1, bits: int = 0, since: int = 2) -> DType:
    numpy = np.dtype(dtype)
    return DType(name, packed * (bits or 8 * numpy.itemsize) // 8, numpy, packed, since)


_ALL = (
    _dtype("bool_", np.bool_),
    _dtype("int8", np.int8),
    _dtype("int16", np.int16),
    _dtype("int32", np.int32),
    _dtype("uint8", np.uint8),
    _dtype("uint16", np.uint16),
    _dtype("uint32", np.uint32),
    _dtype("float16", np.float16),
    _dtype("bfloat16", jnp.bfloat16),
    _dtype("float32", np.float32),
    # 19 significant bits in a 32-bit word; held as float32.
    _dtype("tfloat32", np.float32),
    # IEEE-style e4m3 with infinities (largest number 240), not OCP's e4m3fn (448).
    _dtype("float8_e4m3", ml_dtypes.float8_e4m3),
    _dtype("float8_e4m3fn", ml_dtypes.float8_e4m3fn, since=4),
    _dtype("float8_e5m2", ml_dtypes.float8_e5m2),
    _dtype("float8_e8m0fnu", ml_dtypes.float8_e8m0fnu, since=4),
    _dtype("float8_e4m3fn_x4", ml_dtypes.float8_e4m3fn, packed=4, since=4),
    _dtype("float8_e5m2_x4", ml_dtypes.float8_e5m2, packed=4, since=4),
    _dtype("float4_e2m1fn_x4", ml_dtypes.float4_e2m1fn, packed=4, bits=4, since=4),
)
DTYPES: dict[str, DType] = {dtype.name: dtype for dtype in _ALL}

FP32 = ("float32", "tfloat32")
FP16 = ("float16", "bfloat16")
FP8 = ("float8_e4m3", "float8_e4m3fn", "float8_e5m2")
MX = ("float8_e4m3fn_x4", "float8_e5m2_x4", "float4_e2m1fn_x4")
INTEGERS = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "bool_")
FLOATS = (*FP32, *FP16, *FP8)
PLAIN = (*FLOATS, *INTEGERS)
ANY = (*PLAIN, "float8_e8m0fnu", *MX)
INDEX = ("uint16", "uint32", "int32")


def dtype_named(name: str) -> DType:
    """The element type of that name.

    **Raises:** `ValueError` for a name that is none of NKI's.
    """
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; known: {', '.join(DTYPES)}")
    return DTYPES[name]


def cast(values: jax.Array, dtype: DType) -> jax.Array:
    """`values` as engines write them into a tile of `dtype`.

    To a float: rounded to nearest, ties to even; beyond the largest number infinity, or NaN in a
    type without infinities (e4m3fn). To an integer: rounded the same way, then clamped; NaN is 0.
    From integer to integer the low bits stay. AWS documents only that engines compute in float32
    and cast on output: how they round is our choice, that of IEEE 754 and ml_dtypes.
    """
    target = dtype.numpy
    if dtype.name == "tfloat32":
        return lax.reduce_precision(values.astype(jnp.float32), exponent_bits=8, mantissa_bits=10)
    if values.dtype == target:
        return values
    if target == np.bool_:
        return values != 0
    if np.issubdtype(target, np.integer) and not np.issubdtype(values.dtype, np.integer):
        return _to_integer(values.astype(jnp.float32), target)
    if not np.issubdtype(target, np.integer):
        values = values.astype(jnp.float32)
    return values.astype(target)


def _to_integer(values: jax.Array, target: np.dtype[Any]) -> jax.Array:
    limits, rounded = np.iinfo(target), jnp.round(values)
    inside = (rounded >= float(limits.min)) & (rounded < float(limits.max) + 1)
    ends = jnp.where(rounded < 0, target.type(limits.min), target.type(limits.max))
    ends = jnp.where(jnp.isnan(values), target.type(0), ends)
    return jnp.where(inside, jnp.where(inside, rounded, 0).astype(target), ends)


def as_bits(values: jax.Array) -> jax.Array:
    """Floats of 8 bits or more as unsigned integers, for operations that only move them: XLA moves
    narrow floats by way of wider ones, which changes the bits of a NaN."""
    if not jnp.issubdtype(values.dtype, jnp.floating) or values.dtype == ml_dtypes.float4_e2m1fn:
        return values
    return lax.bitcast_convert_type(values, f"uint{8 * values.dtype.itemsize}")


def from_bits(bits: jax.Array, dtype: Any) -> jax.Array:
    """The inverse of `as_bits`."""
    return bits if bits.dtype == dtype else lax.bitcast_convert_type(bits, dtype)
