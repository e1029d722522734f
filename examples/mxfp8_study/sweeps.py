"""Signal to noise of a trained model's gradients, while something is turned up against formats."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from ..train_gpt.data import Text
from .model import Params
from .precisions import FLOAT32, Precision
from .statistics import Spread, decibels, spread
from .train import Scenario, TrainConfig, batches, factors, gradients_in, on_devices, seed_mesh


@dataclass(frozen=True)
class Sweep:
    """What is turned up: `change` makes the scenario at one of the `points`."""

    name: str
    axis: str
    points: tuple[float, ...]
    change: Callable[[Scenario, float], Scenario]


SWEEPS = (
    Sweep(
        "outlier channels",
        "factor of one channel in 128, log2",
        (0, 4, 7, 10, 13, 16),
        lambda scenario, point: replace(scenario, outlier=2.0**point),
    ),
    Sweep(
        "ends of the range",
        "factor of the loss, log2",
        (-100, -60, -30, -15, 0, 15, 30, 60, 100),
        lambda scenario, point: replace(scenario, loss_scale=2.0**point),
    ),
    Sweep(
        "heavy-tailed gradients",
        "1 / index of the Pareto distribution of the loss's weights",
        (0, 0.5, 1, 2, 4),
        lambda scenario, point: replace(scenario, tail=1 / point if point else None),
    ),
)

DEPTH = "depth"
"""Name of the measurement at each layer of the deep model."""


@dataclass(frozen=True)
class Curve:
    """Signal to noise in decibels of one precision at each point, over seeds."""

    sweep: str
    precision: str
    points: tuple[float, ...]
    decibels: tuple[Spread, ...]


def measure(
    base: Scenario,
    params: Params,
    config: TrainConfig,
    text: Text,
    precisions: tuple[Precision, ...],
) -> list[Curve]:
    """All sweeps, from `base` and parameters trained in it."""
    curves = []
    for sweep in SWEEPS:
        scenarios = [sweep.change(base, point) for point in sweep.points]
        expected = [gradients(s, params, config, text, FLOAT32) for s in scenarios]
        for precision in precisions:
            found = [gradients(s, params, config, text, precision) for s in scenarios]
            ratios = tuple(compare(*pair) for pair in zip(expected, found))
            curves.append(Curve(sweep.name, precision.name, sweep.points, ratios))
    return curves


def measure_depth(
    deep: Scenario,
    params: Params,
    config: TrainConfig,
    text: Text,
    precisions: tuple[Precision, ...],
) -> list[Curve]:
    """The gradients of each layer by itself, the first having come through all the others."""
    points = tuple(float(layer + 1) for layer in range(deep.model.num_layers))
    expected = by_layer(gradients(deep, params, config, text, FLOAT32))
    curves = []
    for precision in precisions:
        found = by_layer(gradients(deep, params, config, text, precision))
        ratios = tuple(compare(*pair) for pair in zip(expected, found))
        curves.append(Curve(DEPTH, precision.name, points, ratios))
    return curves


def gradients(
    scenario: Scenario, params: Params, config: TrainConfig, text: Text, precision: Precision
) -> Any:
    """Gradients on the first batch of each seed, arrays `[seeds, ...]`."""
    mesh = seed_mesh(len(config.seeds))
    drawn = on_devices(mesh, *next(batches(scenario, config, text)))
    program = gradients_in(precision, scenario.model, mesh)
    return jax.device_get(program(params, *drawn, *factors(scenario))[1])


def by_layer(grads: Any) -> list[Any]:
    """The gradients of each layer's parameters."""
    stacked = grads["layers"]
    count = stacked["up"].shape[1]
    return [jax.tree.map(lambda g, i=i: g[:, i], stacked) for i in range(count)]


def compare(expected: Any, found: Any) -> Spread:
    """Signal to noise over all parameters together, mean and spread over seeds."""
    signal, value = flat(expected), flat(found)
    return spread(np.array([decibels(s, v - s) for s, v in zip(signal, value)]))


def flat(grads: Any) -> NDArray[np.float64]:
    """All numbers of each seed, `[seeds, count]`."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(grads)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
