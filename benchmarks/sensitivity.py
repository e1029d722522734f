"""How much the numbers that nobody published move what is simulated.

    python benchmarks/sensitivity.py [--json | --docs]

Each of them is set to both ends of its band, on a Trn3 Gen2 UltraServer with devices of two cores.
A figure is "extrapolated" where nobody gives one for this generation; those that are rounded or
inferred and have a band are varied, too. `--docs` writes docs/sensitivity.md.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.headline_programs.matmul import matmul
from examples.headline_programs.quantized_matmul import quantized_matmul
from examples.headline_programs.softmax import softmax
from examples.headline_programs.streams import dma_stream, vector_add
from jax_trn3.hardware import Topology, get_topology
from jax_trn3.hardware.datasheet import Row, rows, with_figure
from jax_trn3.simulator import Program, simulate
from jax_trn3.simulator.collectives import along, collective

PAGE = Path(__file__).parents[1] / "docs" / "sensitivity.md"

Measure = Callable[[Topology], int]
"""The time of something on a machine, ps."""

Changes = Mapping[str, tuple[float, float]]
"""By program how its time changes, as a share of it, at one end of a band and at the other."""

# Of the others more is faster.
_COSTS = ("cycles", "cycles/row", "ns", "bytes")

_SEEN = 0.0005
"""Change of a time that is worth a line."""


def _on_a_core(program: Program) -> Measure:
    """On one core, the other one of its HBM stack being as busy."""
    return lambda machine: (
        simulate(program, machine.chip, active_cores=machine.chip.cores_per_stack).time_ps
    )


PROGRAMS: dict[str, Measure] = {
    "matmul bf16": _on_a_core(matmul(4096, 4096, 4096)),
    "matmul MXFP8": _on_a_core(matmul(4096, 4096, 4096, "mxfp8")),
    "MXFP8, quantized on line": _on_a_core(quantized_matmul(1024, 2048, 4096)),
    "softmax": _on_a_core(softmax(4096, 8192, "vector")),
    "DMA stream": _on_a_core(dma_stream(256)),
    "vector add": _on_a_core(vector_add(200)),
    "vector add, one tile": _on_a_core(vector_add(1)),
    "all-reduce 64 KiB": lambda machine: collective("all_reduce", 1 << 16, machine).time_ps,
    "all-to-all 16 MiB": lambda machine: collective("all_to_all", 1 << 24, machine).time_ps,
    "all-reduce 256 KiB, SBUF": lambda machine: (
        collective(
            "all_reduce",
            1 << 18,
            machine,
            groups=along((machine.num_chips, machine.devices_per_chip), (1,)),
            memory="sbuf",
        ).time_ps
    ),
}
"""The headline programs; `_HEAD` says what each is."""


@dataclass(frozen=True)
class Effect:
    """What one figure moves."""

    figure: Row
    changes: Changes
    """At the low end of its band, and at the high one."""

    @property
    def largest(self) -> float:
        """The largest change of any program's time, up or down."""
        return max(abs(change) for pair in self.changes.values() for change in pair)


@dataclass(frozen=True)
class Report:
    """What all of them move."""

    effects: tuple[Effect, ...]
    """Those that move most first."""

    extrapolated: Changes
    """All extrapolated figures at their fast ends, and at their slow ones."""

    everything: Changes
    """All figures with a band so."""


def machine() -> Topology:
    """The machine whose figures are varied."""
    return get_topology("trn3-gen2", lnc=2)


def uncertain(topology: Topology) -> list[Row]:
    """The figures to vary: all that are extrapolated, and others that have a band."""
    varied = [
        row for row in rows(topology) if row.confidence == "extrapolated" or row.low < row.high
    ]
    return [row for row in varied if row.unit != "W"]  # nothing's time depends on power


def report(programs: Mapping[str, Measure], figures: Iterable[Row]) -> Report:
    """Simulates each of the programs with each of the figures at both ends of its band."""
    topology, figures = machine(), tuple(figures)
    base = {name: measure(topology) for name, measure in programs.items()}

    def changes(low: Topology, high: Topology) -> Changes:
        return {
            name: (measure(low) / base[name] - 1, measure(high) / base[name] - 1)
            for name, measure in programs.items()
        }

    def together(some: Iterable[Row]) -> Changes:
        fast = slow = topology
        for row in some:
            ends = (row.low, row.high) if row.unit in _COSTS else (row.high, row.low)
            fast, slow = (with_figure(m, row.path, end) for m, end in zip((fast, slow), ends))
        return changes(fast, slow)

    effects = [
        Effect(row, changes(*(with_figure(topology, row.path, end) for end in (row.low, row.high))))
        for row in figures
    ]
    return Report(
        tuple(sorted(effects, key=lambda effect: -effect.largest)),
        together(row for row in figures if row.confidence == "extrapolated"),
        together(figures),
    )


# Views.


def as_json(found: Report) -> dict[str, object]:
    """For programs."""
    effects = [
        asdict(effect.figure) | {"changes": dict(effect.changes)} for effect in found.effects
    ]
    return {
        "effects": effects,
        "extrapolated": dict(found.extrapolated),
        "everything": dict(found.everything),
    }


def _percent(change: float) -> str:
    return f"{change:+.1%}" if abs(change) >= _SEEN else "0"


def _pair(pair: tuple[float, float]) -> str:
    if all(abs(change) < _SEEN for change in pair):
        return "·"
    return " / ".join(map(_percent, pair))


def _lines(found: Report) -> Iterator[list[str]]:
    """Cells of the table: the figure, its band, its confidence, and the changes."""
    for effect in found.effects:
        if effect.largest >= _SEEN:
            row = effect.figure
            band = f"{row.value:g} ({row.low:g} to {row.high:g}) {row.unit}"
            yield [f"`{row.path}`", band, row.confidence, *map(_pair, effect.changes.values())]
    for name, changes in (
        ("all extrapolated", found.extrapolated),
        ("all of them", found.everything),
    ):
        yield [name, "fast to slow", "", *map(_pair, changes.values())]


def _unmoving(found: Report) -> str:
    return ", ".join(f"`{e.figure.path}`" for e in found.effects if e.largest < _SEEN)


def _heads(found: Report) -> list[str]:
    return ["figure", "band", "confidence", *found.extrapolated]


_HEAD = f"""# What uncertain numbers move

Written by `python benchmarks/sensitivity.py --docs`.

No timing of a Trainium3 has been published. Numbers that nobody published for this generation are
*extrapolated*, each with a band (`jax-trn3 info` prints them); others are rounded in the source, or
inferred from published ones, and some of these have a band, too. Here each is set to the low and to
the high end of its band, alone, and programs are simulated: the change of their time, their start
and stop included, low / high. A dot is less than {_SEEN:.2%} either way. The last two lines set all
at once, everything to its fast end and everything to its slow end: by so much can the times of this
simulator be wrong because of numbers that nobody published. Mechanisms that it does not know of
come on top.

The machine is a Trn3 Gen2 UltraServer with LNC 2. Programs (`examples/headline_programs/`) run on
one core while the other one of its HBM stack is as busy: products 4096^3; the quantized one 1024 x
2048 x 4096; a softmax of 4096 x 8192 whose rows others bring to SBUF, exponentials on VectorE; a
stream of 256 x 1 MiB from HBM; sums of two float32 vectors in HBM, 200 tiles of [128, 512] and one.
Collectives run on all 576 devices, but for the one from SBUF to SBUF, which runs on the 4 devices
of each chip.
"""


def page(found: Report) -> str:
    """docs/sensitivity.md."""
    heads = _heads(found)
    lines = [heads, ["---"] * 3 + ["---:"] * (len(heads) - 3), *_lines(found)]
    drawn = ["| " + " | ".join(cells) + " |" for cells in lines]
    moved = f"These move none of them: {_unmoving(found)}.\n"
    return "\n".join([_HEAD, *drawn, "", moved])


def table(found: Report) -> Table:
    """For reading."""
    drawn = Table(box=SIMPLE_HEAD, caption=escape(f"These move none of them: {_unmoving(found)}"))
    for number, head in enumerate(_heads(found)):
        drawn.add_column(head, justify="left" if number < 3 else "right")
    for cells in _lines(found):
        drawn.add_row(*map(escape, cells))
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--docs", action="store_true", help=f"write docs/{PAGE.name}")
    arguments = parser.parse_args()
    found = report(PROGRAMS, uncertain(machine()))
    if arguments.json:
        print(json.dumps(as_json(found)))
    elif arguments.docs:
        PAGE.write_text(page(found))
    else:
        Console().print(table(found))


if __name__ == "__main__":
    main()
