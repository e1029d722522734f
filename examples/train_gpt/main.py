"""Flags, and the order of events."""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

import jax_trn3

from .checkpoint import Checkpoints
from .data import Text, load_text
from .report import TrainingProgress, largest_difference, plot, read_curve, write_curve
from .sample import sample
from .train import Run, TrainConfig, make_mesh

CHECKPOINT_EVERY = 100
COMPARED_STEPS = 20


@dataclass(frozen=True)
class Flags:
    """The command line."""

    steps: int
    seed: int
    out: Path
    resume: bool
    stop_after: int | None
    compare_cpu: bool


def positive(text: str) -> int:
    """Read a flag's value."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def parse_flags() -> Flags:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.train_gpt", description=main.__doc__)
    parser.add_argument(
        "--steps", type=positive, default=TrainConfig.steps, help="length of the run"
    )
    parser.add_argument("--seed", type=int, default=TrainConfig.seed)
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="where files go")
    parser.add_argument("--resume", action="store_true", help="go on from the latest checkpoint")
    parser.add_argument(
        "--stop-after", type=positive, metavar="N", help="stop at step N, as if interrupted"
    )
    parser.add_argument(
        "--compare-cpu",
        action="store_true",
        help=f"train the first {COMPARED_STEPS} steps once more on the CPU and compare the losses",
    )
    return Flags(**vars(parser.parse_args()))


def main() -> None:
    """Train a small GPT on the source of Python's standard library."""
    started = time.perf_counter()
    flags = parse_flags()
    mesh = make_mesh(jax.devices())
    print(describe(mesh), flush=True)
    text = load_text()
    print(text, flush=True)
    flags.out.mkdir(parents=True, exist_ok=True)
    with jax.set_mesh(mesh):
        run, simulated = train(flags, text)
        write_curve(run.curve, flags.out / "loss.json")
        if run.step < run.config.steps:
            print(f"stopped after step {run.step} of {run.config.steps}, go on with --resume")
            return
        summary = evaluate(run) | {"platform": jax.devices()[0].platform}
        show_sample(run, text, flags.out / "sample.txt")
    curves = {f"{summary['platform']}, {mesh.size} devices": run.curve}
    if flags.compare_cpu:
        cpu_curve = read_curve(train_on_cpu(flags, num_devices=mesh.size))
        summary["cpu_difference"] = largest_difference(run.curve, cpu_curve)
        curves["cpu, for comparison"] = cpu_curve
        print(
            f"largest difference to the losses on the CPU in {len(cpu_curve)} steps: "
            f"{summary['cpu_difference']:.2e}"
        )
    plot(curves, flags.out / "loss.png")
    if simulated is not None:
        show_simulated(simulated, flags.out / "step.json")
    summary["seconds"] = time.perf_counter() - started
    (flags.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    names = "loss.png, loss.json, step.json, sample.txt, summary.json, checkpoints"
    print(f"{summary['seconds']:.0f} s in all; in {flags.out}: {names}")


def describe(mesh: Mesh) -> str:
    """One line on the devices of `mesh`."""
    device = mesh.devices.flat[0]
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return f"platform {device.platform}, {mesh.size} x {device.device_kind}, mesh {axes}"


def train(flags: Flags, text: Text) -> tuple[Run, jax_trn3.Profile | None]:
    """Start or resume a run, and take it to its end or to where it is to stop.

    Returns the run, and its last step as a profile; None on a platform that is not simulated.
    """
    run = Run(TrainConfig(steps=flags.steps, seed=flags.seed), text)
    checkpoints = Checkpoints(flags.out / "checkpoints", keep=flags.resume)
    if flags.resume:
        checkpoints.restore(run)
        print(f"resumed from the checkpoint of step {run.step}", flush=True)
    stop = min(flags.stop_after or flags.steps, flags.steps)
    with TrainingProgress(step=run.step, stop=stop) as progress:
        simulated = None
        while run.step < stop:
            if run.step == stop - 1 and jax.devices()[0].platform == "trn3":
                with jax_trn3.profile() as simulated:
                    run.advance()
            else:
                run.advance()
            progress.update(run)
            if run.step % CHECKPOINT_EVERY == 0 or run.step == stop:
                checkpoints.save(run)
    checkpoints.close()
    return run, simulated


def evaluate(run: Run) -> dict[str, float | str]:
    """Measure and print the losses that count."""
    train_loss, held_out_loss = run.train_loss(), run.held_out_loss()
    print(
        f"loss: {train_loss:.3f} nats per byte in training, {held_out_loss:.3f} on held-out files"
    )
    return {"steps": run.step, "train_loss": train_loss, "held_out_loss": held_out_loss}


def show_simulated(step: jax_trn3.Profile, path: Path) -> None:
    """Print what the last step would have cost on the hardware, and write it into `path`."""
    print(f"\na training step on the simulated machine:\n\n{step.summary()}", flush=True)
    step.save(path)


def show_sample(run: Run, text: Text, path: Path) -> None:
    """Print how the model goes on with one held-out text, and write several into `path`."""
    count = max(4, jax.sharding.get_mesh().shape["data"])
    prompts = run.held_out[:: len(run.held_out) // count][:count, :-1]
    pairs = sample(run.model, prompts, seed=run.config.seed)
    texts = [f"{before}\u2588{after}" for before, after in pairs]
    path.write_text("\n\n----\n\n".join(texts) + "\n", encoding="utf-8")
    print(f"what it writes behind held-out text, from \u2588 on:\n\n{texts[0]}\n")


def train_on_cpu(flags: Flags, *, num_devices: int) -> Path:
    """Train the first steps of the same run in a process of its own; where its losses are."""
    out = flags.out / "cpu"
    steps = [
        "--steps",
        str(flags.steps),
        "--stop-after",
        str(min(COMPARED_STEPS, flags.steps)),
    ]
    command = [sys.executable, "-m", __package__, *steps, "--seed", str(flags.seed)]
    devices = f"--xla_force_host_platform_device_count={num_devices}"
    subprocess.run(
        [*command, "--out", str(out.absolute())],
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {devices}",
        },
        cwd=Path(__file__).parents[2],
        check=True,
        stdout=subprocess.PIPE,
    )
    return out / "loss.json"
