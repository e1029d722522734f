"""Loops: simulated until they repeat, then extrapolated, exactly.

In a timed event graph every time after one more iteration is a maximum of sums of times before it.
As a function of how often an iteration's advance is added to the state, each time is therefore
convex and piecewise linear, and a convex function that lies on a line at three points lies on it
between them. So: where three successive periods advance everything by the same amounts, jump ahead
by m periods, simulate one more, and if that, too, advanced by the same amounts, all periods between
did. If not (something slow catches up with something fast on the way), jump less far.
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .clock import UNWRITTEN, Clock, Throttle, Waiting
from .decode import Body, DecodedLoop, Decoder, Segment

_FIRST_TRY = 1
"""Period after which to look for repetition the first time; each time after twice as far."""


@dataclass(frozen=True)
class Repeat:
    """Events that happened again and again, event e for the k-th time `k * step[e]` later."""

    begin: int
    """First event of the first time."""

    end: int
    """Event after its last."""

    count: int
    """How often, the first time included."""

    step: np.ndarray
    """int64[events, 5]: what each of (issued, start, free, done) grows by each time, ps; and 1
    where the cause is an event of the same time or the one before, 0 where it stays the same."""


class _Place(NamedTuple):
    """Everything that decides what happens next, at the end of a period."""

    times: np.ndarray
    """All times and ranks (int64)."""

    structure: tuple[object, ...]
    """The rest: which transfers wait, who wrote what."""

    events: int
    served: int
    repeats: int


class Run:
    """One simulation: a clock, and the loops that drive it."""

    def __init__(self, decoder: Decoder, clock: Clock, extrapolate: bool = True) -> None:
        self.decoder = decoder
        self.clock = clock
        self.repeats: list[Repeat] = []
        self._extrapolate = extrapolate
        self._indices: dict[int, int] = {}

    def body(self, body: Body) -> None:
        """Runs a body once."""
        for part in body.parts:
            if isinstance(part, Segment):
                ops = self.decoder.ops(part, self._indices)
                self._new_servers()
                self.clock.run(ops)
            else:
                self._loop(part)

    def _new_servers(self) -> None:
        missing = len(self.decoder.servers) - len(self.clock.free)
        self.clock.free += [0] * missing
        self.clock.rank += [0] * missing

    def _loop(self, loop: DecodedLoop) -> None:
        count = loop.count.at(self._indices)
        done = 0
        attempt = _FIRST_TRY * loop.period
        while done < count:
            # Three periods to compare, one to confirm, and one at least to jump over.
            worthwhile = self._extrapolate and loop.regular and count - done >= 5 * loop.period
            if worthwhile and done >= attempt:
                before = done
                done = self._jump(loop, done, count)
                attempt = done + 2 * before
            else:
                self._iterate(loop, done, 1)
                done += 1
        self._indices.pop(loop.id, None)

    def _iterate(self, loop: DecodedLoop, first: int, count: int) -> None:
        for i in range(first, first + count):
            self._indices[loop.id] = i
            self.body(loop.body)

    def _jump(self, loop: DecodedLoop, done: int, count: int) -> int:
        """Simulates three periods, and skips what follows as far as it can be known."""
        period = loop.period
        places = [_place(self)]
        for _ in range(3):
            self._iterate(loop, done, period)
            done += period
            places.append(_place(self))
            if len(places) == 3 and not _alike(*places):
                return done
        step = _advance(self, places)
        periods = (count - done) // period - 1
        while step is not None and periods >= 1:
            memory = _remember(self, places[0])
            ghost = _skip(self, places, step, periods)
            self._iterate(loop, done + periods * period, period)
            if _confirmed(self, places, step, periods, ghost):
                return done + (periods + 1) * period
            _restore(self, memory)
            periods //= 2
        return done


def _place(run: Run) -> _Place:
    """The state of the clock, transfers that had their turn written down as such."""
    clock = run.clock
    _settle(clock)
    now = len(clock.events)
    waiting = sorted(clock.waiting)
    times = [*clock.free, *clock.rank, *clock.written, *clock.read]
    times += clock.write_rank
    times += clock.read_rank
    times += [w.rank for w in waiting]
    times += [w.ready for w in waiting]
    structure: list[object] = [tuple(clock.writer)]
    structure += [(w.event - now, w.op.static, tuple(e - now for e in w.after)) for w in waiting]
    pending = [c for c, time in enumerate(clock.written) if UNWRITTEN < time < 0]
    for cell in pending:
        structure.append((cell, -1 - clock.written[cell] - now))
        times[2 * len(clock.free) + cell] = 0
    structure.append({c: [e - now for e in events] for c, events in clock.readers.items()})
    for server, throttle in clock.throttles.items():
        throttle.rebase()
        times += [clock.load_free[server], throttle.steady]
        times += [late for late, _, _ in throttle.recent]
        times += [steady for _, steady, _ in throttle.recent]
        structure.append(tuple(before for _, _, before in throttle.recent))
    for semaphore, held in clock.signals.items():
        structure.append((semaphore, [(n, when < 0 and event - now) for n, when, event, _ in held]))
        times += [0 if when < 0 else when for _, when, _, _ in held]
        times += [rank for _, _, _, rank in held]
    return _Place(
        np.array(times, np.int64), tuple(structure), now, len(clock.served), len(run.repeats)
    )


def _settle(clock: Clock) -> None:
    """Writes the times of transfers that had their turn where they are waited for."""
    events = clock.events
    for cell, time in enumerate(clock.written):
        if UNWRITTEN < time < 0 and events[-1 - time] is not None:
            clock.written[cell] = clock.done(-1 - time)
    for cell in list(clock.readers):
        over = [e for e in clock.readers[cell] if events[e] is not None]
        for event in over:
            last = (clock.read[cell], clock.read_event[cell])
            clock.read[cell], clock.read_event[cell] = max(last, (clock.done(event), event))
        clock.readers[cell] = [e for e in clock.readers[cell] if events[e] is None]
        if not clock.readers[cell]:
            del clock.readers[cell]
    for index, waiting in enumerate(clock.waiting):
        served = [e for e in waiting.after if events[e] is not None]
        if served:
            known = (waiting.ready, waiting.cause)
            ready, cause = max(known, *((clock.done(e), e) for e in served))
            clock.waiting[index] = waiting._replace(
                ready=ready,
                cause=cause,
                after=tuple(e for e in waiting.after if events[e] is None),
            )
    for held in clock.signals.values():
        held[:] = [
            (n, clock.done(e) if when < 0 and events[e] is not None else when, e, rank)
            for n, when, e, rank in held
        ]


def _alike(a: _Place, b: _Place, c: _Place) -> bool:
    """Whether two periods advanced everything by the same amounts."""
    if not (_same_shape(a, b) and _same_shape(b, c)):
        return False
    return np.array_equal(b.times - a.times, c.times - b.times)


def _same_shape(one: _Place, other: _Place) -> bool:
    return one.times.shape == other.times.shape and one.structure == other.structure


def _window(run: Run, first: _Place, last: _Place) -> np.ndarray | None:
    """int64[events, 6] between two places; None if a transfer among them still waits."""
    events = run.clock.events[first.events : last.events]
    if None in events:
        return None
    return np.array(events, np.int64).reshape(-1, 6)


def _inner(run: Run, first: _Place, last: _Place) -> list[tuple[int, int, int, bytes]]:
    """The repetitions between two places, as seen from the first."""
    return [
        (r.begin - first.events, r.end - first.events, r.count, r.step.tobytes())
        for r in run.repeats[first.repeats : last.repeats]
    ]


def _advance(run: Run, places: Sequence[_Place]) -> tuple[np.ndarray, np.ndarray] | None:
    """What the state and each event grow by in a period; None if that is not settled yet."""
    a, b, c, d = places
    if not (_same_shape(b, c) and _same_shape(c, d) and _same_shape(a, b)):
        return None
    step = d.times - c.times
    if not (np.array_equal(c.times - b.times, step) and np.array_equal(b.times - a.times, step)):
        return None
    lengths = {y.events - x.events for x, y in itertools.pairwise(places)}
    inner = [_inner(run, x, y) for x, y in itertools.pairwise(places)]
    served = [run.clock.served[x.served : y.served] for x, y in itertools.pairwise(places)]
    first, second = _window(run, a, b), _window(run, b, c)
    if len(lengths) > 1 or inner[0] != inner[1] or inner[1] != inner[2]:
        return None
    if served[0] != served[1] or served[1] != served[2] or first is None or second is None:
        return None
    grows = (second - first)[:, :5]
    length = b.events - a.events
    if not np.isin(grows[:, 4], (0, length)).all():
        return None
    grows[:, 4] //= max(1, length)
    return step, grows


def _remember(run: Run, since: _Place) -> tuple[_Place, dict[str, Any], tuple[list[Any], ...]]:
    """What `_restore` needs to undo everything that is to happen to the state."""
    clock = run.clock
    state = {
        name: _copied(value)
        for name, value in vars(clock).items()
        if name not in ("events", "served", "waiting")
    }
    state["waiting"] = list(clock.waiting)
    tail = clock.events[since.events :], clock.served[since.served :], run.repeats[since.repeats :]
    return since, state, tail


def _copied(value: Any) -> Any:
    """A copy of a part of the clock's state that shares nothing which changes."""
    if isinstance(value, Throttle):
        twin = copy.copy(value)
        twin.recent = value.recent.copy()
        return twin
    if isinstance(value, dict):
        twins = copy.copy(value)
        twins.update((key, _copied(inner)) for key, inner in value.items())
        return twins
    return value[:] if isinstance(value, list) else value


def _restore(run: Run, memory: tuple[_Place, dict[str, Any], tuple[list[Any], ...]]) -> None:
    since, state, (events, served, repeats) = memory
    clock = run.clock
    for name, value in state.items():
        setattr(clock, name, value)
    clock.events[since.events :] = events
    clock.served[since.served :] = served
    run.repeats[since.repeats :] = repeats


def _skip(
    run: Run, places: Sequence[_Place], step: tuple[np.ndarray, np.ndarray], periods: int
) -> int:
    """Moves on by that many periods. Of the events, the first of the three periods stays as the
    repetition's base; the last period skipped follows it, for what still waits to be filled in.

    Returns the first event of the latter.
    """
    a, b, c, d = places
    clock = run.clock
    base = run.clock.events[a.events : b.events]
    last = clock.events[c.events : d.events]
    inner = [
        Repeat(r.begin - c.events, r.end - c.events, r.count, r.step)
        for r in run.repeats[c.repeats : d.repeats]
    ]
    moved = b.events - c.events
    advance = step[1] * (periods + 2)
    del clock.events[b.events :]
    del run.repeats[b.repeats :]
    if base:  # a body without instructions leaves nothing to repeat
        run.repeats.append(Repeat(a.events, b.events, periods + 2, step[1]))
    for event, first, by in zip(last, base, advance.tolist()):
        if event is not None:
            issued, start, free, done, _, static = first
            later = (issued + by[0], start + by[1], free + by[2], done + by[3])
            event = (*later, event[4] + moved if event[4] >= b.events else event[4], static)
        clock.events.append(event)
    run.repeats += [Repeat(r.begin + b.events, r.end + b.events, r.count, r.step) for r in inner]
    _shift(clock, d.times + step[0] * periods, b.events, moved)
    return b.events


def _shift(clock: Clock, times: np.ndarray, since: int, moved: int) -> None:
    """Sets all times of the state, and renames events from `since` on."""

    def name(event: int) -> int:
        return event + moved if event >= since else event

    values = iter(times.tolist())

    def take(count: int) -> list[int]:
        return [next(values) for _ in range(count)]

    waiting = sorted(clock.waiting)
    servers, cells = len(clock.free), len(clock.written)
    clock.free[:] = take(servers)
    clock.rank[:] = take(servers)
    pending = {c: time for c, time in enumerate(clock.written) if UNWRITTEN < time < 0}
    clock.written[:] = take(cells)
    for cell, time in pending.items():
        clock.written[cell] = -1 - name(-1 - time)
    clock.read[:] = take(cells)
    clock.write_rank[:] = take(cells)
    clock.read_rank[:] = take(cells)
    ranks, readies = take(len(waiting)), take(len(waiting))
    clock.waiting[:] = [
        Waiting(rank, name(w.event), ready, name(w.cause), tuple(map(name, w.after)), w.op)
        for w, rank, ready in zip(waiting, ranks, readies)
    ]
    clock.write_event[:] = map(name, clock.write_event)
    clock.read_event[:] = map(name, clock.read_event)
    clock.readers = {c: [name(e) for e in events] for c, events in clock.readers.items()}
    for server, throttle in clock.throttles.items():
        clock.load_free[server], throttle.steady = take(2)
        count = len(throttle.recent)
        lates, steadies = take(count), take(count)
        befores = [before for _, _, before in throttle.recent]
        throttle.recent.clear()
        throttle.recent.extend(zip(lates, steadies, befores))
    for held in clock.signals.values():
        whens, ranks = take(len(held)), take(len(held))
        held[:] = [
            (n, -1 - name(e) if old < 0 else when, name(e), rank)
            for (n, old, e, _), when, rank in zip(held, whens, ranks)
        ]


def _confirmed(
    run: Run,
    places: Sequence[_Place],
    step: tuple[np.ndarray, np.ndarray],
    periods: int,
    ghost: int,
) -> bool:
    """Whether the period after the jump advanced everything as those before it did."""
    a, b, c, d = places
    clock = run.clock
    now = _place(run)
    if not _same_shape(d, now) or not np.array_equal(now.times, d.times + step[0] * (periods + 1)):
        return False
    length = b.events - a.events
    if (
        now.events != ghost + 2 * length
        or clock.served[-(d.served - c.served) or None :] != (clock.served[c.served : d.served])
    ):
        return False
    base = np.array(clock.events[a.events : b.events], np.int64).reshape(-1, 6)
    for later, first in ((periods + 2, ghost), (periods + 3, ghost + length)):
        events = clock.events[first : first + length]
        if first == ghost and None in events:
            return False
        expected = (base[:, :4] + later * step[1][:, :4]).tolist()
        if any(e is not None and list(e[:4]) != x for e, x in zip(events, expected)):
            return False
    return True
