"""Flags, and the order of events."""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..train_gpt.data import load_text
from . import plots, tables
from .model import ModelConfig
from .precisions import FLOAT32, FP8_CAST, MXFP8
from .study import Plan, Results, as_json, run


def parse_flags() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="mxfp8_training", description=main.__doc__)
    parser.add_argument("--steps", type=int, default=Plan.steps, help="length of the base runs")
    parser.add_argument("--stressed-steps", type=int, default=Plan.stressed_steps)
    parser.add_argument("--seeds", type=int, default=len(Plan.seeds), help="how many")
    parser.add_argument("--quick", action="store_true", help="a few steps: does everything work?")
    parser.add_argument("--out", type=Path, default=Path("demo_output/mxfp8_training"))
    flags = parser.parse_args()
    if flags.seeds < 2 or min(flags.steps, flags.stressed_steps) < plots.SMOOTHED:
        parser.error(f"needs 2 seeds and {plots.SMOOTHED} steps, or more")
    return flags


def make_plan(flags: argparse.Namespace) -> Plan:
    """What the flags ask for."""
    if flags.quick:
        return quick_plan()
    seeds = tuple(range(flags.seeds))
    return Plan(steps=flags.steps, stressed_steps=flags.stressed_steps, seeds=seeds)


def quick_plan() -> Plan:
    """The least that goes through every part but depth; its numbers say nothing."""
    plan = Plan()
    model = ModelConfig(width=32, num_layers=1, max_len=32)
    return replace(
        plan,
        steps=plots.SMOOTHED,
        stressed_steps=plots.SMOOTHED,
        seeds=(0, 1),
        base=replace(plan.base, model=model),
        stressed=(replace(plan.stressed[0], model=model),),
        trained=(FLOAT32, MXFP8, FP8_CAST),
        base_only=(),
        swept=(MXFP8, FP8_CAST),
        ways=tuple(w for w in plan.ways if w.rule != "even" and "e4m3" in w.format),
    )


def main() -> None:
    """Train the same model in float32, bf16, MXFP8, MXFP4 and naive FP8, and compare."""
    started = time.perf_counter()
    flags = parse_flags()
    require_trn3()
    console, text = Console(width=150), load_text()
    console.print(str(text))
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console
    ) as progress:
        task = progress.add_task("")

        def tell(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        results = run(make_plan(flags), text, tell)
    show(results, console)
    seconds = time.perf_counter() - started
    names = write(results, flags.out, seconds)
    console.print(f"{seconds:.0f} s in all; in {flags.out}: {', '.join(names)}")


def require_trn3() -> None:
    """Raises `SystemExit` on platforms where `matmul_precision` has no effect."""
    platform = jax.devices()[0].platform
    if platform != "trn3":
        raise SystemExit(
            f"the default platform is {platform}, on which jax_trn3.matmul_precision has no effect "
            "and all precisions would be float32; set JAX_PLATFORMS=trn3,cpu"
        )


def show(results: Results, console: Console) -> None:
    """Print all tables."""
    console.print(tables.demo(results.demo))
    console.print(tables.formats(results.formats))
    for scenario in dict.fromkeys(scenario for scenario, _ in results.outcomes):
        console.print(tables.training(results, scenario))
    for sweep in dict.fromkeys(curve.sweep for curve in results.curves):
        console.print(tables.gradients(results, sweep))


def write(results: Results, out: Path, seconds: float) -> list[str]:
    """Write pictures and numbers into `out` and return their names."""
    out.mkdir(parents=True, exist_ok=True)
    plots.loss_curves(results, out / "loss_curves.png")
    plots.gradients(results, out / "gradients.png")
    plots.demo(out / "outlier.png")
    found = as_json(results) | {"seconds": seconds}
    (out / "study.json").write_text(json.dumps(found, allow_nan=False) + "\n")
    return ["loss_curves.png", "gradients.png", "outlier.png", "study.json"]
