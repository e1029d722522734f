"""Operations of an attention, done for a few rows (and the first columns) of the matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo as hlo

from .attention_pattern import Attention, Axes, operand_axes
from .indices import indices
from .inline import clone
from .operations import integers, is_splat, producer, shape

NONE: Axes = (None, None)
_NARROW = (ir.BF16Type, ir.F16Type)


@dataclasses.dataclass
class Tile:
    """Rows `start` (a scalar in the program) to `start + rows`, columns 0 to `columns`.

    arguments: whole arrays that are there already.
    values: parts of arrays that have been computed or cut out.
    """

    attention: Attention
    arguments: dict[Any, Any]
    start: Any
    rows: int
    columns: int
    values: dict[tuple[Any, Axes], Any] = dataclasses.field(default_factory=dict)


def is_generated(op: Any) -> bool:
    """Whether an operation needs no array: it is repeated, instead of cutting its result."""
    if op.name == "stablehlo.broadcast_in_dim":
        return shape(op.operands[0]) == ()
    return op.name == "stablehlo.iota" or is_splat(op)


def sum_type(type: Any) -> Any:
    """What parts of a sum over rows are added up in: float32 for narrower floats."""
    element = type.element_type
    return ir.F32Type.get() if isinstance(element, _NARROW) else element


def resized(type: Any, axes: Axes, rows: int, columns: int, element: Any = None) -> Any:
    """The type of the part of an array."""
    if not isinstance(type, ir.RankedTensorType):
        return type
    dims = list(type.shape)
    for axis, size in zip(axes, (rows, columns)):
        if axis is not None:
            dims[axis] = size
    return ir.RankedTensorType.get(dims, element or type.element_type)


def scalar(value: int, bits: int = 32) -> Any:
    """An integer constant."""
    type = ir.RankedTensorType.get([], ir.IntegerType.get_signless(bits))
    attribute = ir.IntegerAttr.get(type.element_type, value)
    return hlo.constant(ir.DenseElementsAttr.get_splat(type, attribute))


def compute(tile: Tile, op: Any) -> None:
    """The operation's results in the tile."""
    axes = [tile.attention.axes[result] for result in op.results]
    operands = [
        part(tile, operand, at)
        for operand, at in zip(op.operands, operand_axes(tile.attention.axes, op))
    ]
    for result, at, value in zip(op.results, axes, _copy(tile, op, operands, axes)):
        tile.values[result, at] = value


def part(tile: Tile, value: Any, axes: Axes) -> Any:
    """The part of an array that a tile needs."""
    if (value, axes) not in tile.values:
        tile.values[value, axes] = _part(tile, value, axes)
    return tile.values[value, axes]


def _part(tile: Tile, value: Any, axes: Axes) -> Any:
    op = producer(value)
    if op is not None and is_generated(op):
        operands = [part(tile, operand, NONE) for operand in op.operands]
        return _copy(tile, op, operands, [axes])[0]
    return _cut(tile, tile.arguments[value], axes)


def _cut(tile: Tile, whole: Any, axes: Axes) -> Any:
    row, column = axes
    if column is not None and shape(whole)[column] != tile.columns:
        whole = first_columns(whole, column, tile.columns)
    if row is None:
        return whole
    sizes = list(shape(whole))
    sizes[row] = tile.rows
    return hlo.dynamic_slice(
        whole, starts(len(sizes), row, tile.start), ir.DenseI64ArrayAttr.get(sizes)
    )


def first_columns(whole: Any, column: int, columns: int) -> Any:
    """Columns 0 to `columns` of an array whose dimension `column` they are."""
    limits = list(shape(whole))
    zeros = [0] * len(limits)
    ones = [1] * len(limits)
    limits[column] = columns
    return hlo.slice(whole, *map(ir.DenseI64ArrayAttr.get, (zeros, limits, ones)))


def starts(rank: int, row: int | None, start: Any) -> list[Any]:
    """Start indices for a slice that begins at `start` in the dimension `row`, at 0 in others."""
    zero = scalar(0)
    return [start if axis == row else zero for axis in range(rank)]


def _copy(tile: Tile, op: Any, operands: Sequence[Any], axes: Sequence[Axes]) -> Sequence[Any]:
    """Results of the operation on parts of its operands."""
    types = [
        resized(result.type, at, tile.rows, tile.columns) for result, at in zip(op.results, axes)
    ]
    if is_splat(op):
        splat = op.attributes["value"].get_splat_value()
        return [hlo.constant(ir.DenseElementsAttr.get_splat(types[0], splat))]
    if op.name == "stablehlo.iota":
        return [_iota(tile, op, types[0], axes[0])]
    if op.name == "stablehlo.reduce":
        copy = clone(op, dict(zip(op.operands, operands)), ir.InsertionPoint.current)
        copy.results[0].set_type(types[0])
        return list(copy.results)
    attributes = {name: op.attributes[name] for name in op.attributes}
    if op.name == "stablehlo.dot_general" and axes[0][0] is None:
        types = [resized(types[0], NONE, 0, 0, sum_type(types[0]))]
    if op.name == "stablehlo.slice":
        attributes["limit_indices"] = _limits(op, operands[0])
    copy = ir.Operation.create(
        op.name, results=types, operands=operands, attributes=attributes, loc=op.location
    )
    return list(copy.results)


def _iota(tile: Tile, op: Any, type: Any, axes: Axes) -> Any:
    dimension = ir.IntegerAttr(op.attributes["iota_dimension"]).value
    iota = hlo.iota(type, op.attributes["iota_dimension"])
    if dimension != axes[0]:
        return iota
    start = hlo.convert(ir.RankedTensorType.get([], type.element_type), tile.start)
    return hlo.add(iota, hlo.broadcast_in_dim(type, start, ir.DenseI64ArrayAttr.get([])))


def _limits(op: Any, operand: Any) -> Any:
    """A slice's limits: the rows and columns, which it takes all of, as many as there are."""
    known = indices(op)
    assert known is not None
    limits = integers(op.attributes["limit_indices"])
    sizes = shape(operand)
    whole = [sizes[at] if at not in known.fixed else limit for at, limit in enumerate(limits)]
    return ir.DenseI64ArrayAttr.get(whole)
