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

from . import loops
from .attention_pattern import MIN_ELEMENTS, matrix_axes
from .indices import indices
from .inline import clone
from .operations import integers, producer, shape, users
from .order import sort_block

# A mask is made again where it is used if what it is made of is this much smaller.
_SMALLER = 32


class _NotAvailable(Exception):
    """A value that cannot be had in the other loop without the work of the whole step."""


def _size(value: Any) -> int:
    return math.prod(shape(value))


def _collect(
    value: Any, is_at_hand: Callable[[Any], bool], is_allowed: Callable[[Any], bool]
) -> list[Any]:
    """The operations that compute a value from what is at hand, in an order to compute them in."""
    ordered: dict[Any, None] = {}

    def visit(value: Any) -> None:
        if is_at_hand(value):
            return
        op = producer(value)
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
    for loop in loops.while_loops(block):
        for at, outside in enumerate(loop.operands):
            if _size(outside) >= MIN_ELEMENTS and loops.is_invariant(loop, at):
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
    body = loops.body(loop)
    values: dict[Any, Any] = {}
    first = ir.InsertionPoint.at_block_begin(body)
    for op in ops:
        clone(op, values, first)
    body.arguments[at].replace_all_uses_with(values[outside])
    loops.end(body).operands[at] = body.arguments[at]


def _is_constant(value: Any) -> bool:
    op = producer(value)
    return op is not None and op.name == "stablehlo.constant"


def _is_cheap(op: Any) -> bool:
    heavy = {"stablehlo.dot_general", "stablehlo.reduce", "stablehlo.exponential"}
    return op.name not in heavy and indices(op) is not None


@dataclasses.dataclass(frozen=True)
class _Stack:
    """An array that the forward loop stacks, one entry a step, for the backward loop.

    result: which of the forward loop's results. value: the entry, in the forward loop.
    update: the operation that stacks it, at the step `step`.
    reads: the entry in the backward loop.
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
    for forward in loops.while_loops(block):
        sizes = {
            _size(op.operands[0])
            for op in (inner.operation for inner in loops.body(forward).operations)
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
    ops = dict.fromkeys(op for result in forward.results for op in users(result))
    return [op for op in ops if op.name == "stablehlo.while" and op.block == forward.block]


def _stacks(forward: Any, backward: Any) -> Iterator[_Stack]:
    body = loops.body(forward)
    yielded = list(loops.end(body).operands)
    for at, result in enumerate(forward.results):
        uses = list(result.uses)
        if len(uses) != 1 or uses[0].owner.operation != backward:
            continue
        update = producer(yielded[at])
        if update is None or update.name != "stablehlo.dynamic_update_slice":
            continue
        # The forward loop does nothing else with the stack.
        if users(body.arguments[at]) != [update] or len(users(update.results[0])) != 1:
            continue
        if users(loops.condition(forward).arguments[at]):
            continue
        value = _entry(update)
        if value is None or shape(result)[1:] != shape(value):
            continue
        reads = _reads(backward, uses[0].operand_number, shape(value))
        if reads is not None:
            yield _Stack(at, value, update, reads)


def _entry(update: Any) -> Any:
    """The array that is stacked, before a dimension of 1 was put in front of it, or None."""
    op = producer(update.operands[1])
    if op is None or op.name not in ("stablehlo.broadcast_in_dim", "stablehlo.reshape"):
        return None
    value = op.operands[0]
    if shape(op.results[0]) != (1, *shape(value)):
        return None
    if op.name == "stablehlo.broadcast_in_dim":
        kept = integers(op.attributes["broadcast_dimensions"])
        return value if kept == list(range(1, len(kept) + 1)) else None
    return value


def _reads(backward: Any, at: int, size: tuple[int, ...]) -> tuple[Any, ...] | None:
    """Where the backward loop takes an entry of a stack; None if it does anything else with it."""
    is_passed_on = users(backward.results[at]) or users(loops.condition(backward).arguments[at])
    if is_passed_on or not loops.is_invariant(backward, at):
        return None
    last = loops.end(loops.body(backward))
    found = []
    for use in loops.body(backward).arguments[at].uses:
        op = use.owner.operation
        if op == last and use.operand_number == at:
            continue
        if op.name != "stablehlo.dynamic_slice" or shape(op.results[0]) != (1, *size):
            return None
        for inner in op.results[0].uses:
            reshape = inner.owner.operation
            if reshape.name != "stablehlo.reshape" or shape(reshape.results[0]) != size:
                return None
            found.append(reshape.results[0])
    return tuple(found)


def _cut(read: Any) -> Any:
    """The operation that takes from the stack what a reshape then reads."""
    return producer(producer(read).operands[0])


def _same_steps(forward: Any, backward: Any, stacks: list[_Stack]) -> tuple[Any, Any] | None:
    """The step (in `forward`, in `backward`) that all entries belong to, as JAX writes it.

    None if there are several, or if `backward` could read an entry that `forward` has not written.
    """
    written = {stack.step for stack in stacks}
    read = {_cut(read).operands[1] for stack in stacks for read in stack.reads}
    sizes = {shape(stack.update.operands[0])[0] for stack in stacks}
    if not len(written) == len(read) == len(sizes) == 1:
        return None
    (there,), (here,), (size,) = written, read, sizes
    every, wanted = set(range(size)), loops.places(backward, here, size)
    if wanted is None or not wanted <= every or loops.places(forward, there, size) != every:
        return None
    return there, here


def _recompute(forward: Any, backward: Any, stacks: list[_Stack], matrices: list[_Stack]) -> None:
    steps = _same_steps(forward, backward, stacks)
    if steps is None:
        return
    body, other = loops.body(forward), loops.body(backward)
    values: dict[Any, Any] = dict([steps])
    smallest = min(_size(stack.value) for stack in matrices)
    for stack in stacks:
        if stack not in matrices and stack.reads:
            values[stack.value] = stack.reads[0]
    for at, argument in enumerate(body.arguments):
        if loops.is_invariant(forward, at):
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
    at_end = ir.InsertionPoint(loops.end(other))
    for op in dict.fromkeys(needed):
        clone(op, values, at_end)
    for stack in matrices:
        cuts = dict.fromkeys(map(_cut, stack.reads))
        for read in stack.reads:
            read.replace_all_uses_with(values[stack.value])
            producer(read).erase()
        for cut in cuts:
            cut.erase()
        loops.end(body).operands[stack.result] = body.arguments[stack.result]
        stack.update.erase()
    sort_block(other)


def _is_inside(value: Any, block: Any) -> bool:
    owner = value.owner
    return bool((owner if isinstance(owner, ir.Block) else owner.operation.block) == block)
