"""What can be read off an operation of a program, and off a value."""

from __future__ import annotations

from typing import Any

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo


def producer(value: Any) -> Any:
    """The operation that computes a value; None of a block's argument."""
    return value.owner.operation if isinstance(value, ir.OpResult) else None


def users(value: Any) -> list[Any]:
    """The operations that use a value, one as often as it does."""
    return [use.owner.operation for use in value.uses]


def shape(value: Any) -> tuple[int, ...]:
    """The dimensions of a tensor; () of anything else."""
    kind = value.type
    return tuple(kind.shape) if isinstance(kind, ir.RankedTensorType) else ()


def integers(attribute: Any) -> list[int]:
    """The numbers of an attribute such as `permutation`."""
    return list(ir.DenseI64ArrayAttr(attribute))


def is_splat(op: Any) -> bool:
    """Whether an operation is a constant, the same everywhere."""
    if op.name != "stablehlo.constant":
        return False
    value = op.attributes["value"]
    return isinstance(value, ir.DenseElementsAttr) and value.is_splat


def splat(op: Any) -> Any:
    """The number that a constant is everywhere; None of anything else."""
    if op is None or not is_splat(op):
        return None
    number = op.attributes["value"].get_splat_value()
    return number.value if hasattr(number, "value") else None


def direction(comparison: Any) -> str:
    """What a stablehlo.compare asks: EQ, NE, GE, GT, LE or LT."""
    attribute = comparison.attributes["comparison_direction"]
    return str(stablehlo.ComparisonDirectionAttr(attribute).value)
