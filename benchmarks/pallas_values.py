"""How fast kernels' values are: standard Pallas on trn3, against JAX's interpreters and jnp.dot.

    python benchmarks/pallas_values.py [--attention 4096] [--matmul 1024]

All in one process, interleaved; the minimum of several runs of each. Interpreters are measured on
as much of the grid as they do in seconds, and what they take is scaled by the rest of it: both do
one step of the grid after another. `--whole` measures all of it.
"""

import argparse
import functools
import math
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "trn3,cpu")

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_RUNS = 5


def matmul_kernel(x_ref: Any, y_ref: Any, out_ref: Any) -> None:
    """One block of a product of blocks, summed up over the last dimension of the grid."""

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        out_ref[...] = jnp.zeros_like(out_ref)

    out_ref[...] += jnp.dot(x_ref[...], y_ref[...], preferred_element_type=jnp.float32)


def matmul(x: jax.Array, y: jax.Array, block: int = 128, interpret: Any = False) -> jax.Array:
    """x @ y in blocks of [block, block]."""
    (m, k), n = x.shape, y.shape[1]
    return pl.pallas_call(
        matmul_kernel,
        grid=(m // block, n // block, k // block),
        in_specs=[
            pl.BlockSpec((block, block), lambda i, j, k: (i, k)),
            pl.BlockSpec((block, block), lambda i, j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((block, block), lambda i, j, k: (i, j)),
        out_shape=jax.ShapeDtypeStruct((m, n), jnp.float32),
        interpret=interpret,
    )(x, y)


def attention_kernel(
    q_ref: Any, k_ref: Any, v_ref: Any, out_ref: Any, sum_ref: Any, max_ref: Any, acc_ref: Any,
    *, scale: float, steps: int,
) -> None:  # fmt: skip
    """Flash attention: a block of queries against a block of keys."""

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        sum_ref[...] = jnp.zeros_like(sum_ref)
        max_ref[...] = jnp.full_like(max_ref, -jnp.inf)
        acc_ref[...] = jnp.zeros_like(acc_ref)

    scores = scale * jnp.dot(q_ref[...], k_ref[...].T, preferred_element_type=jnp.float32)
    largest = jnp.maximum(max_ref[...], jnp.max(scores, axis=1, keepdims=True))
    p = jnp.exp(scores - largest)
    rescale = jnp.exp(max_ref[...] - largest)
    sum_ref[...] = sum_ref[...] * rescale + jnp.sum(p, axis=1, keepdims=True)
    product = jnp.dot(p, v_ref[...], preferred_element_type=jnp.float32)
    acc_ref[...] = acc_ref[...] * rescale + product
    max_ref[...] = largest

    @pl.when(pl.program_id(1) == steps - 1)
    def _() -> None:
        out_ref[...] = acc_ref[...] / sum_ref[...]


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, rows: int = 512, columns: int = 512,
    interpret: Any = False,
) -> jax.Array:  # fmt: skip
    """softmax(q @ k.T / sqrt(d)) @ v of one head, [T, d] and [S, d]."""
    steps = k.shape[0] // columns
    kernel = functools.partial(attention_kernel, scale=1 / math.sqrt(q.shape[1]), steps=steps)
    blocks = [
        pl.BlockSpec((rows, q.shape[1]), lambda i, j: (i, 0)),
        pl.BlockSpec((columns, q.shape[1]), lambda i, j: (j, 0)),
        pl.BlockSpec((columns, v.shape[1]), lambda i, j: (j, 0)),
    ]
    return pl.pallas_call(
        kernel,
        grid=(q.shape[0] // rows, steps),
        in_specs=blocks,
        out_specs=pl.BlockSpec((rows, v.shape[1]), lambda i, j: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((q.shape[0], v.shape[1]), jnp.float32),
        scratch_shapes=[
            pltpu.VMEM((rows, 1), jnp.float32),
            pltpu.VMEM((rows, 1), jnp.float32),
            pltpu.VMEM((rows, v.shape[1]), jnp.float32),
        ],
        interpret=interpret,
    )(q, k, v)


def measured(functions: dict[str, Callable[[], Any]], runs: int = _RUNS) -> dict[str, float]:
    """Seconds of each, the least of several runs in turn; the first run, which compiles, apart."""
    for function in functions.values():
        jax.block_until_ready(function())
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in functions.items():
            begin = time.perf_counter()
            jax.block_until_ready(function())
            times[name].append(time.perf_counter() - begin)
    return {name: min(each) for name, each in times.items()}


def on(platform: str, *arrays: jax.Array) -> list[jax.Array]:
    """Copies on the first device of a platform."""
    return [jax.device_put(x, jax.devices(platform)[0]) for x in arrays]


def compared(
    title: str,
    kernel: Callable[..., jax.Array],
    arrays: tuple[jax.Array, ...],
    part: tuple[jax.Array, ...],
    share: int,
    others: dict[str, Callable[[], Any]],
) -> None:
    """Prints a kernel's time and how many times as long the others take; `part` is one in `share`
    of the work, for the interpreters."""
    here, there = on(jax.devices()[0].platform, *arrays), on("cpu", *part)
    compiled = jax.jit(kernel)
    functions: dict[str, Callable[[], Any]] = {"trn3": lambda: compiled(*here), **others}
    for name, interpret in (
        ("interpret=True", True),
        ("InterpretParams()", pltpu.InterpretParams()),
    ):
        slow = jax.jit(functools.partial(kernel, interpret=interpret))
        functions[name] = functools.partial(slow, *there)
    times = measured(functions)
    print(title)
    for name, seconds in times.items():
        whole = seconds * (share if name.startswith(("interpret", "Interpret")) else 1)
        print(f"  {name:20s} {whole * 1e3:10.1f} ms {whole / times['trn3']:8.2f} x")


def main() -> None:
    """Both kernels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attention", type=int, default=4096, help="queries and keys; 0: none")
    parser.add_argument("--matmul", type=int, default=1024, help="a side; 0: none")
    parser.add_argument("--whole", action="store_true", help="interpreters do the whole grid")
    options = parser.parse_args()
    if side := options.matmul:
        x, y = (jax.random.normal(jax.random.key(n), (side, side)) for n in range(2))
        a, b = on("cpu", x, y)
        dot = jax.jit(jnp.dot)
        part = x if options.whole else x[:128]
        compared(
            f"matmul {side}^3, float32, blocks of 128", matmul, (x, y), (part, y),
            1 if options.whole else side // 128, {"jnp.dot on CPU": lambda: dot(a, b)},
        )  # fmt: skip
    if keys := options.attention:
        q, k, v = (jax.random.normal(jax.random.key(n), (keys, 128)) for n in range(3))
        for block in (128, 512):
            part = q if options.whole else q[:block]
            compared(
                f"flash attention {keys} x {keys}, d=128, float32, blocks of {block}",
                functools.partial(attention, rows=block, columns=block),
                (q, k, v), (part, k, v), 1 if options.whole else keys // block, {},
            )  # fmt: skip


if __name__ == "__main__":
    main()
