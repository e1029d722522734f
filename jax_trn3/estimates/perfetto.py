"""An estimate as a Perfetto trace (.pftrace): JAX's operations above the engines.

A process is the device: its operations, loops as slices around one of their iterations; its
collectives; the HBM bandwidth that each operation comes to. Under it a process for each core, with
the instructions of a window on its engines and DMA queues, as in a trace of a timeline. A slice's
arguments say where it was written and what it costs.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jax_trn3.compiler.timing.graph import Source
from jax_trn3.profiler import figures
from jax_trn3.profiler.levels import rate
from jax_trn3.profiler.perfetto import Drawing, apart, computation, drawn, transfer
from jax_trn3.profiler.trace_packets import Argument, Slice, Trace

from .json_view import neuron_summary
from .placed import Placed, Shown, instructions, placed
from .result import Estimate

_DEVICE = 1
_ISSUED = 0  # column of a run's row


def write(estimate: Estimate, path: str | Path, window_ps: tuple[int, int] | None = None) -> None:
    """Writes an estimate as a Perfetto trace.

    **Arguments:**

    - `window_ps`: Part of the run whose engine instructions to show; None is from the start on, as
      many as `profiler.MAX_RUNS`.

    **Raises:** `ValueError` for a window that is empty or has more.
    """
    shown, left_out = instructions(estimate, window_ps)
    trace = Trace()
    device = trace.process(f"device ({estimate.name} on {estimate.topology.name})", _DEVICE)
    _program(trace, device, estimate, left_out)
    places = placed(estimate.schedule, window_ps[0] if window_ps else 0)
    _operations(trace, device, places)
    everything = [inner for place in places for inner in place.walk()]
    _collectives(trace, device, everything)
    _bandwidth(trace, device, everything)
    _engines(trace, shown)
    with open(path, "wb") as file:
        trace.write(file)


def _program(trace: Trace, device: int, estimate: Estimate, left_out: int) -> None:
    active = estimate.schedule.time_ps
    whole: dict[str, Argument] = {
        "time_ps": estimate.time_ps,
        "instructions": estimate.cost.instructions,
        "instructions_shown": estimate.cost.instructions - left_out,
        "hbm_peak_bytes": int(estimate.peak_hbm_bytes),
        "bound": estimate.bound,
        **neuron_summary(estimate),
    }
    # Time counts from the first operation; what is before it is drawn behind the last, too.
    ends: dict[str, Argument] = {"busy_ps": estimate.time_ps - active}
    parts = [
        Slice(estimate.name, 0, active, 0, whole),
        Slice("start and stop", active, estimate.time_ps, 0, ends),
    ]
    trace.slices(trace.track("program", device), parts)


def _operations(trace: Trace, device: int, places: Iterable[Placed]) -> None:
    """A track on which loops lie around what is in them."""
    levels: dict[int, list[Slice]] = {}
    _nest(places, 0, levels, itertools.count())
    track = trace.track("operations", device)
    for depth in sorted(levels):
        trace.slices(track, levels[depth])


def _nest(
    places: Iterable[Placed], depth: int, levels: dict[int, list[Slice]], ranks: Iterator[int]
) -> None:
    """Draws operations, and on the levels below what is in them. Ranks go up from begin to begin
    and end to end in the order of the drawing, so that what is inside begins later and ends first.
    """
    for place in places:
        if place.step.kind == "collective":
            continue
        order = next(ranks)
        if place.step.inner is not None:
            _body(place, depth + 1, levels, ranks)
        piece = Slice(
            _name(place), place.start_ps, place.end_ps, order, _arguments(place),
            end_order=next(ranks),
        )  # fmt: skip
        levels.setdefault(depth, []).append(piece)


def _body(loop: Placed, depth: int, levels: dict[int, list[Slice]], ranks: Iterator[int]) -> None:
    """Draws the iteration of a loop that is shown, and how many are before and after it."""
    step = loop.step
    assert step.inner is not None
    if step.kind == "branch":
        _nest(loop.inside, depth, levels, ranks)
        return
    over = min(loop.end_ps, loop.begin_ps + step.inner.time_ps)
    after = max(0, step.count - loop.iteration - 1)
    parts = [
        (loop.iteration, f"{loop.iteration:,} before", loop.start_ps, loop.begin_ps),
        (step.count, f"iteration {loop.iteration:,} of {step.count:,}", loop.begin_ps, over),
        (after, f"{after:,} more", over, loop.end_ps),
    ]
    for count, name, begin, end in parts:
        if not count:
            continue
        order = next(ranks)
        if name.startswith("iteration"):
            _nest(loop.inside, depth + 1, levels, ranks)
        pace: dict[str, Argument] = {"pace_ps": step.inner.pace_ps}
        levels.setdefault(depth, []).append(
            Slice(name, begin, end, order, pace, end_order=next(ranks))
        )


def _collectives(trace: Trace, device: int, places: Iterable[Placed]) -> None:
    """A track of the collectives, those in loops as often as their loops are shown."""
    found = [place for place in places if place.step.kind == "collective"]
    pieces = (
        Slice(_name(place), place.start_ps, place.end_ps, rank, _arguments(place))
        for rank, place in enumerate(found)
    )
    if found:
        trace.slices(trace.track("collectives", device), pieces)


def _bandwidth(trace: Trace, device: int, places: Iterable[Placed]) -> None:
    """What each operation moves to and from HBM a second, on average."""
    found = [place for place in places if place.step.kind == "compute" and place.step.time_ps]
    spans = np.array([(place.start_ps, place.end_ps) for place in found], np.int64).reshape(-1, 2)
    for name, figure in (("read", "hbm_read_bytes"), ("write", "hbm_write_bytes")):
        amounts = np.array([getattr(place.step.cost, figure) for place in found], np.int64)
        speed = rate(spans[:, 0], spans[:, 1], amounts)
        steps = zip(speed.times.tolist(), speed.values.tolist())
        trace.counter(f"HBM {name} bandwidth", "B/s", device, steps)


def _engines(trace: Trace, shown: Sequence[Shown]) -> None:
    """A process for each core: engines as threads, DMA queues as tracks."""
    lanes: dict[tuple[int, str], list[Iterable[Slice]]] = {}
    for part in shown:
        drawing = drawn(part.runs, trace)
        for core in figures.cores(part.runs.timeline):
            for name, places in drawing.of_core(core).items():
                if name.startswith("dma:"):
                    for k, some in enumerate(apart(drawing, places, _ISSUED)):
                        pieces = _numbered(drawing, some, transfer)
                        lanes.setdefault((core, f"{name}\0{k}"), []).append(pieces)
                else:
                    pieces = _numbered(drawing, places, computation)
                    lanes.setdefault((core, name), []).append(pieces)
    processes = {
        core: trace.process(f"core {core}", _DEVICE + 1 + core)
        for core in sorted({core for core, _ in lanes})
    }
    for thread, (core, name) in enumerate(sorted(lanes), 1):
        queue, is_queue, _ = name.partition("\0")
        if is_queue:
            track = trace.track(queue, processes[core])
        else:
            track = trace.thread(name, _DEVICE + 1 + core, 1000 * (core + 1) + thread)
        trace.slices(track, itertools.chain.from_iterable(lanes[core, name]))


def _numbered(
    drawing: Drawing, places: Iterable[int], draw: Callable[[Drawing, int], Slice]
) -> Iterator[Slice]:
    """Slices whose ranks go through all groups."""
    for k in places:
        yield replace(draw(drawing, k), order=drawing.numbers[k])


def _name(place: Placed) -> str:
    step = place.step
    if step.kind == "loop":
        return f"{_last(step.source) or step.name} x {step.count:,}"
    name = step.name if step.kind == "collective" else _last(step.source) or step.name
    return f"{name} x {place.times:,}" if place.times > 1 and step.kind == "collective" else name


def _last(source: Source) -> str:
    """The innermost name of JAX's name stack."""
    return source.name.rpartition("/")[2]


def _arguments(place: Placed) -> dict[str, Argument]:
    step = place.step
    cost = step.cost
    found: dict[str, Argument] = {
        "kind": step.kind,
        "rule": step.name,
        "origin": str(step.source),
        "jax_name": step.source.name,
        "runs": place.times,
        "time_ps": step.time_ps,
        "exposed_ps": step.exposed_ps,
        "flops": cost.flops,
        "hardware_flops": cost.hardware_flops,
        "hbm_read_bytes": cost.hbm_read_bytes,
        "hbm_write_bytes": cost.hbm_write_bytes,
        "dma_bytes": cost.dma_bytes,
        "instructions": cost.instructions,
    }
    found |= {f"busy_ps.{engine}": busy for engine, busy in cost.engines.items()}
    found |= {f"link_bytes.{tier}": count for tier, count in cost.link_bytes.items()}
    if step.algorithm:
        found["algorithm"] = step.algorithm
    if step.inner is not None:
        found["iterations"] = step.count
    if step.timed is not None:
        found |= {f"assumptions.{k}": t for k, t in enumerate(step.timed.plan.assumptions)}
        if step.timed.plan.lacks:
            found["lacks"] = step.timed.plan.lacks
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Argument) -> Argument:
    """Without the memory that a figure of the machine has."""
    return int(value) if isinstance(value, int) else value
