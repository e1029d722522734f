"""A timeline on one screen: where the time went, and what it is near to."""

import io
from dataclasses import replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from jax_trn3.isa import Origin
from jax_trn3.simulator import Timeline

from . import figures
from .memory import in_use
from .neuron_explorer import neuron_summary
from .runs import MAX_RUNS, runs

_LINES = 8
_WAITS = 5


def summary(timeline: Timeline, width: int = 100) -> str:
    """A timeline as text of that many columns."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(timeline))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in written.splitlines()) + "\n"


def render(timeline: Timeline) -> RenderableType:
    """A timeline for a `rich` console."""
    tables = (_engines(timeline), _totals(timeline), _waits(timeline), _instructions(timeline))
    return Group(_head(timeline), *tables)


def duration(ps: float) -> str:
    """A time in the unit a person reads."""
    for step, unit in ((1e12, "s"), (1e9, "ms"), (1e6, "us"), (1e3, "ns")):
        if ps >= step:
            return f"{ps / step:.4g} {unit}"
    return f"{ps:.0f} ps"


def _bytes(count: float) -> str:
    for step, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= step:
            return f"{count / step:.4g} {unit}"
    return f"{count:.0f} B"


def _rate(per_second: float, unit: str) -> str:
    for step, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if per_second >= step:
            return f"{per_second / step:.4g} {prefix}{unit}"
    return f"{per_second:.4g} {unit}"


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


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
            f"{_percent(nearest.busy_ps / max(1, timeline.active_ps))} of the time in between"
        )
    return text


def _engines(timeline: Timeline) -> Table:
    table = _table("engine", ">busy", ">waiting", ">idle", ">share", ">instructions")
    for spent in timeline.engines.values():
        times = (duration(t) for t in (spent.busy, spent.waiting, spent.idle))
        count = f"{spent.instructions:,}"
        table.add_row(_short(timeline, spent.name), *times, _percent(spent.utilization), count)
    for group, busy in figures.dma_groups(timeline).items():
        idle = timeline.time_ps - busy
        share = _percent(busy / max(1, timeline.time_ps))
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
        f"{_percent(neuron['mfu_estimated_percent'])}, HFU "
        f"{_percent(neuron['hfu_estimated_percent'])} of {_rate(done.peak_flops_per_s, 'FLOP/s')}; "
        f"{duration(done.throttled_ps)} lost by throttling",
    )
    table.add_row(
        "HBM",
        f"{_bytes(moved.hbm_read_bytes)} read, {_bytes(moved.hbm_write_bytes)} written; MBU "
        f"{_percent(neuron['mbu_estimated_percent'])} of {_rate(moved.hbm_bytes_per_s, 'B/s')}",
    )
    saved, reloaded = neuron["spill_save_bytes"], neuron["spill_reload_bytes"]
    if saved or reloaded:
        table.add_row("spill", f"{_bytes(saved)} saved, {_bytes(reloaded)} reloaded")
    used = figures.queues(timeline)
    table.add_row(
        "DMA",
        f"{_bytes(moved.bytes)} in {moved.transfers:,} transfers on {len(used)} queues, "
        f"{_rate(moved.bytes / seconds, 'B/s')} of {_rate(moved.practical_bytes_per_s, 'B/s')} "
        f"practical, {_rate(moved.peak_bytes_per_s, 'B/s')} peak",
    )
    for memory in ("sbuf", "psum"):
        table.add_row(memory.upper(), _memory(timeline, memory))
    return table


def _memory(timeline: Timeline, memory: str) -> str:
    limit = figures.limit(timeline, memory)
    most = max(figures.allocated(timeline, memory).values())
    text = f"{_bytes(most)} of {_bytes(limit)} a partition allocated ({_percent(most / limit)})"
    if timeline.num_instructions > MAX_RUNS:
        return text
    peaks = [use.peak for (name, _), use in in_use(runs(timeline)).items() if name == memory]
    return f"{text}; {_bytes(max(peaks, default=0))} in use at the peak"


def _waits(timeline: Timeline) -> Table:
    table = _table("waited", ">time", ">share", "for")
    for wait in [w for w in figures.waits(timeline) if w.time_ps][:_WAITS]:
        share = _percent(wait.time_ps / max(1, timeline.time_ps))
        on = _short(timeline, wait.on)
        what = f"{wait.instruction} on {on}" if wait.instruction else _ITSELF
        table.add_row(_short(timeline, wait.engine), duration(wait.time_ps), share, what)
    return table


_ITSELF = "its own weights, or a port it shares"


def _instructions(timeline: Timeline) -> Table:
    table = _table("instruction", "engine", ">runs", ">busy", ">share", "from")
    found = figures.lines(timeline)
    for line in found[:_LINES]:
        share = _percent(line.busy_ps / max(1, timeline.time_ps))
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


def _table(*columns: str) -> Table:
    """Columns that begin with ">" are numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in columns:
        number = name.startswith(">")
        table.add_column(name.lstrip(">"), justify="right" if number else "left", no_wrap=True)
    return table
