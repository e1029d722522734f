"""Why a kernel takes as long as it does, and what to change.

>>> pltrn.explain(matmul, x, y)  # arrays, or jax.ShapeDtypeStruct: nothing runs on values

Bounds say what each engine, the DMA engines and HBM need by themselves; the critical path, which
instructions the end of the kernel waited for; the advice follows from these figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.text import Text

from jax_trn3.hardware import TRAINIUM3, Chip
from jax_trn3.isa import Instruction, Origin
from jax_trn3.profiler import figures
from jax_trn3.profiler.text import columns, plain
from jax_trn3.profiler.units import duration, percent
from jax_trn3.simulator import Timeline

from .advice import Advice, advice
from .timing import kernel_of_function, program_of, simulated

MOST = 2_000_000
"""Runs that the critical path is looked for in; of more, those that were simulated."""

_ROWS = 8


@dataclass(frozen=True)
class Bound:
    """What one server needs for its part by itself."""

    name: str
    """"tensor", "vector", "dma", "hbm", ..."""

    busy_ps: int
    fraction: float
    """Of the kernel's time, without the program's start and stop."""


@dataclass(frozen=True)
class Link:
    """Instructions of one line on the critical path, and how much of the time they account for."""

    instruction: str
    lane: str
    """Engine or queue."""

    file: str
    line: int
    operation: str
    runs: int
    """How many of them are on the path."""

    time_ps: int
    """For which the end waited for them: at work, on their way, or for their turn."""

    fraction: float


@dataclass(frozen=True)
class Waited:
    """What an engine waited for."""

    engine: str
    on: str
    instruction: str
    time_ps: int
    fraction: float


@dataclass(frozen=True)
class Explanation:
    """A kernel's time in figures. `print` writes it; `as_json` is for programs."""

    kernel: str
    chip: str
    time_ps: int
    """From the first instruction to the last result."""

    bounds: tuple[Bound, ...]
    """The busiest first."""

    path: tuple[Link, ...]
    """The critical path by line, what takes longest first."""

    waits: tuple[Waited, ...]
    advice: tuple[Advice, ...]
    assumptions: tuple[str, ...]
    timeline: Timeline = dataclasses.field(repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        """Everything but the timeline, of plain Python types."""
        named = [f.name for f in dataclasses.fields(self) if f.name != "timeline"]
        return {name: _plain(getattr(self, name)) for name in named}

    def __str__(self) -> str:
        return plain(_render(self), 110)

    def __rich__(self) -> RenderableType:
        return _render(self)


def explain(
    function: Callable[..., Any], *args: Any, chip: Chip = TRAINIUM3, active_cores: int = 1
) -> Explanation:
    """Prints what bounds a kernel, what its end waits for, and what to change.

    **Arguments:**

    - `function`: Calls one kernel (`pl.pallas_call`).
    - `args`: Arrays or `jax.ShapeDtypeStruct`, or trees of them.
    - `active_cores`: Cores that use the same HBM stack at the same time, this one included.

    **Returns:** The figures.

    **Raises:** `ValueError` for a function that calls none or several kernels; what the simulator
    raises for a kernel that the chip cannot run.
    """
    timed = program_of(kernel_of_function(function, *args), chip)
    timeline = simulated(timed, chip, active_cores)
    found = explained(timeline, timed.assumptions)
    Console().print(found)
    return found


def explained(timeline: Timeline, assumptions: tuple[str, ...] = ()) -> Explanation:
    """The same of a timeline, without printing."""
    whole = max(1, timeline.active_ps)
    bounds = tuple(
        Bound(name, busy, busy / whole)
        for name, busy in sorted(_busy(timeline), key=lambda b: -b[1])
    )
    waits = tuple(
        Waited(_short(w.engine), _short(w.on), w.instruction, w.time_ps, w.time_ps / whole)
        for w in figures.waits(timeline)
        if w.time_ps
    )
    return Explanation(
        timeline.program.name,
        timeline.chip.name,
        timeline.active_ps,
        bounds,
        critical_path(timeline),
        waits,
        advice(timeline),
        assumptions,
        timeline,
    )


def _busy(timeline: Timeline) -> Iterator[tuple[str, int]]:
    for name, spent in timeline.engines.items():
        yield _short(name), spent.busy
    engines = [d.busy for name, d in timeline.dma.items() if "dma engine" in name]
    if engines:
        yield "dma", max(engines)
    yield from (("hbm", d.busy) for name, d in timeline.dma.items() if name.endswith("/hbm"))


def _short(lane: str) -> str:
    return lane.partition("/")[2] or lane


# ---- the critical path ----


def critical_path(timeline: Timeline) -> tuple[Link, ...]:
    """By line, the instructions that the end of a program waited for; their times add up to its
    time.

    From the last result backwards: what an instruction waited for, or, where it waited for its
    engine or queue alone, the instruction before it there.
    """
    if timeline.num_instructions > MOST:
        rows = timeline.events  # of what repeats, once; shares are what counts
    else:
        rows = timeline.expand(MOST)
    if not len(rows):
        return ()
    before = _before(timeline, rows)
    sums: dict[int, tuple[int, int]] = {}
    row = int(rows[:, 3].argmax())
    until = int(rows[row, 3])
    while row >= 0:
        issued, _, _, _, cause, number = rows[row].tolist()
        previous = cause if cause >= 0 else before[row]
        since = int(rows[cause, 3]) if cause >= 0 else issued if previous >= 0 else 0
        since = min(since, until)
        runs, time = sums.get(number, (0, 0))
        sums[number] = (runs + 1, time + until - since)
        row, until = int(previous) if previous < row else -1, since
    return _by_line(timeline, sums)


def _before(timeline: Timeline, rows: np.ndarray) -> np.ndarray:
    """For each run the one before it on its engine or queue; -1 if it is the first."""
    names = {lane: k for k, lane in enumerate(dict.fromkeys(timeline.lanes))}
    lanes = np.array([names[lane] for lane in timeline.lanes])[rows[:, 5]]
    order = np.argsort(lanes, kind="stable")
    found = np.full(len(rows), -1)
    same = lanes[order][1:] == lanes[order][:-1]
    found[order[1:][same]] = order[:-1][same]
    return found


def _by_line(timeline: Timeline, sums: dict[int, tuple[int, int]]) -> tuple[Link, ...]:
    whole = max(1, sum(time for _, time in sums.values()))
    scale = timeline.active_ps / whole  # where repetitions were looked at once
    lines: dict[tuple[str, str, Origin], tuple[int, float]] = {}
    for number, (runs, time) in sums.items():
        instruction: Instruction = timeline.instructions[number]
        key = (instruction.name, _short(timeline.lanes[number]), instruction.origin)
        before = lines.get(key, (0, 0.0))
        lines[key] = (before[0] + runs, before[1] + time * scale)
    links = [
        Link(
            name, lane, origin.file, origin.line, origin.operation, runs, int(time),
            time / max(1, timeline.active_ps),
        )
        for (name, lane, origin), (runs, time) in lines.items()
    ]  # fmt: skip
    return tuple(sorted(links, key=lambda link: -link.time_ps))


# ---- how it is written ----


def _render(found: Explanation) -> RenderableType:
    head = Text()
    head.append(found.kernel, "bold")
    head.append(f" on one core of a {found.chip}: ")
    head.append(duration(found.time_ps), "bold")
    if found.bounds:
        top = found.bounds[0]
        head.append(
            f"; {top.name} alone needs {duration(top.busy_ps)}, {percent(top.fraction)} of it\n"
        )
    parts: list[RenderableType] = [head, _bounds(found), _path(found), _waits(found)]
    if found.advice:
        parts.append(Text("what to change", "bold"))
        parts += [Text(f"- {a.what}: {a.why}") for a in found.advice]
    if found.assumptions:
        parts.append(Text("assumed", "bold"))
        parts += [Text(f"- {sentence}") for sentence in found.assumptions[:_ROWS]]
    return Group(*parts)


def _bounds(found: Explanation) -> RenderableType:
    table = columns("bound", ">alone", ">of the time")
    for bound in found.bounds:
        table.add_row(bound.name, duration(bound.busy_ps), percent(bound.fraction))
    return table


def _path(found: Explanation) -> RenderableType:
    table = columns("the end waits for", "on", ">runs", ">time", ">share", "line")
    for link in found.path[:_ROWS]:
        place = f"{Path(link.file).name}:{link.line}" if link.file else ""
        table.add_row(
            link.instruction, link.lane, f"{link.runs:,}", duration(link.time_ps),
            percent(link.fraction), place,
        )  # fmt: skip
    return table


def _waits(found: Explanation) -> RenderableType:
    table = columns("waited", ">time", ">share", "for")
    for wait in found.waits[:_ROWS]:
        what = f"{wait.instruction} on {wait.on}" if wait.instruction else "its own weights or port"
        table.add_row(wait.engine, duration(wait.time_ps), percent(wait.fraction), what)
    return table


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value
