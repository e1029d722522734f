"""Which operations run as one: a body is cut into groups, between which values go through HBM.

Every group has a level, higher than those of the groups that it reads from, so that groups can
never wait for each other in a circle. An operation joins the groups of its operands where they can
all run at one level: a group without readers so far can be raised, one with readers up to theirs.

What a group's operations read is what lies in HBM, not views of it (`views.py`): an operand may be
smaller than the result. The attribute "repeats" of an operation says for each operand how often its
elements stand one after the other (a value a row: the length of the row), 0 if they are repeated
otherwise (a value a column).
"""

import functools
from collections.abc import Collection, Iterable
from dataclasses import replace

from .absorbed import ABSORBED
from .cut import Cut, sources_of
from .draft import (
    ROW_LIMIT,
    Draft,
    absorbs,
    known_late,
    raised,
    row_length,
)
from .graph import Body, Operation, Tensor
from .group import Group
from .kinds import FREE, is_elementwise, rule_of, stays_whole
from .order import in_order
from .transposes import folded
from .views import View, behind, reads_memory_only, uses, views

_NEAR = 64
"""Operations of the program within which two that read the same may run as one."""


class _This:
    """A body, equal to itself alone: to compare what is in it would take longer than to cut it."""

    def __init__(self, body: Body) -> None:
        self.body = body

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _This) and other.body is self.body

    def __hash__(self) -> int:
        return id(self.body)


def groups(body: Body, donated: Collection[int] | None = None) -> list[Group | Operation]:
    """Cuts the operations of a body into groups, in an order in which they can run.

    **Arguments:**

    - `body`: A function or the body of a loop.
    - `donated`: Ids of the parameters that may be overwritten; None: all of them, as in a loop.

    **Returns:** Groups for rules; operations that are not ours as they are: control flow,
    collectives, kernels. What costs nothing is in none of them.
    """
    return list(_groups(_This(body), None if donated is None else frozenset(donated)))


@functools.lru_cache(maxsize=64)  # a program is cut for its time, and again for its memory
def _groups(this: _This, donated: frozenset[int] | None) -> list[Group | Operation]:
    body = this.body
    body = _live(folded(_without_nothing(body)))
    overwritable = {t.id for t in body.parameters} if donated is None else set(donated)
    cut = Cut(body, views(body), uses(body), overwritable)
    cut.known = {t.id for t in body.parameters}
    cut.made_by = {t.id: op for op in body.operations for t in op.results}
    for place, operation in enumerate(body.operations):
        for tensor in operation.used if operation.regions else operation.operands:
            cut.last_use[behind(tensor, cut.views).tensor.id] = place
    for place, operation in enumerate(body.operations):
        seen_through = operation.results and all(t.id in cut.views for t in operation.results)
        if not seen_through and operation.kind not in FREE:
            _place(cut, place, operation)
    for tensor in body.results:
        _materialized(cut, tensor, len(body.operations))
    return in_order(cut)


def memory_of(body: Body) -> dict[int, Tensor]:
    """By id of a value that is a view, the tensor whose memory it is (reshapes, barriers)."""
    known = views(body)
    return {number: view.tensor for number, view in known.items() if view.tensor.id != number}


def _without_nothing(body: Body) -> Body:
    """The body without what has no elements: nothing is done for it."""
    operations = []
    for operation in body.operations:
        if operation.results and not any(t.size for t in operation.results):
            continue
        if operation.kind == "stablehlo.concatenate":
            parts = tuple(t for t in operation.operands if t.size)
            operation = replace(operation, operands=parts)
        operations.append(operation)
    return replace(body, operations=tuple(operations))


def _live(body: Body) -> Body:
    """The body without operations whose results nobody needs and that do nothing beside."""
    needed = {t.id for t in body.results}
    live = []
    for operation in reversed(body.operations):
        acts = stays_whole(operation) or operation.kind.startswith(
            ("stablehlo.custom_call", "custom_call:", "stablehlo.infeed", "stablehlo.outfeed")
        )
        if acts or any(t.id in needed for t in operation.results):
            used = operation.used if operation.regions else operation.operands
            needed |= {t.id for t in used}
            live.append(operation)
    return replace(body, operations=tuple(reversed(live)))


# One operation after another.


def _place(cut: Cut, place: int, operation: Operation) -> None:
    if reads_memory_only(operation):
        used = operation.used if operation.regions else operation.operands
        for tensor in used:
            _materialized(cut, tensor, place)
        operands = tuple(_as_read(cut, t) for t in operation.operands)
        _alone(cut, place, replace(operation, operands=operands), used)
    elif _fuses(operation):
        if operation.kind in ("stablehlo.reduce", "stablehlo.map"):
            for tensor in operation.operands:
                if tensor.size > 1 and not behind(tensor, cut.views).plain:
                    _materialized(cut, tensor, place)
        _fused(cut, place, operation)
    elif not any(absorbed(cut, place, operation) for absorbed in ABSORBED):
        for tensor in operation.operands:
            view = behind(tensor, cut.views)
            if view.made is not None or view.repeat != 1:
                _materialized(cut, tensor, place)
        _alone(cut, place, _reading(cut, operation), operation.operands)


def _fuses(operation: Operation) -> bool:
    if operation.kind == "stablehlo.reduce":
        return len(operation.results) == 1 or row_length(operation) > 0
    return is_elementwise(operation) or operation.kind == "stablehlo.map"


def _reading(cut: Cut, operation: Operation) -> Operation:
    """The operation with what is behind its operands in their place."""
    seen = [behind(t, cut.views) for t in operation.operands]
    changed = tuple(view.tensor for view in seen)
    if changed == operation.operands:
        return operation
    repeats = tuple(view.repeat for view in seen)
    return replace(
        operation, operands=changed, attributes={**operation.attributes, "repeats": repeats}
    )


def _as_read(cut: Cut, tensor: Tensor) -> Tensor:
    return behind(tensor, cut.views).tensor


def _alone(
    cut: Cut, place: int, operation: Operation, used: Iterable[Tensor], kind: str = "single"
) -> Draft:
    """A group of its own."""
    if rule_of(operation) == "matmul" and not stays_whole(operation):
        kind = "matmul"
    draft = Draft(len(cut.drafts), kind, operation.results[0].size if operation.results else 0)
    cut.drafts.append(draft)
    draft.operations.append((place, operation))
    sources = [sources_of(cut, view) for view in (behind(t, cut.views) for t in used)]
    draft.level = max((d.level + 1 for found in sources for d in found), default=0)
    _join(cut, draft, operation, used)
    return draft


def _join(cut: Cut, draft: Draft, operation: Operation, used: Iterable[Tensor]) -> None:
    """Enters who wrote and who reads."""
    for tensor in used:
        for source in sources_of(cut, behind(tensor, cut.views)):
            if source is not draft:
                source.ceiling = min(source.ceiling, draft.level)
    for tensor in operation.results:
        cut.producer[tensor.id] = draft


def _materialized(cut: Cut, tensor: Tensor, place: int) -> None:
    """Writes a view to HBM for a reader that cannot look behind it."""
    view = cut.views.get(tensor.id)
    if view is None or view.plain:
        return
    made = view.made
    if made is not None:
        operation = replace(made, results=(tensor,))
    elif view.window and view.repeat == 1:
        operation = Operation("stablehlo.slice", (view.tensor,), (tensor,))
    else:
        operation = Operation(
            "stablehlo.broadcast_in_dim", (view.tensor,), (tensor,), {"repeats": (view.repeat,)}
        )
    if tensor.id in cut.made_by:
        operation = replace(operation, source=cut.made_by[tensor.id].source)
    del cut.views[tensor.id]
    kind = "single" if view.window and view.repeat == 1 else "rows"
    draft = _alone(cut, place, operation, [view.tensor], kind)
    draft.level = max(
        [draft.level, *(d.level + 1 for d in sources_of(cut, view) if d is not draft)]
    )


def _fused(cut: Cut, place: int, operation: Operation) -> None:
    """Puts an operation into the groups of its operands where that can be, else into a new one."""
    elements = max([t.size for t in operation.results])
    if operation.kind == "stablehlo.reduce":
        elements = operation.operands[0].size
    seen = [behind(t, cut.views) for t in operation.operands]
    read = _reading(cut, operation)
    tail = _tail(cut, seen, operation)
    if tail is not None:
        tail.operations.append((place, read))
        tail.late |= {t.id for t in operation.results}
        _join(cut, tail, operation, operation.operands)
        return
    level, joinable, blocked = 0, {}, set()
    for view in seen:
        for source in sources_of(cut, view):
            known = view.tensor.id not in source.late and view.tensor.id not in cut.stored
            link = source.kind != "single" and known
            if link and absorbs(source, view, elements, operation):
                joinable[source.number] = source
            else:
                level = max(level, source.level + 1)
                blocked.add(source.number)
    joinable = {number: d for number, d in joinable.items() if number not in blocked}
    chosen, level = raised(list(joinable.values()), level, elements, operation)
    draft = chosen[0] if chosen else _beside(cut, place, seen, elements, level)
    if draft is None:
        draft = Draft(len(cut.drafts), "rows", elements)
        cut.drafts.append(draft)
    draft.level = max(draft.level, level)
    for other in chosen[1:]:
        draft.take(other)
    draft.operations.append((place, read))
    draft.add(operation, elements)
    if operation.kind == "stablehlo.reduce" and known_late(operation, draft):
        draft.late |= {t.id for t in operation.results}
    _join(cut, draft, operation, operation.operands)
    for view, tensor in zip(seen, operation.operands):
        if draft.kind == "rows" and tensor.size == elements and view.repeat == 1:
            cut.readers[view.tensor.id] = draft


def _tail(cut: Cut, seen: list[View], operation: Operation) -> Draft | None:
    """The group that computes the little that this operation needs after all of its rows."""
    found: Draft | None = None
    for view in seen:
        for source in sources_of(cut, view):
            if view.tensor.id in source.late:
                found = source if found is None else found
    small = all(t.size <= ROW_LIMIT for t in operation.results)
    if found is None or not small or not is_elementwise(operation):
        return None
    for view in seen:
        for source in sources_of(cut, view):
            late = source is found and view.tensor.id in source.late and view.repeat == 1
            if not late and (source is found or source.level >= found.level):
                return None
    return found


def _beside(cut: Cut, place: int, seen: list[View], elements: int, level: int) -> Draft | None:
    """A group of rows not far before that reads the same and can wait for the other operands."""
    for view in seen:
        draft = cut.readers.get(view.tensor.id)
        draft = draft.root() if draft else None
        if draft is None or view.repeat != 1 or draft.kind != "rows":
            continue
        near = place - draft.operations[-1][0] <= _NEAR
        if near and draft.elements == elements and draft.level >= level and draft.room(1):
            return draft
    return None
