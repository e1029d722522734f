"""gpt-oss-120b decoding: tokens a second and megawatt against tokens a second and user.

    python examples/plan_decode.py [--context 8192] [--plot decode.png] [--json]

One more token for every user, users swept, on one to sixteen chips of a Trainium3 and of a
Trainium2 UltraServer that share the experts; a server is as many such groups as it has chips for.
Trainium3 multiplies the experts' MXFP4 weights as they are; Trainium2 cannot and has them in
bfloat16 or in float8. At re:Invent 2025 (AIM3335) AWS showed more than 5 times the tokens a
megawatt for Trainium3 at equal interactivity. Power is that of the chips alone, about 500 W each.
"""

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "trn3,cpu")  # JAX reads it when it is imported
sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.progress import track

from examples.planning.decoding import Weights, decode_step
from examples.planning.figures import GIB, markdown, print_table
from examples.planning.layout import Layout
from examples.planning.models import GPT_OSS_120B
from jax_trn3.estimates import estimate

MACHINES: tuple[tuple[str, Weights], ...] = (
    ("trn2-ultraserver", "bfloat16"),
    ("trn2-ultraserver", "float8"),
    ("trn3-gen2", "mxfp4"),
)
CHIPS = (1, 4, 16)
USERS_PER_CHIP = (4, 16, 32, 64, 128, 256)
INTERACTIVITY = (10, 20, 30, 40, 50, 60)
"""Tokens a second for each user at which machines are compared."""


@dataclass(frozen=True)
class Point:
    """A batch on a group of chips."""

    topology: str
    weights: Weights
    chips: int
    users: int
    context: int
    step_s: float
    tokens_per_s_user: float
    tokens_per_s_mw: float
    hbm_gib: float
    fits: bool
    bound: str


def decoded(job: tuple[str, Weights, int, int, int]) -> Point:
    """One point."""
    topology, weights, chips, users, context = job
    step, shapes = decode_step(
        GPT_OSS_120B, Layout(expert=chips, tensor=8), users, context, weights
    )
    found = estimate(step, *shapes, topology=topology)
    per_megawatt = found.tokens_per_s_per_mw(users)
    assert per_megawatt is not None, "both chips have a power"
    return Point(
        topology,
        weights,
        chips,
        users,
        context,
        found.time_s,
        1 / found.time_s,
        per_megawatt,
        found.peak_hbm_bytes / GIB,
        found.fits,
        found.bound,
    )


def jobs(context: int) -> Iterator[tuple[str, Weights, int, int, int]]:
    """All points."""
    for (topology, weights), chips, each in itertools.product(MACHINES, CHIPS, USERS_PER_CHIP):
        yield topology, weights, chips, chips * each, context


def points(context: int, processes: int) -> list[Point]:
    """All points, estimated in processes of their own."""
    todo = list(jobs(context))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        found = pool.map(decoded, todo)
        return list(track(found, "estimating", total=len(todo), disable=not sys.stderr.isatty()))


def frontier(found: Sequence[Point]) -> list[Point]:
    """Those that fit and that no other beats in both respects, the most interactive first."""
    best: list[Point] = []
    fitting = [point for point in found if point.fits]
    for point in sorted(fitting, key=lambda p: (-p.tokens_per_s_user, -p.tokens_per_s_mw)):
        if not best or point.tokens_per_s_mw > best[-1].tokens_per_s_mw:
            best.append(point)
    return best


def at(line: Sequence[Point], interactivity: float) -> float | None:
    """Tokens a second and megawatt on a frontier at so many tokens a second and user; None beyond
    its ends."""
    for fast, slow in itertools.pairwise(line):
        if slow.tokens_per_s_user <= interactivity <= fast.tokens_per_s_user:
            span = fast.tokens_per_s_user - slow.tokens_per_s_user
            share = (interactivity - slow.tokens_per_s_user) / span
            return slow.tokens_per_s_mw + share * (fast.tokens_per_s_mw - slow.tokens_per_s_mw)
    return None


def frontiers(found: Sequence[Point]) -> dict[tuple[str, Weights], list[Point]]:
    """By machine."""
    return {
        machine: frontier([p for p in found if (p.topology, p.weights) == machine])
        for machine in MACHINES
    }


HEADER = ("machine", "experts", "chips", "users", "step", "tokens/s a user", "tokens/s a MW",
          "HBM of a core", "bound")  # fmt: skip


def rows(lines: dict[tuple[str, Weights], list[Point]]) -> list[list[str]]:
    """The frontiers, point by point."""
    return [
        [
            p.topology,
            p.weights,
            str(p.chips),
            str(p.users),
            f"{1e3 * p.step_s:.2f} ms",
            f"{p.tokens_per_s_user:.0f}",
            f"{p.tokens_per_s_mw:,.0f}",
            f"{p.hbm_gib:.1f} GiB",
            p.bound,
        ]
        for line in lines.values()
        for p in line
    ]


COMPARED = ("tokens/s a user", *(f"{name}, {weights}" for name, weights in MACHINES),
            "Trainium3 over Trainium2, bfloat16", "float8")  # fmt: skip


def comparison(lines: dict[tuple[str, Weights], list[Point]]) -> list[list[str]]:
    """Tokens a second and megawatt at equal interactivity."""
    table = []
    for interactivity in INTERACTIVITY:
        values = [at(line, interactivity) for line in lines.values()]
        *older, newest = values
        ratios = [f"{newest / v:.1f} x" if newest and v else "-" for v in older]
        figures = ["-" if value is None else f"{value:,.0f}" for value in values]
        table.append([str(interactivity), *figures, *ratios])
    return table


def plot(lines: dict[tuple[str, Weights], list[Point]], path: Path) -> None:
    """The frontiers as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for (topology, weights), line in lines.items():
        axes.plot(
            [p.tokens_per_s_user for p in line],
            [p.tokens_per_s_mw / 1e6 for p in line],
            marker="o",
            linestyle="--" if weights == "float8" else "-",
            label=f"{topology}, experts in {weights}",
        )
    axes.set_xlabel("tokens a second for each user")
    axes.set_ylabel("million tokens a second and megawatt of chips")
    context = max((p.context for line in lines.values() for p in line), default=0)
    axes.set_title(f"gpt-oss-120b decoding, {context:,} tokens of context (simulated)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Sweep, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, default=8192, help="tokens of each user so far")
    parser.add_argument("--plot", type=Path, help="where to write the picture")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    flags = parser.parse_args()
    found = points(flags.context, flags.processes)
    lines = frontiers(found)
    if flags.plot:
        plot(lines, flags.plot)
    if flags.json:
        print(json.dumps([dataclasses.asdict(point) for point in found], indent=2))
    elif flags.markdown:
        print(markdown(COMPARED, comparison(lines)), markdown(HEADER, rows(lines)), sep="\n\n")
    else:
        print_table(HEADER, rows(lines), f"gpt-oss-120b decoding, {flags.context} tokens so far")
        print_table(COMPARED, comparison(lines), "tokens a second and megawatt, at equal speed")


if __name__ == "__main__":
    main()
