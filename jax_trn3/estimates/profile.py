"""`profile`: what the code inside would have cost on the machine that it ran on."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

from jax_trn3.compiler.timing.read import device_program
from jax_trn3.compiler.timing.residency import residency
from jax_trn3.compiler.timing.schedule import Machine, schedule
from jax_trn3.hardware import Topology
from jax_trn3.runtime.executions import Watch, watch

from .result import Estimate


@dataclass(frozen=True)
class Ran:
    """A program that was started while a profile was taken."""

    estimate: Estimate
    """Of one run."""

    count: int
    """How often it was started."""

    @property
    def time_s(self) -> float:
        """Of all its runs, one after another."""
        return self.estimate.time_s * self.count


@dataclass
class Profile:
    """What ran, simulated when it is asked for. Made by `profile`."""

    while_trip_count: int | None = None
    _watch: Watch | None = None
    _counted: list[tuple[object, int]] | None = field(default=None, repr=False)

    @functools.cached_property
    def programs(self) -> tuple[Ran, ...]:
        """Every program that was started, in the order in which they were compiled.

        **Raises:** `RuntimeError` while the `with` block is not over.
        """
        if self._counted is None:
            raise RuntimeError("the profile is still being taken: ask after the with block")
        ran = [
            Ran(_estimate(loaded, self.while_trip_count), count) for loaded, count in self._counted
        ]
        return tuple(ran)

    @property
    def time_s(self) -> float:
        """Time of all runs on the simulated machine, one after another, seconds."""
        return sum(ran.time_s for ran in self.programs)

    @property
    def engines(self) -> dict[str, float]:
        """Share of the time in which each engine of a device works."""
        busy: dict[str, float] = {}
        for ran in self.programs:
            for name, time in ran.estimate.cost.engines.items():
                busy[name] = busy.get(name, 0.0) + time / 1e12 * ran.count
        return {name: time / self.time_s for name, time in busy.items()} if busy else {}


@contextlib.contextmanager
def profile(*, while_trip_count: int | None = None) -> Iterator[Profile]:
    """Watches what runs on platform trn3 and says afterwards what it would have cost.

    **Arguments:**

    - `while_trip_count`: How often to take loops whose count data decide.

    >>> with jax_trn3.profile() as p:
    ...     step(params, batch).block_until_ready()
    >>> print(p.summary())
    """
    with watch() as watched:
        result = Profile(while_trip_count, watched)
        try:
            yield result
        finally:
            result._counted = list(watched.runs())


def _estimate(loaded: object, while_trip_count: int | None) -> Estimate:
    values = loaded.values  # type: ignore[attr-defined]
    topology: Topology = loaded.topology  # type: ignore[attr-defined]
    program = device_program(values.program.module())
    timed = schedule(
        program, Machine(topology, program.mesh, program.trip_counts, while_trip_count)
    )
    return Estimate(values.name, topology, program.mesh, timed, residency(program))
