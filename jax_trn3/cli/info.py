"""`jax-trn3 info`: the machine in numbers, each with its unit, confidence and source."""

import argparse
import dataclasses
import json
import re
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jax_trn3.hardware import DEFAULT_TOPOLOGY, Topology, get_topology, topology_names
from jax_trn3.hardware.datasheet import Row, derived, rows

_MEMORY = ("sbuf", "psum", "partition", "quadrant", "max_free", "slow_stride")

# By the owner of a number. Owners that are not here head a table of their own.
_TITLES = {
    "": "Topology",
    "server": "Server",
    "chip": "Chip",
    "chip.fabric": "Links",
    "chip.core": "NeuronCore",
    "chip.core memories": "SBUF and PSUM",
    "chip.core.tensor": "TensorE",
    "chip.core.vector": "VectorE",
    "chip.core.scalar": "ScalarE",
    "chip.core.gpsimd": "GpSimdE",
    "chip.core.sync": "SyncE",
    "chip.core.dma": "DMA",
}

_DECIMAL = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((2**40, "Ti"), (2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki"))
_SCALED = {"bytes": "B", "Hz": "Hz", "bytes/s": "B/s", "FLOP/s": "FLOP/s", "W": "W"}


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describes the subcommand to the parser."""
    parser = commands.add_parser("info", help="print a machine's numbers and their sources")
    parser.add_argument(
        "topology",
        nargs="?",
        default=DEFAULT_TOPOLOGY,
        type=_topology,
        help=f"one of {', '.join(topology_names())} (default: {DEFAULT_TOPOLOGY})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(run=_run)


def _topology(name: str) -> Topology:
    try:
        return get_topology(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _run(arguments: argparse.Namespace) -> int:
    topology: Topology = arguments.topology
    if arguments.json:
        print(json.dumps(_as_json(topology), indent=2))
        return 0
    console = Console()
    for title, part in _parts(topology).items():
        console.print(_table(title, part))
    return 0


def _as_json(topology: Topology) -> dict[str, object]:
    return {
        "topology": topology.name,
        "chip": topology.chip.name,
        "core": topology.chip.core.name,
        "rows": [dataclasses.asdict(row) for row in (*rows(topology), *derived(topology))],
    }


def _parts(topology: Topology) -> dict[str, list[Row]]:
    """The rows by the part of the machine they describe, from the outside in."""
    parts: dict[str, list[Row]] = {title: [] for title in _TITLES.values()}
    for row in (*rows(topology), *derived(topology)):
        parts.setdefault(_part(row.path), []).append(row)
    names = {
        "Topology": topology.name,
        "Server": topology.server.name,
        "Chip": topology.chip.name,
        "Links": topology.chip.fabric.name,
        "NeuronCore": topology.chip.core.name,
    }
    return {": ".join(filter(None, (title, names.get(title)))): parts[title] for title in parts}


def _part(path: str) -> str:
    owner, field = _split(path)
    if owner == "chip.core" and field.startswith(_MEMORY):
        owner += " memories"
    return _TITLES.get(owner, owner)


def _split(path: str) -> tuple[str, str]:
    """What a number belongs to and its name there, which ends in the key if it has one."""
    fields, bracket, key = path.partition("[")
    owner, _, field = fields.rpartition(".")
    return owner, field + bracket + key


def _table(title: str, part: Iterable[Row]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for name in ("name", "value", "confidence", "source"):
        table.add_column(name, overflow="fold")
    for row in part:
        # Text, not markup: names and sources have brackets.
        source = re.sub(r"([\w-]+/)+(?=[\w-]+\.rst)", "", row.source)
        cells = (_split(row.path)[1], _shown(row), row.confidence, source)
        table.add_row(*map(Text, cells))
    return table


def _shown(row: Row) -> str:
    """The value in the unit a person reads, with its band where there is one."""
    if row.unit == "flag":
        return "yes" if row.value else "no"
    step, unit = _step(row.value, row.unit)
    value = _number(row.value / step)
    if row.low != row.high:
        value += f" ({_number(row.low / step)} to {_number(row.high / step)})"
    return f"{value} {unit}".rstrip()


def _step(value: float, unit: str) -> tuple[float, str]:
    """What to divide a value by, and the unit with the prefix that says so."""
    prefixes = _BINARY if unit == "bytes" else _DECIMAL if unit in _SCALED else ()
    for step, prefix in prefixes:
        if value >= step:
            return step, prefix + _SCALED[unit]
    return 1, unit


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.4g}"
