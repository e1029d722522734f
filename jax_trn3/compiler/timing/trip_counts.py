"""How often loops run, where that can be told without running them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .graph import Body, Operation, Tensor

MOST_STEPS = 4096
"""Of a loop whose counter is not start + step * i, and has to be followed."""

_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "EQ": operator.eq, "NE": operator.ne, "GE": operator.ge,
    "GT": operator.gt, "LE": operator.le, "LT": operator.lt,
}  # fmt: skip
_SWAPPED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}
_ARITHMETIC: dict[str, Callable[..., int | None]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "minimum": min,
    "maximum": max,
    "negate": operator.neg,
    "abs": abs,
    "sign": lambda x: (x > 0) - (x < 0),
    "divide": lambda x, y: _truncated(x, y) if y else None,
    "remainder": lambda x, y: x - y * _truncated(x, y) if y else None,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "shift_left": lambda x, y: x << y if 0 <= y < 64 else None,
    "shift_right_arithmetic": lambda x, y: x >> y if 0 <= y < 64 else None,
    "select": lambda which, x, y: x if which else y,
    "clamp": lambda low, x, high: min(max(x, low), high),
    "convert": lambda x: x,
    "reshape": lambda x: x,
    "broadcast_in_dim": lambda x: x,
    "optimization_barrier": lambda x: x,
}


def _truncated(x: int, y: int) -> int:
    """x / y towards 0, as StableHLO divides."""
    return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


_Known = dict[int, "int | None"]


def trip_counts(body: Body, constants: Mapping[int, Any]) -> dict[int, int | None]:
    """By id of a while's first result how often its body runs; None where data decide.

    A while without results has the key -1 - its place among all of the program's loops. Of a loop
    that starts or ends where an outer loop's counter says, the mean, rounded up.
    """
    integers = Integers(_definitions(body), constants)
    places = {id(op): at for at, op in enumerate(_loops(body))}
    counts: dict[int, int | None] = {}
    _count_loops(body, [{}], integers, places, counts)
    return counts


def _loops(body: Body) -> list[Operation]:
    return [op for op in body.walk() if op.kind == "stablehlo.while"]


def _count_loops(
    body: Body,
    steps: list[_Known],
    integers: Integers,
    places: Mapping[int, int],
    counts: dict[int, int | None],
) -> None:
    """Counts the loops of a body, and those in them.

    steps: what is known of the counters around it in each of their steps; [{}] if nothing is.
    """
    for op in body.operations:
        inner = steps
        if op.kind == "stablehlo.while":
            key = op.results[0].id if op.results else -1 - places[id(op)]
            trips = integers.trips(op)
            around = [{}] if trips is not None else steps
            every = [trips] if trips is not None else [integers.trips(op, step) for step in steps]
            known = [count for count in every if count is not None]
            counts[key] = -(-sum(known) // len(known)) if len(known) == len(every) != 0 else None
            has_loops = any(_loops(region) for region in op.regions)
            inner = integers.steps(op, around) if has_loops and counts[key] is not None else [{}]
        for region in op.regions:
            _count_loops(region, inner, integers, places, counts)


def _definitions(body: Body) -> dict[int, tuple[Operation, int]]:
    """The operation that computes a value, and which of its results that is."""
    return {result.id: (op, at) for op in body.walk() for at, result in enumerate(op.results)}


@dataclass(frozen=True)
class Integers:
    """The scalar integers of a program that follow from constants.

    definitions: by a value's id the operation that computes it, and which result it is.
    """

    definitions: Mapping[int, tuple[Operation, int]]
    constants: Mapping[int, Any]

    def trips(self, loop: Operation, known: _Known | None = None) -> int | None:
        """How often a loop runs. `known`: values of scalars by id."""
        outside = dict(known or {})
        state = [self.value(operand, outside) for operand in loop.operands]
        counted = self._counted(loop, state, outside)
        return self._followed(loop, state, outside) if counted is None else counted

    def steps(self, loop: Operation, around: list[_Known]) -> list[_Known]:
        """What is known in each step of a loop, of every step around it; [{}] if they are many."""
        condition, body = loop.regions
        found: list[_Known] = []
        for known in around:
            state = [self.value(operand, dict(known)) for operand in loop.operands]
            while goes_on := self.value(
                condition.results[0], known | _named(condition.parameters, state)
            ):
                if len(found) == MOST_STEPS:
                    return [{}]
                found.append(known | _named(body.parameters, state))
                inside = dict(found[-1])
                state = [self.value(result, inside) for result in body.results]
            if goes_on is None:
                return [{}]
        return found or [{}]

    def _counted(self, loop: Operation, state: list[int | None], outside: _Known) -> int | None:
        """Of a counter with a constant step that is compared with what stays as it is."""
        condition, body = loop.regions
        found = self.definitions.get(condition.results[0].id)
        if found is None or found[0].kind != "stablehlo.compare":
            return None
        compare = found[0]
        direction = compare.attributes["comparison_direction"]
        left, right = compare.operands
        counted = _place(condition.parameters, left)
        if counted is not None:
            at, limit = counted, right
        else:
            counted = _place(condition.parameters, right)
            if counted is None:
                return None
            at, limit, direction = counted, left, _SWAPPED.get(direction, direction)
        start = state[at]
        step = self._step(body, at, state, outside)
        fixed = _named(condition.parameters, _fixed(body, state))
        end = self.value(limit, outside | fixed)
        if start is None or end is None or not step:
            return None
        return _count(start, end, step, direction)

    def _step(self, body: Body, at: int, state: list[int | None], outside: _Known) -> int | None:
        """What is added to a counter in each step; None if that is not a constant."""
        found = self.definitions.get(body.results[at].id)
        if found is None or found[0].kind not in ("stablehlo.add", "stablehlo.subtract"):
            return None
        op = found[0]
        counter = body.parameters[at].id
        known = outside | _named(body.parameters, _fixed(body, state))
        if op.operands[0].id == counter:
            step = self.value(op.operands[1], known)
            return -step if step is not None and op.kind == "stablehlo.subtract" else step
        if op.operands[1].id == counter and op.kind == "stablehlo.add":
            return self.value(op.operands[0], known)
        return None

    def _followed(self, loop: Operation, state: list[int | None], outside: _Known) -> int | None:
        """Of any loop that follows from integers, step by step; None after MOST_STEPS."""
        condition, body = loop.regions
        for step in range(MOST_STEPS + 1):
            goes_on = self.value(
                condition.results[0], outside | _named(condition.parameters, state)
            )
            if not goes_on:
                return None if goes_on is None else step
            known = outside | _named(body.parameters, state)
            state = [self.value(result, known) for result in body.results]
        return None

    def value(self, tensor: Tensor, known: _Known) -> int | None:
        """An integer that follows from those known and from constants; None of anything else."""
        if tensor.id not in known:
            known[tensor.id] = None  # while it is looked for
            known[tensor.id] = self._computed(tensor, known)
        return known[tensor.id]

    def _computed(self, tensor: Tensor, known: _Known) -> int | None:
        width = _width(tensor)
        if width is None or tensor.id not in self.definitions:
            return None
        if tensor.id in self.constants:
            numbers = self.constants[tensor.id]
            return int(numbers.ravel()[0])
        op, at = self.definitions[tensor.id]
        rule = _ARITHMETIC.get(op.kind.removeprefix("stablehlo."))
        if op.kind == "stablehlo.compare":
            rule = _COMPARISONS[op.attributes["comparison_direction"]]
        if op.kind == "stablehlo.not" and tensor.dtype == "i1":
            rule = operator.not_
        if rule is None:
            return None
        operands = op.operands[at : at + 1] if op.kind.endswith("barrier") else op.operands
        inputs = [self.value(operand, known) for operand in operands]
        if None in inputs:
            return None
        result = rule(*inputs)
        if result is None or abs(int(result)) >= 1 << max(width - 1, 1):
            return None
        return int(result)


def _width(tensor: Tensor) -> int | None:
    """Bits of a scalar integer; None of anything else."""
    digits = tensor.dtype.removeprefix("u").removeprefix("i")
    return int(digits) if tensor.size == 1 and digits.isdigit() else None


def _place(tensors: tuple[Tensor, ...], tensor: Tensor) -> int | None:
    return next((at for at, one in enumerate(tensors) if one.id == tensor.id), None)


def _named(parameters: tuple[Tensor, ...], values: list[int | None]) -> _Known:
    return {parameter.id: value for parameter, value in zip(parameters, values)}


def _fixed(body: Body, state: list[int | None]) -> list[int | None]:
    """Of what a loop carries, the values that stay as they are."""
    pairs = zip(body.results, body.parameters, state, strict=True)
    return [value if result.id == parameter.id else None for result, parameter, value in pairs]


def _count(start: int, end: int, step: int, direction: str) -> int | None:
    """Steps while `start + step * i` compares with `end`; None if that never ends."""
    if not _COMPARISONS[direction](start, end):
        return 0
    if direction in ("LT", "LE") and step > 0:
        return -(-(end - start + (direction == "LE")) // step)
    if direction in ("GT", "GE") and step < 0:
        return -(-(start - end + (direction == "GE")) // -step)
    if direction == "NE" and (end - start) % step == 0 and (end - start) // step > 0:
        return (end - start) // step
    return None
