"""A timeline as a Perfetto trace (.pftrace), for ui.perfetto.dev and its SQL.

A process is a core, a thread an engine. Beside the threads are the DMA queues (a transfer from its
descriptors to its last byte), the DMA engines behind them (from its first byte to its last), and
counters. A slice's arguments say what it worked on, where that was written, how long it waited and
for what; a flow comes to it from what it waited for.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jax_trn3.isa import Access
from jax_trn3.simulator import Timeline
from jax_trn3.simulator.allocation import pitch
from jax_trn3.simulator.decode import picoseconds
from jax_trn3.simulator.timeline import COLUMNS
from jax_trn3.simulator.walk import touched

from . import figures
from .levels import Level, level, rate
from .memory import in_use
from .neuron_explorer import neuron_summary
from .runs import Runs, runs
from .trace_packets import Argument, Slice, Trace

_ISSUED, _START, _FREE, _DONE, _CAUSE, _NUMBER = range(len(COLUMNS))


@dataclass(frozen=True)
class Drawing:
    """What is drawn on what."""

    trace: Trace
    runs: Runs
    rows: list[list[int]]
    """`runs.events`."""

    numbers: list[int]
    """`runs.numbers`."""

    place: Mapping[int, int]
    """Where in `rows` the run of a number is."""

    flows: Mapping[int, list[int]]
    """The flows that begin at each place, called by the run that they go to."""

    shares: Mapping[int, tuple[tuple[str, int], ...]]
    """By instruction: how long a transfer keeps which server busy, ps."""

    lanes: Mapping[str, list[int]]
    """The places of what ran on each engine and queue."""

    texts: dict[tuple[int, str, tuple[int, ...]], str] = field(default_factory=dict)
    """Operands as text, by instruction, name and slots."""

    @property
    def timeline(self) -> Timeline:
        """What the runs are of."""
        return self.runs.timeline

    def of_core(self, core: int) -> dict[str, list[int]]:
        """The lanes of a core, by their names there."""
        prefix = f"core{core}/"
        found = {k.removeprefix(prefix): v for k, v in self.lanes.items() if k.startswith(prefix)}
        return dict(sorted(found.items()))


def write(timeline: Timeline, path: str | Path, shown: Runs | None = None) -> None:
    """Writes a timeline as a Perfetto trace.

    **Arguments:**

    - `shown`: Which runs to show; None is all, or as many from the start as `runs` gives.
    """
    drawing = drawn(runs(timeline) if shown is None else shown, Trace())
    _program(drawing)
    for core in figures.cores(timeline):
        process = drawing.trace.process(f"core {core} ({timeline.chip.core.name})", core + 1)
        _engines(drawing, core)
        _queues(drawing, core, process)
        _dma_engines(drawing, core, process)
        _counters(drawing, core, process)
    with open(path, "wb") as file:
        drawing.trace.write(file)


def drawn(shown: Runs, trace: Trace) -> Drawing:
    """What runs look like on a trace."""
    rows, numbers = shown.events.tolist(), shown.numbers.tolist()
    place = {number: k for k, number in enumerate(numbers)}
    flows: dict[int, list[int]] = {}
    lanes: dict[str, list[int]] = {}
    for number, k in place.items():
        lanes.setdefault(shown.timeline.lanes[rows[k][_NUMBER]], []).append(k)
        if rows[k][_CAUSE] in place:
            flows.setdefault(place[rows[k][_CAUSE]], []).append(number)
    shares = dict(shown.timeline.transfers)
    return Drawing(trace, shown, rows, numbers, place, flows, shares, lanes)


def _program(drawing: Drawing) -> None:
    """The program as a whole, and what of it is not shown."""
    timeline, shown = drawing.timeline, drawing.runs
    active = timeline.active_ps
    whole: dict[str, Argument] = {
        "time_ps": timeline.time_ps,
        "instructions": timeline.num_instructions,
        "instructions_shown": len(shown),
        **neuron_summary(timeline),
    }
    # Time counts from the first instruction; what is before it is drawn behind the last, too.
    ends: dict[str, Argument] = {"busy_ps": timeline.overhead_ps}
    parts = [
        Slice(timeline.program.name, 0, active, 0, whole),
        Slice("start and stop", active, timeline.time_ps, 0, ends),
    ]
    drawing.trace.slices(drawing.trace.track("program"), parts)
    if shown.left_out:
        note = f"not shown: {shown.left_out:,} of {timeline.num_instructions:,} instructions"
        spans = [(0, shown.start_ps), (shown.end_ps, active)]
        missing = [
            Slice(note, begin, end, 0, {"begin_ps": begin, "end_ps": end})
            for begin, end in spans
            if begin < end
        ]
        drawing.trace.slices(drawing.trace.track("not shown"), missing)


def _engines(drawing: Drawing, core: int) -> None:
    lanes = drawing.of_core(core)
    names = [name for name in lanes if not name.startswith("dma:")]
    for tid, name in enumerate(names, 1):
        thread = drawing.trace.thread(name, core + 1, 100 * (core + 1) + tid)
        drawing.trace.slices(thread, (computation(drawing, k) for k in lanes[name]))


def _queues(drawing: Drawing, core: int, process: int) -> None:
    for name, places in drawing.of_core(core).items():
        if name.startswith("dma:"):
            for part in apart(drawing, places, _ISSUED):
                track = drawing.trace.track(name, process)
                drawing.trace.slices(track, (transfer(drawing, k) for k in part))


def _dma_engines(drawing: Drawing, core: int, process: int) -> None:
    """A track for each set of DMA engines that transfers are striped over."""
    groups: dict[str, list[int]] = {}
    for name, places in drawing.of_core(core).items():
        for k in places if name.startswith("dma:") else ():
            servers = [s for s, busy in drawing.shares[drawing.rows[k][_NUMBER]] if busy]
            engines = [int(s.rpartition(" ")[2]) for s in servers if " engine " in s]
            group = f"DMA engines {figures.ranges(engines)}" if engines else "HBM alone"
            groups.setdefault(group, []).append(k)
    for group, places in sorted(groups.items()):
        for part in apart(drawing, places, _START):
            track = drawing.trace.track(group, process)
            drawing.trace.slices(track, (_movement(drawing, k) for k in part))


def apart(drawing: Drawing, places: Iterable[int], column: int) -> list[list[int]]:
    """The places in as many lists as overlap at once, from a column's time until they are done."""
    free: list[tuple[int, int]] = []
    parts: list[list[int]] = []
    for k in sorted(places, key=lambda k: (drawing.rows[k][column], k)):
        if free and free[0][0] <= drawing.rows[k][column]:
            _, part = heapq.heappop(free)
            parts[part].append(k)
        else:
            part = len(parts)
            parts.append([k])
        heapq.heappush(free, (drawing.rows[k][_DONE], part))
    return parts


def computation(drawing: Drawing, k: int) -> Slice:
    """An instruction on its engine."""
    issued, start, free, done, _, number = drawing.rows[k]
    work = drawing.timeline.work[number]
    arguments = {
        "start_ps": start,
        "busy_ps": free - start,
        "wait_ps": start - issued,
        "latency_ps": done - free,
        "flops": work.flops,
        "hardware_flops": work.hardware_flops,
    }
    return _instruction(drawing, k, start, free, arguments)


def transfer(drawing: Drawing, k: int) -> Slice:
    """A transfer in its queue."""
    issued, start, _, done, _, number = drawing.rows[k]
    dma = drawing.timeline.work[number].dma
    assert dma is not None
    arguments: dict[str, Argument] = {
        "issued_ps": issued,
        "first_byte_ps": start,
        "done_ps": done,
        "bytes": dma.bytes,
        "hbm_read_bytes": dma.bytes_read_hbm,
        "hbm_write_bytes": dma.bytes_written_hbm,
        "packets": dma.packets,
        "descriptors": dma.mode,
    }
    return _instruction(drawing, k, issued, done, arguments)


def _movement(drawing: Drawing, k: int) -> Slice:
    """A transfer on the DMA engines."""
    _, start, _, done, _, number = drawing.rows[k]
    arguments: dict[str, Argument] = {
        "run": drawing.numbers[k],
        "queue": drawing.timeline.lanes[number],
    }
    for server, time in drawing.shares[number]:
        arguments[f"busy_ps.{server.partition('/')[2]}"] = time
    return Slice(drawing.timeline.instructions[number].name, start, done, k, arguments)


def _instruction(
    drawing: Drawing, k: int, begin: int, end: int, arguments: Mapping[str, Argument]
) -> Slice:
    """An instruction, with the flows to and from it."""
    run, (*_, cause, number) = drawing.numbers[k], drawing.rows[k]
    everything: dict[str, Argument] = {"run": run, "instruction": number, **arguments}
    if cause >= 0:
        everything["waited_for"] = _cause(drawing, cause)
    everything.update(_what(drawing, k))
    name, begins = drawing.timeline.instructions[number].name, tuple(drawing.flows.get(k, ()))
    return Slice(name, begin, end, k, everything, begins, run if cause in drawing.place else None)


def _cause(drawing: Drawing, cause: int) -> str:
    """The run that another waited for longest."""
    if cause not in drawing.place:
        return f"run {cause} (not shown)"
    number = drawing.rows[drawing.place[cause]][_NUMBER]
    timeline = drawing.timeline
    return f"{timeline.instructions[number].name} on {timeline.lanes[number]} (run {cause})"


def _what(drawing: Drawing, k: int) -> Iterator[tuple[str, Argument]]:
    """What an instruction worked on, and where it comes from."""
    instruction, indices = drawing.runs.instruction(k), drawing.runs.indices[k]
    number = drawing.rows[k][_NUMBER]
    for name, access, slots in touched(instruction, indices):
        if (number, name, slots) not in drawing.texts:
            drawing.texts[number, name, slots] = _access(drawing, access, slots)
        yield f"operands.{name}", drawing.texts[number, name, slots]
    for name, value in instruction.params:
        if not isinstance(value, Access):
            yield f"params.{name}", str(value)
    for depth, iteration in enumerate(indices.values()):
        yield f"loops.{depth}", iteration
    yield "origin", str(instruction.origin)


def _access(drawing: Drawing, access: Access, slots: tuple[int, ...]) -> str:
    tile, text = access.tile, str(access)
    if tile.slots > 1:
        text += f", slot {figures.ranges(slots)} of {tile.slots}"
    if tile.address is not None:
        partition, byte = tile.address
        byte += slots[0] * pitch(tile, drawing.timeline.chip.core)
        text += f", at partition {partition} byte {byte}"
    return text


def _counters(drawing: Drawing, core: int, process: int) -> None:
    def draw(name: str, unit: str, found: Level) -> None:
        steps = zip(found.times.tolist(), found.values.tolist())
        drawing.trace.counter(name, unit, process, steps)

    lanes = drawing.of_core(core)
    moving = sorted(k for name in lanes if name.startswith("dma:") for k in lanes[name])
    events = drawing.runs.events[moving]
    work = [drawing.timeline.work[number].dma for number in events[:, _NUMBER]]
    for name, figure in (
        ("HBM read bandwidth", "bytes_read_hbm"),
        ("HBM write bandwidth", "bytes_written_hbm"),
        ("DMA throughput", "bytes"),
    ):
        amount = np.array([getattr(dma, figure) for dma in work], np.int64)
        draw(name, "B/s", rate(events[:, _START], events[:, _DONE], amount))
    pending = level(events[:, _ISSUED], events[:, _DONE], np.ones(len(events), np.int64))
    draw("pending DMAs", "transfers", pending)
    for (memory, owner), used in in_use(drawing.runs).items():
        if owner == core:
            draw(f"{memory.upper()} in use", "B", used)
    if "tensor" in lanes:
        draw("tensor engine's speed", "%", _speed(drawing, lanes["tensor"]))


def _speed(drawing: Drawing, places: list[int]) -> Level:
    """The tensor engine's speed while it works, percent of full; less where it is throttled."""
    timeline, hz = drawing.timeline, drawing.timeline.chip.core.tensor.clock_hz
    steps: list[tuple[int, float]] = []
    for k in places:
        _, start, free, _, _, number = drawing.rows[k]
        full = picoseconds(timeline.work[number].cycles, hz)
        speed = 100.0 * full / max(1, free - start) if full else 100.0
        if not steps or steps[-1][1] != speed:
            steps.append((start, speed))
    times, values = zip(*steps) if steps else ((), ())
    return Level(np.array(times, np.int64), np.array(values, np.float64))
