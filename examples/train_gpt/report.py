"""What a run shows: a progress bar on the way, and its losses as JSON and as a picture."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from .train import Run

Curve = list[tuple[int, float]]


class TrainingProgress:
    """Loss, speed and time left: a bar on a terminal, elsewhere about twenty lines."""

    def __init__(self, *, step: int, stop: int) -> None:
        console = Console()
        self._live = console.is_terminal
        self._stop = stop
        self._clock: tuple[int, float] | None = None
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            expand=True,
            disable=not self._live,
        )
        self._task = self._progress.add_task("", total=stop, completed=step, text="compiling")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def update(self, run: Run) -> None:
        """Show the state of `run` after a step."""
        now = time.perf_counter()
        if self._clock is None:
            self._clock = (run.step, now)  # behind the first step, which compiles
        start, since = self._clock
        text = f"loss {run.train_loss(last=20):.3f}"
        if run.step > start:
            speed = (run.step - start) / (now - since)
            text += f", {speed:.2f} steps/s, {(self._stop - run.step) / speed:.0f} s left"
        self._progress.update(self._task, completed=run.step, text=text)
        if not self._live and (run.step % max(1, self._stop // 20) == 0 or run.step == self._stop):
            print(f"step {run.step}/{self._stop}: {text}", flush=True)


def write_curve(curve: Curve, path: Path) -> None:
    """Write `curve` as a JSON list of [step, loss]."""
    path.write_text(json.dumps(curve) + "\n")


def read_curve(path: Path) -> Curve:
    """Read what `write_curve` has written."""
    return [(int(step), float(loss)) for step, loss in json.loads(path.read_text())]


def largest_difference(curve: Curve, other: Curve) -> float:
    """Return the largest difference of two losses at the same step, in nats per byte."""
    losses = dict(curve)
    return max(abs(losses[step] - loss) for step, loss in other)


def plot(curves: dict[str, Curve], path: Path) -> None:
    """Draw loss curves into a PNG; the steps that all of them have get a panel of their own."""
    shared = min(len(curve) for curve in curves.values())
    panels = [curves]
    if any(len(curve) > shared for curve in curves.values()):
        panels.append({name: curve[:shared] for name, curve in curves.items()})
    figure = Figure(figsize=(7 * len(panels), 4.5), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes, panel)
    figure.savefig(path, dpi=120)


def draw(axes: Axes, curves: dict[str, Curve]) -> None:
    """Draw `curves` into one panel, the later ones dashed, so that equal ones can be told."""
    for index, (name, curve) in enumerate(curves.items()):
        steps, losses = np.asarray(curve).T
        axes.plot(steps, losses, label=name, linestyle="--" if index else "-", linewidth=1.2)
    axes.set(xlabel="step", ylabel="loss (nats per byte)")
    axes.grid(alpha=0.3)
    axes.legend()
