"""An estimate on one screen: where the time goes, what it is near to, and what was assumed."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jax_trn3.profiler.text import columns, plain
from jax_trn3.profiler.units import duration, percent, size

from .json_view import Document, OperationRow, Place, document
from .result import Estimate

_OPERATIONS = 12
_COLLECTIVES = 5
_LARGEST = 5
_ASSUMPTIONS = 3
_LACKS = 5
_PLACE = 26  # columns for file:line


def summary(what: Estimate | Document, width: int = 100) -> str:
    """An estimate, or its document (`json_view.document`), as text of that many columns."""
    return plain(render(what, width), width)


def render(what: Estimate | Document, width: int = 100) -> RenderableType:
    """The same for a `rich` console of that many columns."""
    found = document(what) if isinstance(what, Estimate) else what
    parts: list[RenderableType] = [_head(found), _totals(found), _operations(found, width)]
    if any(row["kind"] == "collective" for row in found["operations"]):
        parts.append(_collectives(found, width))
    if not found["memory"]["fits"]:
        parts.append(_largest(found))
    return Group(*parts, _assumed(found, width))


def layout(found: Document) -> str:
    """The mesh: "data=8 x model=4"; "" for a single device."""
    return " x ".join(f"{axis['name']}={axis['size']}" for axis in found["mesh"])


def _head(found: Document) -> Text:
    devices, time = found["devices"], found["time"]
    where = f"{devices:,} devices" if devices > 1 else "1 device"
    mesh = f", mesh {layout(found)}" if found["mesh"] else ""
    lnc = f" (LNC {found['lnc']})" if found["lnc"] > 1 else ""
    text = Text()
    text.append(found["program"], "bold")
    text.append(f" on {found['topology']}, {where} of {found['chip']}{lnc}{mesh}\n")
    text.append(duration(time["total_ps"]), "bold")
    text.append(
        f" a run, {duration(time['start_and_stop_ps'])} of it start and stop; "
        f"{found['instructions']:,} instructions a device\n"
    )
    name, seconds = found["bound"], found["bounds_s"]
    shown = [f"{other} {duration(s * 1e12)}" for other, s in seconds.items() if s]
    if shown:
        text.append(
            f"nearest bound: {name}, {duration(seconds[name] * 1e12)} by itself; the run takes "
            f"{found['slack']:.2f} times that\n"
        )
    if shown[1:]:
        text.append(f"other bounds: {', '.join(shown[1:])}")
    return text


def _totals(found: Document) -> Table:
    neuron, memory = found["summary"], found["memory"]
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "MFU",
        f"{percent(neuron['mfu_estimated_percent'])}, HFU "
        f"{percent(neuron['hfu_estimated_percent'])}; {neuron['model_flops']:.4g} flops needed, "
        f"{neuron['hardware_flops']:.4g} carried out",
    )
    table.add_row(
        "MBU",
        f"{percent(neuron['mbu_estimated_percent'])}; HBM {size(neuron['hbm_read_bytes'])} read, "
        f"{size(neuron['hbm_write_bytes'])} written; DMA {size(found['dma_bytes'])}",
    )
    engines = [f"{e['name']} {percent(e['utilization_fraction'])}" for e in found["engines"]]
    table.add_row("engines", ", ".join(engines))
    share = percent(memory["peak_bytes"] / max(1, memory["capacity_bytes"]))
    verdict = "fits" if memory["fits"] else "[bold red]DOES NOT FIT[/]"
    table.add_row(
        "memory",
        f"{size(memory['peak_bytes'])} of {size(memory['capacity_bytes'])} HBM a device at the "
        f"peak ({share}): {verdict}",
    )
    if found["link_bytes"]:
        moved = [f"{tier} {size(count)}" for tier, count in found["link_bytes"].items()]
        table.add_row("links", f"over the busiest of each kind: {', '.join(moved)}")
    table.add_row("machine", _machine(found))
    return table


def _machine(found: Document) -> str:
    machine = found["machine"]
    energy = machine["energy_j"]
    parts = [f"{machine['chips']:,} chip{'s' * (machine['chips'] > 1)}"]
    parts.append("no power is published" if energy is None else f"{energy:.4g} J a run")
    if machine["tokens_per_s"] is not None:
        parts.append(f"{machine['tokens_per_s']:,.0f} tokens/s")
    if machine["tokens_per_s_per_mw"] is not None:
        parts.append(f"{machine['tokens_per_s_per_mw']:,.0f} tokens/s/MW")
    return ", ".join(parts)


def _operations(found: Document, width: int) -> Table:
    rows, total = found["operations"], max(1, found["time"]["total_ps"])
    lines = [
        (
            duration(row["time_ps"]),
            percent(row["time_ps"] / total),
            f"{row['runs']:,}",
            row["bound"],
            place(row["place"]),
            _operation(row),
        )
        for row in rows[:_OPERATIONS]
    ]
    if rest := rows[_OPERATIONS:]:
        time = sum(row["time_ps"] for row in rest)
        runs = f"{sum(row['runs'] for row in rest):,}"
        more = f"and {len(rest):,} more"
        lines.append((duration(time), percent(time / total), runs, "", more, ""))
    return _table((">time", ">share", ">runs", "bound", "from", "operation"), lines, width)


def _collectives(found: Document, width: int) -> Table:
    rows = [row for row in found["operations"] if row["kind"] == "collective"]
    rows.sort(key=lambda row: -row["busy_ps"])
    lines = [
        (
            duration(row["time_ps"]),
            duration(row["busy_ps"]),
            f"{row['runs']:,}",
            place(row["place"]),
            row["name"],
        )
        for row in rows[:_COLLECTIVES]
    ]
    exposed, busy = (sum(row[key] for row in rows) for key in ("time_ps", "busy_ps"))
    runs = f"{sum(row['runs'] for row in rows):,}"
    lines.append((duration(exposed), duration(busy), runs, "", "all collectives"))
    return _table((">exposed", ">busy", ">runs", "from", "collective"), lines, width)


def _table(names: Sequence[str], lines: Sequence[Sequence[str]], width: int) -> Table:
    """A table whose last column takes what the others leave."""
    table = columns(*names)
    widest = [max(map(len, column)) for column in zip([n.lstrip(">") for n in names], *lines)]
    left = max(8, width - sum(widest[:-1]) - 2 * len(names))
    for line in lines:
        table.add_row(*line[:-1], _cut(line[-1], left))
    return table


def _largest(found: Document) -> Table:
    table = columns(">largest in HBM", "shape", "what", "from")
    for value in found["memory"]["largest"][:_LARGEST]:
        shape = f"{value['dtype']}{value['shape']}"
        table.add_row(size(value["value_bytes"]), shape, value["what"], place(value["place"]))
    return table


def _assumed(found: Document, width: int) -> Text:
    text = Text()
    assumptions = found["assumptions"]
    _list(text, "assumptions", assumptions, _ASSUMPTIONS, width)
    lacks = [f"{lack['what']} ({place(lack['place'])})" for lack in found["lacks"]]
    _list(text, "the hardware lacks", lacks, _LACKS, width)
    owners: dict[str, list[str]] = {}
    for constant in found["extrapolated"]:
        owner, _, name = constant["path"].removeprefix("chip.").rpartition(".")
        owners.setdefault(owner, []).append(name)
    if owners:
        text.append(f"extrapolated constants at work ({len(found['extrapolated'])}): ", "bold")
        text.append("; ".join(f"{owner}: {', '.join(names)}" for owner, names in owners.items()))
    text.rstrip()
    return text


def _list(text: Text, title: str, lines: Sequence[str], most: int, width: int) -> None:
    if not lines:
        return
    text.append(f"{title} ({len(lines)}):\n", "bold")
    for line in lines[:most]:
        text.append(f"  {line if len(line) <= width - 2 else line[: width - 5] + '...'}\n")
    if len(lines) > most:
        text.append(f"  and {len(lines) - most:,} more\n")


def place(where: Place, most: int = _PLACE) -> str:
    """File and line, without directories."""
    if not where["file"]:
        return "unknown line"
    return _cut(f"{Path(where['file']).name}:{where['line']}", most)


def _operation(row: OperationRow) -> str:
    """JAX's name of it without that of the program; of collectives their own."""
    name = row["place"]["jax_name"]
    if row["kind"] == "collective" or not name:
        return row["name"]
    return name.partition("/")[2] or name


def _cut(text: str, most: int) -> str:
    """The end of a text that is too long: what is innermost stands there."""
    return text if len(text) <= most else "..." + text[3 - most :]
