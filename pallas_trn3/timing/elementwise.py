"""Operations element by element: VectorE's, and functions of one variable on ScalarE.

Engines read any type and compute in float32, so that a cast to a wider type is nothing. A product
and a sum with a number (or a value a row) before a function are part of its instruction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from .arrays import Array, fill, temporary
from .emission import evacuated, issue, passes
from .scalars import UNKNOWN
from .views import laid, per_piece, stored
from .walk import Scope, Walker

FUNCTIONS: dict[str, tuple[str, float, float]] = {
    "exp": ("exp", 1, 0), "exp2": ("exp", math.log(2), 0), "log": ("log", 1, 0),
    "log1p": ("log", 1, 1), "tanh": ("tanh", 1, 0), "logistic": ("sigmoid", 1, 0),
    "sin": ("sin", 1, 0), "cos": ("sin", 1, math.pi / 2), "rsqrt": ("rsqrt", 1, 0),
    "sqrt": ("sqrt", 1, 0), "erf": ("erf", 1, 0), "sign": ("sign", 1, 0), "abs": ("abs", 1, 0),
    "square": ("square", 1, 0), "atan": ("arctan", 1, 0), "reciprocal": ("reciprocal", 1, 0),
}  # fmt: skip
"""ScalarE's function, and what is done to its argument before: factor and summand."""

_SEVERAL = {"expm1": ("exp", 1), "erfc": ("erf", 1), "tan": ("sin", 3), "cbrt": ("log", 2),
            "sinh": ("exp", 3), "cosh": ("exp", 3), "asin": ("arctan", 3), "acos": ("arctan", 3),
            "asinh": ("log", 3), "acosh": ("log", 3), "atanh": ("log", 3)}  # fmt: skip
"""ScalarE's function, and how many passes of VectorE come beside."""

_ARITHMETIC = {
    "add": "add", "add_any": "add", "sub": "subtract", "mul": "multiply", "max": "maximum",
    "min": "minimum", "eq": "equal", "ne": "not_equal", "ge": "greater_equal", "gt": "greater",
    "le": "less_equal", "lt": "less", "pow": "power",
}  # fmt: skip
_LOGICAL = {"and": "logical_and", "or": "logical_or", "xor": "logical_xor"}
_BITS = {
    "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "shift_left": "left_shift",
    "shift_right_logical": "right_shift", "shift_right_arithmetic": "right_shift",
}  # fmt: skip
COMPARISONS = ("eq", "ne", "ge", "gt", "le", "lt")
BINARY = {*_ARITHMETIC, *_LOGICAL, *_BITS, "div", "rem", "atan2", "nextafter"}
UNARY = {*FUNCTIONS, *_SEVERAL, "neg", "not", "floor", "ceil", "round", "is_finite", "integer_pow",
         "erf_inv", "lgamma", "digamma", "population_count", "clz", "real", "imag", "conj",
         "stop_gradient", "copy", "copy_p", "optimization_barrier", "reduce_precision"}  # fmt: skip


# ---- one operand ----


def unary(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> list[Any]:
    """A function of one variable."""
    name, value = equation.primitive.name, args[0]
    (var,) = equation.outvars
    if not isinstance(value, Array):
        return [UNKNOWN]
    if name in ("stop_gradient", "copy", "copy_p", "optimization_barrier", "reduce_precision"):
        return [value]
    shape, dtype = var.aval.shape, var.aval.dtype
    if value.view == "fill":
        return [fill(UNKNOWN, shape, dtype)]
    if value.view == "column":
        assert value.base is not None
        inner = applied(walker, name, equation.params, value.base, value.base.shape, dtype)
        return [Array(shape, dtype, [], "column", inner)]
    if name == "neg":
        negated = scaled(walker, scope, equation, value, -1.0, 0)
        return [negated or applied(walker, name, equation.params, value, shape, dtype)]
    if name == "not" and value.view == "mask":
        return [value]
    return [applied(walker, name, equation.params, value, shape, dtype)]


def applied(
    walker: Walker, name: str, params: Any, value: Array, shape: Sequence[int], dtype: Any
) -> Array:
    """A function's values."""
    times = 1
    if name == "integer_pow":
        exponent = abs(params.get("y", 2))
        name, times = "square", max(1, exponent.bit_length() - 1 + bin(exponent).count("1") - 1)
    if name in FUNCTIONS:
        found = _activated(walker, name, value, shape, dtype)
        for _ in range(times - 1):
            _again(walker, found, "multiply")
        return found
    if name in _SEVERAL:
        function, beside = _SEVERAL[name]
        inner = next(k for k, v in FUNCTIONS.items() if v[0] == function)
        found = _activated(walker, inner, value, shape, dtype)
        for _ in range(beside):
            _again(walker, found, "add")
        return found
    value = stored(walker, value)
    found = temporary(walker, shape, dtype, layout=value.layout)
    for dst, src in zip(found.pieces, value.pieces):
        if name == "neg":
            issue(walker, "tensor_scalar", dst, src, -1.0, op0="multiply", engine="vector")
        elif name == "not" and dtype == jnp.bool_:
            issue(walker, "tensor_scalar", dst, src, 0.0, op0="equal", engine="vector")
        elif name == "not":
            issue(walker, "tensor_scalar", dst, src, op0="invert", engine="vector")
        elif name in ("floor", "ceil", "round", "is_finite"):
            issue(walker, "tensor_scalar", dst, src, 0.0, op0="add", engine="vector")
            issue(walker, "tensor_scalar", dst, dst, 0.0, op0="add", engine="vector")
        else:
            passes(walker, dst, [src], 4)
    return found


def _again(walker: Walker, value: Array, op: str) -> None:
    for piece in value.pieces:
        issue(walker, "tensor_scalar", piece, piece, 1.0, op0=op, engine="vector")


def _activated(walker: Walker, name: str, value: Array, shape: Sequence[int], dtype: Any) -> Array:
    function, factor, summand = FUNCTIONS[name]
    scale: Any = factor
    bias: Any = summand
    base = value.base
    if value.view == "affine" and base is not None:
        inner = (value.scale, value.bias)
        if factor == 1 and summand == 0:
            (scale, bias), value = inner, base
        elif summand == 0 and not any(isinstance(x, Array) for x in inner):
            scale, bias = (_times(x, factor) for x in inner)
            value = base
    value = stored(walker, value)
    found = temporary(walker, shape, dtype, layout=value.layout)
    scales, biases = per_piece(walker, scale, value), per_piece(walker, bias, value)
    for dst, src, s, b in zip(found.pieces, value.pieces, scales, biases):
        if function == "reciprocal":
            issue(walker, "reciprocal", dst, src, engine="vector")
            continue
        named = {} if s == 1 else {"scale": s}
        named |= {} if b in (0, None) else {"bias": b}
        issue(walker, "activation", dst, src, op=function, **named)
    return found


def _times(value: Any, factor: float) -> Any:
    return value * factor if isinstance(value, (int, float)) else value


# ---- two operands ----


def binary(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> list[Any]:
    """An operation on two arrays, or an array and a number."""
    name = equation.primitive.name
    (var,) = equation.outvars
    shape, dtype = var.aval.shape, var.aval.dtype
    args = [as_large(walker, a, v.aval.shape, shape) for a, v in zip(args, equation.invars)]
    one, other = args
    for value in args:
        if isinstance(value, Array) and value.number == "summed":
            return [value]  # the product was added where it is
    views = [a.view if isinstance(a, Array) else "fill" for a in args]
    if views == ["fill", "fill"]:
        return [fill(UNKNOWN, shape, dtype)]
    patterns = [v in ("iota", "fill") or _is_column_of_iota(a) for v, a in zip(views, args)]
    if all(patterns):
        if name in COMPARISONS:
            return [Array(shape, dtype, [], "mask", number=1)]
        if name in ("add", "sub", "mul", "add_any"):
            return [Array(shape, dtype, [], "iota")]
    if views == ["mask", "mask"] and name in ("and", "or"):
        return [Array(shape, dtype, [], "mask", number=one.number + other.number)]
    if name in ("mul", "add", "sub", "add_any", "div"):
        changed = _scaled_by(walker, scope, equation, one, other)
        if changed is not None:
            return [changed]
    return [combined(walker, name, one, other, shape, dtype)]


def as_large(walker: Walker, value: Any, given: Sequence[int], shape: Sequence[int]) -> Any:
    """A value whose dimensions of size 1 stand for all of another's."""
    from .movement import seen_as

    if not isinstance(value, Array) or tuple(given) == tuple(shape):
        return value
    if value.view in ("fill", "iota", "mask"):
        return value.of(shape)
    return seen_as(walker, value, given, range(len(shape)), shape)


def _is_column_of_iota(value: Any) -> bool:
    inside = isinstance(value, Array) and value.view in ("column", "row") and value.base
    return bool(inside) and value.base.view == "iota"


def number_of(value: Any) -> Any:
    """A number everywhere; None if it is none."""
    if not isinstance(value, Array):
        return value
    return value.number if value.view == "fill" else None


def _scaled_by(walker: Walker, scope: Scope, equation: Any, one: Any, other: Any) -> Array | None:
    """A product or sum that the function behind it can do."""
    name = equation.primitive.name
    left, right = _operand_beside(one), _operand_beside(other)
    if name == "div":
        if not isinstance(right, (int, float)) or not isinstance(one, Array) or not right:
            return None
        return scaled(walker, scope, equation, one, 1 / right, 0)
    if right is not None and isinstance(one, Array) and left is None:
        if name == "mul":
            return scaled(walker, scope, equation, one, right, 0)
        if name == "sub":
            return scaled(
                walker, scope, equation, one, 1, _negative(walker, scope, equation, right)
            )
        return scaled(walker, scope, equation, one, 1, right)
    if left is not None and isinstance(other, Array) and right is None:
        if name == "mul":
            return scaled(walker, scope, equation, other, left, 0)
        return scaled(walker, scope, equation, other, -1 if name == "sub" else 1, left)
    return None


def _operand_beside(value: Any) -> Any:
    """A number, or a value a row; None for anything else."""
    number = number_of(value)
    if number is not None:
        return number
    return value.base if value.view == "column" else None


def _negative(walker: Walker, scope: Scope, equation: Any, value: Any) -> Any:
    if not isinstance(value, Array):
        return -value if isinstance(value, (int, float)) else value
    if not _before_function(scope, equation):
        return value
    base = stored(walker, value)
    found = temporary(walker, base.shape, "float32", "negative", layout=base.layout)
    for dst, src in zip(found.pieces, base.pieces):
        issue(walker, "tensor_scalar", dst, src, -1.0, op0="multiply", engine="vector")
    return found


def scaled(
    walker: Walker, scope: Scope, equation: Any, value: Array, scale: Any, bias: Any
) -> Array | None:
    """`value * scale + bias`: left to a function that alone needs it, else computed."""
    (var,) = equation.outvars
    shape, dtype = var.aval.shape, var.aval.dtype
    if value.view == "column" and not isinstance(scale, Array) and not isinstance(bias, Array):
        assert value.base is not None
        inner = Array(value.base.shape, dtype, [], "affine", value.base, scale=scale, bias=bias)
        stored(walker, inner)
        return Array(shape, dtype, [], "column", inner)
    if value.view not in ("", "affine", "row", "transposed"):
        return None
    if value.shape != shape:
        return None
    if value.view == "affine":
        base = value.base
        assert base is not None
        plain = scale == 1 and value.bias in (0, None) if not isinstance(scale, Array) else False
        if plain:
            value, scale = base, value.scale
        elif isinstance(scale, (int, float)) and bias == 0:
            factors = [x for x in (value.scale, value.bias) if isinstance(x, (int, float))]
            if len(factors) == 2:
                scale, bias, value = factors[0] * scale, factors[1] * scale, base
    found = Array(shape, dtype, [], "affine", value, scale=scale, bias=bias)
    if not _before_function(scope, equation):
        stored(walker, found)
    return found


def _before_function(scope: Scope, equation: Any) -> bool:
    """Whether the only reader of a result can scale and shift it by itself."""
    (var,) = equation.outvars
    readers = scope.readers(var)
    if len(readers) != 1 or readers[0] >= len(scope.jaxpr.eqns):
        return False
    reader = scope.jaxpr.eqns[readers[0]]
    if reader.primitive.name in FUNCTIONS:
        return True
    follows = reader.primitive.name in ("add", "sub", "mul") and len(reader.outvars) == 1
    return (
        follows and any(not a.aval.shape for a in reader.invars) and _before_function(scope, reader)
    )


def combined(
    walker: Walker, name: str, one: Any, other: Any, shape: Sequence[int], dtype: Any
) -> Array:
    """The results of an operation."""
    if all(_is_column(v) or number_of(v) is not None for v in (one, other)):
        bases = [v.base if _is_column(v) else v for v in (one, other)]
        inner_shape = next(b.shape for b, v in zip(bases, (one, other)) if _is_column(v))
        sizes = {b.elements for b, v in zip(bases, (one, other)) if _is_column(v)}
        if len(sizes) == 1:
            inner = combined(walker, name, bases[0], bases[1], inner_shape, dtype)
            return Array(tuple(shape), dtype, [], "column", inner)
    op, reverse = _alu(name, dtype, one, other), False
    full = [
        v for v in (one, other)
        if isinstance(v, Array) and v.view != "fill" and not _is_column(v)
    ]  # fmt: skip
    if not full:
        full = [stored(walker, one if isinstance(one, Array) else other)]
        one = full[0] if isinstance(one, Array) else one
        other = full[0] if not isinstance(one, Array) else other
    if name == "div" and len(full) == 2:
        other = _inverse(walker, stored(walker, other))
        op = "multiply"
    elif name == "div" and _is_column(other):
        other = Array(other.shape, other.dtype, [], "column", _inverse(walker, other.base))
        op = "multiply"
    if len(full) == 1:
        data = stored(walker, full[0])
        operand = other if full[0] is one else one
        reverse = full[0] is not one
        found = temporary(walker, shape, dtype, layout=data.layout)
        operands = per_piece(
            walker, operand.base if _is_column(operand) else number_of(operand), data
        )
        for dst, src, x in zip(found.pieces, data.pieces, operands):
            if op is None:
                passes(walker, dst, [src], 3)
                continue
            issue(walker, "tensor_scalar", dst, src, x, op0=op, reverse0=reverse, engine="vector")
        return found
    first, second = _alike(walker, stored(walker, one), stored(walker, other))
    if first.in_psum and second.in_psum:
        second = evacuated(walker, second)
    found = temporary(walker, shape, dtype, layout=first.layout)
    for dst, a, b in zip(found.pieces, first.pieces, second.pieces):
        if op is None:
            passes(walker, dst, [a, b], 3)
        else:
            issue(walker, "tensor_tensor", dst, a, b, op=op)
    return found


def _is_column(value: Any) -> bool:
    return isinstance(value, Array) and value.view == "column"


def _inverse(walker: Walker, value: Any) -> Array:
    value = stored(walker, value)
    found = temporary(walker, value.shape, "float32", "inverse", layout=value.layout)
    for dst, src in zip(found.pieces, value.pieces):
        issue(walker, "reciprocal", dst, src, engine="vector")
    return found


def _alu(name: str, dtype: Any, one: Any, other: Any) -> str | None:
    if name in _BITS or name in _LOGICAL:
        return _LOGICAL[name] if dtype == jnp.bool_ else _BITS[name]
    if name == "div":
        return "multiply" if jnp.issubdtype(dtype, jnp.floating) else None
    return _ARITHMETIC.get(name)


def _alike(walker: Walker, one: Array, other: Array) -> tuple[Array, Array]:
    """Two arrays that lie alike; one of them is moved if they do not."""
    if one.layout == other.layout:
        return one, other
    return one, laid(walker, other, one.layout)
