"""Element formats of the OCP Microscaling Formats (MX) specification v1.0, section 5.3.

One definition each. An MX block is a shared scale, a power of two in E8M0, and elements in one of
these formats; the value of an element is scale * element.
"""

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

BLOCK_SIZE = 32
"""Elements that share a scale (MX v1.0, section 5.2: k = 32 in all concrete formats)."""

SCALE_DTYPE = np.dtype(ml_dtypes.float8_e8m0fnu)
"""The dtype of scales: byte b is 2^(b - 127), byte 255 is NaN (MX v1.0, section 5.4.1)."""


@dataclass(frozen=True)
class ElementFormat:
    """The values that one element of an MX block can take, times its block's scale.

    They are n * 2^(max(e, emin) - mantissa_bits) with n < 2^(mantissa_bits + 1), up to `max`.
    """

    name: str
    """The MX format, e.g. "mxfp8_e4m3"."""

    dtype: np.dtype[Any]
    """The element's dtype, e.g. float8_e4m3fn."""

    storage_dtype: np.dtype[Any]
    """The dtype of arrays of elements: `dtype`, or uint8 where XLA:CPU cannot hold it (6 bits)."""

    bits: int
    """Bits of an element."""

    mantissa_bits: int
    """Explicit bits of the significand (for int8, those behind the binary point)."""

    emin: int
    """Exponent of the smallest normal number, and of the subnormals' step times 2^mantissa_bits."""

    emax: int
    """Exponent of the largest normal number."""

    max: float
    """Largest normal number; conversions saturate to it (MX v1.0, section 6.3)."""

    has_inf: bool
    """Whether there is an encoding of infinity."""

    has_nan: bool
    """Whether there is an encoding of NaN."""

    @property
    def is_integer(self) -> bool:
        """Two's complement (MXINT8) instead of sign and magnitude."""
        return self.dtype == np.int8

    @property
    def max_code(self) -> int:
        """The code of `max`, without a sign."""
        step = math.ldexp(1.0, self.emax - self.mantissa_bits)
        return ((self.emax - self.emin) << self.mantissa_bits) + int(self.max / step)


def _float_format(
    name: str, scalar: type, bits: int, emin: int, emax: int, largest: float, *specials: str
) -> ElementFormat:
    dtype = np.dtype(scalar)
    info = ml_dtypes.finfo(scalar)
    storage = np.dtype(np.uint8) if bits == 6 else dtype
    has_inf, has_nan = "inf" in specials, "nan" in specials
    return ElementFormat(
        name, dtype, storage, bits, info.nmant, emin, emax, largest, has_inf, has_nan
    )


MXFP8_E4M3 = _float_format("mxfp8_e4m3", ml_dtypes.float8_e4m3fn, 8, -6, 8, 448.0, "nan")
MXFP8_E5M2 = _float_format("mxfp8_e5m2", ml_dtypes.float8_e5m2, 8, -14, 15, 57344.0, "inf", "nan")
MXFP6_E3M2 = _float_format("mxfp6_e3m2", ml_dtypes.float6_e3m2fn, 6, -2, 4, 28.0)
MXFP6_E2M3 = _float_format("mxfp6_e2m3", ml_dtypes.float6_e2m3fn, 6, 0, 2, 7.5)
MXFP4_E2M1 = _float_format("mxfp4_e2m1", ml_dtypes.float4_e2m1fn, 4, 0, 2, 6.0)

# Two's complement with an implied scale of 2^-6. -2 (0x80) is left unused when quantizing, which
# section 5.3.4 allows, so that there is no bias towards negative numbers.
MXINT8 = ElementFormat(
    "mxint8", np.dtype(np.int8), np.dtype(np.int8), 8, 6, 0, 0, 127 / 64, False, False
)

ELEMENT_FORMATS = (MXFP8_E4M3, MXFP8_E5M2, MXFP6_E3M2, MXFP6_E2M3, MXFP4_E2M1, MXINT8)
"""All formats of MX v1.0."""

_BY_DTYPE = {f.dtype: f for f in ELEMENT_FORMATS}
_SHORT_NAMES = {"mxfp8": MXFP8_E4M3, "mxfp4": MXFP4_E2M1}
_BY_NAME = (
    {f.name: f for f in ELEMENT_FORMATS} | {f.dtype.name: f for f in ELEMENT_FORMATS} | _SHORT_NAMES
)


def element_format(format: Any) -> ElementFormat:
    """The format of a dtype (jnp.float8_e4m3fn), a dtype's name or an MX name ("mxfp8_e4m3").

    "mxfp8" is MXFP8 E4M3, "mxfp4" MXFP4 E2M1. An ElementFormat is returned as it is.

    Raises:
      ValueError: nothing of MX v1.0 has this name or dtype.
    """
    if isinstance(format, ElementFormat):
        return format
    if isinstance(format, str) and format in _BY_NAME:
        return _BY_NAME[format]
    try:
        return _BY_DTYPE[np.dtype(format)]
    except (TypeError, KeyError):
        names = [f"{f.name} (dtype {f.dtype.name})" for f in ELEMENT_FORMATS]
        allowed = ", ".join([*names, *_SHORT_NAMES])
        raise ValueError(f"unknown MX format {format!r}; allowed are {allowed}") from None
