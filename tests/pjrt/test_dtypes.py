"""PJRT_Buffer_Type against another PJRT client's table and the dtypes that JAX has."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pypjrt._abi.pjrt_0_114 as abi
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_trn3.pjrt.dtypes import dtype_of, type_of

# The C API's name of each dtype.
NAMES = {
    "bool": "PRED",
    "bfloat16": "BF16",
    "complex64": "C64",
    "complex128": "C128",
    **{f"int{bits}": f"S{bits}" for bits in (1, 2, 4, 8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (1, 2, 4, 8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "float8_e3m4": "F8E3M4",
    "float8_e4m3": "F8E4M3",
    "float8_e4m3b11fnuz": "F8E4M3B11FNUZ",
    "float8_e4m3fn": "F8E4M3FN",
    "float8_e4m3fnuz": "F8E4M3FNUZ",
    "float8_e5m2": "F8E5M2",
    "float8_e5m2fnuz": "F8E5M2FNUZ",
    "float8_e8m0fnu": "F8E8M0FNU",
    "float4_e2m1fn": "F4E2M1FN",
}
TABLE = {
    name: getattr(abi, f"PJRT_Buffer_Type_{suffix}")
    for name, suffix in NAMES.items()
    if hasattr(np, name) or hasattr(ml_dtypes, name)
}
JAX_SCALARS = [
    scalar for name in NAMES if isinstance(scalar := getattr(jnp, name, None), type(jnp.float32))
]


def numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, None) or name)


@pytest.mark.parametrize(("name", "number"), TABLE.items())
def test_number_and_dtype_belong_together(name: str, number: int) -> None:
    assert dtype_of(number) == numpy_dtype(name)
    assert type_of(numpy_dtype(name)) == number


def test_every_type_of_the_c_api_is_in_the_table() -> None:
    types = {
        name.removeprefix("PJRT_Buffer_Type_"): number
        for name, number in vars(abi).items()
        if name.startswith("PJRT_Buffer_Type_")
    }
    ours = {NAMES[name] for name in TABLE}
    newer_than_ours = {"F6E2M3FN", "F6E3M2FN"}  # of API 0.114; JAX has no such dtypes
    assert types.keys() - ours - newer_than_ours == {"INVALID", "TOKEN"}


@pytest.mark.parametrize("scalar", JAX_SCALARS, ids=lambda scalar: scalar.dtype.name)
def test_every_dtype_of_jax_has_a_type(scalar: jax.typing.DTypeLike) -> None:
    dtype = np.dtype(scalar)
    assert dtype_of(type_of(dtype)) == dtype


def test_jax_has_as_many_dtypes_as_are_tested() -> None:
    assert len(JAX_SCALARS) >= 27


@given(st.integers(-(2**31), 2**31 - 1).filter(lambda n: n not in TABLE.values()))
def test_unknown_number_is_refused_by_number(number: int) -> None:
    with pytest.raises(NotImplementedError, match=rf"PJRT_Buffer_Type {number} .*float32"):
        dtype_of(number)


@pytest.mark.parametrize("dtype", ["U3", "S3", "O", "M8[s]", "m8[s]", "V4", "i4,f4", ">f4", "g"])
def test_dtype_that_has_no_type_is_refused_by_name(dtype: str) -> None:
    with pytest.raises(NotImplementedError, match=r"dtype .* has no PJRT_Buffer_Type"):
        type_of(np.dtype(dtype))
