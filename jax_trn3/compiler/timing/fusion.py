"""Which operations run as one: a body is cut into groups, between which values go through HBM.

Every group has a level, higher than those of the groups that it reads from, so that groups can
never wait for each other in a circle. An operation joins the groups of its operands where they can
all run at one level: a group without readers so far can be raised, one with readers up to theirs.

What a group's operations read is what lies in HBM, not views of it (`views.py`): an operand may be
smaller than the result. The attribute "repeats" of an operation says for each operand how often its
elements stand one after the other (a value a row: the length of the row), 0 if they are repeated
otherwise (a value a column).
"""

import heapq
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from .draft import (
    ROW_LIMIT,
    Draft,
    absorbs,
    epilogue_fits,
    known_late,
    raised,
    row_length,
)
from .graph import Body, Operation, Tensor, used_by
from .group import Group
from .kinds import FREE, is_elementwise, rule_of, stays_whole
from .transposes import folded
from .views import View, behind, reads_memory_only, uses, views

_SHORT_RUN = 64
"""Bytes of the shortest runs that groups write side by side."""

_NEAR = 64
"""Operations of the program within which two that read the same may run as one."""


@dataclass
class _Cut:
    """A body that is being cut."""

    body: Body
    views: dict[int, View]
    uses: dict[int, int]
    donated: Collection[int]
    made_by: dict[int, Operation] = field(default_factory=dict)
    known: set[int] = field(default_factory=set)
    """Ids of parameters, and of what has been placed."""
    drafts: list[Draft] = field(default_factory=list)
    producer: dict[int, Draft] = field(default_factory=dict)
    """By id of a value in memory."""
    readers: dict[int, Draft] = field(default_factory=dict)
    """The latest group of rows that reads a value from HBM."""
    last_use: dict[int, int] = field(default_factory=dict)
    renamed: dict[int, Tensor] = field(default_factory=dict)
    """What a group writes in place of a result: transposed, or straight into a larger value."""
    stored: set[int] = field(default_factory=set)
    """Values of which groups write parts: they are in HBM only."""
    original: dict[int, int] = field(default_factory=dict)
    """Of such a value, the id of the result."""


def groups(body: Body, donated: Collection[int] | None = None) -> list[Group | Operation]:
    """Cuts the operations of a body into groups, in an order in which they can run.

    **Arguments:**

    - `body`: A function or the body of a loop.
    - `donated`: Ids of the parameters that may be overwritten; None: all of them, as in a loop.

    **Returns:** Groups for rules; operations that are not ours as they are: control flow,
    collectives, kernels. What costs nothing is in none of them.
    """
    body = _live(folded(_without_nothing(body)))
    overwritable = {t.id for t in body.parameters} if donated is None else set(donated)
    cut = _Cut(body, views(body), uses(body), overwritable)
    cut.known = {t.id for t in body.parameters}
    cut.made_by = {t.id: op for op in body.operations for t in op.results}
    for place, operation in enumerate(body.operations):
        for tensor in used_by(operation) if operation.regions else operation.operands:
            cut.last_use[behind(tensor, cut.views).tensor.id] = place
    for place, operation in enumerate(body.operations):
        seen_through = operation.results and all(t.id in cut.views for t in operation.results)
        if not seen_through and operation.kind not in FREE:
            _place(cut, place, operation)
    for tensor in body.results:
        _materialized(cut, tensor, len(body.operations))
    return _in_order(cut)


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
            used = used_by(operation) if operation.regions else operation.operands
            needed |= {t.id for t in used}
            live.append(operation)
    return replace(body, operations=tuple(reversed(live)))


# One operation after another.


def _place(cut: _Cut, place: int, operation: Operation) -> None:
    if reads_memory_only(operation):
        used = used_by(operation) if operation.regions else operation.operands
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
    elif not any(absorbed(cut, place, operation) for absorbed in _ABSORBED):
        for tensor in operation.operands:
            view = behind(tensor, cut.views)
            if view.made is not None or view.repeat != 1:
                _materialized(cut, tensor, place)
        _alone(cut, place, _reading(cut, operation), operation.operands)


def _fuses(operation: Operation) -> bool:
    if operation.kind == "stablehlo.reduce":
        return len(operation.results) == 1 or row_length(operation) > 0
    return is_elementwise(operation) or operation.kind == "stablehlo.map"


def _reading(cut: _Cut, operation: Operation) -> Operation:
    """The operation with what is behind its operands in their place."""
    seen = [behind(t, cut.views) for t in operation.operands]
    changed = tuple(view.tensor for view in seen)
    if changed == operation.operands:
        return operation
    repeats = tuple(view.repeat for view in seen)
    return replace(
        operation, operands=changed, attributes={**operation.attributes, "repeats": repeats}
    )


def _as_read(cut: _Cut, tensor: Tensor) -> Tensor:
    return behind(tensor, cut.views).tensor


def _alone(
    cut: _Cut, place: int, operation: Operation, used: Iterable[Tensor], kind: str = "single"
) -> Draft:
    """A group of its own."""
    if rule_of(operation) == "matmul" and not stays_whole(operation):
        kind = "matmul"
    draft = Draft(len(cut.drafts), kind, operation.results[0].size if operation.results else 0)
    cut.drafts.append(draft)
    draft.operations.append((place, operation))
    sources = [_source(cut, view) for view in (behind(t, cut.views) for t in used)]
    draft.level = max((d.level + 1 for found in sources for d in found), default=0)
    _join(cut, draft, operation, used)
    return draft


def _source(cut: _Cut, view: View) -> list[Draft]:
    """The groups that must run before a view is read."""
    ids = (view.tensor.id, *view.needs)
    return [cut.producer[i].root() for i in ids if i in cut.producer]


def _join(cut: _Cut, draft: Draft, operation: Operation, used: Iterable[Tensor]) -> None:
    """Enters who wrote and who reads."""
    for tensor in used:
        for source in _source(cut, behind(tensor, cut.views)):
            if source is not draft:
                source.ceiling = min(source.ceiling, draft.level)
    for tensor in operation.results:
        cut.producer[tensor.id] = draft


def _materialized(cut: _Cut, tensor: Tensor, place: int) -> None:
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
    draft.level = max([draft.level, *(d.level + 1 for d in _source(cut, view) if d is not draft)])


def _fused(cut: _Cut, place: int, operation: Operation) -> None:
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
        for source in _source(cut, view):
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


def _tail(cut: _Cut, seen: list[View], operation: Operation) -> Draft | None:
    """The group that computes the little that this operation needs after all of its rows."""
    found: Draft | None = None
    for view in seen:
        for source in _source(cut, view):
            if view.tensor.id in source.late:
                found = source if found is None else found
    small = all(t.size <= ROW_LIMIT for t in operation.results)
    if found is None or not small or not is_elementwise(operation):
        return None
    for view in seen:
        for source in _source(cut, view):
            late = source is found and view.tensor.id in source.late and view.repeat == 1
            if not late and (source is found or source.level >= found.level):
                return None
    return found


def _beside(cut: _Cut, place: int, seen: list[View], elements: int, level: int) -> Draft | None:
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


def _written_in_place(cut: _Cut, place: int, operation: Operation) -> bool:
    """Lets the group that computes an update write it where it belongs."""
    if operation.kind != "stablehlo.dynamic_update_slice":
        return False
    whole, update = operation.operands[:2]
    target, view = behind(whole, cut.views), behind(update, cut.views)
    draft = cut.producer.get(view.tensor.id)
    draft = draft.root() if draft else None
    if not _may_overwrite(cut, place, target) or draft is None or not view.plain:
        return False
    if draft.kind == "single":
        return False
    others = [v for t in (whole, *operation.operands[2:]) for v in [behind(t, cut.views)]]
    before = [source for other in others for source in _source(cut, other)]
    if any(source is draft for source in before):
        return False
    level = max([draft.level, *(source.level + 1 for source in before)])
    if level >= draft.ceiling or _uses_of(cut, update, view) > 1:
        return False
    draft.level = level
    for source in before:
        source.ceiling = min(source.ceiling, level)
    _rename(cut, draft, view.tensor, operation.results[0], view.tensor.shape)
    cut.stored.add(operation.results[0].id)
    return True


def _turned(cut: _Cut, place: int, operation: Operation) -> bool:
    """Lets a matmul write its result transposed: the other operand stays, or rows go elsewhere."""
    if operation.kind != "stablehlo.transpose":
        return False
    (tensor,), (result,) = operation.operands, operation.results
    view = behind(tensor, cut.views)
    draft = cut.producer.get(view.tensor.id)
    draft = draft.root() if draft else None
    if draft is None or draft.kind != "matmul" or len(draft.operations) > 1 or not view.plain:
        return False
    if _uses_of(cut, tensor, view) > 1 or not _easily_turned(operation, draft.operations[0][1]):
        return False
    _rename(cut, draft, view.tensor, result, result.shape)
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


def _side_by_side(cut: _Cut, place: int, operation: Operation) -> bool:
    """Lets a group of rows write what is concatenated where it belongs."""
    if operation.kind != "stablehlo.concatenate":
        return False
    seen = [behind(t, cut.views) for t in operation.operands]
    found = []
    for tensor, view in zip(operation.operands, seen):
        draft = cut.producer.get(view.tensor.id)
        draft = draft.root() if draft else None
        again = view.tensor.id in cut.original or _uses_of(cut, tensor, view) > 1
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
        _rename(cut, found[0], view.tensor, operation.results[0], view.tensor.shape)
    cut.stored.add(operation.results[0].id)
    return True


_ABSORBED = (_written_in_place, _turned, _side_by_side)
"""Operations that cost nothing behind the group that makes their operand."""


def _rename(cut: _Cut, draft: Draft, before: Tensor, after: Tensor, shape: tuple[int, ...]) -> None:
    first = cut.original.get(before.id, before.id)
    cut.renamed[first] = Tensor(after.id, shape, before.dtype)
    cut.original[after.id] = first
    cut.producer[after.id] = draft


def _may_overwrite(cut: _Cut, place: int, target: View) -> bool:
    number = target.tensor.id
    own = number in cut.producer or number in cut.donated
    return target.plain and not target.constant and own and cut.last_use.get(number, 0) <= place


def _uses_of(cut: _Cut, tensor: Tensor, view: View) -> int:
    """Uses of a value and of what it is a view of, through views of it."""
    count = cut.uses.get(tensor.id, 0)
    return max(count, cut.uses.get(view.tensor.id, 0))


# Groups of drafts.


def _in_order(cut: _Cut) -> list[Group | Operation]:
    """The groups, each after those that it reads from; of several the first of the program."""
    drafts = [draft for draft in cut.drafts if draft.root() is draft]
    drafts = _with_whole_epilogues(cut, drafts)
    for draft in drafts:
        draft.operations.sort(key=lambda pair: pair[0])
    owner = {}
    for draft in drafts:
        results = [t for _, operation in draft.operations for t in operation.results]
        owner.update({t.id: draft for t in results})
        owner.update({cut.renamed[t.id].id: draft for t in results if t.id in cut.renamed})
    read_by: dict[int, list[Draft]] = {}
    waits: dict[int, int] = {}
    for draft in drafts:
        before = {
            other.number: other
            for number in _reads(cut, draft)
            if (other := owner.get(number)) is not None and other is not draft
        }
        waits[draft.number] = len(before)
        for other in before.values():
            read_by.setdefault(other.number, []).append(draft)
    outside = _read_outside(cut, drafts, owner)
    ready = [(d.operations[0][0], d.number, d) for d in drafts if not waits[d.number]]
    heapq.heapify(ready)
    found: list[Group | Operation] = []
    while ready:
        _, _, draft = heapq.heappop(ready)
        found.append(_finished(cut, draft, outside))
        for reader in read_by.get(draft.number, ()):
            waits[reader.number] -= 1
            if not waits[reader.number]:
                heapq.heappush(ready, (reader.operations[0][0], reader.number, reader))
    assert len(found) == len(drafts), "groups that wait for each other"
    return found


def _with_whole_epilogues(cut: _Cut, drafts: list[Draft]) -> list[Draft]:
    """Cuts off what a matmul cannot do on the way out: it becomes rows, with rows that go on with
    it if they can run together."""
    found = []
    read_by: dict[int, list[Draft]] = {}
    for draft in drafts:
        for number in set(_reads(cut, draft)):
            read_by.setdefault(number, []).append(draft)
    for draft in drafts:
        if draft.kind != "matmul" or epilogue_fits(draft, _written(cut, draft)):
            found.append(draft)
            continue
        dots = [pair for pair in draft.operations if rule_of(pair[1]) == "matmul"]
        after = [pair for pair in draft.operations if rule_of(pair[1]) != "matmul"]
        draft.operations = dots
        found.append(draft)
        results = [t for _, op in after for t in op.results]
        readers = [d for t in results for d in read_by.get(t.id, ()) if d is not draft]
        first = min(readers, key=lambda d: (d.level, d.number), default=None)
        if first is not None and first.kind == "rows" and first.elements == draft.elements:
            if all(d is first or d.level > first.level for d in readers):
                first.operations += after
                continue
        rest = Draft(-1 - draft.number, "rows", draft.elements)
        rest.level, rest.operations = draft.level, after
        found.append(rest)
    return found


def _written(cut: _Cut, draft: Draft) -> int:
    """Results of a group that others read."""
    inside: dict[int, int] = {}
    for _, operation in draft.operations:
        for tensor in operation.operands:
            inside[tensor.id] = inside.get(tensor.id, 0) + 1
    results = [t for _, operation in draft.operations for t in operation.results]
    return sum(cut.uses.get(t.id, 0) > inside.get(t.id, 0) for t in results)


def _reads(cut: _Cut, draft: Draft) -> Iterable[int]:
    for place, operation in draft.operations:
        original = cut.body.operations[place] if place < len(cut.body.operations) else operation
        for tensor in (*operation.operands, *_around(operation)):
            yield tensor.id
        for tensor in original.operands:
            yield from behind(tensor, cut.views).needs


def _around(operation: Operation) -> tuple[Tensor, ...]:
    return used_by(operation) if operation.regions else ()


def _read_outside(cut: _Cut, drafts: list[Draft], owner: dict[int, Draft]) -> set[int]:
    """Ids of the values that somebody reads who has not made them."""
    found = {behind(t, cut.views).tensor.id for t in cut.body.results}
    found |= {t.id for t in cut.body.results}
    for draft in drafts:
        found |= {n for n in _reads(cut, draft) if owner.get(n) is not draft}
    found |= {old for old, new in cut.renamed.items() if new.id in found}
    return found


def _finished(cut: _Cut, draft: Draft, outside: set[int]) -> Group | Operation:
    first = draft.operations[0][1]
    if draft.kind == "single" and stays_whole(first):
        return first
    operations = tuple(
        part for place, op in draft.operations for part in _spelled_out(cut, draft, op, place)
    )
    own = {t.id for op in operations for t in op.results}
    inputs: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    made: dict[int, Operation] = {}
    for tensor in (t for op in operations for t in op.operands if t.id not in own):
        view = cut.views.get(tensor.id)
        if view is not None and view.made is not None:
            made[tensor.id] = view.made
        elif not _constant(cut, tensor, view):
            inputs[tensor.id, tensor.shape] = tensor
    written = {cut.renamed[n].id for n in cut.renamed if n in outside} | outside
    outputs = [t for op in operations for t in op.results if t.id in written]
    rule = {"rows": "rows", "matmul": "matmul"}.get(draft.kind) or rule_of(first)
    return Group(rule, (*made.values(), *operations), tuple(inputs.values()), tuple(outputs))


def _spelled_out(cut: _Cut, draft: Draft, operation: Operation, place: int) -> Iterator[Operation]:
    """The operation; behind a matmul after the broadcasts that it reads, which say along which
    dimension a bias lies."""
    renamed = _renamed(cut, operation, place)
    if draft.kind != "matmul" or not is_elementwise(operation):
        yield renamed
        return
    operands = list(renamed.operands)
    for number, whole in enumerate(cut.body.operations[place].operands):
        part = operands[number]
        if 1 < part.size < whole.size:
            known = cut.made_by.get(whole.id)
            attributes = known.attributes if known else {}
            yield Operation("stablehlo.broadcast_in_dim", (part,), (whole,), attributes)
            operands[number] = whole
    yield replace(renamed, operands=tuple(operands))


def _constant(cut: _Cut, tensor: Tensor, view: View | None) -> bool:
    """A number of the program's: in the instruction, not in HBM. One from around a loop's body
    counts as one, too."""
    if view is not None and view.constant:
        return tensor.size == 1
    return tensor.size == 1 and tensor.id not in cut.known and tensor.id not in cut.producer


def _renamed(cut: _Cut, operation: Operation, place: int) -> Operation:
    if operation.kind in ("stablehlo.dynamic_update_slice", "stablehlo.scatter"):
        free = _may_overwrite(cut, place, View(operation.operands[0]))
        return replace(operation, attributes={**operation.attributes, "in_place": free})
    if not any(t.id in cut.renamed for t in operation.results):
        if not any(t.id in cut.renamed for t in operation.operands):
            return operation
    new = [cut.renamed.get(t.id, t) for t in operation.results]
    read = [replace(cut.renamed.get(t.id, t), shape=t.shape) for t in operation.operands]
    return replace(operation, results=tuple(new), operands=tuple(read))
