"""Which elements of an operation's results are undefined, if some of its inputs' are.

A shadow has the value's shape: where an element comes from, 0 where it is defined. Operations on
elements pass it on, those that move values move it, sums take it from all that they add.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .machine import apply
from .storage import Partly, parts

_ELEMENTS = frozenset(
    [
        "abs",
        "acos",
        "acosh",
        "add",
        "add_any",
        "and",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "bessel_i0e",
        "bessel_i1e",
        "cbrt",
        "ceil",
        "clamp",
        "clz",
        "conj",
        "convert_element_type",
        "copy",
        "copy_p",
        "cos",
        "cosh",
        "digamma",
        "div",
        "eq",
        "eq_to",
        "erf",
        "erf_inv",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "floor",
        "ge",
        "gt",
        "igamma",
        "igammac",
        "imag",
        "integer_pow",
        "is_finite",
        "le",
        "le_to",
        "lgamma",
        "log",
        "log1p",
        "logistic",
        "lt",
        "lt_to",
        "max",
        "min",
        "mul",
        "ne",
        "neg",
        "nextafter",
        "not",
        "or",
        "population_count",
        "pow",
        "real",
        "reciprocal",
        "reduce_precision",
        "regularized_incomplete_beta",
        "rem",
        "round",
        "rsqrt",
        "shift_left",
        "shift_right_arithmetic",
        "shift_right_logical",
        "sign",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "stochastic_round",
        "stop_gradient",
        "sub",
        "tan",
        "tanh",
        "xor",
        "trn3_as_rounded",
    ]
)

# Operands that are moved; the others are indices.
_MOVED: dict[str, tuple[int, ...]] = {
    "broadcast_in_dim": (0,), "reshape": (0,), "transpose": (0,), "slice": (0,), "squeeze": (0,),
    "expand_dims": (0,), "rev": (0,), "split": (0,), "dynamic_slice": (0,), "gather": (0,),
    "dynamic_update_slice": (0, 1), "scatter": (0, 2), "pad": (0, 1), "broadcast_to": (0,),
}  # fmt: skip

_CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")

Undefined = Callable[[Partly, str], Any]
"""Told of an undefined value and what it is used as."""


def shadowed(equation: Any, inputs: Sequence[Any], results: Any, undefined: Undefined) -> Any:
    """An equation's results with their shadows."""
    multiple = equation.primitive.multiple_results
    values = list(results) if multiple else [results]
    shadows = _shadows(equation, inputs, values, undefined)
    pairs = [Partly.of(v, s) for v, s in zip(values, shadows)]
    return pairs if multiple else pairs[0]


def _shadows(
    equation: Any, inputs: Sequence[Any], results: Sequence[Any], undefined: Undefined
) -> list[np.ndarray]:
    name, params = equation.primitive.name, equation.params
    held = [parts(x)[1] for x in inputs]
    shape = np.shape(results[0])
    if name == "select_n":
        return [_chosen(inputs, shape)]
    if name in ("and", "or") and results[0].dtype == np.bool_:
        return [_decided(inputs, shape, decisive=name == "or")]
    if name in _MOVED or name in ("concatenate", "stack"):
        return _moved(equation, inputs, undefined)
    if name == "bitcast_convert_type":
        return [_recast(_full(inputs[0]), shape)]
    if name in _ELEMENTS:
        return [_most(held, shape)]
    if name.startswith(("reduce_", "arg")) and "axes" in params:
        return [_full(inputs[0]).max(axis=tuple(params["axes"]))]
    if name == "reduce":
        operands = _most(held[: len(inputs) // 2], np.shape(inputs[0]))
        return [operands.max(axis=tuple(params["dimensions"]))] * len(results)
    if name in _CUMULATIVE:
        return [_running(_full(inputs[0]), params["axis"], params["reverse"])]
    if name == "dot_general":
        return [_contracted(_full(inputs[0]), _full(inputs[1]), params["dimension_numbers"])]
    if name == "top_k":
        line = _full(inputs[0]).max(axis=-1, keepdims=True)
        return [np.broadcast_to(line, np.shape(r)) for r in results]
    if name == "sort":
        line = _most(held, shape).max(axis=params["dimension"], keepdims=True)
        return [np.broadcast_to(line, shape)] * len(results)
    worst = max(int(s.max()) for s in held if s is not None)
    return [np.full(np.shape(r), worst, np.int32) for r in results]


def _full(value: Any) -> np.ndarray:
    value, shadow = parts(value)
    return np.zeros(np.shape(value), np.int32) if shadow is None else shadow


def _most(shadows: Sequence[np.ndarray | None], shape: tuple[int, ...]) -> np.ndarray:
    """Of elements that several make together."""
    result = np.zeros(shape, np.int32)
    for shadow in shadows:
        if shadow is not None:
            result = np.maximum(result, shadow)
    return result


def _chosen(inputs: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Only what is chosen counts, and the choice."""
    which, *cases = inputs
    index, choice = parts(which)
    lanes = [np.broadcast_to(_full(case), shape) for case in cases]
    picked = np.choose(np.broadcast_to(np.asarray(index).astype(np.intp), shape), lanes)
    return picked if choice is None else np.maximum(picked, choice)


def _decided(inputs: Sequence[Any], shape: tuple[int, ...], decisive: bool) -> np.ndarray:
    """False and anything is False, true or anything is true."""
    result = _most([parts(x)[1] for x in inputs], shape)
    for value in inputs:
        known, shadow = parts(value)
        certain = np.asarray(known) == decisive
        if shadow is not None:
            certain = certain & (shadow == 0)
        result = np.where(certain, 0, result)
    return result


def _moved(equation: Any, inputs: Sequence[Any], undefined: Undefined) -> list[np.ndarray]:
    name = equation.primitive.name
    data = _MOVED.get(name, range(len(inputs)))
    moved = []
    for k, value in enumerate(inputs):
        if k not in data and type(value) is Partly:
            undefined(value, "an index")
        moved.append(_full(value) if k in data else value)
    params = dict(equation.params)
    if params.get("mode") is not None and "fill_value" in params:
        params["fill_value"] = 0
    results = apply(equation.primitive, params, moved)
    many = equation.primitive.multiple_results
    return [np.asarray(r) for r in (results if many else [results])]


def _recast(shadow: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) > shadow.ndim:
        return np.broadcast_to(shadow[..., None], shape)
    return shadow.max(axis=-1) if len(shape) < shadow.ndim else shadow


def _running(shadow: np.ndarray, axis: int, reverse: bool) -> np.ndarray:
    if reverse:
        return np.flip(np.maximum.accumulate(np.flip(shadow, axis), axis), axis)
    return np.maximum.accumulate(shadow, axis)


def _contracted(left: np.ndarray, right: np.ndarray, numbers: Any) -> np.ndarray:
    """An element of a product comes from a row and a column."""
    (left_sum, right_sum), (left_batch, right_batch) = numbers
    rows, columns = left.max(axis=tuple(left_sum)), right.max(axis=tuple(right_sum))
    rows, batch = _batch_first(rows, left, left_sum, left_batch)
    columns, _ = _batch_first(columns, right, right_sum, right_batch)
    free = rows.ndim - batch
    rows = rows.reshape(*rows.shape, *[1] * (columns.ndim - batch))
    columns = columns.reshape(*columns.shape[:batch], *[1] * free, *columns.shape[batch:])
    return np.maximum(rows, columns)


def _batch_first(
    rest: np.ndarray, whole: np.ndarray, summed: Sequence[int], batch: Sequence[int]
) -> tuple[np.ndarray, int]:
    left = [axis for axis in range(whole.ndim) if axis not in summed]
    front = [left.index(axis) for axis in batch]
    order = [*front, *[k for k in range(len(left)) if k not in front]]
    return rest.transpose(order), len(front)
