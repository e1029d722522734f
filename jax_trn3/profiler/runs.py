"""The runs that a view shows one by one: all of a timeline, or those of a window."""

from dataclasses import dataclass, replace

import numpy as np

from jax_trn3.isa import Instruction
from jax_trn3.simulator import Timeline
from jax_trn3.simulator.walk import TooManyRuns, between, instances

MAX_RUNS = 200_000
"""Runs that a view shows if nobody asks for more."""


@dataclass(frozen=True)
class Runs:
    """Some runs of a timeline's instructions, in program order."""

    timeline: Timeline
    start_ps: int
    end_ps: int
    """The window: runs that were issued before its end and done after its start are here."""

    numbers: np.ndarray
    """int64[n]: the row of each in `Timeline.expand`."""

    events: np.ndarray
    """int64[n, 6]: their rows, by `simulator.timeline.COLUMNS`."""

    indices: tuple[dict[int, int], ...]
    """The iteration of each loop around each, by the loop's id, outermost first."""

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def left_out(self) -> int:
        """Runs of the timeline that are not here."""
        return self.timeline.num_instructions - len(self)

    def instruction(self, run: int) -> Instruction:
        """The instruction of the text that a run is of."""
        return self.timeline.instructions[self.events[run, 5]]


def runs(
    timeline: Timeline, window_ps: tuple[int, int] | None = None, limit: int = MAX_RUNS
) -> Runs:
    """The runs of a timeline that a view shows.

    **Arguments:**

    - `window_ps`: Start and end of the part to show; None is all or, if that has more than `limit`
      runs, as long a part from the start as has not.

    **Raises:** `ValueError` for a window that has more, or that is empty.
    """
    if window_ps is not None:
        start, end = window_ps
        if not 0 <= start < end:
            raise ValueError(f"window {start} to {end} ps: needs 0 <= start < end")
        return _of_window(timeline, start, end, limit)
    end = max(1, timeline.active_ps)
    if timeline.num_instructions > limit:
        end = max(1, end * limit // timeline.num_instructions)
    while True:
        try:
            return _of_window(timeline, 0, end, limit)
        except TooManyRuns:
            if end == 1:
                raise
            end = max(1, end * 3 // 4)


def shifted(shown: Runs, ps: int, number: int) -> Runs:
    """The same runs so much later, counted from `number` on: as part of something longer."""
    events = shown.events + np.array([ps, ps, ps, ps, number, 0])
    events[:, 4] = np.where(shown.events[:, 4] < 0, -1, events[:, 4])
    return replace(
        shown,
        start_ps=shown.start_ps + ps,
        end_ps=shown.end_ps + ps,
        numbers=shown.numbers + number,
        events=events,
    )


def _of_window(timeline: Timeline, start: int, end: int, limit: int) -> Runs:
    if (start, end) == (0, max(1, timeline.active_ps)) and timeline.num_instructions <= limit:
        events = timeline.expand(limit)
        numbers = np.arange(len(events))
        found = instances(timeline.program)
    else:
        numbers, events = between(timeline, start, end, limit)
        found = instances(timeline.program, numbers.tolist())
    return Runs(timeline, start, end, numbers, events, tuple(i for _, i in found))
