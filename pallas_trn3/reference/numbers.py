"""Integer and boolean scalars in Python: indices, counters and predicates of a kernel."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np


def _quotient(a: int, b: int) -> int:
    if b == 0:  # as XLA
        return -1
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _remainder(a: int, b: int) -> int:
    if b == 0:
        return a
    return abs(a) % abs(b) * (-1 if a < 0 else 1)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": _quotient,
    "rem": _remainder, "max": max, "min": min, "neg": operator.neg, "abs": abs,
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt,
    "ge": operator.ge, "and": operator.and_, "or": operator.or_, "xor": operator.xor,
    "not": lambda a: not a if isinstance(a, bool) else ~a, 
    "convert_element_type": lambda a: a, "clamp": lambda low, a, high: min(max(a, low), high),
    "select_n": lambda which, *cases: cases[which],
}  # fmt: skip


def operation(equation: Any) -> Callable[..., Any] | None:
    """A function of Python numbers that does what the equation does; None if it is about others."""
    function = _OPERATIONS.get(equation.primitive.name)
    avals = [atom.aval for atom in (*equation.invars, *equation.outvars)]
    if function is None or not all(map(_is_number, avals)):
        return None
    kind = np.dtype(equation.outvars[0].aval.dtype)

    def apply(*inputs: Any) -> Any:
        numbers = [x.item() if hasattr(x, "item") else x for x in inputs]
        return _wrapped(function(*numbers), kind)

    return apply


def _is_number(aval: Any) -> bool:
    dtype = getattr(aval, "dtype", None)
    kinds = (np.dtype(bool), np.dtype(np.int32), np.dtype(np.uint32), np.dtype(np.int64))
    return getattr(aval, "shape", None) == () and dtype in kinds


def _wrapped(value: Any, kind: np.dtype) -> Any:
    if kind == np.bool_:
        return np.bool_(value)
    bits = 8 * kind.itemsize
    value = int(value) & ((1 << bits) - 1)
    if kind.kind == "i" and value >> (bits - 1):
        value -= 1 << bits
    return kind.type(value)
