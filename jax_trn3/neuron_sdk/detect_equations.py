"""What the rules look for in equations and values: each says what it found, or None.

A detector is given an `Equation`, or a dtype; the rules that use them are in `table.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from jax import lax
from jax._src.interpreters import mlir

from .equations import Equation, text, texts

EquationDetector = Callable[[Equation], str | None]
DtypeDetector = Callable[[np.dtype[Any]], bool]

_FP8 = {name for name in dir(ml_dtypes) if name.startswith("float8_")}
_CALLBACKS = {"debug_callback", "debug_print", "pure_callback", "io_callback", "check"}
# Error code NCC_EHCA005 lists them.
_CUSTOM_CALLS = {
    "AwsNeuronErf", "AwsNeuronGelu", "AwsNeuronGeluApprxTanh", "AwsNeuronGeluBackward",
    "AwsNeuronSilu", "AwsNeuronSiluBackward", "AwsNeuronRmsNorm", "AwsNeuronSoftmax",
    "AwsNeuronSoftmaxBackward", "AwsNeuronCollectiveMatmul", "AwsNeuronIntMatmult",
    "AwsNeuronArgMax", "AwsNeuronArgMin", "AwsNeuronTopK", "AwsNeuronDropoutMaskV1",
    "AwsNeuronCustomNativeKernel", "AwsNeuronCustomOp", "AwsNeuronDevicePrint", "ResizeNearest",
    "ResizeBilinear", "ResizeNearestGrad", "AwsNeuronLNCShardingConstraint",
    "AwsNeuronTransferWithStaticRing", "AwsNeuronModuleMarkerStart-Forward",
    "AwsNeuronModuleMarkerStart-Backward", "AwsNeuronModuleMarkerEnd-Forward",
    "AwsNeuronModuleMarkerEnd-Backward", "NeuronBoundaryMarker-Start", "NeuronBoundaryMarker-End",
    "QuantizeMX", "__op$block_scaled_dot",
}  # fmt: skip


# Dtypes.


def complex_number(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "c"


def float64(dtype: np.dtype[Any]) -> bool:
    return dtype == np.float64


def int64(dtype: np.dtype[Any]) -> bool:
    return dtype in (np.int64, np.uint64)


def e4m3fn(dtype: np.dtype[Any]) -> bool:
    return dtype.name == "float8_e4m3fn"


def unknown_fp8(dtype: np.dtype[Any]) -> bool:
    return dtype.name in _FP8 - {"float8_e4m3", "float8_e5m2", "float8_e4m3fn"}


def below_a_byte(dtype: np.dtype[Any]) -> bool:
    return re.fullmatch(r"u?int[1-4]|float[46]_\w+", dtype.name) is not None


# Random numbers.


def threefry(equation: Equation) -> str | None:
    """Only what a program itself asks of threefry: rbg splits its keys with it, too."""
    if equation.name == "threefry2x32":
        return f"`threefry2x32` makes {texts(equation.outputs)}"
    if not equation.name.startswith("random_") or equation.name == "random_wrap":
        return None
    if not any("<fry>" in text(aval) for aval in equation.inputs + equation.outputs):
        return None
    return f"`{equation.name}` with a threefry key makes {texts(equation.outputs)}"


def randint(equation: Equation) -> str | None:
    if equation.name not in ("jit", "pjit") or equation.params["name"] not in (
        "_randint",
        "randint",
    ):
        return None
    return f"`jax.random.randint` makes {texts(equation.outputs)}"


def random_algorithm(equation: Equation) -> str | None:
    if equation.name != "rng_bit_generator":
        return None
    algorithm = lax.RandomAlgorithm(equation.params["algorithm"])
    if algorithm == lax.RandomAlgorithm.RNG_DEFAULT:
        return None
    return f"`rng_bit_generator` with {algorithm.name} makes {texts(equation.outputs[1:])}"


def random_initialization(equation: Equation) -> str | None:
    if not equation.initializes or equation.name not in ("random_bits", "rng_bit_generator"):
        return None
    made = text(equation.outputs[-1])
    return f"`{equation.name}` makes {made} in a program that takes no array of floats"


def large_constant(equation: Equation) -> str | None:
    numbers = (x for x in equation.literals if getattr(x, "dtype", None) == np.uint64)
    largest = max((int(np.max(x, initial=0)) for x in numbers), default=0)
    return f"the constant {largest}, uint64" if largest >= 2**32 else None


# Products.


def _product(equation: Equation, wanted: Callable[[np.dtype[Any]], bool]) -> str | None:
    if equation.name not in ("dot_general", "conv_general_dilated"):
        return None
    if not any(wanted(np.dtype(aval.dtype)) for aval in equation.inputs):
        return None
    return f"`{equation.name}` of {texts(equation.inputs)}"


def integer_product(equation: Equation) -> str | None:
    return _product(equation, lambda dtype: dtype.kind in "iub")


def float32_product(equation: Equation) -> str | None:
    return _product(equation, lambda dtype: dtype == np.float32)


def dot_algorithm(equation: Equation) -> str | None:
    precision = equation.params.get("precision") if equation.name == "dot_general" else None
    if not isinstance(precision, lax.DotAlgorithm | lax.DotAlgorithmPreset):
        return None
    if precision == lax.DotAlgorithmPreset.DEFAULT:
        return None
    return f"`dot_general` of {texts(equation.inputs)} with precision {precision}"


def _above_one(numbers: Any) -> bool:
    return any(number != 1 for number in numbers or ())


def both_dilations(equation: Equation) -> str | None:
    return _convolution(equation, "lhs_dilation", "rhs_dilation")


def stride_and_dilation(equation: Equation) -> str | None:
    return _convolution(equation, "window_strides", "lhs_dilation")


def _convolution(equation: Equation, *names: str) -> str | None:
    if equation.name != "conv_general_dilated":
        return None
    if not all(_above_one(equation.params[name]) for name in names):
        return None
    having = ", ".join(f"{name}={tuple(equation.params[name])}" for name in names)
    return f"`conv_general_dilated` of {texts(equation.inputs)} with {having}"


# Indices.


def unchecked_gather(equation: Equation) -> str | None:
    return _dropping(equation) if equation.name == "gather" else None


def unchecked_scatter(equation: Equation) -> str | None:
    return _dropping(equation) if equation.name.startswith("scatter") else None


def _dropping(equation: Equation) -> str | None:
    mode = lax.GatherScatterMode.from_any(equation.params["mode"])
    if mode != lax.GatherScatterMode.FILL_OR_DROP:
        return None
    if equation.static[1]:
        return None
    array, indices = equation.inputs[:2]
    return f"`{equation.name}` of {text(array)} at {text(indices)}, mode {mode.name}"


def integer_scatter(equation: Equation) -> str | None:
    if not equation.name.startswith(("scatter-", "scatter_")):  # "scatter" itself overwrites
        return None
    array, _, updates = equation.inputs[:3]
    if array.dtype.kind not in "iub":
        return None
    return f"`{equation.name}` of {text(updates)} into {text(array)}"


def integer_top_k(equation: Equation) -> str | None:
    if equation.name != "top_k" or equation.inputs[0].dtype.kind not in "iu":
        return None
    return f"`top_k` of {text(equation.inputs[0])}"


def narrow_shift(equation: Equation) -> str | None:
    if equation.name != "shift_right_arithmetic" or equation.inputs[0].dtype.itemsize == 4:
        return None
    return f"`shift_right_arithmetic` of {text(equation.inputs[0])}"


# What is not of the program.


def callback(equation: Equation) -> str | None:
    if equation.name not in _CALLBACKS:
        return None
    function = _innermost(equation.params.get("callback"))
    called = getattr(function, "__qualname__", None)
    return f"`{equation.name}`" + (f" of {called}" if called else "")


def _innermost(function: Any) -> Any:
    """What a callback calls, without JAX's wrappers around it."""
    for name in ("callback_func", "func", "__wrapped__"):
        if (inner := getattr(function, name, None)) is not None:
            return _innermost(inner)
    return function


def sparse(equation: Equation) -> str | None:
    if not equation.name.startswith(("bcoo_", "bcsr_", "coo_", "csr_")):
        return None
    return f"`{equation.name}` of {texts(equation.inputs)}"


def triangular_solve(equation: Equation) -> str | None:
    if equation.name != "triangular_solve":
        return None
    return f"`triangular_solve` of {texts(equation.inputs)}"


def fft(equation: Equation) -> str | None:
    return f"`fft` of {texts(equation.inputs)}" if equation.name == "fft" else None


def custom_call(equation: Equation) -> str | None:
    if equation.name != "ffi_call" or equation.params["target_name"] in _CUSTOM_CALLS:
        return None
    return f"`jax.ffi.ffi_call` of {equation.params['target_name']!r}"


def pallas_kernel(equation: Equation) -> str | None:
    if equation.name != "pallas_call" or equation.params.get("interpret"):
        return None
    return f"`pallas_call` of {texts(equation.inputs)}"


def without_lowering(equation: Equation) -> str | None:
    """A primitive with rules for the platforms that it names, and none for all others."""
    primitive = equation.eqn.primitive
    if primitive in mlir._lowerings or equation.name in _CALLBACKS | {"pallas_call"}:
        return None
    tables = mlir._platform_specific_lowerings
    having = sorted(name for name, rules in tables.items() if primitive in rules and name != "trn3")
    if not having:
        return None
    return (
        f"`{equation.name}` of {texts(equation.inputs)}, which JAX lowers for {', '.join(having)}"
    )
