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
class _Drawing:
    """What is drawn on what."""

    trace: Trace
    runs: Runs
    rows: list[list[int]]
    """`runs.events`."""

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
    Path(path).write_bytes(perfetto_trace(timeline, shown))


def perfetto_trace(timeline: Timeline, shown: Runs | None = None) -> bytes:
    """A timeline as the contents of a trace file; see `write`."""
    drawing = _drawing(runs(timeline) if shown is None else shown)
    _program(drawing)
    for core in figures.cores(timeline):
        process = drawing.trace.process(f"core {core} ({timeline.chip.core.name})", core + 1)
        _engines(drawing, core)
        _queues(drawing, core, process)
        _dma_engines(drawing, core, process)
        _counters(drawing, core, process)
    return drawing.trace.serialize()


def _drawing(shown: Runs) -> _Drawing:
    rows = shown.events.tolist()
    place = {number: k for k, number in enumerate(shown.numbers.tolist())}
    flows: dict[int, list[int]] = {}
    lanes: dict[str, list[int]] = {}
    for number, k in place.items():
        lanes.setdefault(shown.timeline.lanes[rows[k][_NUMBER]], []).append(k)
        if rows[k][_CAUSE] in place:
            flows.setdefault(place[rows[k][_CAUSE]], []).append(number)
    shares = dict(shown.timeline.transfers)
    return _Drawing(Trace(), shown, rows, place, flows, shares, lanes)


def _program(drawing: _Drawing) -> None:
    """The program as a whole, and what of it is not shown."""
    timeline, shown = drawing.timeline, drawing.runs
    track = drawing.trace.track("program")
    whole: dict[str, Argument] = {
        "time_ps": timeline.time_ps,
        "instructions": timeline.num_instructions,
        "instructions_shown": len(shown),
        **neuron_summary(timeline),
    }
    active = timeline.active_ps
    drawing.trace.slice(track, Slice(timeline.program.name, 0, active, 0, whole))
    # Time counts from the first instruction; what is before it is drawn behind the last, too.
    ends: dict[str, Argument] = {"busy_ps": timeline.overhead_ps}
    drawing.trace.slice(track, Slice("start and stop", active, timeline.time_ps, 0, ends))
    if not shown.left_out:
        return
    note = f"not shown: {shown.left_out:,} of {timeline.num_instructions:,} instructions"
    track = drawing.trace.track("not shown")
    for begin, end in ((0, shown.start_ps), (shown.end_ps, active)):
        if begin < end:
            rest: dict[str, Argument] = {"begin_ps": begin, "end_ps": end}
            drawing.trace.slice(track, Slice(note, begin, end, 0, rest))


def _engines(drawing: _Drawing, core: int) -> None:
    lanes = drawing.of_core(core)
    names = [name for name in lanes if not name.startswith("dma:")]
    for tid, name in enumerate(names, 1):
        thread = drawing.trace.thread(name, core + 1, 100 * (core + 1) + tid)
        for k in lanes[name]:
            issued, start, free, done, _, number = drawing.rows[k]
            work = drawing.timeline.work[number]
            times = {
                "start_ps": start,
                "busy_ps": free - start,
                "wait_ps": start - issued,
                "latency_ps": done - free,
            }
            flops = {"flops": work.flops, "hardware_flops": work.hardware_flops}
            _slice(drawing, thread, k, (start, free), {**times, **flops})


def _queues(drawing: _Drawing, core: int, process: int) -> None:
    for name, places in drawing.of_core(core).items():
        if not name.startswith("dma:"):
            continue
        for track, k in _spread(drawing, name, process, places, _ISSUED):
            issued, start, _, done, _, number = drawing.rows[k]
            dma = drawing.timeline.work[number].dma
            assert dma is not None
            moved: dict[str, Argument] = {
                "issued_ps": issued,
                "first_byte_ps": start,
                "done_ps": done,
                "bytes": dma.bytes,
                "hbm_read_bytes": dma.bytes_read_hbm,
                "hbm_write_bytes": dma.bytes_written_hbm,
                "packets": dma.packets,
                "descriptors": dma.mode,
            }
            _slice(drawing, track, k, (issued, done), moved)


def _dma_engines(drawing: _Drawing, core: int, process: int) -> None:
    """A track for each set of DMA engines that transfers are striped over."""
    groups: dict[str, list[int]] = {}
    for name, places in drawing.of_core(core).items():
        for k in places if name.startswith("dma:") else ():
            servers = [s for s, busy in drawing.shares[drawing.rows[k][_NUMBER]] if busy]
            engines = [int(s.rpartition(" ")[2]) for s in servers if " engine " in s]
            group = f"DMA engines {figures.ranges(engines)}" if engines else "HBM alone"
            groups.setdefault(group, []).append(k)
    for group, places in sorted(groups.items()):
        for track, k in _spread(drawing, group, process, places, _START):
            _, start, _, done, _, number = drawing.rows[k]
            busy: dict[str, Argument] = {"run": int(drawing.runs.numbers[k])}
            busy["queue"] = drawing.timeline.lanes[number]
            for server, time in drawing.shares[number]:
                busy[f"busy_ps.{server.partition('/')[2]}"] = time
            name = drawing.timeline.instructions[number].name
            drawing.trace.slice(track, Slice(name, start, done, k, busy))


def _spread(
    drawing: _Drawing, name: str, process: int, places: Iterable[int], column: int
) -> Iterator[tuple[int, int]]:
    """(track, place) of each: as many tracks of one name as overlap at once."""
    free: list[tuple[int, int]] = []
    for k in sorted(places, key=lambda k: (drawing.rows[k][column], k)):
        if free and free[0][0] <= drawing.rows[k][column]:
            _, track = heapq.heappop(free)
        else:
            track = drawing.trace.track(name, process)
        heapq.heappush(free, (drawing.rows[k][_DONE], track))
        yield track, k


def _slice(
    drawing: _Drawing,
    track: int,
    k: int,
    span: tuple[int, int],
    arguments: Mapping[str, Argument],
) -> None:
    """An instruction, with the flows to and from it."""
    _, _, _, _, cause, number = drawing.rows[k]
    run = int(drawing.runs.numbers[k])
    everything: dict[str, Argument] = {"run": run, "instruction": number, **arguments}
    if cause >= 0:
        everything["waited_for"] = _cause(drawing, cause)
    everything.update(_what(drawing, k))
    ends_here = run if cause in drawing.place else None
    name, begins_here = drawing.timeline.instructions[number].name, drawing.flows.get(k, ())
    piece = Slice(name, *span, k, everything, tuple(begins_here), ends_here)
    drawing.trace.slice(track, piece)


def _cause(drawing: _Drawing, cause: int) -> str:
    """The run that another waited for longest."""
    if cause not in drawing.place:
        return f"run {cause} (not shown)"
    number = drawing.rows[drawing.place[cause]][_NUMBER]
    timeline = drawing.timeline
    return f"{timeline.instructions[number].name} on {timeline.lanes[number]} (run {cause})"


def _what(drawing: _Drawing, k: int) -> Iterator[tuple[str, Argument]]:
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


def _access(drawing: _Drawing, access: Access, slots: tuple[int, ...]) -> str:
    tile, text = access.tile, str(access)
    if tile.slots > 1:
        text += f", slot {figures.ranges(slots)} of {tile.slots}"
    if tile.address is not None:
        partition, byte = tile.address
        byte += slots[0] * pitch(tile, drawing.timeline.chip.core)
        text += f", at partition {partition} byte {byte}"
    return text


def _counters(drawing: _Drawing, core: int, process: int) -> None:
    def draw(name: str, unit: str, found: Level) -> None:
        counter = drawing.trace.counter(name, unit, process)
        drawing.trace.values(counter, zip(found.times.tolist(), found.values.tolist()))

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


def _speed(drawing: _Drawing, places: list[int]) -> Level:
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
