"""The results as tables on a terminal."""

from rich.table import Table

from .outlier_demo import FACTOR, Row
from .precisions import FLOAT32
from .statistics import CONFIDENCE, spread
from .study import Results
from .tensors import DISTRIBUTIONS, Measured


def training(results: Results, scenario: str) -> Table:
    """Held-out losses of one scenario, and what the differences are worth."""
    table = Table(title=f"held-out loss in nats per byte, {scenario}", title_justify="left")
    headings = (
        "precision",
        "loss",
        "same weights in float32",
        "difference to float32",
        "in seed std",
        f"{CONFIDENCE:.0%} interval",
        "verdict",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading in headings[::6] else "right")
    for (name, precision), outcome in results.outcomes.items():
        if name != scenario:
            continue
        cells = [spread(x).text(4) for x in (outcome.held_out, outcome.held_out_float32)]
        if precision == FLOAT32.name:
            table.add_row(precision, *cells, "", "", "", "reference")
            continue
        comparison = results.comparisons[name, precision]
        low, high = (comparison.difference.mean + s * comparison.half_width for s in (-1, 1))
        table.add_row(
            precision,
            *cells,
            comparison.difference.text(4, "+"),
            f"{comparison.relative:+.2f}",
            f"{low:+.4f} .. {high:+.4f}",
            comparison.verdict,
        )
    return table


def formats(measured: list[Measured]) -> Table:
    """Signal to noise by format and rule."""
    title = "signal to noise of tensors, in decibels, each value counted at its own scale"
    table = Table(title=title, title_justify="left")
    table.add_column("format")
    table.add_column("rule")
    for distribution in DISTRIBUTIONS:
        table.add_column(distribution.name, justify="right")
    for row in measured:
        cells = [f"{row.decibels[d.name].mean:.1f}" for d in DISTRIBUTIONS]
        table.add_row(row.format, row.rule, *cells)
    return table


def gradients(results: Results, sweep: str) -> Table:
    """Signal to noise of gradients at each point of a sweep."""
    curves = [curve for curve in results.curves if curve.sweep == sweep]
    title = f"signal to noise of gradients, in decibels: {sweep}"
    table = Table(title=title, title_justify="left")
    table.add_column("precision")
    for point in curves[0].points:
        table.add_column(f"{point:g}", justify="right")
    for curve in curves:
        table.add_row(curve.precision, *(d.text(1) for d in curve.decibels))
    return table


def demo(rows: list[Row]) -> Table:
    """The values beside the outlier, in three formats and three ways."""
    title = f"one value {FACTOR:.0f} times the rest: signal to noise of the rest, in decibels"
    table = Table(title=title, title_justify="left")
    for heading in ("the rest", "element", "way"):
        table.add_column(heading)
    for heading in ("in its block of 32", "elsewhere", "became 0", "the outlier's error"):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = f"{row.near:.1f}", f"{row.far:.1f}", f"{row.lost:.0%}", f"{row.outlier_error:.1%}"
        table.add_row(row.magnitude, row.element, row.way, *cells)
    return table
