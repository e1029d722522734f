"""What a program would cost: an `Estimate`, and the figures that follow from its schedule."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from jax_trn3.compiler.timing.cost import Cost
from jax_trn3.compiler.timing.graph import Mesh, Source
from jax_trn3.compiler.timing.residency import Residency
from jax_trn3.compiler.timing.schedule import Schedule, Step
from jax_trn3.hardware import Topology
from jax_trn3.hardware.datasheet import Row, extrapolated_figures
from jax_trn3.profiler.units import duration


@dataclass(frozen=True)
class Line:
    """What one operation, collective or group of them adds to a program."""

    kind: str
    """"compute" or "collective"."""

    name: str
    source: Source
    count: int
    """How often it runs."""

    time_ps: int
    """What it adds to the program's time, all its runs together; what overlaps counts nothing."""

    busy_ps: int
    """How long it runs, overlapped or not, all runs together."""

    cost: Cost
    """Of all runs."""

    bound: str
    """The engine that works longest in it, "dma" or "links"."""


@dataclass(frozen=True, repr=False)
class Estimate:
    """A program on a machine, per device unless said otherwise. Made by `estimate`."""

    name: str
    topology: Topology
    mesh: Mesh
    schedule: Schedule
    residency: Residency

    # Time.

    @property
    def time_ps(self) -> int:
        """Time of one run, its start and stop included."""
        return self.schedule.time_ps + int(self.topology.chip.core.start_stop_ns * 1000)

    @property
    def time_s(self) -> float:
        """Time of one run in seconds."""
        return self.time_ps / 1e12

    @functools.cached_property
    def cost(self) -> Cost:
        """What one device does in one run."""
        return self.schedule.cost

    @property
    def engines(self) -> dict[str, float]:
        """Share of the time in which each engine works, and "dma" and "links"."""
        return {name: busy / self.time_ps for name, busy in self.cost.engines.items()}

    # Neuron Explorer's figures (tools/neuron-explorer/profile-schema-reference.rst).

    @property
    def num_devices(self) -> int:
        """Devices that the program runs on."""
        return self.mesh.size

    @property
    def flops(self) -> int:
        """Operations of one device that the results need (a multiply-add counts as two)."""
        return self.cost.flops

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: what the products would take with one pass over the array for
        each row, over the time taken. Of float32, which takes four, it is at most a quarter."""
        return self.cost.peak_flops_s / self.time_s

    @property
    def hfu(self) -> float:
        """Hardware FLOPs utilisation: share of the time in which the tensor engine multiplies."""
        return self.engines.get("tensor", 0.0)

    @property
    def hbm_bandwidth(self) -> float:
        """HBM bandwidth of one device, its share when all work, bytes per second."""
        chip = self.topology.chip
        return chip.hbm_bandwidth_bytes_per_s / chip.num_cores * self.topology.lnc

    @property
    def mbu(self) -> float:
        """Memory bandwidth utilisation: bytes read and written over what HBM could move."""
        return self.cost.hbm_bytes / self.time_s / self.hbm_bandwidth

    # Bounds.

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds that each part of the machine needs by itself, the longest first."""
        seconds = {name: busy / 1e12 for name, busy in self.cost.engines.items() if name != "links"}
        seconds["hbm"] = self.cost.hbm_bytes / self.hbm_bandwidth
        seconds["links"] = self.cost.engines.get("links", 0) / 1e12
        return dict(sorted(seconds.items(), key=lambda item: -item[1]))

    @property
    def bound(self) -> str:
        """What the program is nearest to being bound by."""
        return next(iter(self.bounds))

    @property
    def slack(self) -> float:
        """Time over that bound: 1 is as fast as it could be."""
        return self.time_s / max(self.bounds[self.bound], 1e-15)

    # Memory.

    @property
    def peak_hbm_bytes(self) -> int:
        """The most that a device has in HBM at once."""
        return self.residency.peak_bytes

    @property
    def hbm_capacity_bytes(self) -> int:
        """HBM of a device."""
        return self.topology.hbm_bytes_per_device

    @property
    def fits(self) -> bool:
        """Whether the program fits a device."""
        return self.peak_hbm_bytes <= self.hbm_capacity_bytes

    # Energy and throughput.

    @property
    def num_chips(self) -> int:
        """Chips that the devices lie on."""
        return -(-self.num_devices // self.topology.devices_per_chip)

    @property
    def energy_j(self) -> float | None:
        """Energy of all chips for one run, joules; None where no power is published."""
        power = self.topology.chip.power_w
        return None if power is None else power * self.num_chips * self.time_s

    def tokens_per_s(self, tokens: int) -> float:
        """Tokens a second of the whole machine, if one run handles so many."""
        return tokens / self.time_s

    def tokens_per_s_per_mw(self, tokens: int) -> float | None:
        """Tokens a second for each megawatt of chips; None where no power is published."""
        energy = self.energy_j
        return None if energy is None else tokens / energy * 1e6

    # What was assumed.

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What was assumed that the program does not say."""
        return self.schedule.assumptions

    @property
    def lacks(self) -> tuple[tuple[str, Source], ...]:
        """What the hardware has no instruction for, and where the program asks for it."""
        return self.schedule.lacks

    @property
    def extrapolated(self) -> tuple[Row, ...]:
        """The constants that nobody published for this generation, of the parts of the machine that
        the program keeps busy."""
        rows = extrapolated_figures(self.topology)
        return tuple(row for row in rows if _matters(row.path, self.cost))

    # One by one.

    @functools.cached_property
    def lines(self) -> tuple[Line, ...]:
        """Every operation and collective, in the program's order; their times add up to the
        schedule's."""
        return tuple(_lines(self.schedule, self.schedule.time_ps, 1))

    def by_operation(self) -> tuple[Line, ...]:
        """The same, with what comes from one source line put together; the longest first."""
        together: dict[tuple[str, str, str], list[Line]] = {}
        for line in self.lines:
            together.setdefault((line.kind, line.name, str(line.source)), []).append(line)
        merged = [_merged(lines) for lines in together.values()]
        return tuple(sorted(merged, key=lambda line: -line.time_ps))

    def by_collective(self) -> tuple[Line, ...]:
        """The collectives alone."""
        return tuple(line for line in self.by_operation() if line.kind == "collective")

    # Views.

    def save(self, path: str | Path) -> None:
        """Writes a view of it, as `jax_trn3.estimates.save` does: the path's suffix says which."""
        from .views import save  # a view is made of estimates

        save(self, path)

    def __str__(self) -> str:
        """The summary."""
        from .summary import summary

        return summary(self)

    def __repr__(self) -> str:
        return f"<Estimate of {self.name} on {self.topology.name}: {duration(self.time_ps)}>"


def _lines(schedule: Schedule, time_ps: int, times: int) -> Iterator[Line]:
    """The steps of a schedule that takes `time_ps` for all its `times` runs."""
    shares = _shared_out(time_ps, [step.exposed_ps for step in schedule.steps])
    for step, share in zip(schedule.steps, shares):
        if step.inner is None:
            yield _line(step, share, times)
            continue
        # What a loop has beside its body: finding out whether to go on.
        beside = _beside_body(step)
        inside = share * _of_body(step) // max(1, step.time_ps) if beside.time_ps else share
        yield from _lines(step.inner, inside, times * step.count)
        if beside.time_ps or beside.instructions:
            yield _line(replace(step, cost=beside), share - inside, times)


def _beside_body(step: Step) -> Cost:
    """What a loop's condition costs, all its runs together."""
    assert step.inner is not None
    beside = step.cost + step.inner.cost * -step.count
    return replace(beside, time_ps=step.time_ps - _of_body(step))


def _of_body(step: Step) -> int:
    """The part of a loop's time in which its body runs."""
    assert step.inner is not None
    if not step.count or not step.inner.steps:
        return 0
    return min(step.time_ps, step.inner.time_ps + step.inner.pace_ps * (step.count - 1))


_ALWAYS = ("sbuf", "psum", "start_stop", "setup")


def _matters(path: str, cost: Cost) -> bool:
    """Whether a number of the machine can have to do with what a program costs."""
    _, core, of_core = path.partition("chip.core.")
    if core:
        part = of_core.partition(".")[0]
        return part.startswith(_ALWAYS) or cost.engines.get(part, 0) > 0
    _, tier, name = path.partition("tiers[")
    if tier:
        return cost.link_bytes.get(name.partition("]")[0], 0) > 0
    return not path.startswith(("chip.fabric", "server")) or cost.engines.get("links", 0) > 0


def _line(step: Step, time_ps: int, times: int) -> Line:
    engines = step.cost.engines
    return Line(
        step.kind,
        f"{step.name} ({step.algorithm})" if step.algorithm else step.name,
        step.source,
        times,
        time_ps,
        step.cost.time_ps * times,
        step.cost * times,
        max(engines, key=lambda name: engines[name], default=""),
    )


def _shared_out(whole: int, weights: list[int]) -> list[int]:
    """`whole` cut in proportion to the weights; the pieces add up to it exactly."""
    total, pieces, given, seen = sum(weights), [], 0, 0
    for weight in weights:
        seen += weight
        end = whole * seen // total if total else 0
        pieces.append(end - given)
        given = end
    return pieces


def _merged(lines: list[Line]) -> Line:
    first = lines[0]
    cost = functools.reduce(Cost.__add__, (line.cost for line in lines))
    engines = cost.engines
    return Line(
        first.kind,
        first.name,
        first.source,
        sum(line.count for line in lines),
        sum(line.time_ps for line in lines),
        sum(line.busy_ps for line in lines),
        cost,
        max(engines, key=lambda name: engines[name], default=""),
    )
