"""`profile`: what the code inside would have cost on the machine that it ran on."""

import atexit
import contextlib
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jax_trn3.compiler.timing.graph import Mesh, Source
from jax_trn3.compiler.timing.read import device_program
from jax_trn3.compiler.timing.residency import Residency
from jax_trn3.compiler.timing.schedule import Schedule, Step
from jax_trn3.hardware import get_topology
from jax_trn3.runtime.executions import watch

from .estimate import of_program
from .result import Estimate
from .summary import summary
from .views import save


@dataclass(frozen=True)
class Ran:
    """A program that was started while a profile was taken."""

    estimate: Estimate
    """Of one run."""

    count: int
    """How often it was started."""

    @property
    def time_ps(self) -> int:
        """Of all its runs, one after another."""
        return self.estimate.time_ps * self.count


class Profile:
    """What ran, simulated when it is asked for. Made by `profile`.

    Everything but the `with` block itself asks after the block.
    """

    def __init__(self, while_trip_count: int | None = None) -> None:
        self._while_trip_count = while_trip_count
        self._counted: list[tuple[Any, int]] | None = None

    @functools.cached_property
    def programs(self) -> tuple[Ran, ...]:
        """Every program that was started, in the order in which they were compiled.

        **Raises:** `RuntimeError` while the `with` block is not over; `ValueError` for a loop whose
        count data decide, if `while_trip_count` was not given.
        """
        if self._counted is None:
            raise RuntimeError("the profile is still being taken: ask after the with block")
        return tuple(
            Ran(_estimate(loaded, self._while_trip_count), count) for loaded, count in self._counted
        )

    @functools.cached_property
    def estimate(self) -> Estimate:
        """All that ran as one program: each as often as it was started, one after another."""
        return _together(self.programs)

    @property
    def time_s(self) -> float:
        """Time of all runs on the simulated machine, one after another, seconds."""
        return sum(ran.time_ps for ran in self.programs) / 1e12

    @property
    def engines(self) -> dict[str, float]:
        """Share of the time in which each engine of a device works, and "dma" and "links"."""
        return self.estimate.engines if self.programs else {}

    def summary(self, width: int = 100) -> str:
        """What ran and where the time went, as text of that many columns."""
        return summary(self.estimate, width)

    def save(self, path: str | Path) -> None:
        """Writes a view, by the path's suffix: see `estimates.save`."""
        save(self.estimate, path)


@contextlib.contextmanager
def profile(*, while_trip_count: int | None = None) -> Iterator[Profile]:
    """Watches what runs on platform trn3 and says afterwards what it would have cost.

    **Arguments:**

    - `while_trip_count`: How often to take loops whose count data decide.

    >>> with jax_trn3.profile() as p:
    ...     step(params, batch)
    >>> print(p.summary())
    """
    result = Profile(while_trip_count)
    with watch() as watched:
        try:
            yield result
        finally:
            result._counted = watched.runs()


def profile_until_exit(directory: str | Path) -> None:
    """Profiles the process from now on, and writes `profile.txt` and `profile.json` into
    `directory` when it ends (JAX_TRN3_PROFILE). Loops whose count data decide count once."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    block = contextlib.ExitStack()
    taken = block.enter_context(profile(while_trip_count=1))

    def write() -> None:
        block.close()
        try:
            (folder / "profile.txt").write_text(taken.summary())
            taken.save(folder / "profile.json")
        except Exception as error:  # the program itself went well: its exit code says so
            print(f"JAX_TRN3_PROFILE: no profile in {folder}: {error}", file=sys.stderr)

    atexit.register(write)


def _estimate(loaded: Any, while_trip_count: int | None) -> Estimate:
    program = device_program(loaded.values.program.module())
    return of_program(program, loaded.topology, while_trip_count)


def _together(programs: tuple[Ran, ...]) -> Estimate:
    if not programs:
        nothing = Residency(0, ())
        return Estimate(
            "nothing ran", get_topology("trn3-chip"), Mesh(), Schedule((), 0, 0), nothing
        )
    steps, start = [], 0
    for ran in programs:
        one = ran.estimate
        cost = replace(one.cost * ran.count, time_ps=ran.time_ps)
        steps.append(
            Step("loop", one.name, Source(name=one.name), start, cost, ran.time_ps,
                 inner=one.schedule, count=ran.count)
        )  # fmt: skip
        start += ran.time_ps
    largest = max((ran.estimate for ran in programs), key=lambda e: e.peak_hbm_bytes)
    widest = max((ran.estimate for ran in programs), key=lambda e: e.mesh.size)
    schedules = [ran.estimate.schedule for ran in programs]
    return Estimate(
        " + ".join(dict.fromkeys(ran.estimate.name for ran in programs)),
        widest.topology,
        widest.mesh,
        Schedule(
            tuple(steps),
            start,
            start,
            tuple(dict.fromkeys(line for one in schedules for line in one.assumptions)),
            tuple(dict.fromkeys(lack for one in schedules for lack in one.lacks)),
        ),
        largest.residency,
    )
