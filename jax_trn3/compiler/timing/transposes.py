"""Transposes in front of products, which read their operands along any dimension."""

from collections.abc import Mapping
from dataclasses import replace

from .graph import Body, Operation, Tensor

_NUMBERS = "dot_dimension_numbers"
_SIDES = ("lhs", "rhs")


def folded(body: Body) -> Body:
    """A body in which products read what is behind transposes, where that gives the same result.
    A transpose that nobody else reads is then dead."""
    transposes = {
        op.results[0].id: op for op in body.operations if op.kind == "stablehlo.transpose"
    }
    if not transposes:
        return body
    operations = tuple(
        _product(op, transposes) if op.kind == "stablehlo.dot_general" else op
        for op in body.operations
    )
    return replace(body, operations=operations)


def _product(operation: Operation, transposes: Mapping[int, Operation]) -> Operation:
    numbers = operation.attributes.get(_NUMBERS)
    if not isinstance(numbers, Mapping):
        return operation
    operands: list[Tensor] = list(operation.operands)
    changed = dict(numbers)
    for place, side in enumerate(_SIDES):
        transpose = transposes.get(operands[place].id)
        if transpose is None:
            continue
        order = [int(a) for a in transpose.attributes["permutation"]]
        names = f"{side}_batching_dimensions", f"{side}_contracting_dimensions"
        used = [tuple(int(a) for a in changed.get(name, ())) for name in names]
        free = [order[a] for a in range(len(order)) if a not in {*used[0], *used[1]}]
        if free != sorted(free):
            continue  # the result's dimensions would stand in another order
        operands[place] = transpose.operands[0]
        changed |= {name: tuple(order[a] for a in axes) for name, axes in zip(names, used)}
    return replace(
        operation,
        operands=tuple(operands),
        attributes={**operation.attributes, _NUMBERS: changed},
    )
