"""PJRT_Buffer_Type and numpy's dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np

# The numbers are the C API's (PJRT_Buffer_Type); they are not those of xla::PrimitiveType.
# 23 is TOKEN, which travels as an empty bool array.
_NAMES = {
    1: "bool",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "uint8",
    7: "uint16",
    8: "uint32",
    9: "uint64",
    10: "float16",
    11: "float32",
    12: "float64",
    13: "bfloat16",
    14: "complex64",
    15: "complex128",
    16: "float8_e5m2",
    17: "float8_e4m3fn",
    18: "float8_e4m3b11fnuz",
    19: "float8_e5m2fnuz",
    20: "float8_e4m3fnuz",
    21: "int4",
    22: "uint4",
    24: "int2",
    25: "uint2",
    26: "float8_e4m3",
    27: "float8_e3m4",
    28: "float8_e8m0fnu",
    29: "float4_e2m1fn",
    30: "int1",
    31: "uint1",
}


def _dtype(name: str) -> np.dtype | None:
    scalar = getattr(ml_dtypes, name, None) or getattr(np, name, None)
    return np.dtype(name if name == "bool" else scalar) if name == "bool" or scalar else None


_BY_TYPE = {number: dtype for number, name in _NAMES.items() if (dtype := _dtype(name)) is not None}
_BY_DTYPE = {dtype: number for number, dtype in _BY_TYPE.items()}


def dtype_of(buffer_type: int) -> np.dtype:
    """The numpy dtype of a PJRT_Buffer_Type; NotImplementedError if numpy has none."""
    try:
        return _BY_TYPE[buffer_type]
    except KeyError:
        name = _NAMES.get(buffer_type, "unknown")
        raise NotImplementedError(
            f"PJRT_Buffer_Type {buffer_type} ({name}) has no numpy dtype; known are "
            f"{', '.join(sorted(d.name for d in _BY_TYPE.values()))}"
        ) from None


def type_of(dtype: np.dtype) -> int:
    """The PJRT_Buffer_Type of a numpy dtype; NotImplementedError if there is none."""
    try:
        return _BY_DTYPE[np.dtype(dtype)]
    except KeyError:
        raise NotImplementedError(f"dtype {dtype} has no PJRT_Buffer_Type") from None
