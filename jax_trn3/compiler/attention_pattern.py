"""Attention in a program: the operations around a softmax that work on its rows, one by one.

    logits = q . k, scaled, capped, masked     e = exp(logits - max)     p = e / sum     out = p . v

and, in a training step, their derivatives. Rows (queries) do not depend on each other: every
operation on the rows x columns matrix, forward and backward, computes each row of its result from
the same row of its operands, or sums over rows. The pattern is that property, followed from the
exponential through whatever stands there (`indices.py` knows what an operation does to a row), not
a list of spellings: masks, biases, caps, dropout, grouped heads and derivatives of all of them need
no rule of their own, and what is computed block by block is what the program says, row by row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from .indices import Indices, Letters, indices
from .operations import producer, shape, users
from .order import dependencies

# Rows at a time. At 64, a head's block of a matrix with 4096 columns is 1 MiB and stays in a cache;
# smaller blocks spend their time starting products, larger ones take more memory.
BLOCK_ROWS = 64

# A matrix below this size (64 Ki elements a head) is left as it is: a quarter of a MiB saves no
# memory worth a loop.
MIN_ELEMENTS = 256 * 256
MIN_ROWS = 2 * BLOCK_ROWS

# What only passes a matrix on.
SAME = {"stablehlo.convert", "stablehlo.optimization_barrier", "sdy.sharding_constraint"}

# From the exponential to the product with the values (or, backward, with queries or keys).
_BETWEEN = SAME | {
    "stablehlo.divide",
    "stablehlo.multiply",
    "stablehlo.reshape",
    "stablehlo.select",
    "stablehlo.transpose",
}

Axes = tuple[int | None, int | None]  # the dimension of a value that is the row, and the column


class _NoMatch(Exception):
    """The matrix is needed as a whole."""


@dataclasses.dataclass(frozen=True)
class Attention:
    """The operations of one block of a program that belong to one attention.

    exponential: the softmax's.
    rows, columns: sizes of the matrix, queries and keys.
    axes: of the values that the operations compute.
    levels: operations and their level, in the program's order. What stands at level n depends, by
      way of other operations, on all rows of something at level n - 1 (a gradient on the output).
    masks: operations among them that no product is part of; other attentions may share them.
    """

    exponential: Any
    rows: int
    columns: int
    axes: dict[Any, Axes]
    levels: dict[Any, int]
    masks: frozenset[Any]

    def is_matrix(self, value: Any) -> bool:
        """Whether a value has rows and columns both."""
        return None not in self.axes.get(value, (None, None))


def find_attention(block: Any) -> list[Attention]:
    """The attentions of a block of a program."""
    found: list[Attention] = []
    ops = [op.operation for op in block.operations]
    inputs: list[tuple[int, ...]] | None = None
    for op in ops:
        if op.name != "stablehlo.exponential" or any(op in other.levels for other in found):
            continue
        if (axes := matrix_axes(op)) is None:
            continue
        try:
            region = _grow(op, axes)
        except _NoMatch:
            continue
        inputs = inputs or dependencies(ops)
        size = shape(op.results[0])
        levels = _levels(ops, inputs, region)
        masks = frozenset(op for op, has_product in region.has_product.items() if not has_product)
        found.append(Attention(op, size[axes[0]], size[axes[1]], region.axes, levels, masks))
    return found


def matrix_axes(exponential: Any) -> tuple[int, int] | None:
    """(row, column) of an exponential's result if it is a softmax's between two products."""
    result = exponential.results[0]
    size = shape(result)
    if math.prod(size) < MIN_ELEMENTS:
        return None
    column = _summed_axis(result)
    if column is None and (column := _shifted_axis(exponential)) is None:
        return None
    rows = _query_axes(exponential, column)
    row = max(rows, key=lambda axis: size[axis], default=None)
    if row is None or size[row] < MIN_ROWS or size[row] * size[column] < MIN_ELEMENTS:
        return None
    return (row, column) if _reaches_product(result) else None


def _producer(value: Any, block: Any) -> Any:
    """The operation of the block that computes a value, or None."""
    op = producer(value)
    return op if op is not None and op.block == block else None


def _summed_axis(value: Any) -> int | None:
    """The only axis that a value is summed over, right after it is computed."""
    for user in users(value):
        if user.name in SAME:
            if (axis := _summed_axis(user.results[0])) is not None:
                return axis
        elif user.name == "stablehlo.reduce" and (known := indices(user)) is not None:
            size = shape(value)
            long = [axis for axis in known.summed if size[axis] != 1]
            if len(long) == 1:
                return long[0]
    return None


def _shifted_axis(exponential: Any) -> int | None:
    """The only axis along which the same is subtracted (the maximum, in a backward pass)."""
    difference = _producer(exponential.operands[0], exponential.block)
    while difference is not None and difference.name in SAME:
        difference = _producer(difference.operands[0], exponential.block)
    if difference is None or difference.name != "stablehlo.subtract":
        return None
    shift = _producer(difference.operands[1], exponential.block)
    while shift is not None and shift.name in SAME:
        shift = _producer(shift.operands[0], exponential.block)
    if shift is None or shift.name != "stablehlo.broadcast_in_dim":
        return None
    known = indices(shift)
    assert known is not None
    size = shape(shift.results[0])
    long = [at for at, n in enumerate(size) if n != 1 and at not in known.operands[0]]
    return long[0] if len(long) == 1 else None


def _query_axes(exponential: Any, column: int) -> set[int]:
    """Axes of the exponential that come from the other side of the product than its column."""
    result = exponential.results[0]
    every: Letters = tuple(range(len(shape(result))))
    pending = [(result, every)]
    seen = set()
    while pending:
        value, dims = pending.pop()  # dims[i]: axis of the exponential that dimension i is
        op = _producer(value, exponential.block)
        if op is None or op in seen or (known := indices(op)) is None:
            continue
        seen.add(op)
        axis_of = dict(zip(known.results[0], dims))
        if op.name == "stablehlo.dot_general":
            sides = [
                {axis_of.get(letter) for letter in own if letter not in other}
                for own, other in (known.operands, known.operands[::-1])
            ]
            for side, other in (sides, sides[::-1]):
                if column in side:
                    return {axis for axis in other if axis is not None}
        for operand, letters in zip(op.operands, known.operands):
            axes = tuple(axis_of.get(letter) if letter is not None else None for letter in letters)
            if column in axes:
                pending.append((operand, axes))
    return set()


def _reaches_product(value: Any) -> bool:
    pending, seen = [value], set()
    while pending:
        for user in users(pending.pop()):
            if user.name == "stablehlo.dot_general":
                return True
            if user.name in _BETWEEN and user not in seen:
                seen.add(user)
                pending += user.results
    return False


@dataclasses.dataclass
class _Region:
    """Operations that join, and the axes of what they compute."""

    block: Any
    elements: int  # of the exponential
    columns: int
    axes: dict[Any, Axes] = dataclasses.field(default_factory=dict)
    ops: set[Any] = dataclasses.field(default_factory=set)
    has_product: dict[Any, bool] = dataclasses.field(default_factory=dict)

    def is_statistic(self, value: Any) -> bool:
        """Whether a value is no more than a number or so for each row."""
        return math.prod(shape(value)) * self.columns <= self.elements

    def label(self, value: Any, axes: Axes) -> None:
        known = self.axes.setdefault(value, axes)
        if known[0] != axes[0] or (None not in (known[1], axes[1]) and known[1] != axes[1]):
            raise _NoMatch  # the same matrix by rows and by columns
        if known[1] is None and axes[1] is not None:
            self.axes[value] = axes

    def join(self, op: Any) -> Indices | None:
        """Takes in an operation one of whose values has axes. None if rows are not kept apart."""
        known = indices(op) if op.block == self.block else None
        if known is None:
            return None
        row, column = _letters(self.axes, op, known)
        if row is None or row in known.fixed:
            return None
        self.ops.add(op)
        for value, letters in zip(op.results, known.results):
            self.label(value, axes_of(letters, row, column))
        return known


def axes_of(letters: Sequence[int | None], row: int | None, column: int | None) -> Axes:
    """Where in a value with these letters the row and the column are."""
    return (
        letters.index(row) if row is not None and row in letters else None,
        letters.index(column) if column is not None and column in letters else None,
    )


def _letters(axes: dict[Any, Axes], op: Any, known: Indices) -> tuple[int | None, int | None]:
    """The letters of rows and columns in an operation."""
    rows, columns = set(), set()
    values = [*op.results, *op.operands]
    for value, letters in zip(values, known.results + known.operands):
        row, column = axes.get(value, (None, None))
        if row is not None:
            rows.add(letters[row])
            if column is not None:
                columns.add(letters[column])
    if len(rows) > 1 or len(columns - {None}) > 1:
        raise _NoMatch
    return next(iter(rows), None), next(iter(columns - {None}), None)


def operand_axes(axes: dict[Any, Axes], op: Any) -> list[Axes]:
    """The row and the column of each operand of an operation that joined."""
    known = indices(op)
    assert known is not None
    row, column = _letters(axes, op, known)
    return [axes_of(letters, row, column) for letters in known.operands]


def _grow(exponential: Any, axes: tuple[int, int]) -> _Region:
    """Everything that the matrix is computed from and used in. _NoMatch if it is needed whole."""
    result = exponential.results[0]
    elements, columns = math.prod(shape(result)), shape(result)[axes[1]]
    region = _Region(exponential.block, elements, columns, {result: axes})
    matrices: list[Any] = []  # whose users all have to join
    statistics: list[Any] = []
    if not _join_producer(region, result, matrices):
        raise _NoMatch
    seen = set()
    while matrices:
        value = matrices.pop()
        if value in seen:
            continue
        seen.add(value)
        for user in users(value):
            if user in region.ops:
                operand_axes(region.axes, user)  # raises where they differ
            elif region.join(user) is None:
                if math.prod(shape(value)) > elements // 2:
                    raise _NoMatch
                continue  # something smaller, a bias's gradient say, that leaves
            _join_operands(region, user, matrices)
            for computed in user.results:
                if None not in region.axes[computed]:
                    matrices.append(computed)
                elif region.axes[computed][0] is not None and region.is_statistic(computed):
                    statistics.append(computed)
    _join_statistics(region, statistics)
    return region


def _join_operands(region: _Region, op: Any, matrices: list[Any]) -> bool:
    """Takes in what computes an operation's matrices. Whether there is a product in it."""
    products = []
    for operand, axes in zip(op.operands, operand_axes(region.axes, op)):
        if None not in axes:
            region.label(operand, axes)
            products.append(_join_producer(region, operand, matrices))
    return any(products)


def _join_producer(region: _Region, value: Any, matrices: list[Any]) -> bool:
    """Takes in what computes a matrix, back to arrays that are none. Whether a product is in it.

    A mask or bias that is made of something smaller may have other users, who keep theirs; a
    product that is used elsewhere is there as a whole anyway, so all its users have to join.
    """
    op = _producer(value, region.block)
    if op is None:
        return False
    if op not in region.has_product:
        if op not in region.ops and region.join(op) is None:
            return False
        has_product = _join_operands(region, op, matrices) or op.name == "stablehlo.dot_general"
        region.has_product[op] = has_product
        if has_product:
            matrices += op.results
    return region.has_product[op]


def _join_statistics(region: _Region, statistics: list[Any]) -> None:
    """Takes in what lies between statistics of the rows and their use in the matrix."""
    trial = dataclasses.replace(region, axes=dict(region.axes), ops=set(region.ops))
    candidates: list[Any] = []
    pending = list(statistics)
    while pending:
        for user in users(pending.pop()):
            if user in trial.ops or not all(map(region.is_statistic, user.results)):
                continue
            try:
                if trial.join(user) is None:
                    continue
            except _NoMatch:
                continue
            if all(trial.axes[computed][0] is not None for computed in user.results):
                candidates.append(user)
                pending += user.results
    _keep_what_returns(region, trial, candidates)


def _keep_what_returns(region: _Region, trial: _Region, candidates: list[Any]) -> None:
    """Of the candidates, keeps those whose results the region uses in the end."""
    is_changing = True
    while is_changing:
        is_changing = False
        for op in candidates:
            using = [user for computed in op.results for user in users(computed)]
            if op not in region.ops and any(user in region.ops for user in using):
                region.ops.add(op)
                region.axes |= {computed: trial.axes[computed] for computed in op.results}
                is_changing = True


def _levels(
    ops: Sequence[Any], inputs: Sequence[tuple[int, ...]], region: _Region
) -> dict[Any, int]:
    """See Attention.levels."""
    first = next(at for at, op in enumerate(ops) if op in region.ops)
    levels: dict[Any, int] = {}
    outside = [0] * len(ops)  # the level of rows that an operation outside can be used for
    for at in range(first, len(ops)):
        op = ops[at]
        joins = op in region.ops
        level = 0
        for source in inputs[at]:
            other = ops[source]
            if other not in levels:
                level = max(level, outside[source])
            elif joins and all(region.axes[value][0] is not None for value in other.results):
                level = max(level, levels[other])
            else:
                level = max(level, levels[other] + 1)
        if joins:
            levels[op] = level
        else:
            outside[at] = level
    return levels
