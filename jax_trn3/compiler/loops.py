"""What can be told of a `stablehlo.while` without running it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from jaxlib.mlir import ir

from .operations import direction, producer, splat

_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "EQ": operator.eq,
    "NE": operator.ne,
    "GE": operator.ge,
    "GT": operator.gt,
    "LE": operator.le,
    "LT": operator.lt,
}
_ARITHMETIC: dict[str, Callable[..., int]] = {
    "stablehlo.add": operator.add,
    "stablehlo.subtract": operator.sub,
    "stablehlo.multiply": operator.mul,
    "stablehlo.minimum": min,
    "stablehlo.maximum": max,
    "stablehlo.select": lambda which, x, y: x if which else y,
    "stablehlo.clamp": lambda low, x, high: min(max(x, low), high),
    "stablehlo.convert": lambda x: x,
}


def while_loops(block: Any) -> list[Any]:
    """The loops of a block."""
    ops = (op.operation for op in block.operations)
    return [op for op in ops if op.name == "stablehlo.while"]


def condition(loop: Any) -> Any:
    """The block that says whether there is another step."""
    return loop.regions[0].blocks[0]


def body(loop: Any) -> Any:
    """The block that is done in each step."""
    return loop.regions[1].blocks[0]


def end(block: Any) -> Any:
    """The operation that returns from a block."""
    return list(block.operations)[-1].operation


def is_invariant(loop: Any, at: int) -> bool:
    """Whether a loop passes an array from step to step as it is."""
    return bool(end(body(loop)).operands[at] == body(loop).arguments[at])


def places(loop: Any, index: Any, most: int) -> set[int] | None:
    """What `index`, an integer in the body, is in the steps of the loop.

    None if it follows from more than counters, or if the loop makes more than `most` steps.
    """
    asked = condition(loop)
    found: set[int] = set()
    state = [_integer(value, {}) for value in loop.operands]
    for _ in range(most + 1):
        goes_on = _integer(end(asked).operands[0], _named(asked.arguments, state))
        if not goes_on:
            return None if goes_on is None else found
        known = _named(body(loop).arguments, state)
        place = _integer(index, known)
        if place is None:
            return None
        found.add(place)
        state = [_integer(value, known) for value in end(body(loop)).operands]
    return None


def _named(arguments: Iterable[Any], state: Iterable[int | None]) -> dict[Any, int | None]:
    return dict(zip(arguments, state))


def _integer(value: Any, known: dict[Any, int | None]) -> int | None:
    """An integer that follows from those known and from constants; None of anything else."""
    if value not in known:
        known[value] = _computed(value, known)
    return known[value]


def _computed(value: Any, known: dict[Any, int | None]) -> int | None:
    op = producer(value)
    if op is None or not _is_integer(value):
        return None
    if op.name == "stablehlo.constant":
        return splat(op)
    rule = _ARITHMETIC.get(op.name)
    if op.name == "stablehlo.compare":
        rule = _COMPARISONS[direction(op)]
    inputs = [_integer(operand, known) for operand in op.operands] if rule else [None]
    if rule is None or None in inputs:
        return None
    result = int(rule(*inputs))
    fits = abs(result) < 1 << max(value.type.element_type.width - 1, 1)
    return result if fits else None


def _is_integer(value: Any) -> bool:
    kind = value.type  # a loop may carry a token, which has no elements
    is_scalar = isinstance(kind, ir.RankedTensorType) and kind.rank == 0
    return is_scalar and isinstance(kind.element_type, ir.IntegerType)
