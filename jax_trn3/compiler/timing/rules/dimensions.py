"""How the operands of a product lie in memory: which axes are batch, contracted and free."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..graph import Operation, Tensor
from .tiles import size


@dataclass(frozen=True)
class Numbers:
    """Dimension numbers of a product."""

    contracting: tuple[tuple[int, ...], tuple[int, ...]]
    batch: tuple[tuple[int, ...], tuple[int, ...]]


def dimension_numbers(operation: Operation) -> Numbers:
    """Those of dot_general (StableHLO's attribute) and of our own operations (JAX's, as text).

    **Raises:** `ValueError` if there are none.
    """
    attributes = operation.attributes
    for name in ("dot_dimension_numbers", "dimension_numbers"):
        found = attributes.get(name)
        if isinstance(found, str):
            found = ast.literal_eval(found)
        if isinstance(found, Mapping):
            sides = ("lhs", "rhs")
            return Numbers(
                _pair(_named(found, f"{s}_contracting_dimensions") for s in sides),
                _pair(_named(found, f"{s}_batching_dimensions") for s in sides),
            )
        if found is not None:
            contracting, batch = found
            return Numbers(_pair(map(tuple, contracting)), _pair(map(tuple, batch)))
    raise ValueError(
        f"{operation.kind} at {operation.source} has no dimension numbers; its attributes are "
        f"{', '.join(attributes) or 'none'}"
    )


def _named(found: Mapping[str, Any], name: str) -> tuple[int, ...]:
    return tuple(int(n) for n in found.get(name, ()))


def _pair(values: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    one, other = values
    return tuple(one), tuple(other)


@dataclass(frozen=True)
class Layout:
    """One operand, seen as [batch, contracted, free]."""

    batch: int
    contracted: int
    free: int
    run: int
    """Elements of the free axis that lie next to each other."""

    transposed: bool
    """Whether the last axis in memory is not a free one."""

    thin: int = 1
    """Elements that come in for each that is used."""

    reuse: int = 1
    """Places of the contracted axis that read the same elements, shifted."""


def layout(tensor: Tensor, contracting: Sequence[int], batch: Sequence[int]) -> Layout:
    """How an operand lies, row-major as JAX's arrays are."""
    shape = tensor.shape
    free = [d for d in range(len(shape)) if d not in contracting and d not in batch]
    run, kept = 1, None
    for axis in reversed(range(len(shape))):
        if shape[axis] == 1:
            continue
        kept = axis if kept is None else kept
        if axis not in free:
            break
        run *= shape[axis]
    count = size([shape[d] for d in free])
    transposed = kept is not None and kept not in free
    return Layout(
        size([shape[d] for d in batch]),
        size([shape[d] for d in contracting]),
        count,
        max(1, run),
        transposed,
    )
