"""What formats and scale rules do to a tensor: signal to noise on distributions that part them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jax_trn3 import numerics, quantize_dequantize_mx

from .model import is_outlier
from .naive import absmax, cast, round_to_bf16
from .statistics import Spread, decibels, spread

ROWS, COLUMNS = 64, 1024
OUTLIER = 100.0


@dataclass(frozen=True)
class Distribution:
    """Normal numbers times `scale: [ROWS, COLUMNS]`, which may be random itself."""

    name: str
    about: str
    scale: Callable[[np.random.Generator], NDArray[np.float64]]


def constant(value: float) -> Callable[[np.random.Generator], NDArray[np.float64]]:
    """The same scale everywhere."""
    return lambda random: np.full((ROWS, COLUMNS), value)


def student_scale(random: np.random.Generator) -> NDArray[np.float64]:
    """Normal numbers times this have Student's t distribution with 2 degrees of freedom."""
    return np.sqrt(2 / random.chisquare(2, (ROWS, COLUMNS)))


def row_scale(random: np.random.Generator) -> NDArray[np.float64]:
    """A scale for each row, as tokens have whose gradients differ by orders of magnitude."""
    return np.exp(4 * random.standard_normal((ROWS, 1))) * np.ones(COLUMNS)


DISTRIBUTIONS = (
    Distribution("normal", "N(0, 1)", constant(1.0)),
    Distribution(
        "outlier channels",
        f"one channel in 128 is {OUTLIER:.0f} times the others",
        lambda random: np.where(is_outlier(COLUMNS), OUTLIER, 1.0) * np.ones((ROWS, 1)),
    ),
    Distribution("heavy tails", "Student's t, 2 degrees of freedom", student_scale),
    Distribution("rows apart", "each row times exp(4 N(0, 1))", row_scale),
    Distribution("gradients", "N(0, 1) / 2^12", constant(2.0**-12)),
    Distribution("top of the range", "N(0, 1) * 2^125", constant(2.0**125)),
    Distribution("bottom of the range", "N(0, 1) / 2^118", constant(2.0**-118)),
)


@dataclass(frozen=True)
class Way:
    """A format with a way to scale; `function` is of one tensor, `float32[ROWS, COLUMNS]`."""

    format: str
    rule: str
    function: Callable[[jax.Array], jax.Array]


def all_ways() -> tuple[Way, ...]:
    """All microscaling formats with all scale rules, and those without microscaling."""
    mx = [
        Way(
            format.name,
            rule,
            functools.partial(quantize_dequantize_mx, dtype=format.dtype, scale_rule=rule),
        )
        for format in numerics.ELEMENT_FORMATS
        for rule in numerics.SCALE_RULES
    ]
    narrow = [np.dtype(dtype) for dtype in (jnp.float8_e4m3fn, jnp.int8, jnp.float4_e2m1fn)]
    plain = [
        Way(dtype.name, name, functools.partial(function, dtype=dtype))
        for dtype in narrow
        for name, function in {"cast": cast, "absmax": absmax}.items()
    ]
    return Way("bfloat16", "cast", round_to_bf16), *mx, *plain


@dataclass(frozen=True)
class Measured:
    """Signal to noise of a way in decibels, for each distribution."""

    format: str
    rule: str
    decibels: dict[str, Spread]


def measure(ways: Sequence[Way], seeds: tuple[int, ...]) -> list[Measured]:
    """For each way and distribution the signal to noise, and its spread over seeds.

    Signal and noise of each number are divided by its scale, so that they count alike: those
    beside an outlier as much as the outlier.
    """
    drawn = [draw(seed) for seed in seeds]
    values = jnp.asarray(np.stack([x for x, _ in drawn]))
    results = []
    for way in ways:
        quantized = np.asarray(jax.jit(jax.vmap(jax.vmap(way.function)))(values), np.float64)
        noise = [signal_to_noise(q, *pair) for q, pair in zip(quantized, drawn)]
        by_name = {d.name: spread(np.array(ns)) for d, ns in zip(DISTRIBUTIONS, zip(*noise))}
        results.append(Measured(way.format, way.rule, by_name))
    return results


def draw(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Numbers and their scales, `[distributions, ROWS, COLUMNS]` each."""
    random = np.random.default_rng(seed)
    scales = np.stack([distribution.scale(random) for distribution in DISTRIBUTIONS])
    return (random.standard_normal(scales.shape) * scales).astype(np.float32), scales


def signal_to_noise(
    quantized: NDArray[np.float64], values: NDArray[np.float32], scales: NDArray[np.float64]
) -> list[float]:
    """Decibels for each distribution."""
    signal, noise = values / scales, (quantized - values) / scales
    return [decibels(s, n) for s, n in zip(signal, noise)]
