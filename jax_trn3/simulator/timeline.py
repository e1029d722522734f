"""What a program did, and when: every instruction's times, and what they add up to.

All times are integer picoseconds from the start of the first instruction that could run. Loops that
were extrapolated are kept as repetitions; whatever is asked of a timeline counts each repetition as
often as it happened.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jax_trn3.hardware import Chip
from jax_trn3.isa import Instruction, Work

from .decode import Decoder
from .program import Program
from .repetition import Repeat

COLUMNS = ("issued", "start", "free", "done", "cause", "instruction")
"""Columns of `Timeline.expand`; `clock.Event` says what they mean."""


@dataclass(frozen=True)
class EngineTime:
    """How an engine spent a program's time, ps. The three add up to the time of the program."""

    name: str
    busy: int
    """It worked."""

    waiting: int
    """It had an instruction that could not start yet."""

    idle: int
    """It had nothing left to do."""

    instructions: int

    @property
    def utilization(self) -> float:
        """Share of the time in which it worked."""
        return self.busy / max(1, self.busy + self.waiting + self.idle)


@dataclass(frozen=True)
class DmaTime:
    """What one DMA engine, or HBM as this core sees it, did. ps and bytes."""

    name: str
    busy: int
    idle: int

    @property
    def utilization(self) -> float:
        """Share of the time in which it moved bytes."""
        return self.busy / max(1, self.busy + self.idle)


@dataclass(frozen=True, repr=False)
class Timeline:
    """The times of a program on a chip. Made by `simulate`."""

    program: Program
    chip: Chip
    instructions: tuple[Instruction, ...]
    """The text of the program: what column "instruction" of an event counts in."""

    work: tuple[Work, ...]
    """What each asks of its engine."""

    lanes: tuple[str, ...]
    """The engine or queue on which each runs: "core0/vector", "core0/dma:sync"."""

    events: np.ndarray
    """int64[n, 6], `COLUMNS`: what was simulated, in program order."""

    repeats: tuple[Repeat, ...]
    """What was not: ranges of `events` that happened more than once. They nest, or are apart."""

    transfers: tuple[tuple[int, tuple[tuple[str, int], ...]], ...]
    """(instruction, ((server, ps), ...)): how long each DMA keeps DMA engines and HBM busy."""

    # What happened.

    @functools.cached_property
    def active_ps(self) -> int:
        """Time from the first instruction to the last result."""
        last = self.events[:, 3].copy()
        for repeat in self.repeats:
            last[repeat.begin : repeat.end] += np.maximum(repeat.step[:, 3], 0) * (repeat.count - 1)
        return int(last.max(initial=0))

    def __repr__(self) -> str:
        return (
            f"Timeline({self.program.name} on {self.chip.name}: {self.time_ps / 1e6:,.3f} us, "
            f"{self.num_instructions:,} instructions)"
        )

    @property
    def overhead_ps(self) -> int:
        """Time of the program's start and stop and of the engines' set-up, without its work."""
        return int((self.chip.core.start_stop_ns + self.chip.core.setup_ns) * 1000)

    @property
    def time_ps(self) -> int:
        """Time of the whole program, its start and stop included."""
        return self.active_ps + self.overhead_ps

    @property
    def time_s(self) -> float:
        """`time_ps` in seconds."""
        return self.time_ps / 1e12

    @functools.cached_property
    def multiplicity(self) -> np.ndarray:
        """int64[n]: how often each of `events` happened."""
        times = np.ones(len(self.events), np.int64)
        for repeat in self.repeats:
            times[repeat.begin : repeat.end] *= repeat.count
        return times

    @functools.cached_property
    def executions(self) -> np.ndarray:
        """int64[instructions]: how often each instruction of the text ran."""
        counts = np.zeros(len(self.instructions), np.int64)
        np.add.at(counts, self.events[:, 5], self.multiplicity)
        return counts

    @property
    def num_instructions(self) -> int:
        """Instructions that ran."""
        return int(self.executions.sum())

    def total(self, first: str, last: str) -> np.ndarray:
        """int64[instructions]: time from column `first` to `last`, summed over the runs of each."""
        sums = np.zeros(len(self.instructions), np.int64)
        np.add.at(sums, self.events[:, 5], self.per_event(first, last))
        return sums

    def per_event(self, first: str, last: str) -> np.ndarray:
        """int64[n]: the same of each of `events`, summed over its repetitions."""
        one, other = COLUMNS.index(first), COLUMNS.index(last)
        length = self.events[:, other] - self.events[:, one]
        total = length * self.multiplicity
        for repeat in self.repeats:
            grows = repeat.step[:, other] - repeat.step[:, one]
            often = self.multiplicity[repeat.begin : repeat.end]
            # Summed over k < count: grows * k, as often as everything around it happens.
            total[repeat.begin : repeat.end] += grows * (often * (repeat.count - 1) // 2)
        return total

    # What it adds up to.

    def _sum(self, figure: str) -> int:
        return sum(int(n) * getattr(w, figure) for n, w in zip(self.executions, self.work))

    @property
    def flops(self) -> int:
        """Operations that the result needs; a multiply-add counts as two."""
        return self._sum("flops")

    @property
    def hardware_flops(self) -> int:
        """Operations that the tensor engine carried out: passes and transposes count."""
        return self._sum("hardware_flops")

    def _dma_sum(self, figure: str) -> int:
        pairs = zip(self.executions, self.work)
        return sum(int(n) * getattr(w.dma, figure) for n, w in pairs if w.dma is not None)

    @property
    def hbm_read_bytes(self) -> int:
        """Bytes that DMAs read from HBM."""
        return self._dma_sum("bytes_read_hbm")

    @property
    def hbm_write_bytes(self) -> int:
        """Bytes that DMAs wrote to HBM."""
        return self._dma_sum("bytes_written_hbm")

    @property
    def dma_bytes(self) -> int:
        """Bytes that DMAs moved."""
        return self._dma_sum("bytes")

    @functools.cached_property
    def engines(self) -> dict[str, EngineTime]:
        """How each compute engine spent the time, by name: "core0/tensor"."""
        busy, waiting = self.total("start", "free"), self.total("issued", "start")
        lanes = np.array(self.lanes)
        spent = {}
        for name in dict.fromkeys(lane for lane in self.lanes if not is_queue(lane)):
            own = lanes == name
            worked, waited = int(busy[own].sum()), int(waiting[own].sum())
            idle = self.time_ps - worked - waited
            spent[name] = EngineTime(name, worked, waited, idle, int(self.executions[own].sum()))
        return spent

    @functools.cached_property
    def dma(self) -> dict[str, DmaTime]:
        """What each DMA engine, and HBM, did."""
        busy: dict[str, int] = {}
        for instruction, shares in self.transfers:
            for server, time in shares:
                busy[server] = busy.get(server, 0) + time * int(self.executions[instruction])
        return {name: DmaTime(name, time, self.time_ps - time) for name, time in busy.items()}

    # One by one.

    def expand(self, limit: int = 10_000_000) -> np.ndarray:
        """Every run of every instruction in program order, int64[runs, 6] by `COLUMNS`.

        "cause" is a row of the result.

        **Raises:** `ValueError` if there are more than `limit` (a row takes 48 bytes).
        """
        if self.num_instructions > limit:
            raise ValueError(
                f"{self.program.name} ran {self.num_instructions} instructions; expand() was asked "
                f"for at most {limit}"
            )
        events = self.events.copy()
        events[:, 4] = self.rows_of_causes()
        return _expand(events, self._nested(), 0, len(events))

    def _nested(self) -> list[Repeat]:
        """The repetitions in order of place, outer ones before those in them."""
        return sorted(self.repeats, key=lambda r: (r.begin, -r.end))

    def rows_of_causes(self) -> np.ndarray:
        """The row of each event's cause, the first time that the event happens."""
        length = np.ones(len(self.events), np.int64)
        around: list[list[tuple[Repeat, int]]] = [[] for _ in self.events]
        for repeat in reversed(self._nested()):
            once = int(length[repeat.begin : repeat.end].sum())
            length[repeat.end - 1] += once * (repeat.count - 1)
            for event in range(repeat.begin, repeat.end):
                around[event].append((repeat, once * (repeat.count - 1)))
        # The rows that a repetition adds come after its last event.
        first = np.concatenate([[0], np.cumsum(length)[:-1]])
        rows = np.full(len(self.events), -1)
        for event, cause in enumerate(self.events[:, 4].tolist()):
            if cause >= 0:
                own = {id(repeat) for repeat, _ in around[event]}
                # Of a repetition that is over, the last time counts.
                over = sum(extra for repeat, extra in around[cause] if id(repeat) not in own)
                rows[event] = first[cause] + over
        return rows


def is_queue(lane: str) -> bool:
    """Whether a lane is a queue of transfers or collectives: it has several at work at a time."""
    return lane.partition("/")[2].startswith(("dma:", "collective"))


def _expand(events: np.ndarray, repeats: list[Repeat], begin: int, end: int) -> np.ndarray:
    """Rows of `events[begin:end]` with the repetitions in it carried out."""
    pieces = []
    place = begin
    for repeat, inner in _outermost(repeats):
        pieces.append(events[place : repeat.begin])
        pieces.append(_repeated(events, repeat, inner))
        place = repeat.end
    pieces.append(events[place:end])
    return np.concatenate(pieces)


def _outermost(repeats: list[Repeat]) -> Iterator[tuple[Repeat, list[Repeat]]]:
    """The repetitions that no other one contains, each with those it contains."""
    index = 0
    while index < len(repeats):
        outer = repeats[index]
        inner = [r for r in repeats[index + 1 :] if r.begin < outer.end]
        yield outer, inner
        index += 1 + len(inner)


def _repeated(events: np.ndarray, repeat: Repeat, inner: list[Repeat]) -> np.ndarray:
    once = _expand(events, inner, repeat.begin, repeat.end)
    growing = np.zeros((len(events), 6), np.int64)
    growing[repeat.begin : repeat.end, :5] = repeat.step
    growing[:, 4] *= len(once)
    still = [Repeat(r.begin, r.end, r.count, np.zeros_like(r.step)) for r in inner]
    step = _expand(growing, still, repeat.begin, repeat.end)
    times = np.arange(repeat.count)[:, None, None]
    return (once[None] + times * step[None]).reshape(-1, 6)


def timeline(
    program: Program, chip: Chip, decoder: Decoder, events: list[object], repeats: list[Repeat]
) -> Timeline:
    """The timeline of a finished simulation."""
    names = list(decoder.servers)
    transfers = []
    for number, (engines, memory, memory_ps) in sorted(decoder.transfers.items()):
        shares = [(names[server], time) for server, time in (*engines, (memory, memory_ps))]
        transfers.append((number, tuple(shares)))
    return Timeline(
        program,
        chip,
        tuple(decoder.instructions),
        tuple(decoder.work),
        tuple(decoder.lane(number) for number in range(len(decoder.instructions))),
        np.array(events, np.int64).reshape(-1, 6),
        tuple(repeats),
        tuple(transfers),
    )
