"""Which parameters make a kernel fastest: every point of a space, on simulated time.

Nothing runs on values: a point is traced and its instructions are simulated, in processes of their
own. Points that the hardware cannot run stay in the table, with what was wrong.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypedDict

import jax
from rich.console import Console, Group, RenderableType
from rich.progress import Progress
from rich.text import Text

from jax_trn3.hardware import TRAINIUM3, Chip
from jax_trn3.profiler import figures
from jax_trn3.profiler.text import columns, plain
from jax_trn3.profiler.units import duration, percent

SCHEMA = "jax-trn3 autotune"
VERSION = 1

KernelFactory = Callable[..., Callable[..., Any]]
"""Takes a point by keywords; gives a function of arrays."""


class TrialRow(TypedDict):
    """A point, as JSON."""

    point: dict[str, Any]
    """Values by name; those that JSON has no word for by their `repr`."""

    time_ps: int | None
    """None where it cannot run."""

    busiest: str
    """Engine, queue or memory with the most work."""

    busiest_fraction: float | None
    """Of the time without the program's start and stop."""

    reason: str
    """Why it cannot run; "" if it can."""


class TunedDocument(TypedDict):
    """What was tried, as JSON. `version` counts changes that break a reader."""

    schema: str
    version: int
    chip: str
    shapes: list[str]
    best: dict[str, Any]
    trials: list[TrialRow]
    """The fastest first, what cannot run last."""

    note: str


@dataclass(frozen=True)
class Trial:
    """One point, simulated."""

    point: dict[str, Any]
    """Values by name."""

    time_ps: int | None = None
    """Of the whole program, start and stop included; None if it cannot run."""

    busiest: str = ""
    """Engine, queue or memory with the most work."""

    busiest_fraction: float | None = None
    """Its work, of the time without the program's start and stop."""

    reason: str = ""
    """Why it cannot run."""


@dataclass(frozen=True)
class Tuned:
    """What `autotune` found. `print` shows it as a table."""

    best: dict[str, Any]
    """The fastest point; of equally fast ones the first in the space's order."""

    function: Callable[..., Any]
    """`kernel_factory(**best)`."""

    trials: tuple[Trial, ...]
    """The fastest first, what cannot run last."""

    shapes: tuple[str, ...]
    """Of the arguments: "bfloat16[128, 512]"."""

    chip: Chip
    note: str = ""
    """What the reader should know about how it was tried; "" if nothing."""

    @property
    def time_ps(self) -> int:
        """Of the fastest."""
        assert self.trials[0].time_ps is not None
        return self.trials[0].time_ps

    def rows(self) -> list[TrialRow]:
        """The table for programs."""
        return [
            {
                "point": {name: _plain(value) for name, value in trial.point.items()},
                "time_ps": trial.time_ps,
                "busiest": trial.busiest,
                "busiest_fraction": trial.busiest_fraction,
                "reason": trial.reason,
            }
            for trial in self.trials
        ]

    def document(self) -> TunedDocument:
        """All of it, as what `json.dumps` takes."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "chip": self.chip.name,
            "shapes": list(self.shapes),
            "best": {name: _plain(value) for name, value in self.best.items()},
            "trials": self.rows(),
            "note": self.note,
        }

    def render(self) -> RenderableType:
        """The table for a `rich` console."""
        table = columns(*(f">{name}" for name in self.best), ">time", ">to best", "busiest")
        refused = Text()
        for trial in self.trials:
            if trial.time_ps is None:
                point = ", ".join(f"{k}={_plain(v)}" for k, v in trial.point.items())
                refused.append(f"{point} cannot run: {trial.reason.strip()}\n")
                continue
            cells = [str(_plain(value)) for value in trial.point.values()]
            share = f"{trial.busiest} {percent(trial.busiest_fraction or 0)}"
            cells += [duration(trial.time_ps), f"{trial.time_ps / self.time_ps:.3f}", share]
            table.add_row(*cells)
        head = Text(f"{len(self.trials)} points on a {self.chip.name}, {', '.join(self.shapes)}")
        said = [text for text in (refused, Text(self.note)) if text.plain]
        return Group(head, table, *said)

    def __str__(self) -> str:
        return plain(self.render(), 132)


def autotune(
    kernel_factory: KernelFactory,
    space: Mapping[str, Sequence[Any]],
    *shapes: Any,
    chip: Chip = TRAINIUM3,
    workers: int | None = None,
    progress: bool = True,
) -> Tuned:
    """Tries every point of a space on simulated time.

    **Arguments:**

    - `kernel_factory`: `kernel_factory(**point)` is a function of arrays that calls kernels. For
      more than one worker it must be importable: a function of a module, not a lambda.
    - `space`: Values to try, by name. All combinations are.
    - `shapes`: The function's arguments: arrays, or anything with a shape and a dtype.
    - `chip`: What it is simulated on.
    - `workers`: Processes, at most one a point. 1: this process alone. By default it begins in this
      process, and takes one a CPU for what is left after two seconds: they need some to start.
    - `progress`: Whether to show a bar, on a terminal.

    **Returns:** The fastest point, its function, and the table of all.

    **Raises:** `ValueError` for a space without a point, values that are no sequence, fewer than
    one worker, or if no point can run, with the reasons.

    >>> tuned = autotune(make_matmul, {"tile": [128, 256, 512], "buffers": [2, 3]}, x, y)
    >>> print(tuned)
    >>> tuned.function(x, y)
    """
    points = _points(space)
    avals = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes)
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}; at least 1, or None")
    jobs = [(kernel_factory, point, avals, chip) for point in points]
    trials, note = _tried(jobs, workers, progress)
    ran = [trial for trial in trials if trial.time_ps is not None]
    if not ran:
        reasons = dict.fromkeys(trial.reason for trial in trials)
        raise ValueError(
            f"none of {len(points)} points can run on a {chip.name}:\n  "
            + "\n  ".join(itertools.islice(reasons, 5))
        )
    ran.sort(key=lambda trial: trial.time_ps or 0)  # stable: ties stay in the space's order
    refused = [trial for trial in trials if trial.time_ps is None]
    best = ran[0].point
    named = tuple(f"{a.dtype}[{', '.join(map(str, a.shape))}]" for a in avals)
    return Tuned(best, kernel_factory(**best), (*ran, *refused), named, chip, note)


def _points(space: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    for name, values in space.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise ValueError(f"space[{name!r}] is {values!r}; a list of values to try")
    given = {name: list(values) for name, values in space.items()}
    missing = [name for name, values in given.items() if not values]
    if not given or missing:
        what = f"no values for {', '.join(missing)}" if missing else "no parameters"
        raise ValueError(f"a space without a point: {what}; give each parameter values to try")
    return [dict(zip(given, values)) for values in itertools.product(*given.values())]


_Job = tuple[KernelFactory, dict[str, Any], Any, Chip]


def _tried(jobs: Sequence[_Job], workers: int | None, progress: bool) -> tuple[list[Trial], str]:
    """A trial a job, in their order, and what is to be said about how."""
    console = Console(stderr=True)
    quiet = not progress or not console.is_terminal
    with Progress(console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task("simulating", total=len(jobs))
        alone = _WORTH_PROCESSES_S if workers is None else 0 if workers > 1 else float("inf")
        trials: list[Trial] = []
        deadline = time.monotonic() + alone
        while len(trials) < len(jobs) and time.monotonic() < deadline:
            trials.append(_trial(*jobs[len(trials)]))
            bar.advance(task)
        left = jobs[len(trials) :]
        if not left:
            return trials, ""
        note = _why_not_elsewhere(left[0])
        if not note:
            count = min(workers or os.cpu_count() or 1, len(left))
            try:
                return trials + _in_processes(left, count, lambda: bar.advance(task)), ""
            except BrokenProcessPool:
                note = _BROKEN
        for job in left:
            trials.append(_trial(*job))
            bar.update(task, completed=len(trials))
        return trials, note


_WORTH_PROCESSES_S = 2.0
"""About what a process needs to import JAX: points that take less are tried in this one."""

_BROKEN = (
    "tried one after another: processes could not import the kernel factory, or they ran the "
    'script itself; keep the factory in a module, and the script behind if __name__ == "__main__"'
)


def _in_processes(jobs: Sequence[_Job], workers: int, advance: Callable[[], None]) -> list[Trial]:
    # Spawned, not forked: JAX's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(_trial, *job) for job in jobs]
        for _ in as_completed(futures):
            advance()
        return [future.result() for future in futures]


def _why_not_elsewhere(job: _Job) -> str:
    """Why a job cannot go to another process; "" if it can."""
    if multiprocessing.current_process().daemon:
        return "tried one after another: this process may not have others"
    try:
        pickle.dumps(job)
    except Exception as error:
        return (
            f"tried one after another: the kernel factory cannot go to other processes ({error}); "
            "a function of a module can"
        )
    return ""


def _trial(factory: KernelFactory, point: dict[str, Any], avals: Any, chip: Chip) -> Trial:
    """What the simulator says about one point. Whatever it or the factory raises is the reason."""
    from .timing import timeline_of

    try:
        timeline = timeline_of(factory(**point), *avals, chip=chip)
    except Exception as error:
        return Trial(point, reason=f"{type(error).__name__}: {error}")
    bound = next(iter(figures.bounds(timeline)), None)
    if bound is None:
        return Trial(point, timeline.time_ps)
    share = bound.busy_ps / max(1, timeline.active_ps)
    return Trial(point, timeline.time_ps, bound.name, share)


def _plain(value: Any) -> Any:
    """A value of a point as JSON has it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__name__", None) or repr(value)
