"""The study: what is trained and measured, in which order, and what came out."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import numpy as np

from ..train_gpt.data import Text
from . import outlier_demo, sweeps, tensors
from .model import ModelConfig
from .precisions import FLOAT32, MXFP8_NEURON, NUDGED, SWEPT, TRAINED, Precision
from .statistics import CONFIDENCE, Comparison, compare
from .train import Outcome, Scenario, TrainConfig, train

BASE = Scenario("base", "a transformer of 2 layers on Python source")
DEEP = Scenario("depth", "6 layers instead of 2", ModelConfig(num_layers=6))
STRESSED = (
    Scenario(
        "outlier channels", "one channel in 128 times 2^12, its weights divided", outlier=2.0**12
    ),
    Scenario(
        "ends of the range", "the loss times 2^-24, the gradients divided", loss_scale=2.0**-24
    ),
    Scenario(
        "heavy tails", "losses of bytes weighted by a Pareto distribution of index 1", tail=1.0
    ),
    DEEP,
)


@dataclass(frozen=True)
class Plan:
    """How much is done; all that is random comes from `seeds`.

    - `base`: the scenario of the longer runs, and of most sweeps
    - `trained`: in every scenario; `base_only` in that one besides
    - `swept`: precisions whose gradients are measured
    """

    steps: int = 160
    stressed_steps: int = 40
    seeds: tuple[int, ...] = tuple(range(5))
    base: Scenario = BASE
    stressed: tuple[Scenario, ...] = STRESSED
    trained: tuple[Precision, ...] = TRAINED
    base_only: tuple[Precision, ...] = (MXFP8_NEURON, NUDGED)
    swept: tuple[Precision, ...] = SWEPT
    ways: tuple[tensors.Way, ...] = field(default_factory=tensors.all_ways)

    @property
    def runs(self) -> list[tuple[Scenario, TrainConfig, Precision]]:
        """What is trained, in this order."""
        long, short = (TrainConfig(n, self.seeds) for n in (self.steps, self.stressed_steps))
        first = [(self.base, long, precision) for precision in (*self.trained, *self.base_only)]
        return first + [(s, short, precision) for s in self.stressed for precision in self.trained]


@dataclass
class Results:
    """What was found; `outcomes` by the names of scenario and precision."""

    plan: Plan
    demo: list[outlier_demo.Row] = field(default_factory=list)
    formats: list[tensors.Measured] = field(default_factory=list)
    outcomes: dict[tuple[str, str], Outcome] = field(default_factory=dict)
    curves: list[sweeps.Curve] = field(default_factory=list)

    @property
    def comparisons(self) -> dict[tuple[str, str], Comparison]:
        """Each held-out loss against that of float32 in the same scenario."""
        return {
            (scenario, precision): compare(
                outcome.held_out, self.outcomes[scenario, FLOAT32.name].held_out
            )
            for (scenario, precision), outcome in self.outcomes.items()
            if precision != FLOAT32.name
        }


def run(plan: Plan, text: Text, tell: Callable[[str, int, int], None]) -> Results:
    """Do all of `plan`; `tell` hears what is going on, and how many of how many steps are done."""
    done, total = 0, sum(config.steps for _, config, _ in plan.runs)
    tell("quantizing tensors", done, total)
    results = Results(plan, outlier_demo.measure(), tensors.measure(plan.ways, plan.seeds))
    for scenario, config, precision in plan.runs:
        what = f"training: {scenario.name}, {precision.name}"
        tell(what, done, total)

        def on_step(step: int, what: str = what, done: int = done) -> None:
            tell(what, done + step, total)

        outcome = train(scenario, config, precision, text, on_step)
        results.outcomes[scenario.name, precision.name] = outcome
        done += config.steps
    tell("measuring gradients", done, total)
    results.curves = measure_gradients(results, text)
    return results


def measure_gradients(results: Results, text: Text) -> list[sweeps.Curve]:
    """The sweeps, from the parameters that training in float32 has ended with."""
    plan = results.plan
    config = TrainConfig(1, plan.seeds)
    base = results.outcomes[plan.base.name, FLOAT32.name].params
    curves = sweeps.measure(plan.base, base, config, text, plan.swept)
    if DEEP in plan.stressed:
        deep = results.outcomes[DEEP.name, FLOAT32.name].params
        swept = tuple(precision for precision in plan.trained if precision != FLOAT32)
        curves += sweeps.measure_depth(DEEP, deep, config, text, swept)
    return curves


def as_json(results: Results) -> dict[str, Any]:
    """Everything that was found, for a program; what is not finite is null."""
    plan = results.plan
    found = {
        "platform": jax.devices()[0].platform,
        "jax": jax.__version__,
        "seeds": plan.seeds,
        "confidence": CONFIDENCE,
        "scenarios": [asdict(scenario) for scenario in (plan.base, *plan.stressed)],
        "training": [
            {
                "scenario": scenario,
                "precision": precision,
                "curve": outcome.curve.tolist(),
                "held_out": outcome.held_out.tolist(),
                "held_out_float32": outcome.held_out_float32.tolist(),
                "against_float32": asdict(comparison) if comparison else None,
            }
            for (scenario, precision), outcome in results.outcomes.items()
            for comparison in [results.comparisons.get((scenario, precision))]
        ],
        "gradients": [asdict(curve) for curve in results.curves],
        "tensors": [asdict(measured) for measured in results.formats],
        "outlier_demo": [asdict(row) for row in results.demo],
    }
    return finite(found)


def finite(value: Any) -> Any:
    """Copy of nested lists and dictionaries with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
