"""A timeline on one screen: where the time went, and what it is near to."""

from dataclasses import replace
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jax_trn3.isa import Origin
from jax_trn3.simulator import Timeline

from . import figures
from .memory import in_use
from .neuron_explorer import neuron_summary
from .runs import MAX_RUNS, runs
from .text import columns, plain
from .units import duration, percent, rate, size

_LINES = 8
_WAITS = 5


def summary(timeline: Timeline, width: int = 100) -> str:
    """A timeline as text of that many columns."""
    return plain(render(timeline), width)


def render(timeline: Timeline) -> RenderableType:
    """A timeline for a `rich` console."""
    tables = (_engines(timeline), _totals(timeline), _waits(timeline), _instructions(timeline))
    return Group(_head(timeline), *tables)


def _head(timeline: Timeline) -> Text:
    core = timeline.chip.core.name
    used = len(figures.cores(timeline))
    nearest = next(iter(figures.bounds(timeline)), None)
    text = Text()
    text.append(timeline.program.name, "bold")
    text.append(f" on {'one ' if used == 1 else f'{used} '}{core} of a {timeline.chip.name}\n")
    text.append(duration(timeline.time_ps), "bold")
    text.append(
        f", {duration(timeline.overhead_ps)} of it start and stop; "
        f"{timeline.num_instructions:,} instructions, {len(timeline.instructions):,} in the text\n"
    )
    if nearest:
        text.append(
            f"busiest: {_short(timeline, nearest.name)}, {duration(nearest.busy_ps)} of work, "
            f"{percent(nearest.busy_ps / max(1, timeline.active_ps))} of the time in between"
        )
    return text


def _engines(timeline: Timeline) -> Table:
    table = columns("engine", ">busy", ">waiting", ">idle", ">share", ">instructions")
    for spent in timeline.engines.values():
        times = (duration(t) for t in (spent.busy, spent.waiting, spent.idle))
        count = f"{spent.instructions:,}"
        table.add_row(_short(timeline, spent.name), *times, percent(spent.utilization), count)
    for group, busy in figures.dma_groups(timeline).items():
        idle = timeline.time_ps - busy
        share = percent(busy / max(1, timeline.time_ps))
        table.add_row(_short(timeline, group), duration(busy), "", duration(idle), share, "")
    return table


def _totals(timeline: Timeline) -> Table:
    done, moved = figures.compute(timeline), figures.traffic(timeline)
    neuron, seconds = neuron_summary(timeline), max(timeline.time_s, 1e-12)
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "flops",
        f"{done.model_flops:.4g} needed, {done.hardware_flops:.4g} carried out, "
        f"{done.transpose_flops:.4g} of them transposes",
    )
    table.add_row(
        "MFU",
        f"{percent(neuron['mfu_estimated_percent'])}, HFU "
        f"{percent(neuron['hfu_estimated_percent'])} of {rate(done.peak_flops_per_s, 'FLOP/s')}; "
        f"{duration(done.throttled_ps)} lost by throttling",
    )
    table.add_row(
        "HBM",
        f"{size(moved.hbm_read_bytes)} read, {size(moved.hbm_write_bytes)} written; MBU "
        f"{percent(neuron['mbu_estimated_percent'])} of {rate(moved.hbm_bytes_per_s, 'B/s')}",
    )
    saved, reloaded = neuron["spill_save_bytes"], neuron["spill_reload_bytes"]
    if saved or reloaded:
        table.add_row("spill", f"{size(saved)} saved, {size(reloaded)} reloaded")
    used = figures.queues(timeline)
    table.add_row(
        "DMA",
        f"{size(moved.bytes)} in {moved.transfers:,} transfers on {len(used)} queues, "
        f"{rate(moved.bytes / seconds, 'B/s')} of {rate(moved.practical_bytes_per_s, 'B/s')} "
        f"practical, {rate(moved.peak_bytes_per_s, 'B/s')} peak",
    )
    for memory in ("sbuf", "psum"):
        table.add_row(memory.upper(), _memory(timeline, memory))
    return table


def _memory(timeline: Timeline, memory: str) -> str:
    limit = figures.limit(timeline, memory)
    most = max(figures.allocated(timeline, memory).values())
    text = f"{size(most)} of {size(limit)} a partition allocated ({percent(most / limit)})"
    if timeline.num_instructions > MAX_RUNS:
        return text
    peaks = [use.peak for (name, _), use in in_use(runs(timeline)).items() if name == memory]
    return f"{text}; {size(max(peaks, default=0))} in use at the peak"


def _waits(timeline: Timeline) -> Table:
    table = columns("waited", ">time", ">share", "for")
    for wait in [w for w in figures.waits(timeline) if w.time_ps][:_WAITS]:
        share = percent(wait.time_ps / max(1, timeline.time_ps))
        on = _short(timeline, wait.on)
        what = f"{wait.instruction} on {on}" if wait.instruction else _ITSELF
        table.add_row(_short(timeline, wait.engine), duration(wait.time_ps), share, what)
    return table


_ITSELF = "its own weights, or a port it shares"


def _instructions(timeline: Timeline) -> Table:
    table = columns("instruction", "engine", ">runs", ">busy", ">share", "from")
    found = figures.lines(timeline)
    for line in found[:_LINES]:
        share = percent(line.busy_ps / max(1, timeline.time_ps))
        origin = _place(line.origin)
        runs_, busy = f"{line.runs:,}", duration(line.busy_ps)
        engine = _short(timeline, line.engine)
        table.add_row(line.instruction, engine, runs_, busy, share, origin)
    if len(found) > _LINES:
        table.add_row(f"and {len(found) - _LINES} more")
    return table


def _place(origin: Origin, most: int = 36) -> str:
    """Without directories."""
    text = str(replace(origin, file=Path(origin.file).name))
    return text if len(text) <= most else "..." + text[-most + 3 :]


def _short(timeline: Timeline, name: str) -> str:
    """An engine's name, with its core's where there are several."""
    return name if len(figures.cores(timeline)) > 1 else name.partition("/")[2]
