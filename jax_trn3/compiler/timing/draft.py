"""A group in the making: what is in it, when it can run, and what else it can take in."""

import itertools
import math
from dataclasses import dataclass, field

from .graph import Operation
from .kinds import is_elementwise, is_epilogue
from .views import View

ROW_LIMIT = 1 << 20
"""Longest row that is reduced on the way: it lies in SBUF, over all partitions if need be."""

_ONE_ROW = 1 << 16
"""Longest row that is all there is, and is reduced to one number that others wait for."""

_MOST_OPERATIONS = 160
"""Operations of a group: a program of instructions whose text stays short."""

_EPILOGUE_OPERATIONS = 16
_EPILOGUE_OPERANDS = 2
_EPILOGUE_RESULTS = 2
"""What a matmul does on the way out: more, and it is no longer the tensor engine that decides."""


@dataclass
class Draft:
    """A group in the making."""

    number: int
    kind: str
    """"rows", "matmul", or "single" for one that takes nothing in."""

    elements: int
    """Of its largest values: those that go by in rows."""

    operations: list[tuple[int, Operation]] = field(default_factory=list)
    """With their places in the program."""

    level: int = 0
    ceiling: float = math.inf
    """Level of the lowest group that reads from it."""

    sizes: set[int] = field(default_factory=set)
    """Elements of its values: each divides the next, a value a row of the larger."""

    late: set[int] = field(default_factory=set)
    """Values that are known only when all rows have gone by."""

    whole: set[int] = field(default_factory=set)
    """Elements of what is reduced to one number. Where that is all that a group has, it is one row;
    another such reduction, of something smaller, would only be known at the end."""

    into: "Draft | None" = None
    """The group that took it in."""

    def root(self) -> "Draft":
        """The group that it is part of by now."""
        draft = self
        while draft.into is not None:
            if draft.into.into is not None:
                draft.into = draft.into.into
            draft = draft.into
        return draft

    def room(self, more: int) -> bool:
        """Whether so many more operations fit."""
        return len(self.operations) + more <= _MOST_OPERATIONS

    def add(self, operation: Operation, elements: int) -> None:
        """Enters the sizes of an operation's values."""
        self.elements = max(self.elements, elements)
        self.sizes |= {elements, *(t.size for t in operation.results)} - {1}
        if operation.kind == "stablehlo.reduce":
            self.sizes = _with_reduction(self.sizes, operation)
            self.whole |= _whole(operation)

    def take(self, other: "Draft") -> None:
        """Takes in another group."""
        self.kind = "matmul" if "matmul" in (self.kind, other.kind) else self.kind
        self.elements = max(self.elements, other.elements)
        self.operations += other.operations
        self.ceiling = min(self.ceiling, other.ceiling)
        self.sizes |= other.sizes
        self.late |= other.late
        self.whole |= other.whole
        other.into = self


def row_length(operation: Operation) -> int:
    """Elements that a reduction makes one of, if they stand one after the other; else 0."""
    shape = operation.operands[0].shape
    axes = {int(a) for a in operation.attributes.get("dimensions", ())}
    counting = [axis for axis, size in enumerate(shape) if size > 1]
    reduced = [axis for axis in counting if axis in axes]
    if reduced != counting[len(counting) - len(reduced) :]:
        return 0
    length = math.prod(shape[axis] for axis in reduced)
    return length if length <= ROW_LIMIT else 0


def reduced_columns(operation: Operation) -> int:
    """Of a reduction that needs more than rows: elements that stay side by side, at least 1; 0 for
    one along rows alone."""
    if row_length(operation):
        return 0
    shape = operation.operands[0].shape
    axes = {int(a) for a in operation.attributes.get("dimensions", ())}
    kept = 1
    for axis in reversed(range(len(shape))):
        if axis in axes and shape[axis] > 1:
            break
        kept *= shape[axis]
    return kept


def known_late(operation: Operation, draft: Draft) -> bool:
    """Whether a reduction is known only when all of a group's rows have gone by."""
    if reduced_columns(operation):
        return True
    if operation.operands[0].size == operation.results[0].size:
        return False
    whole = operation.results[0].size == 1
    return whole and (draft.elements > operation.operands[0].size or draft.elements > _ONE_ROW)


def _with_reduction(sizes: set[int], operation: Operation) -> set[int]:
    """Sizes of a group with a reduction: what is left side by side must lie in a row."""
    elements, left = operation.operands[0].size, operation.results[0].size
    columns = reduced_columns(operation)
    if not columns:
        return sizes
    sizes = sizes - {left} if left != elements else sizes
    return sizes | ({elements // columns} - {1} if columns > 1 else set())


def absorbs(draft: Draft, view: View, elements: int, operation: Operation) -> bool:
    """Whether a group can go on with one of its values, as `view` shows it to the operation."""
    if view.window or view.repeat < 1 or not draft.room(1):
        return False
    size = view.tensor.size
    if draft.kind == "matmul":
        return view.repeat == 1 and is_epilogue(operation, draft.elements)
    if view.repeat > ROW_LIMIT:
        return False
    if size == 1 and view.repeat > 1:
        return draft.elements == elements
    return True


def _whole(operation: Operation) -> set[int]:
    """Elements that a reduction makes one number of; none of any other operation."""
    if operation.kind != "stablehlo.reduce" or operation.results[0].size > 1:
        return set()
    return {operation.operands[0].size} - {1}


def _chain(sizes: set[int]) -> bool:
    """Whether each size divides the next."""
    ordered = sorted(sizes)
    return all(large % small == 0 for small, large in itertools.pairwise(ordered))


def _fit(chosen: list[Draft], draft: Draft, elements: int, operation: Operation) -> bool:
    """Whether groups and an operation can be one group."""
    together = [*chosen, draft]
    if sum(len(d.operations) for d in together) >= _MOST_OPERATIONS:
        return False
    dots = [d for d in together if d.kind == "matmul"]
    if len(dots) > 1:
        return False
    if dots:
        size = dots[0].elements
        others = [op for d in together if d.kind == "rows" for _, op in d.operations]
        return all(is_epilogue(op, size) for op in (*others, operation)) and not any(
            d.late for d in together
        )
    longest = max([elements, *(d.elements for d in together)])
    whole = _whole(operation).union(*(d.whole for d in together))
    if longest in whole and len(whole) > 1:
        return False
    sizes = {elements, *(n for d in together for n in d.sizes)}
    sizes |= {t.size for t in operation.results} - {1}
    if operation.kind == "stablehlo.reduce":
        sizes = _with_reduction(sizes, operation)
    return _chain(sizes) and max(sizes) // min(sizes) <= ROW_LIMIT


def raised(
    joinable: list[Draft], level: int, elements: int, operation: Operation
) -> tuple[list[Draft], int]:
    """Of the groups that an operation could join, those that it can join together, and the level
    at which they run then."""
    chosen: list[Draft] = []
    for draft in sorted(joinable, key=lambda d: (-d.level, -d.number)):
        if _fit(chosen, draft, elements, operation):
            chosen.append(draft)
        else:
            level = max(level, draft.level + 1)
    while chosen:
        top = max([level, *(d.level for d in chosen)])
        held = [d for d in chosen if d.ceiling <= top]
        if not held:
            return chosen, top
        chosen = [d for d in chosen if d.ceiling > top]
        level = max([level, *(d.level + 1 for d in held)])
    return [], level


def epilogue_fits(draft: Draft, written: int) -> bool:
    """Whether a matmul can do what has been put behind it on the way out, and write so many
    results."""
    after = [op for _, op in draft.operations if is_elementwise(op)]
    if len(after) <= 1:
        return True
    own = {t.id for _, op in draft.operations for t in op.results}
    used = [t for op in after for t in op.operands]
    read = {t.id for t in used if t.id not in own and t.size == draft.elements}
    return (
        len(after) <= _EPILOGUE_OPERATIONS
        and len(read) <= _EPILOGUE_OPERANDS
        and written <= _EPILOGUE_RESULTS
    )
