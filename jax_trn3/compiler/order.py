"""The order of the operations in a block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


def _captured(op: Any) -> Iterator[Any]:
    """Values that the operations inside an operation use."""
    for region in op.regions:
        for block in region:
            for inner in block.operations:
                yield from inner.operands
                yield from _captured(inner.operation)


def dependencies(ops: Sequence[Any]) -> list[tuple[int, ...]]:
    """For each operation of a block, the positions of those that it depends on."""
    position = {value: at for at, op in enumerate(ops) for value in op.results}
    return [
        tuple(position[value] for value in (*op.operands, *_captured(op)) if value in position)
        for op in ops
    ]


def sort_block(block: Any) -> None:
    """Puts every operation after those that it depends on, otherwise in the order that they had."""
    ops = [op.operation for op in block.operations]
    order = _sorted(dependencies(ops))
    if order != list(range(len(ops))):
        for at in order[:-1]:
            ops[at].move_before(ops[-1])


def _sorted(inputs: Sequence[Sequence[int]]) -> list[int]:
    order: list[int] = []
    done = [False] * len(inputs)
    for first in range(len(inputs)):
        pending = [first]
        while pending:
            at = pending[-1]
            missing = [] if done[at] else [source for source in inputs[at] if not done[source]]
            if missing:
                pending += missing
                continue
            pending.pop()
            if not done[at]:
                done[at] = True
                order.append(at)
    return order
