"""The runs of a program one by one: which instruction each is, when it ran, what it touches.

A run has a number: its row in `Timeline.expand`. What is asked for by number or by time is found
without visiting what lies in between, so that a window of a long timeline costs what it shows.
"""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from jax_trn3.isa import Access, Instruction

from .program import Loop, Node, Program
from .repetition import Repeat
from .timeline import COLUMNS, Timeline

_BLOCK = 65_536  # runs looked at in one go

Instance = tuple[int, dict[int, int]]
"""Number of the instruction in the text; the iteration of each loop around it, by the loop's id."""


class TooManyRuns(ValueError):
    """More runs than were asked for."""


@dataclass(frozen=True)
class _Nest:
    """A loop whose instructions are numbered."""

    loop: Loop
    parts: tuple["int | _Nest", ...]
    varies: bool
    """Whether how many runs the body has depends on the iteration."""


def instances(program: Program, rows: Iterable[int] | None = None) -> Iterator[Instance]:
    """The runs of a program in its order: one for each row of `Timeline.expand`.

    **Arguments:**

    - `rows`: Only these, ascending; None is all.

    **Returns:** (number of the instruction in the text, {id of a loop: iteration}) of each. Runs of
    one iteration share their dict.
    """
    parts, _ = _numbered(program.body, 0)
    if rows is None:
        return _all(parts, {})
    return _some(parts, {}, 0, list(rows)[::-1])


def slots(access: Access, indices: dict[int, int]) -> tuple[int, ...]:
    """The slots of its tile that an access touches in these iterations."""
    count = access.tile.slots
    first = access.slot.at(indices) if count > 1 else 0
    return tuple((first + k) % count for k in range(access.slot_count))


def touched(
    instruction: Instruction, indices: dict[int, int]
) -> Iterator[tuple[str, Access, tuple[int, ...]]]:
    """(operand, access, slots of its tile) for each operand of one run."""
    for name, access in instruction.operands:
        yield name, access, slots(access, indices)


def between(
    timeline: Timeline, start_ps: int, end_ps: int, limit: int = 10_000_000
) -> tuple[np.ndarray, np.ndarray]:
    """The runs that were issued before `end_ps` and done after `start_ps`.

    **Returns:** their numbers (int64[n], ascending), and their rows of `Timeline.expand`
    (int64[n, 6]).

    **Raises:** `TooManyRuns` if there are more than `limit`.
    """
    search = _Search(timeline, start_ps, end_ps, limit)
    nested = sorted(timeline.repeats, key=lambda r: (r.begin, -r.end))
    still = np.zeros((len(timeline.events), 5), np.int64)
    search.visit(0, len(timeline.events), nested, still, 0)
    return np.concatenate(search.numbers), np.concatenate(search.events)


def _numbered(nodes: Iterable[Node], number: int) -> tuple[tuple["int | _Nest", ...], int]:
    parts: list[int | _Nest] = []
    for node in nodes:
        if isinstance(node, Loop):
            inner, after = _numbered(node.body, number)
            parts.append(_Nest(node, inner, _counts_depend(node.body, node.id)))
            number = after
        else:
            parts.append(number)
            number += 1
    return tuple(parts), number


def _counts_depend(nodes: Iterable[Node], loop: int) -> bool:
    inner = [node for node in nodes if isinstance(node, Loop)]
    return any(loop in dict(node.count.terms) or _counts_depend(node.body, loop) for node in inner)


def _all(parts: Iterable["int | _Nest"], indices: dict[int, int]) -> Iterator[Instance]:
    for part in parts:
        if isinstance(part, int):
            yield part, indices
            continue
        for i in range(part.loop.count.at(indices)):
            yield from _all(part.parts, {**indices, part.loop.id: i})


def _some(
    parts: Iterable["int | _Nest"], indices: dict[int, int], row: int, wanted: list[int]
) -> Generator[Instance, None, int]:
    """Those of the rows at the end of `wanted` that are in here. Returns the row after."""
    for part in parts:
        if isinstance(part, int):
            if wanted and wanted[-1] == row:
                wanted.pop()
                yield part, indices
            row += 1
            continue
        i, count = 0, part.loop.count.at(indices)
        while i < count and wanted:
            inner = {**indices, part.loop.id: i}
            size = _size(part.parts, inner)
            passed = wanted[-1] >= row + size
            skip = 0 if not passed else 1 if part.varies or not size else (wanted[-1] - row) // size
            if skip:
                skip = min(skip, count - i)
                row, i = row + skip * size, i + skip
            else:
                row = yield from _some(part.parts, inner, row, wanted)
                i += 1
    return row


def _size(parts: Iterable["int | _Nest"], indices: dict[int, int]) -> int:
    """Runs of a body in these iterations of the loops around it."""
    size = 0
    for part in parts:
        if isinstance(part, int):
            size += 1
            continue
        count, loop = part.loop.count.at(indices), part.loop.id
        if part.varies:
            size += sum(_size(part.parts, {**indices, loop: i}) for i in range(count))
        elif count > 0:
            size += count * _size(part.parts, {**indices, loop: 0})
    return size


class _Search:
    """Collects the runs of a window out of events and their repetitions."""

    def __init__(self, timeline: Timeline, start: int, end: int, limit: int) -> None:
        self.start, self.end, self.limit = start, end, limit
        self.base = timeline.events.copy()
        self.base[:, 4] = timeline.rows_of_causes()
        self.numbers: list[np.ndarray] = [np.empty(0, np.int64)]
        self.events: list[np.ndarray] = [np.empty((0, len(COLUMNS)), np.int64)]
        self._found = 0

    def visit(
        self, begin: int, end: int, repeats: list[Repeat], moved: np.ndarray, row: int
    ) -> int:
        """Looks through events `begin` to `end`, the first of which is row `row`. `moved`
        (int64[events, 5]) is added to their times and causes. Returns the row after them."""
        place = begin
        while repeats:
            outer = repeats[0]
            inside = [r for r in repeats[1:] if r.begin < outer.end]
            repeats = repeats[1 + len(inside) :]
            row = self._straight(place, outer.begin, moved, row)
            row = self._repeated(outer, inside, moved, row)
            place = outer.end
        return self._straight(place, end, moved, row)

    def _straight(self, begin: int, end: int, moved: np.ndarray, row: int) -> int:
        rows = self.base[begin:end, :5] + moved[begin:end]
        self._keep(rows, np.arange(begin, end), row + np.arange(end - begin))
        return row + end - begin

    def _repeated(self, repeat: Repeat, inside: list[Repeat], moved: np.ndarray, row: int) -> int:
        once = _rows(repeat.begin, repeat.end, inside)
        first, last = self._times(repeat, inside, moved)
        span = slice(repeat.begin, repeat.end)
        step = repeat.step.copy()
        step[:, 4] *= once
        if not inside:
            many = max(1, _BLOCK // once)
            for k in range(first, last, many):
                ks = np.arange(k, min(k + many, last))[:, None, None]
                found = self.base[span, :5] + moved[span] + ks * step
                events = np.tile(np.arange(repeat.begin, repeat.end), len(ks))
                rows = row + k * once + np.arange(len(ks) * once)
                self._keep(found.reshape(-1, 5), events, rows)
        for k in range(first, last if inside else first):
            further = moved.copy()
            further[span] += k * step
            self.visit(repeat.begin, repeat.end, inside, further, row + k * once)
        return row + repeat.count * once

    def _keep(self, found: np.ndarray, events: np.ndarray, rows: np.ndarray) -> None:
        """Notes those of some runs that are in the window."""
        here = np.flatnonzero((found[:, 0] < self.end) & (found[:, 3] > self.start))
        self._found += len(here)
        if self._found > self.limit:
            raise TooManyRuns(
                f"more than {self.limit} instructions ran from {self.start} to {self.end} ps"
            )
        self.numbers.append(rows[here])
        self.events.append(np.hstack([found[here], self.base[events[here], 5:]]))

    def _times(self, repeat: Repeat, inside: list[Repeat], moved: np.ndarray) -> tuple[int, int]:
        """The first time of a repetition that may have runs in the window, and the one after the
        last."""
        span = slice(repeat.begin, repeat.end)
        low = high = self.base[:, :5] + moved
        for inner in inside:
            part, most = slice(inner.begin, inner.end), inner.step * (inner.count - 1)
            low, high = low.copy(), high.copy()
            low[part] += np.minimum(most, 0)
            high[part] += np.maximum(most, 0)
        issued, done = low[span, 0], high[span, 3]
        before = _first(issued, repeat.step[:, 0], self.end, repeat.count)
        after = _first(done, repeat.step[:, 3], self.start + 1, repeat.count)
        some = before > after
        if not some.any():
            return 0, 0
        return int(after[some].min()), int(before[some].max())


def _first(times: np.ndarray, step: np.ndarray, bound: int, count: int) -> np.ndarray:
    """The first k at which `times + k * step` is at least `bound`, at most `count`."""
    moves = np.maximum(step, 1)
    needed = np.where(step > 0, -(-(bound - times) // moves), np.where(times >= bound, 0, count))
    return np.clip(needed, 0, count)


def _rows(begin: int, end: int, repeats: list[Repeat]) -> int:
    """Rows of events `begin` to `end`, repetitions in them carried out."""
    rows = np.ones(end - begin, np.int64)
    for repeat in repeats:
        rows[repeat.begin - begin : repeat.end - begin] *= repeat.count
    return int(rows.sum())
