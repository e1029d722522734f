"""Estimates side by side: before and after a change, on two meshes, on two chips."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from rich.console import RenderableType

from jax_trn3.profiler.text import columns, plain
from jax_trn3.profiler.units import duration, percent, size

from .json_view import Document, document
from .result import Estimate
from .summary import layout

SCHEMA = "jax-trn3 comparison"
VERSION = 1


class ComparisonRow(TypedDict):
    """One figure of all estimates."""

    name: str
    """Its end says the unit."""

    values: list[float | None]
    """In the estimates' order; null where an estimate has none."""

    ratios: list[float | None]
    """To the first estimate's; null where there is none."""


class ComparisonDocument(TypedDict):
    """A comparison as JSON. `version` counts changes that break a reader."""

    schema: str
    version: int
    estimates: list[str]
    rows: list[ComparisonRow]


@dataclass(frozen=True)
class Row:
    """One figure of all estimates."""

    name: str
    """With its unit."""

    title: str
    """As a person reads it."""

    values: tuple[float | None, ...]
    shown: tuple[str, ...]
    """The same in the units that a person reads."""

    @property
    def ratios(self) -> tuple[float | None, ...]:
        """Each to the first; None where one is missing or the first is 0."""
        first = self.values[0]
        return tuple(None if v is None or not first else v / first for v in self.values)


@dataclass(frozen=True)
class Comparison:
    """Figures of several estimates. `print` shows it as a table."""

    names: tuple[str, ...]
    rows: tuple[Row, ...]

    def document(self) -> ComparisonDocument:
        """As what `json.dumps` takes."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "estimates": list(self.names),
            "rows": [
                {"name": row.name, "values": list(row.values), "ratios": list(row.ratios)}
                for row in self.rows
            ],
        }

    def render(self) -> RenderableType:
        """For a `rich` console."""
        others = [f">{name}" for pair in self.names[1:] for name in (pair, "ratio")]
        table = columns("", f">{self.names[0]}", *others)
        for row in self.rows:
            cells = [row.title, row.shown[0]]
            for shown, ratio in zip(row.shown[1:], row.ratios[1:]):
                cells += [shown, "" if ratio is None else f"{ratio:.3g}"]
            table.add_row(*cells)
        return table

    def __str__(self) -> str:
        return plain(self.render(), max(100, 32 + 32 * len(self.names)))


def compare(
    *estimates: Estimate | Document,
    names: Sequence[str] | None = None,
    tokens: int | Sequence[int] | None = None,
) -> Comparison:
    """Two or more estimates as a table; ratios are to the first.

    **Arguments:**

    - `estimates`: Estimates, or documents of saved ones (`json_view.read`).
    - `names`: What to call each; by default what is different: program, topology, mesh, LNC.
    - `tokens`: That one run handles: one number for all estimates, or one for each. Documents have
      their own if they were written with one.

    **Raises:** `ValueError` for fewer than two estimates, or another number of names or tokens.

    >>> print(compare(estimate(step, *args), estimate(faster, *args), names=("before", "after")))
    """
    if len(estimates) < 2:
        raise ValueError(f"a comparison needs two or more estimates; there are {len(estimates)}")
    runs = [tokens] * len(estimates) if tokens is None or isinstance(tokens, int) else list(tokens)
    for what, given in (("names", names), ("tokens", runs)):
        if given is not None and len(given) != len(estimates):
            raise ValueError(f"{len(given)} {what} for {len(estimates)} estimates")
    found = [
        document(one, count) if isinstance(one, Estimate) else one
        for one, count in zip(estimates, runs)
    ]
    return Comparison(tuple(names or _names(found)), tuple(_rows(found)))


def _names(found: Sequence[Document]) -> list[str]:
    """What is different between the estimates; their numbers where that is not enough."""
    said = [
        (d["program"], d["topology"], layout(d), f"LNC {d['lnc']}", f"{d['devices']} devices")
        for d in found
    ]
    differs = [len(set(column)) > 1 for column in zip(*said)]
    names = [" ".join(w for w, d in zip(words, differs) if d and w) for words in said]
    often = Counter(names)
    return [
        name if name and often[name] == 1 else f"{name} {number}".strip()
        for number, name in enumerate(names, 1)
    ]


_Figure = Callable[[Document], float | None]


def _rows(found: Sequence[Document]) -> list[Row]:
    def row(name: str, title: str, figure: _Figure, show: Callable[[float], str]) -> Row:
        values = tuple(figure(one) for one in found)
        return Row(name, title, values, tuple("-" if v is None else show(v) for v in values))

    def of_summary(key: str) -> _Figure:
        return lambda one: one["summary"][key]

    def count(value: float) -> str:
        return f"{value:,.0f}"

    def figure(value: float) -> str:
        return f"{value:.4g}"

    def time(ps: float) -> str:
        return duration(ps)

    rows = [
        row("total_ps", "time", lambda d: d["time"]["total_ps"], time),
        row("devices", "devices", lambda d: d["devices"], count),
        row("mfu_fraction", "MFU", of_summary("mfu_estimated_percent"), percent),
        row("hfu_fraction", "HFU", of_summary("hfu_estimated_percent"), percent),
        row("mbu_fraction", "MBU", of_summary("mbu_estimated_percent"), percent),
        row("slack", "time over bound", lambda d: d["slack"], figure),
        row("model_flops", "flops a device", of_summary("model_flops"), figure),
        row("hbm_read_bytes", "HBM read", of_summary("hbm_read_bytes"), size),
        row("hbm_write_bytes", "HBM written", of_summary("hbm_write_bytes"), size),
        row("dma_bytes", "DMA", lambda d: d["dma_bytes"], size),
        row("collectives", "collectives", of_summary("cc_op_count"), count),
        row("collectives_busy_ps", "collectives busy", _collectives("busy_ps"), time),
        row("collectives_exposed_ps", "collectives exposed", _collectives("time_ps"), time),
        row("peak_hbm_bytes", "peak HBM a device", lambda d: d["memory"]["peak_bytes"], size),
        row("energy_j", "energy, J", lambda d: d["machine"]["energy_j"], figure),
    ]
    if any(one["machine"]["tokens"] for one in found):
        per_s: _Figure = lambda d: d["machine"]["tokens_per_s"]  # noqa: E731
        per_mw: _Figure = lambda d: d["machine"]["tokens_per_s_per_mw"]  # noqa: E731
        rows.append(row("tokens_per_s", "tokens/s", per_s, count))
        rows.append(row("tokens_per_s_per_mw", "tokens/s/MW", per_mw, count))
    return rows


def _collectives(key: str) -> _Figure:
    def total(found: Document) -> float:
        rows = (row for row in found["operations"] if row["kind"] == "collective")
        return sum(row["time_ps"] if key == "time_ps" else row["busy_ps"] for row in rows)

    return total
