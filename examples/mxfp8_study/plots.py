"""The results as pictures."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import outlier_demo
from .precisions import FLOAT32
from .study import Results
from .sweeps import DEPTH, SWEEPS

AXES = {sweep.name: sweep.axis for sweep in SWEEPS} | {DEPTH: "layer, the first is the deepest"}
SMOOTHED = 8
"""Steps over which a difference of loss curves is averaged."""

COLORS = {
    "float32": "black",
    "float32, nudged": "gray",
    "bf16": "tab:blue",
    "MXFP8": "tab:green",
    "MXFP8, neuron scales": "tab:cyan",
    "MXFP8, E5M2 gradients": "tab:olive",
    "FP8 absmax": "tab:orange",
    "FP8 cast": "tab:red",
    "MXFP4": "tab:purple",
}


def loss_curves(results: Results, path: Path) -> None:
    """Draw losses, and below them their differences to float32 with its spread over seeds."""
    scenarios = list(dict.fromkeys(scenario for scenario, _ in results.outcomes))
    figure = Figure(figsize=(4 * len(scenarios) + 1, 7.5), layout="constrained")
    grid = figure.subplots(2, len(scenarios), squeeze=False, sharex="col")
    for column, scenario in zip(grid.T, scenarios, strict=True):
        draw_losses(column[0], results, scenario)
        draw_differences(column[1], results, scenario)
    grid[0, 0].set_ylabel("training loss (nats per byte), mean and std of seeds")
    grid[1, 0].set_ylabel("difference to float32, mean of seeds")
    grid[0, 0].legend(fontsize="small")
    figure.savefig(path, dpi=110)


def draw_losses(axes: Axes, results: Results, scenario: str) -> None:
    """Draw the mean over seeds, and a band of a standard deviation on both sides."""
    for (name, precision), outcome in results.outcomes.items():
        if name == scenario:
            steps = np.arange(1, outcome.curve.shape[1] + 1)
            mean, std = outcome.curve.mean(axis=0), outcome.curve.std(axis=0, ddof=1)
            axes.plot(steps, mean, label=precision, color=COLORS[precision], linewidth=1)
            axes.fill_between(
                steps, mean - std, mean + std, color=COLORS[precision], alpha=0.1, linewidth=0
            )
    axes.set_title(scenario)
    axes.grid(alpha=0.3)


def draw_differences(axes: Axes, results: Results, scenario: str) -> None:
    """Draw differences at equal seeds, smoothed, between float32's standard deviations."""
    reference = smooth(results.outcomes[scenario, FLOAT32.name].curve)
    steps = np.arange(reference.shape[1]) + SMOOTHED
    std = reference.std(axis=0, ddof=1)
    axes.fill_between(steps, -std, std, color="black", alpha=0.1, label="std of float32")
    for (name, precision), outcome in results.outcomes.items():
        if name == scenario and precision != FLOAT32.name:
            difference = (smooth(outcome.curve) - reference).mean(axis=0)
            axes.plot(steps, difference, color=COLORS[precision], linewidth=1)
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)


def smooth(curve: np.ndarray) -> np.ndarray:
    """Running means along the last axis."""
    return np.lib.stride_tricks.sliding_window_view(curve, SMOOTHED, axis=1).mean(axis=-1)


def gradients(results: Results, path: Path) -> None:
    """Draw the signal to noise of gradients, a panel for each sweep."""
    names = list(dict.fromkeys(curve.sweep for curve in results.curves))
    figure = Figure(figsize=(4.5 * len(names), 4.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for curve in results.curves:
            if curve.sweep == name:
                mean, std = ([getattr(d, key) for d in curve.decibels] for key in ("mean", "std"))
                style = {"color": COLORS[curve.precision], "marker": ".", "capsize": 2}
                axes.errorbar(curve.points, mean, std, label=curve.precision, **style)
        axes.set(title=name, xlabel=AXES[name])
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("signal to noise of gradients (decibels)")
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)


def demo(path: Path) -> None:
    """Draw what becomes of each value, the outlier being off the scale."""
    rows = [(m, e) for m in outlier_demo.MAGNITUDES for e in outlier_demo.ELEMENTS]
    figure = Figure(figsize=(13, 2 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(outlier_demo.WAYS), sharex=True)
    for (magnitude, element), line in zip(rows, grid, strict=True):
        for way, axes in zip(outlier_demo.WAYS, line, strict=True):
            draw_demo(axes, magnitude, element, way)
    figure.savefig(path, dpi=110)


def draw_demo(axes: Axes, magnitude: str, element: str, way: str) -> None:
    """Draw the values as a line and what they became as dots."""
    size = outlier_demo.MAGNITUDES[magnitude]
    x = outlier_demo.values(size)
    axes.axvspan(
        outlier_demo.BLOCK.start - 0.5, outlier_demo.BLOCK.stop - 0.5, color="gray", alpha=0.2
    )
    axes.plot(x, color="black", linewidth=0.8)
    axes.plot(outlier_demo.quantized(x, element, way), ".", color="tab:red", markersize=4)
    axes.set(ylim=(-4 * size, 4 * size), title=f"{magnitude}: {element} {way}")
