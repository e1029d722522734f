"""Transposes in front of products, which read their operands along any dimension."""

from collections.abc import Mapping
from dataclasses import replace

from .graph import Body, Operation, Tensor

_NUMBERS = "dot_dimension_numbers"
_SIDES = ("lhs", "rhs")


def folded(body: Body) -> Body:
    """A body in which products read what is behind transposes, where that gives the same result.
    A transpose that nobody else reads is then dead."""
    transposes: dict[int, Operation] = {}
    operations = []
    for operation in body.operations:
        if operation.kind == "stablehlo.transpose":
            operation = _composed(operation, transposes)
            transposes[operation.results[0].id] = operation
        elif operation.kind == "stablehlo.dot_general":
            operation = _product(operation, transposes)
        operations.append(operation)
    return replace(body, operations=tuple(operations))


def _composed(operation: Operation, transposes: Mapping[int, Operation]) -> Operation:
    """Two transposes, one after the other, as one."""
    before = transposes.get(operation.operands[0].id)
    if before is None:
        return operation
    first, then = (op.attributes["permutation"] for op in (before, operation))
    order = tuple(int(first[int(a)]) for a in then)
    return replace(
        operation,
        operands=before.operands,
        attributes={**operation.attributes, "permutation": order},
    )


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
