"""Attention whose forward and backward passes are in two loops (jax.grad of a lax.scan).

The forward loop stacks what the backward loop needs, the matrix of each step among it. Here the
backward loop computes the matrix again, from queries and keys that are stacked anyway, and the
stack of matrices is filled no more; then each of the loops holds a pattern that
attention_pattern.py knows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from jaxlib.mlir import ir

from .attention_pattern import MIN_ELEMENTS, matrix_axes
from .indices import indices, shape
from .inline import clone
from .order import sort_block

# A mask is made again where it is used if what it is made of is this much smaller.
_SMALLER = 32


class _NotAvailable(Exception):
    """A value that cannot be had in the other loop without the work of the whole step."""


def _while_loops(block: Any) -> list[Any]:
    return [op for op in _operations(block) if op.name == "stablehlo.while"]


def _operations(block: Any) -> list[Any]:
    return [op.operation for op in block.operations]


def _body(loop: Any) -> Any:
    return loop.regions[1].blocks[0]


def _end(block: Any) -> Any:
    return list(block.operations)[-1].operation


def _is_invariant(loop: Any, at: int) -> bool:
    """Whether a loop passes an array from step to step as it is."""
    body = _body(loop)
    return bool(_end(body).operands[at] == body.arguments[at])


def _size(value: Any) -> int:
    return math.prod(shape(value))


def _producer(value: Any) -> Any:
    return value.owner.operation if isinstance(value, ir.OpResult) else None


def _collect(
    value: Any, is_at_hand: Callable[[Any], bool], is_allowed: Callable[[Any], bool]
) -> list[Any]:
    """The operations that compute a value from what is at hand, in an order to compute them in."""
    ordered: dict[Any, None] = {}

    def visit(value: Any) -> None:
        if is_at_hand(value):
            return
        op = _producer(value)
        if op is None or not is_allowed(op):
            raise _NotAvailable
        if op not in ordered:
            for operand in op.operands:
                visit(operand)
            ordered[op] = None

    visit(value)
    return list(ordered)


def sink_masks(block: Any) -> None:
    """Makes masks and fillings anew in the loops that JAX carries them into.

    A mask of the matrix's size that is made of indices and small arrays can then be made for a few
    rows at a time.
    """
    for loop in _while_loops(block):
        for at, outside in enumerate(loop.operands):
            if _size(outside) >= MIN_ELEMENTS and _is_invariant(loop, at):
                _sink(loop, at, outside)


def _sink(loop: Any, at: int, outside: Any) -> None:
    largest = _size(outside) // _SMALLER

    def is_at_hand(value: Any) -> bool:
        return _size(value) <= largest and not _is_constant(value)

    def is_allowed(op: Any) -> bool:
        return _is_cheap(op) and op.block == loop.block

    try:
        ops = _collect(outside, is_at_hand, is_allowed)
    except _NotAvailable:
        return
    body = _body(loop)
    values: dict[Any, Any] = {}
    first = ir.InsertionPoint.at_block_begin(body)
    for op in ops:
        clone(op, values, first)
    body.arguments[at].replace_all_uses_with(values[outside])
    _end(body).operands[at] = body.arguments[at]


def _is_constant(value: Any) -> bool:
    op = _producer(value)
    return op is not None and op.name == "stablehlo.constant"


def _is_cheap(op: Any) -> bool:
    heavy = {"stablehlo.dot_general", "stablehlo.reduce", "stablehlo.exponential"}
    return op.name not in heavy and indices(op) is not None


@dataclasses.dataclass(frozen=True)
class _Stack:
    """An array that the forward loop stacks, one entry a step, for the backward loop.

    result: which of the forward loop's results. value: the entry, in the forward loop.
    update: the operation that stacks it, at the step `step`.
    reads: the entry in the backward loop. taken_at: the step there.
    """

    result: int
    value: Any
    update: Any
    reads: tuple[Any, ...]

    @property
    def step(self) -> Any:
        return self.update.operands[2]


def recompute_residuals(block: Any) -> None:
    """Has backward loops compute the matrices that forward loops would stack for them."""
    for forward in _while_loops(block):
        sizes = {
            _size(op.operands[0])
            for op in _operations(_body(forward))
            if op.name == "stablehlo.exponential" and matrix_axes(op) is not None
        }
        if not sizes:
            continue
        for backward in _users_that_loop(forward):
            stacks = list(_stacks(forward, backward))
            matrices = [stack for stack in stacks if _size(stack.value) in sizes]
            if matrices:
                _recompute(forward, backward, stacks, matrices)


def _users_that_loop(forward: Any) -> list[Any]:
    found: dict[Any, None] = {}
    for result in forward.results:
        for use in result.uses:
            op = use.owner.operation
            if op.name == "stablehlo.while" and op.block == forward.block:
                found[op] = None
    return list(found)


def _stacks(forward: Any, backward: Any) -> Iterator[_Stack]:
    body = _body(forward)
    yielded = list(_end(body).operands)
    for at, result in enumerate(forward.results):
        uses = list(result.uses)
        if len(uses) != 1 or uses[0].owner.operation != backward:
            continue
        update = _producer(yielded[at])
        if update is None or update.name != "stablehlo.dynamic_update_slice":
            continue
        entry = _producer(update.operands[1])
        if update.operands[0] != body.arguments[at] or entry is None:
            continue
        if entry.name not in ("stablehlo.broadcast_in_dim", "stablehlo.reshape"):
            continue
        value = entry.operands[0]
        reads = _reads(backward, uses[0].operand_number, shape(value))
        if shape(update.operands[1]) == (1, *shape(value)) and reads is not None:
            yield _Stack(at, value, update, reads)


def _reads(backward: Any, at: int, size: tuple[int, ...]) -> tuple[Any, ...] | None:
    """Where the backward loop takes an entry of a stack; None if it does anything else with it."""
    if not _is_invariant(backward, at):
        return None
    end = _end(_body(backward))
    found = []
    for use in _body(backward).arguments[at].uses:
        op = use.owner.operation
        if op == end:
            continue
        if op.name != "stablehlo.dynamic_slice" or shape(op.results[0]) != (1, *size):
            return None
        for inner in op.results[0].uses:
            reshape = inner.owner.operation
            if reshape.name != "stablehlo.reshape" or shape(reshape.results[0]) != size:
                return None
            found.append(reshape.results[0])
    return tuple(found)


def _step_of(read: Any) -> Any:
    return read.owner.operation.operands[0].owner.operation.operands[1]


def _recompute(forward: Any, backward: Any, stacks: list[_Stack], matrices: list[_Stack]) -> None:
    steps = {stack.step for stack in stacks}
    reads = [read for stack in stacks for read in stack.reads]
    if len(steps) != 1 or not reads:
        return
    body, other = _body(forward), _body(backward)
    # All entries that the backward loop takes are of one step, as JAX writes it.
    if len({str(_step_text(_step_of(read))) for read in reads}) != 1:
        return
    values: dict[Any, Any] = {steps.pop(): _step_of(reads[0])}
    smallest = min(_size(stack.value) for stack in matrices)
    for stack in stacks:
        if stack not in matrices and stack.reads:
            values[stack.value] = stack.reads[0]
    for at, argument in enumerate(body.arguments):
        if _is_invariant(forward, at):
            values[argument] = forward.operands[at]

    def is_at_hand(value: Any) -> bool:
        return value in values or not _is_inside(value, body)

    def is_allowed(op: Any) -> bool:
        if op.name == "stablehlo.dynamic_slice":
            return True
        is_projection = op.name == "stablehlo.dot_general" and _size(op.results[0]) < smallest
        return indices(op) is not None and not is_projection

    try:
        needed = [op for m in matrices for op in _collect(m.value, is_at_hand, is_allowed)]
    except _NotAvailable:
        return
    at_end = ir.InsertionPoint(_end(other))
    for op in dict.fromkeys(needed):
        clone(op, values, at_end)
    for stack in matrices:
        for read in stack.reads:
            read.replace_all_uses_with(values[stack.value])
            cut = read.owner.operation.operands[0].owner.operation
            read.owner.operation.erase()
            cut.erase()
        _end(body).operands[stack.result] = body.arguments[stack.result]
        entry = _producer(stack.update.operands[1])
        stack.update.erase()
        entry.erase()
    sort_block(other)


def _is_inside(value: Any, block: Any) -> bool:
    owner = value.owner
    return bool((owner if isinstance(owner, ir.Block) else owner.operation.block) == block)


def _step_text(value: Any) -> str:
    """How a step is computed, to compare two."""
    op = _producer(value)
    if op is None:
        return f"argument {value.arg_number}"
    if op.name == "stablehlo.constant":
        return str(op.attributes["value"])
    return f"{op.name}({', '.join(map(_step_text, op.operands))})"
