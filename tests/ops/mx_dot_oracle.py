"""What mx_dot_general should give: float64 products of operands quantized by ml_dtypes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jax_trn3 import mx_dot_general

RANDOM = np.random.default_rng(0)
MATMUL = (((1,), (0,)), ((), ()))

# dtype: exponent and value of the largest number
FORMATS = {
    ml_dtypes.float8_e4m3fn: (8, 448.0),
    ml_dtypes.float8_e5m2: (15, 57344.0),
    ml_dtypes.float6_e3m2fn: (4, 28.0),
    ml_dtypes.float6_e2m3fn: (2, 7.5),
    ml_dtypes.float4_e2m1fn: (2, 6.0),
    np.int8: (0, 127 / 64),
}


def on_grid(rows: np.ndarray, dtype: Any) -> np.ndarray:
    """float64 values of rows [..., n], quantized by the rule "ocp" in blocks of 32 along n."""
    rows = np.asarray(rows, np.float64)
    if dtype is None or rows.size == 0:
        return rows
    emax, largest = FORMATS[dtype]
    n = rows.shape[-1]
    padded = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, -n % 32)])
    blocks = padded.reshape(*rows.shape[:-1], -1, 32)
    amax = np.abs(blocks).max(-1, keepdims=True)
    scale = np.where(amax == 0, 1.0, 2.0 ** (np.frexp(amax)[1] - 1 - emax))
    elements = np.clip(blocks / scale, -largest, largest)
    if dtype is np.int8:
        elements = np.rint(elements * 64) / 64
    else:
        elements = elements.astype(dtype).astype(np.float64)
    return (elements * scale).reshape(padded.shape)[..., :n]


def product(
    lhs: tuple[Any, str, Any], rhs: tuple[Any, str, Any], out: str, contracted: str
) -> tuple[np.ndarray, np.ndarray]:
    """The product of (array, names of its dimensions, format), and that of the magnitudes.

    contracted: the dimensions that make up the blocks, in order.
    """
    values = []
    for array, names, dtype in (lhs, rhs):
        kept = "".join(n for n in names if n not in contracted)
        moved = np.einsum(f"{names}->{kept}{contracted}", np.asarray(array, np.float64))
        flat = moved.reshape(*moved.shape[: len(kept)], int(np.prod(moved.shape[len(kept) :])))
        values.append((on_grid(flat, dtype).reshape(moved.shape), kept + contracted))
    (a, a_names), (b, b_names) = values
    form = f"{a_names},{b_names}->{out}"
    return np.einsum(form, a, b), np.einsum(form, np.abs(a), np.abs(b))


def assert_within_accumulation(actual: Any, expected: Any, terms: int) -> None:
    """Sums of `terms` products in float32, in any order, then rounded to actual's dtype."""
    exact, magnitude = expected
    epsilon = float(jnp.finfo(actual.dtype).eps)
    bound = (terms + 1) * 2.0**-24 * magnitude + epsilon * np.abs(exact) + 1e-30
    assert actual.shape == exact.shape
    excess = np.abs(np.asarray(actual, np.float64) - exact) - bound
    assert np.all(excess <= 0), excess.max()


def draw_case(random: np.random.Generator) -> dict[str, Any]:
    """Operands with named dimensions: a, b batch; c, d, e contracted; m, n and p, q free."""
    size = dict(zip("abmnpq", random.integers(1, 4, 6))) | {"e": 1}
    size |= {"c": random.choice([0, 1, 3, 32, 33, 70]), "d": random.choice([1, 2, 31, 32])}
    batch = "ab"[: random.integers(0, 3)]
    contracted = "".join(random.permutation(list("cde"[: random.integers(0, 4)])))
    free = "mn"[: random.integers(0, 3)], "pq"[: random.integers(0, 3)]
    if random.random() < 0.3:
        size["m"] = size["p"] = 40
    names = ["".join(random.permutation(list(batch + contracted + f))) for f in free]
    shapes = [tuple(int(size[n]) for n in side) for side in names]
    numbers = tuple(
        tuple(tuple(side.index(n) for n in kind) for side in names) for kind in (contracted, batch)
    )
    kept = [[n for n in side if n not in batch + contracted] for side in names]
    out = batch + "".join(kept[0] + kept[1])
    dtype = random.choice([np.float32, ml_dtypes.bfloat16])
    formats = [random.choice([*FORMATS, None]) for _ in range(2)]
    return {
        "names": names,
        "out": out,
        "contracted": contracted,
        "operands": [random.normal(size=s).astype(dtype) for s in shapes],
        "cotangent": random.normal(size=[int(size[n]) for n in out]).astype(dtype),
        "numbers": numbers,
        "formats": formats,
        "gradient": random.choice([None, ml_dtypes.float8_e5m2]),
    }


def dot_of(case: dict[str, Any]) -> Callable[..., Any]:
    return functools.partial(
        mx_dot_general,
        dimension_numbers=case["numbers"],
        lhs_dtype=case["formats"][0],
        rhs_dtype=case["formats"][1],
        gradient_dtype=case["gradient"],
    )


def normal(*shape: int, dtype: Any = np.float32) -> Any:
    return jnp.asarray(RANDOM.normal(size=shape), dtype)
