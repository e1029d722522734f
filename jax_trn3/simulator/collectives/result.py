"""What a collective takes: its time, what bounds it, and what it asks of each rank's memory."""

from collections.abc import Mapping
from dataclasses import dataclass

BUS_FACTORS: dict[str, tuple[int, bool]] = {
    "all_reduce": (2, True),
    "all_gather": (1, True),
    "reduce_scatter": (1, True),
    "all_to_all": (1, True),
    "collective_permute": (1, False),
    "broadcast": (1, False),
}
"""Bus bandwidth over bytes per time (nccom-test.rst): a factor, and whether (N - 1) / N follows."""


@dataclass(frozen=True)
class LocalTraffic:
    """What a rank's own memory and DMA engines do: of each the most that any rank's do."""

    hbm_read_bytes: int
    """Read from the rank's HBM, by whoever, bytes."""

    hbm_write_bytes: int
    """Written to the rank's HBM, by whoever, bytes."""

    dma_bytes: int
    """Moved by the rank's DMA engines, bytes."""


@dataclass(frozen=True)
class StepTime:
    """A step, and how often the like happens in a row."""

    name: str
    """E.g. "mesh: between chips"."""

    repeat: int
    """Times in a row (a count)."""

    time_ps: int
    """One of them, ps."""

    bound: str
    """What it waits for: "latency", or a kind of server ("HBM", "DMA engines", "CC-cores", or the
    name of a `Tier`)."""

    work: Mapping[str, int]
    """What the busiest server of each kind does in one of them: bytes, of CC-cores transfers."""

    local: LocalTraffic
    """What one of them asks of a rank, for whoever lets compute have the rest."""


@dataclass(frozen=True)
class CollectiveTime:
    """A collective in time."""

    kind: str
    """E.g. "all_reduce"."""

    algorithm: str
    """As chosen or named; for the hierarchical one with those of its phases."""

    num_bytes: int
    """As nccom-test counts them, see `collective`."""

    size: int
    """Ranks of one group (a count)."""

    time_ps: int
    """From the trigger until the engine sees the end, ps."""

    trigger_ps: int
    """The part of it before the first step and after the last, ps."""

    steps: tuple[StepTime, ...]
    """One after another."""

    @property
    def time_s(self) -> float:
        """The time in seconds."""
        return self.time_ps / 1e12

    @property
    def local(self) -> LocalTraffic:
        """What all steps together ask of a rank."""
        parts = [(step.repeat, step.local) for step in self.steps]
        return LocalTraffic(
            sum(repeat * part.hbm_read_bytes for repeat, part in parts),
            sum(repeat * part.hbm_write_bytes for repeat, part in parts),
            sum(repeat * part.dma_bytes for repeat, part in parts),
        )

    @property
    def num_steps(self) -> int:
        """Steps, repetitions included (a count)."""
        return sum(step.repeat for step in self.steps)

    @property
    def algorithm_bandwidth(self) -> float:
        """`num_bytes` over the time, bytes per second (nccom-test's algbw)."""
        return self.num_bytes / self.time_s if self.time_ps else 0.0

    @property
    def bus_bandwidth(self) -> float:
        """nccom-test's busbw, bytes per second: what a rank's link carries if no byte is wasted."""
        factor, shared = BUS_FACTORS[self.kind]
        share = (self.size - 1) / self.size if shared else 1.0
        return self.algorithm_bandwidth * factor * share

    @property
    def time_by_bound_ps(self) -> dict[str, int]:
        """How much of the time waits for what, ps."""
        times = {"trigger": self.trigger_ps}
        for step in self.steps:
            times[step.bound] = times.get(step.bound, 0) + step.repeat * step.time_ps
        return times

    @property
    def bound(self) -> str:
        """What most of the time waits for."""
        times = self.time_by_bound_ps
        return max(times, key=lambda name: times[name])

    @property
    def tier_bytes(self) -> dict[str, int]:
        """What the busiest link (or stack, or set of engines) of each kind carries in all, bytes:
        the sum of the busiest of every step."""
        total: dict[str, int] = {}
        for step in self.steps:
            for kind, work in step.work.items():
                if kind != "CC-cores":
                    total[kind] = total.get(kind, 0) + step.repeat * work
        return total
