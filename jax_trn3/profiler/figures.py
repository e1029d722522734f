"""What a timeline adds up to: the numbers that every view shows.

Everything here is exact for extrapolated timelines, too: nothing is expanded.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from jax_trn3.isa import Access, Instruction, Origin
from jax_trn3.simulator import Timeline
from jax_trn3.simulator.allocation import capacity, extent
from jax_trn3.simulator.decode import picoseconds
from jax_trn3.simulator.timeline import COLUMNS, is_queue


@dataclass(frozen=True)
class Wait:
    """How long an engine waited for the like of one instruction."""

    engine: str
    """Who waited."""

    on: str
    """Engine or queue of what it waited for; its own where it waited for weights or a port."""

    instruction: str
    """Name of what it waited for; "" where it waited for itself."""

    time_ps: int


@dataclass(frozen=True)
class Line:
    """A line of the program's source, and the instructions of one name that come from it."""

    instruction: str
    engine: str
    origin: Origin
    runs: int
    """Times they ran."""

    busy_ps: int
    """Time for which they kept their engine busy; of transfers, the busiest server behind them."""


@dataclass(frozen=True)
class Queue:
    """What went through a DMA queue."""

    name: str
    transfers: int
    bytes: int
    in_flight_ps: int
    """From a transfer's descriptors to its last byte, summed over all."""


@dataclass(frozen=True)
class Compute:
    """What the tensor engines did."""

    model_flops: int
    """Operations that results need: 2 a multiply-add."""

    hardware_flops: int
    """Operations that the array carried out: passes and transposes count."""

    transpose_flops: int
    """Those for transposes."""

    peak_flops_per_s: float
    """Every cell at work, at the depth of the densest product in the program (MX: 4)."""

    throttled_ps: int
    """Time lost by running at reduced speed."""


@dataclass(frozen=True)
class Traffic:
    """What the DMA engines moved."""

    transfers: int
    packets: int
    bytes: int
    hbm_read_bytes: int
    hbm_write_bytes: int
    peak_bytes_per_s: int
    """All DMA engines inside packets."""

    practical_bytes_per_s: float
    """All DMA engines with full packets."""

    hbm_bytes_per_s: float
    """Peak of the HBM stacks that the program's cores are at."""


@dataclass(frozen=True)
class Bound:
    """A server's work, which no schedule of the same instructions can be faster than."""

    name: str
    busy_ps: int


def waits(timeline: Timeline) -> tuple[Wait, ...]:
    """What engines waited for, the longest first. Adds up to `EngineTime.waiting`."""
    events, cause = timeline.events, timeline.events[:, COLUMNS.index("cause")]
    times = timeline.per_event("issued", "start")
    # The tensor engine may start late for its weights' sake, all that it reads being there.
    real = _done_of_cause(timeline) > events[:, COLUMNS.index("issued")]
    sums: dict[tuple[str, str, str], int] = {}
    for event in np.flatnonzero(times).tolist():
        number = int(events[event, 5])
        engine = timeline.lanes[number]
        if is_queue(engine):
            continue
        on, name = engine, ""
        if real[event]:
            other = int(events[cause[event], 5])
            on, name = timeline.lanes[other], timeline.instructions[other].name
        sums[engine, on, name] = sums.get((engine, on, name), 0) + int(times[event])
    found = (Wait(*key, time) for key, time in sums.items())
    return tuple(sorted(found, key=lambda w: (-w.time_ps, w.engine, w.on, w.instruction)))


def lines(timeline: Timeline) -> tuple[Line, ...]:
    """The program's lines by what they kept busy, the most first."""
    busy = timeline.total("start", "free")
    for number, shares in timeline.transfers:
        longest = max((time for _, time in shares), default=0)
        busy[number] = longest * timeline.executions[number]
    sums: dict[tuple[str, str, Origin], tuple[int, int]] = {}
    for number, instruction in enumerate(timeline.instructions):
        key = (instruction.name, timeline.lanes[number], instruction.origin)
        runs, time = sums.get(key, (0, 0))
        sums[key] = (runs + int(timeline.executions[number]), time + int(busy[number]))
    found = (Line(*key, runs, time) for key, (runs, time) in sums.items())
    return tuple(sorted(found, key=lambda line: (-line.busy_ps, str(line.origin), line.engine)))


def queues(timeline: Timeline) -> tuple[Queue, ...]:
    """The DMA queues that the program uses, by name."""
    flight = timeline.total("issued", "done")
    found: dict[str, Queue] = {}
    for number, lane in enumerate(timeline.lanes):
        dma = timeline.work[number].dma
        if dma is None:
            continue
        runs = int(timeline.executions[number])
        old = found.get(lane, Queue(lane, 0, 0, 0))
        found[lane] = Queue(
            lane,
            old.transfers + runs,
            old.bytes + runs * dma.bytes,
            old.in_flight_ps + int(flight[number]),
        )
    return tuple(found[name] for name in sorted(found))


def compute(timeline: Timeline) -> Compute:
    """What the tensor engines did."""
    tensor = timeline.chip.core.tensor
    busy = timeline.total("start", "free")
    model = hardware = transpose = throttled = 0
    depth = 1.0
    for runs, lost, instruction, work in zip(
        timeline.executions.tolist(), busy.tolist(), timeline.instructions, timeline.work
    ):
        if instruction.engine != "tensor":
            continue
        model += runs * work.flops
        hardware += runs * work.hardware_flops
        transpose += 0 if work.flops else runs * work.hardware_flops
        throttled += lost - runs * picoseconds(work.cycles, tensor.clock_hz)
        depth = max(depth, _depth(instruction, timeline))
    peak = 2 * tensor.rows * tensor.columns * tensor.clock_hz * depth * len(cores(timeline))
    return Compute(model, hardware, transpose, float(peak), throttled)


def traffic(timeline: Timeline) -> Traffic:
    """What the DMA engines moved."""
    dma, chip, used = timeline.chip.core.dma, timeline.chip, len(cores(timeline))
    stacks = math.ceil(used / chip.cores_per_stack)
    moved = [(n, w.dma) for n, w in zip(timeline.executions.tolist(), timeline.work) if w.dma]
    return Traffic(
        sum(runs for runs, _ in moved),
        sum(runs * work.packets for runs, work in moved),
        timeline.dma_bytes,
        timeline.hbm_read_bytes,
        timeline.hbm_write_bytes,
        dma.peak_bytes_per_s * used,
        dma.practical_bytes_per_s * used,
        chip.hbm_stack_bandwidth_bytes_per_s * stacks,
    )


def dma_groups(timeline: Timeline) -> dict[str, int]:
    """Busy time of DMA engines and HBM, ps. DMA engines of a core that were busy for equally long
    are one: "core0/dma engines 0-15"."""
    alike: dict[tuple[str, int], list[int]] = {}
    busy = {}
    for name, spent in timeline.dma.items():
        kind, engine, number = name.partition(" engine ")
        if engine:
            alike.setdefault((kind, spent.busy), []).append(int(number))
        else:
            busy[name] = spent.busy
    engines = {f"{kind} engines {ranges(n)}": time for (kind, time), n in alike.items()}
    return engines | busy


def ranges(numbers: Iterable[int]) -> str:
    """The numbers, those in a row as a range: "0-3, 7"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def bounds(timeline: Timeline) -> tuple[Bound, ...]:
    """The servers by what they have to do, the busiest first."""
    found = [Bound(spent.name, spent.busy) for spent in timeline.engines.values()]
    found += [Bound(spent.name, spent.busy) for spent in timeline.dma.values()]
    return tuple(sorted(found, key=lambda bound: (-bound.busy_ps, bound.name)))


def allocated(timeline: Timeline, memory: str) -> dict[int, int]:
    """Bytes of a partition of "sbuf" or "psum" that tiles lie in, by core."""
    core = timeline.chip.core
    spans: dict[int, list[tuple[int, int]]] = {number: [] for number in cores(timeline)}
    for tile in timeline.program.tiles():
        if tile.memory == memory and tile.address is not None:
            first = tile.address[1]
            spans.setdefault(tile.core, []).append((first, first + extent(tile, core)))
    return {number: _covered(of_core) for number, of_core in spans.items()}


def limit(timeline: Timeline, memory: str) -> int:
    """Bytes of a partition of "sbuf" or "psum" that a program may use."""
    return int(capacity(memory, timeline.chip.core))


def access_bytes(timeline: Timeline) -> dict[str, int]:
    """Bytes that instructions and transfers read and wrote in SBUF and PSUM."""
    sums = dict.fromkeys(_ACCESSES, 0)
    for runs, instruction in zip(timeline.executions.tolist(), timeline.instructions):
        for name, count in accessed_bytes(instruction).items():
            sums[name] += runs * count
    return sums


_ACCESSES = ("sbuf_read_bytes", "sbuf_write_bytes", "psum_read_bytes", "psum_write_bytes")


def accessed_bytes(instruction: Instruction) -> dict[str, int]:
    """The same of one run of an instruction."""
    sums = dict.fromkeys(_ACCESSES, 0)
    for operand in instruction.spec.operands:
        access = instruction.get(operand.name)
        if not isinstance(access, Access) or access.memory == "hbm":
            continue
        if operand.role == "read" or instruction.updates(operand):
            sums[f"{access.memory}_read_bytes"] += access.bytes
        if operand.role != "read":
            sums[f"{access.memory}_write_bytes"] += access.bytes
    return sums


def cores(timeline: Timeline) -> tuple[int, ...]:
    """The cores that the program runs on."""
    return tuple(sorted({i.core for i in timeline.instructions})) or (0,)


def _depth(instruction: Instruction, timeline: Timeline) -> float:
    """Values of the contracted axis that one row of the array takes at once."""
    moving = instruction.get("moving")
    if moving is not None and moving.tile.element.packed > 1:
        return float(timeline.chip.core.tensor.depth["mx"])
    double = instruction.get("perf_mode", "none") == "double_row"
    return float(timeline.chip.core.tensor.depth["float8_double_row"]) if double else 1.0


def _done_of_cause(timeline: Timeline) -> np.ndarray:
    """int64[events]: when what an event waited for was done, -1 where it waited for nothing."""
    cause, done = timeline.events[:, COLUMNS.index("cause")], COLUMNS.index("done")
    found = np.where(cause >= 0, timeline.events[cause, done], -1)
    for repeat in timeline.repeats:
        within = (cause >= repeat.begin) & (cause < repeat.end)
        within[repeat.begin : repeat.end] = False
        # Of a repetition that is over, the last time counts.
        found[within] += repeat.step[cause[within] - repeat.begin, done] * (repeat.count - 1)
    return found


def _covered(spans: list[tuple[int, int]]) -> int:
    """Bytes that some span covers."""
    covered = end = 0
    for first, last in sorted(spans):
        covered += max(0, last - max(first, end))
        end = max(end, last)
    return covered
