"""Drafts become groups: what they read and write, in an order in which they can run."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import replace

from .cut import Cut, may_overwrite
from .draft import Draft, epilogue_fits
from .graph import Operation, Tensor
from .group import Group
from .kinds import is_elementwise, rule_of, stays_whole
from .views import View, behind


def in_order(cut: Cut) -> list[Group | Operation]:
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


def _with_whole_epilogues(cut: Cut, drafts: list[Draft]) -> list[Draft]:
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
        same = first is not None and first.kind == "rows" and first.elements == draft.elements
        if first and same and all(d is first or d.level > first.level for d in readers):
            first.operations += after
            continue
        rest = Draft(-1 - draft.number, "rows", draft.elements)
        rest.level, rest.operations = draft.level, after
        found.append(rest)
    return found


def _written(cut: Cut, draft: Draft) -> int:
    """Results of a group that others read."""
    inside: dict[int, int] = {}
    for _, operation in draft.operations:
        for tensor in operation.operands:
            inside[tensor.id] = inside.get(tensor.id, 0) + 1
    results = [t for _, operation in draft.operations for t in operation.results]
    return sum(cut.uses.get(t.id, 0) > inside.get(t.id, 0) for t in results)


def _reads(cut: Cut, draft: Draft) -> Iterable[int]:
    for place, operation in draft.operations:
        original = cut.body.operations[place] if place < len(cut.body.operations) else operation
        for tensor in (*operation.operands, *_around(operation)):
            yield tensor.id
        for tensor in original.operands:
            yield from behind(tensor, cut.views).needs


def _around(operation: Operation) -> tuple[Tensor, ...]:
    return operation.used if operation.regions else ()


def _read_outside(cut: Cut, drafts: list[Draft], owner: dict[int, Draft]) -> set[int]:
    """Ids of the values that somebody reads who has not made them."""
    found = {behind(t, cut.views).tensor.id for t in cut.body.results}
    found |= {t.id for t in cut.body.results}
    for draft in drafts:
        found |= {n for n in _reads(cut, draft) if owner.get(n) is not draft}
    found |= {old for old, new in cut.renamed.items() if new.id in found}
    return found


def _finished(cut: Cut, draft: Draft, outside: set[int]) -> Group | Operation:
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


def _spelled_out(cut: Cut, draft: Draft, operation: Operation, place: int) -> Iterator[Operation]:
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


def _constant(cut: Cut, tensor: Tensor, view: View | None) -> bool:
    """A number of the program's: in the instruction, not in HBM. One from around a loop's body
    counts as one, too."""
    if view is not None and view.constant:
        return tensor.size == 1
    return tensor.size == 1 and tensor.id not in cut.known and tensor.id not in cut.producer


def _renamed(cut: Cut, operation: Operation, place: int) -> Operation:
    if operation.kind in ("stablehlo.dynamic_update_slice", "stablehlo.scatter"):
        free = may_overwrite(cut, place, View(operation.operands[0]))
        return replace(operation, attributes={**operation.attributes, "in_place": free})
    if not any(t.id in cut.renamed for t in (*operation.results, *operation.operands)):
        return operation
    new = [cut.renamed.get(t.id, t) for t in operation.results]
    read = [replace(cut.renamed.get(t.id, t), shape=t.shape) for t in operation.operands]
    return replace(operation, results=tuple(new), operands=tuple(read))
