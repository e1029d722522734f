"""Where in a run its operations lie, and the engine instructions of a part of it.

A loop is shown by one of its iterations: the one in which the window begins, or else the first. Its
body lies in it as in the first iteration, which is what a `Schedule` knows.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from jax_trn3.compiler.timing.schedule import Schedule, Step
from jax_trn3.profiler.runs import MAX_RUNS, Runs, runs, shifted
from jax_trn3.simulator import Timeline
from jax_trn3.simulator.walk import TooManyRuns

from .result import Estimate


@dataclass(frozen=True)
class Placed:
    """A step in the run, ps from its start."""

    step: Step
    start_ps: int
    around: tuple[tuple[int, int], ...] = ()
    """(iterations, ps from one to the next) of the loops that it is in, the outermost first."""

    iteration: int = 0
    """Of a loop: the one that is shown."""

    begin_ps: int = 0
    """Of a loop or branch: when the body that is shown begins."""

    inside: tuple["Placed", ...] = ()
    """Of a loop or branch: what is in that body."""

    @property
    def end_ps(self) -> int:
        """When it is over."""
        return self.start_ps + self.step.time_ps

    @property
    def times(self) -> int:
        """How often it runs in all."""
        return math.prod(count for count, _ in self.around)

    def walk(self) -> Iterator["Placed"]:
        """It, and all that is in it."""
        yield self
        for place in self.inside:
            yield from place.walk()


def placed(schedule: Schedule, at_ps: int = 0) -> tuple[Placed, ...]:
    """The steps of a schedule; of a loop the iteration in which `at_ps` lies."""
    return _placed(schedule, 0, (), at_ps)


_Around = tuple[tuple[int, int], ...]


def _placed(schedule: Schedule, start: int, around: _Around, at_ps: int) -> tuple[Placed, ...]:
    return tuple(_place(step, start + step.start_ps, around, at_ps) for step in schedule.steps)


def _place(step: Step, start: int, around: _Around, at_ps: int) -> Placed:
    if step.inner is None:
        return Placed(step, start, around)
    iteration, begin, pace = _iteration(step, at_ps - start)
    begin += start
    inside: tuple[Placed, ...] = ()
    if step.count:
        loops = (*around, (step.count, pace)) if step.kind == "loop" else around
        inside = _placed(step.inner, begin, loops, at_ps)
    return Placed(step, start, around, iteration, begin, inside)


def _iteration(step: Step, at_ps: int) -> tuple[int, int, int]:
    """The iteration of a loop in which a time from its start lies, when that one begins, and how
    much later each begins than the one before."""
    assert step.inner is not None
    count, inner = step.count, step.inner
    if not count:
        return 0, 0, 0
    # The condition runs before each iteration and after the last one.
    condition = (step.time_ps - inner.time_ps - inner.pace_ps * (count - 1)) // (count + 1)
    pace = inner.pace_ps + max(0, condition)
    inside = 0 <= at_ps < step.time_ps and pace > 0
    iteration = min(count - 1, max(0, at_ps - condition) // pace) if inside else 0
    return iteration, max(0, condition) + iteration * pace, pace


@dataclass(frozen=True)
class Shown:
    """Engine instructions of a group, where in the run they lie."""

    place: Placed
    runs: Runs


def instructions(
    estimate: Estimate, window_ps: tuple[int, int] | None = None, limit: int = MAX_RUNS
) -> tuple[list[Shown], int]:
    """The engine instructions of a window, numbered through, and how many others the run has.

    **Arguments:**

    - `window_ps`: Start and end of the part to show; None is from the start on, as many as `limit`.

    Of a loop, only the iteration is shown that `placed` shows.

    **Raises:** `ValueError` for a window that is empty or has more than `limit`.
    """
    start, end = window_ps or (0, max(1, estimate.schedule.time_ps))
    if not 0 <= start < end:
        raise ValueError(f"window {start} to {end} ps: needs 0 <= start < end")
    shown: list[Shown] = []
    number, left = 0, limit
    for place, timeline, begin in _groups(estimate, start, end):
        try:
            some = _within(timeline, (start - begin, end - begin), place.end_ps - begin, left)
        except TooManyRuns as error:
            if window_ps is not None:
                raise ValueError(
                    f"window {start} to {end} ps has more than {limit:,} instructions: {error}"
                ) from None
            if not shown:
                shown.append(Shown(place, shifted(runs(timeline, limit=limit), begin, 0)))
            break
        shown.append(Shown(place, shifted(some, begin, number)))
        number += timeline.num_instructions
        left -= len(some)
    return shown, estimate.cost.instructions - sum(len(part.runs) for part in shown)


def _groups(estimate: Estimate, start: int, end: int) -> Iterator[tuple[Placed, Timeline, int]]:
    """What runs in a window, each repetition of a group's timeline with its begin. Cores that a
    device fuses share the repetitions; those of the first are here."""
    places = (place for top in placed(estimate.schedule, start) for place in top.walk())
    for place in places:
        timed = place.step.timed
        if timed is None or place.start_ps >= end or place.end_ps <= start:
            continue
        once = max(1, timed.timeline.active_ps)
        for k in range(max(0, start - place.start_ps) // once, timed.plan.repeat):
            begin = place.start_ps + k * once
            if begin >= min(end, place.end_ps):
                break
            yield place, timed.timeline, begin


def _within(timeline: Timeline, window: tuple[int, int], last: int, limit: int) -> Runs:
    """The runs of a window that are over by `last`, ps from the timeline's start."""
    if window[0] <= 0 and timeline.active_ps <= min(window[1], last):
        if timeline.num_instructions > limit:
            raise TooManyRuns(f"{timeline.program.name} alone has {timeline.num_instructions:,}")
        return runs(timeline, limit=limit)
    found = runs(timeline, (max(0, window[0]), min(window[1], last)), limit)
    over = np.flatnonzero(found.events[:, 3] <= last)
    indices = tuple(found.indices[k] for k in over.tolist())
    return replace(found, numbers=found.numbers[over], events=found.events[over], indices=indices)
