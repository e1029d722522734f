"""What can be said of losses that differ between seeds as well."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.floating[Any]]

CONFIDENCE = 0.99
"""Of each interval; a study makes about thirty comparisons."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (of a sample) over seeds."""

    mean: float
    std: float

    def text(self, digits: int, sign: str = "") -> str:
        """Return both, `mean ± std`."""
        return f"{self.mean:{sign}.{digits}f} ± {self.std:.{digits}f}"


@dataclass(frozen=True)
class Comparison:
    """A precision's losses against those of float32, seed by seed.

    - `difference`: of the losses at equal seeds
    - `relative`: its mean in standard deviations of float32's losses over seeds
    - `half_width`: of the confidence interval around the mean difference
    - `verdict`: "indistinguishable" where that interval holds 0, else "better", "worse"; "diverged"
      where a loss, of either, is not finite
    """

    loss: Spread
    difference: Spread
    relative: float
    half_width: float
    verdict: str


def spread(values: Floats) -> Spread:
    """Mean and standard deviation of `values: [seeds]`; of a single one the latter is NaN."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return Spread(float(np.mean(values)), std)


def compare(losses: Floats, reference: Floats) -> Comparison:
    """Compare `losses: [seeds]` with `reference: [seeds]`, by Student's paired t."""
    with np.errstate(invalid="ignore"):
        difference = spread(losses - reference)
        relative = difference.mean / spread(reference).std
    quantile = float(stdtrit(len(losses) - 1, (1 + CONFIDENCE) / 2))
    half_width = quantile * difference.std / len(losses) ** 0.5
    if not np.isfinite([losses, reference]).all():
        verdict = "diverged"
    elif not abs(difference.mean) > half_width:  # equal, or of a single seed (NaN)
        verdict = "indistinguishable"
    else:
        verdict = "worse" if difference.mean > 0 else "better"
    return Comparison(spread(losses), difference, relative, half_width, verdict)


def decibels(signal: Floats, noise: Floats) -> float:
    """Ten times the logarithm of the ratio of their energies; infinite without noise."""
    with np.errstate(divide="ignore", over="ignore"):
        ratio = np.sum(np.square(signal, dtype=np.float64)) / np.sum(
            np.square(noise, dtype=np.float64)
        )
        return float(10 * np.log10(ratio))
