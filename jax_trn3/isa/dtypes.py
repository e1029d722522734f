"""The element types that engines know, by NKI's names (nki/api/nki.language.rst, "Data types")."""

from dataclasses import dataclass

import jax.numpy as jnp
import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class DType:
    """One element type.

    A packed type (`float8_e4m3fn_x4`) is a container that engines move as one element and the tensor
    engine reads as four (nki/api/nki.api.shared.rst, "Packed").
    """

    name: str
    """NKI's name."""

    bytes: int
    """Size of an element (of a packed type: of the container), bytes."""

    numpy: np.dtype
    """What holds a value (of a packed type: one of the four)."""

    packed: int = 1
    """Values in an element."""


def _dtype(name: str, dtype: object, packed: int = 1, bits: int | None = None) -> DType:
    numpy = np.dtype(dtype)
    return DType(name, packed * (bits or 8 * numpy.itemsize) // 8, numpy, packed)


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
    _dtype("float8_e4m3fn", ml_dtypes.float8_e4m3fn),
    _dtype("float8_e5m2", ml_dtypes.float8_e5m2),
    _dtype("float8_e8m0fnu", ml_dtypes.float8_e8m0fnu),
    _dtype("float8_e4m3fn_x4", ml_dtypes.float8_e4m3fn, packed=4),
    _dtype("float8_e5m2_x4", ml_dtypes.float8_e5m2, packed=4),
    _dtype("float4_e2m1fn_x4", ml_dtypes.float4_e2m1fn, packed=4, bits=4),
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
