"""Which columns of an attention are masked for whole blocks of rows, so that they can be skipped.

A causal mask is a comparison of indices: column <= row + offset. What it masks out contributes an
exact zero, if all that the program does with the matrix is done with the masked exponential.
"""

from __future__ import annotations

from typing import Any

from jaxlib.mlir import ir

from .attention_pattern import SAME, Attention, Axes, axes_of, operand_axes
from .indices import Indices, indices
from .operations import direction, producer, shape, splat

# A finite filling is as good as -inf if no logit comes near it.
_VERY_LOW = -1e30

_PASSING = SAME | {"stablehlo.transpose", "stablehlo.reshape"}
_SPREADING = _PASSING | {"stablehlo.broadcast_in_dim"}
_SCALING = _PASSING | {"stablehlo.multiply", "stablehlo.divide", "stablehlo.tanh"}

Affine = tuple[int, int, int]  # of row, of column, constant


def causal_offset(attention: Attention) -> int | None:
    """The offset for which only columns <= row + offset matter, or None."""
    difference = producer(attention.exponential.operands[0])
    if difference is None or difference.name != "stablehlo.subtract":
        return None
    select = _back(difference.operands[0], _PASSING)
    if select is None or select.name != "stablehlo.select" or select not in attention.levels:
        return None
    filling = _constant(select.operands[2])
    axes = operand_axes(attention.axes, select)
    offset, is_exact = _bound(select.operands[0], axes[0])
    if filling is None or offset is None or not filling <= _VERY_LOW:
        return None
    # Every row has a column that is not masked, and no bias that could make it count as masked.
    product = _back(select.operands[1], _SCALING)
    is_plain = product is not None and product.name == "stablehlo.dot_general"
    if not (is_exact and offset >= 0 and is_plain):
        return None
    return offset if _only_zeros_outside(attention, select) else None


def _back(value: Any, through: set[str]) -> Any:
    """The operation before those named in `through`, along first operands."""
    op = producer(value)
    while op is not None and op.name in through:
        if len(op.operands) == 2 and not _is_scalar(op.operands[1]):
            return None
        op = producer(op.operands[0])
    return op


def _unbroadcast(value: Any) -> Any:
    """The value that is spread, or passed on, to make this one."""
    while (op := producer(value)) is not None and op.name in _SPREADING:
        value = op.operands[0]
    return value


def _is_scalar(value: Any) -> bool:
    """Whether a value is the same number everywhere."""
    return shape(_unbroadcast(value)) == () or _constant(value) is not None


def _constant(value: Any) -> float | None:
    """A number that a value is everywhere."""
    number = splat(producer(_unbroadcast(value)))
    return None if number is None else float(number)


def _operands(op: Any, axes: Axes) -> list[Axes] | None:
    """The axes of the operands of an operation whose result has these."""
    known = indices(op)
    if known is None:
        return None
    row, column = (None if axis is None else known.results[0][axis] for axis in axes)
    return [axes_of(letters, row, column) for letters in known.operands]


def _bound(mask: Any, axes: Axes) -> tuple[int | None, bool]:
    """(offset, whether that is all) if a mask is true only where column <= row + offset."""
    unknown = None, False
    constant = _constant(mask)
    if constant is not None:
        return None, bool(constant)
    op = producer(mask)
    inner = _operands(op, axes) if op is not None else None
    if op is None or inner is None:
        return unknown
    if op.name in _SPREADING:
        return _bound(op.operands[0], inner[0])
    if op.name == "stablehlo.and" or (
        op.name == "stablehlo.select" and _constant(op.operands[2]) == 0
    ):
        (left, all_left), (right, all_right) = map(_bound, list(op.operands)[:2], inner[:2])
        offsets = [offset for offset in (left, right) if offset is not None]
        return min(offsets, default=None), all_left and all_right
    if op.name == "stablehlo.compare":
        return _comparison(op, inner)
    return unknown


def _comparison(op: Any, axes: list[Axes]) -> tuple[int | None, bool]:
    left, right = map(_affine, op.operands, axes)
    if left is None or right is None:
        return None, False
    row, column, constant = (x - y for x, y in zip(left, right))
    asked = direction(op)
    if asked in ("LE", "LT"):
        row, column, constant = -row, -column, -constant
    elif asked not in ("GE", "GT"):
        return None, False
    if (row, column) != (1, -1):
        return None, False
    return constant - (asked in ("LT", "GT")), True


def _affine(value: Any, axes: Axes) -> Affine | None:
    """An array of integers, whatever their dtype, as a sum of multiples of row and column."""
    if not _counts_exactly(value.type.element_type):
        return None
    constant = _constant(value)
    if constant is not None:
        return (0, 0, int(constant)) if constant.is_integer() else None  # inf and NaN are none
    op = producer(value)
    inner = _operands(op, axes) if op is not None else None
    if op is None or inner is None:
        return None
    if op.name == "stablehlo.iota":
        dimension = ir.IntegerAttr(op.attributes["iota_dimension"]).value
        return {axes[0]: (1, 0, 0), axes[1]: (0, 1, 0)}.get(dimension)
    if op.name in _SPREADING:
        return _affine(op.operands[0], inner[0])
    if op.name in ("stablehlo.add", "stablehlo.subtract"):
        left, right = map(_affine, op.operands, inner)
        if left is None or right is None:
            return None
        sign = 1 if op.name == "stablehlo.add" else -1
        row, column, number = (x + sign * y for x, y in zip(left, right))
        return row, column, number
    return None


def _counts_exactly(element: Any) -> bool:
    """Whether numbers of rows and columns are neither rounded nor wrapped in an element type."""
    if isinstance(element, ir.IntegerType):
        return element.width >= 32 and not element.is_unsigned
    return isinstance(element, (ir.F32Type, ir.F64Type))


def _only_zeros_outside(attention: Attention, select: Any) -> bool:
    """Whether all that leaves the matrix is zero, or not looked at, where it is masked."""
    zero = set(attention.exponential.results)
    masked = set(select.results)
    for op in attention.levels:
        inputs = list(op.operands)
        known = indices(op)
        assert known is not None
        axes = operand_axes(attention.axes, op)
        if op.name in _PASSING and inputs[0] in masked:
            masked.update(op.results)
        if _is_zero(op, [x in zero for x in inputs], [_constant(x) == 0 for x in inputs]):
            zero.update(op.results)
        columns = [x for x, (_, column) in zip(inputs, axes) if column is not None]
        leaves = any(None in attention.axes[result] for result in op.results) and columns
        is_maximum = _is_maximum(op) and inputs[0] in masked
        if leaves and not is_maximum and not any(x in zero for x in columns):
            return False
        if known.fixed & _columns(known, axes) and not is_maximum:
            return False
        if any(attention.is_matrix(x) and _is_used_outside(attention, op, x) for x in op.results):
            return False
    return True


def _is_maximum(op: Any) -> bool:
    if op.name != "stablehlo.reduce":
        return False
    first, *_ = op.regions[0].blocks[0]
    return bool(first.operation.name == "stablehlo.maximum")


def _columns(known: Indices, axes: list[Axes]) -> set[int | None]:
    """The letters that stand for the column in an operation's operands."""
    return {
        letters[column] for letters, (_, column) in zip(known.operands, axes) if column is not None
    }


def _is_used_outside(attention: Attention, op: Any, value: Any) -> bool:
    """Whether others see a matrix as it is where it is masked; a mask itself they may."""
    if op in attention.masks:
        return False
    return any(use.owner.operation not in attention.levels for use in value.uses)


def _is_zero(op: Any, zero: list[bool], constant: list[bool]) -> bool:
    """Whether an operation's result is zero where those of its operands are."""
    if op.name in ("stablehlo.multiply", "stablehlo.dot_general"):
        return any(zero)
    if op.name in ("stablehlo.divide", "stablehlo.reduce"):
        return zero[0]
    if op.name in ("stablehlo.add", "stablehlo.subtract"):
        return all(zero)
    if op.name == "stablehlo.select":
        return all(z or c for z, c in zip(zero[1:], constant[1:]))
    return op.name in _PASSING | {"stablehlo.negate"} and zero[0]
