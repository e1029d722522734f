"""One value 100 times the rest: a cast, one scale for all, and a scale for each 32, side by side.

After the demonstration in AWS's talk on Trainium3 at re:Invent 2025 (AIM3335).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jax_trn3 import quantize_dequantize_mx

from .naive import absmax, cast
from .statistics import decibels

COUNT = 128
OUTLIER_AT = 40
FACTOR = 100.0
BLOCK = slice(32, 64)
"""The values that share a scale with the outlier."""

MAGNITUDES = {"activations": 1.0, "gradients": 2.0**-10}
"""Of the values that are no outliers (standard deviation)."""

ELEMENTS: dict[str, Any] = {
    "E4M3": jnp.float8_e4m3fn,
    "INT8": jnp.int8,
    "E2M1": jnp.float4_e2m1fn,
}
WAYS = {"cast": cast, "absmax": absmax, "microscaling": quantize_dequantize_mx}


@dataclass(frozen=True)
class Row:
    """What one way made of the values that are no outliers.

    - `near`, `far`: signal to noise in decibels, within the outlier's block and outside of it
    - `lost`: the share of the values that became 0
    - `outlier_error`: relative
    """

    magnitude: str
    element: str
    way: str
    near: float
    far: float
    lost: float
    outlier_error: float


def values(magnitude: float, seed: int = 0) -> NDArray[np.float32]:
    """Normal numbers, and in their midst one that is exactly FACTOR times their magnitude."""
    drawn = np.random.default_rng(seed).standard_normal(COUNT).astype(np.float32)
    drawn[OUTLIER_AT] = FACTOR
    return drawn * np.float32(magnitude)


@functools.cache
def program(element: str, way: str) -> Callable[..., jax.Array]:
    """One way to quantize, compiled."""
    return jax.jit(functools.partial(WAYS[way], dtype=np.dtype(ELEMENTS[element])))


def quantized(x: NDArray[np.float32], element: str, way: str) -> NDArray[np.float32]:
    """What `x: [COUNT]` becomes."""
    return np.asarray(program(element, way)(x))


def measure() -> list[Row]:
    """All magnitudes, elements and ways."""
    return [
        row(magnitude, element, way)
        for magnitude in MAGNITUDES
        for element in ELEMENTS
        for way in WAYS
    ]


def row(magnitude: str, element: str, way: str) -> Row:
    """Measure one way."""
    x = values(MAGNITUDES[magnitude])
    q = quantized(x, element, way)
    in_block = np.zeros(COUNT, bool)
    in_block[BLOCK] = True
    rest = np.arange(COUNT) != OUTLIER_AT
    near, far = in_block & rest, ~in_block
    return Row(
        magnitude,
        element,
        way,
        near=decibels(x[near], (q - x)[near]),
        far=decibels(x[far], (q - x)[far]),
        lost=float(np.mean(q[rest] == 0)),
        outlier_error=float(abs(q - x)[OUTLIER_AT] / x[OUTLIER_AT]),
    )
