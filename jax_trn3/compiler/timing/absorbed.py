"""Operations that cost nothing behind the group that makes their operand: it writes its result
where they would bring it."""

import math
from collections.abc import Mapping

from .cut import Cut, may_overwrite, sources_of, uses_of
from .draft import Draft
from .graph import Operation, Tensor
from .views import behind

_SHORT_RUN = 64
"""Bytes of the shortest runs that groups write side by side."""


def _written_in_place(cut: Cut, place: int, operation: Operation) -> bool:
    """Lets the group that computes an update write it where it belongs."""
    if operation.kind != "stablehlo.dynamic_update_slice":
        return False
    whole, update = operation.operands[:2]
    target, view = behind(whole, cut.views), behind(update, cut.views)
    draft = cut.producer.get(view.tensor.id)
    draft = draft.root() if draft else None
    if not may_overwrite(cut, place, target) or draft is None or not view.plain:
        return False
    if draft.kind == "single":
        return False
    others = [v for t in (whole, *operation.operands[2:]) for v in [behind(t, cut.views)]]
    before = [source for other in others for source in sources_of(cut, other)]
    if any(source is draft for source in before):
        return False
    level = max([draft.level, *(source.level + 1 for source in before)])
    if level >= draft.ceiling or uses_of(cut, update, view) > 1:
        return False
    draft.level = level
    for source in before:
        source.ceiling = min(source.ceiling, level)
    rename(cut, draft, view.tensor, operation.results[0], view.tensor.shape)
    cut.stored.add(operation.results[0].id)
    return True


def _turned(cut: Cut, place: int, operation: Operation) -> bool:
    """Lets a matmul write its result transposed: the other operand stays, or rows go elsewhere."""
    if operation.kind != "stablehlo.transpose":
        return False
    (tensor,), (result,) = operation.operands, operation.results
    view = behind(tensor, cut.views)
    draft = cut.producer.get(view.tensor.id)
    draft = draft.root() if draft else None
    if draft is None or draft.kind != "matmul" or len(draft.operations) > 1 or not view.plain:
        return False
    if uses_of(cut, tensor, view) > 1 or not _easily_turned(operation, draft.operations[0][1]):
        return False
    rename(cut, draft, view.tensor, result, result.shape)
    return True


def _easily_turned(transpose: Operation, dot: Operation) -> bool:
    """Whether rows of the result come out of the tensor engine as they are or with the operands
    exchanged: whether its last dimension is the last free one of either operand."""
    shape = transpose.operands[0].shape
    order = [int(a) for a in transpose.attributes["permutation"] if shape[int(a)] > 1]
    numbers = dot.attributes.get("dot_dimension_numbers", {})
    if not order or shape != dot.results[0].shape or not isinstance(numbers, Mapping):
        return not order
    of_lhs = (
        len(numbers.get(f"lhs_{kind}_dimensions", ())) for kind in ("contracting", "batching")
    )
    contracted, batch = of_lhs
    rows = len(dot.operands[0].shape) - contracted  # batch and free dimensions of the left one
    ends = [max((a for a in range(*part) if shape[a] > 1), default=-1) for part in
            ((batch, rows), (rows, len(shape)))]  # fmt: skip
    return order[-1] in ends


def _side_by_side(cut: Cut, place: int, operation: Operation) -> bool:
    """Lets a group of rows write what is concatenated where it belongs."""
    if operation.kind != "stablehlo.concatenate":
        return False
    seen = [behind(t, cut.views) for t in operation.operands]
    found = []
    for tensor, view in zip(operation.operands, seen):
        draft = cut.producer.get(view.tensor.id)
        draft = draft.root() if draft else None
        again = view.tensor.id in cut.original or uses_of(cut, tensor, view) > 1
        if draft is None or draft.kind != "rows" or not view.plain or again:
            return False
        found.append(draft)
    first, axis = operation.operands[0], int(operation.attributes.get("dimension", 0))
    run = math.prod(first.shape[axis:]) * first.bytes // max(1, first.size)
    names = {t.id for t in operation.operands}
    # One group: of several, who reads the whole could not tell whom to wait for.
    if run < _SHORT_RUN or any(d is not found[0] for d in found) or len(names) < len(seen):
        return False
    for view in seen:
        rename(cut, found[0], view.tensor, operation.results[0], view.tensor.shape)
    cut.stored.add(operation.results[0].id)
    return True


def rename(cut: Cut, draft: Draft, before: Tensor, after: Tensor, shape: tuple[int, ...]) -> None:
    first = cut.original.get(before.id, before.id)
    cut.renamed[first] = Tensor(after.id, shape, before.dtype)
    cut.original[after.id] = first
    cut.producer[after.id] = draft


ABSORBED = (_written_in_place, _turned, _side_by_side)
"""Operations that cost nothing behind the group that makes their operand."""
