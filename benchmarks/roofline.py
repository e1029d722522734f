"""Estimates beside `jax.experimental.roofline` on the same functions: operations, bytes, time.

    python benchmarks/roofline.py [--json]

JAX's roofline adds up what each primitive would do alone. `flops` and `hbm_bytes` are those of
products only; `unfused_*` count every primitive, as if each read and wrote HBM. The machine is one
core of a Trainium3 with its share of HBM. The bound is the larger of JAX's flops at TensorE's peak
in the type of the operands and of arguments and results, once each, at HBM's bandwidth: no estimate
may be below it.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "trn3,cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
from jax.experimental.roofline import roofline

import jax_trn3
from examples.planning.figures import print_table
from jax_trn3.estimates import Estimate, estimate
from jax_trn3.hardware import get_topology

TOPOLOGY = get_topology("trn3-core")


@dataclass(frozen=True)
class Case:
    """A function of arrays of one type."""

    name: str
    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    why: str = ""
    """Why the two differ, where they do."""

    theirs: Callable[..., Any] | None = None
    """What JAX's roofline is of, where it knows nothing of `function`."""

    needed: float = 1.0
    """Share of JAX's operations that has to be done."""

    @property
    def arguments(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """What it takes."""
        return tuple(jax.ShapeDtypeStruct(shape, self.dtype) for shape in self.shapes)


@dataclass(frozen=True)
class Compared:
    """What both say."""

    name: str
    flops: int
    roofline_flops: int
    unfused_flops: int
    bytes: int
    least_bytes: int
    """Arguments and results, once each."""

    roofline_bytes: int
    unfused_bytes: int
    time_s: float
    bound_s: float
    why: str


def matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    """A product."""
    return x @ y


def mlp(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    """SwiGLU."""
    return (jax.nn.silu(x @ gate) * (x @ up)) @ down


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Every token sees every one: JAX's roofline knows of no masks."""
    return jax.nn.dot_product_attention(query, key, value)


def fused(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """The same as one operation."""
    return jax_trn3.dot_product_attention(query, key, value)


def causal(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """With a causal mask."""
    return jax_trn3.dot_product_attention(query, key, value, is_causal=True)


def softmax(x: jax.Array) -> jax.Array:
    """Along rows."""
    return jax.nn.softmax(x, axis=-1)


def multiply_add(x: jax.Array, y: jax.Array) -> jax.Array:
    """Elementwise."""
    return x * y + x


def rms_norm(x: jax.Array) -> jax.Array:
    """Rows over their root mean square."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)


def cases() -> Iterator[Case]:
    """What is compared."""
    again = "operands larger than SBUF are read again for other tiles"
    kept = "what is between the products stays in SBUF where it fits"
    blocks = "logits stay in SBUF; keys and values are read again for each block of queries"
    once = "read once and written once, intermediate values stay in SBUF"
    for size in (512, 2048, 8192):
        yield Case(f"matmul {size}^3", matmul, ((size, size),) * 2, "bfloat16",
                   again if size > 2048 else "")  # fmt: skip
    yield Case("matmul 2048^3 float32", matmul, ((2048, 2048),) * 2, "float32")
    yield Case("matmul 8 x 4096 x 4096", matmul, ((8, 4096), (4096, 4096)), "bfloat16")
    weights = ((2048, 8192), (2048, 8192), (8192, 2048))
    yield Case("mlp 2048 x 2048 x 8192", mlp, ((2048, 2048), *weights), "bfloat16", kept)
    heads = ((1, 2048, 8, 128),) * 3
    yield Case("attention of jax.nn, 8 heads of 2048 x 128", attention, heads, "bfloat16",
               "as the program spells it out")  # fmt: skip
    yield Case("fused attention", fused, heads, "bfloat16", blocks, attention)
    yield Case("fused causal attention", causal, heads, "bfloat16",
               f"what the mask hides is not computed; {blocks}", attention, 0.5)  # fmt: skip
    yield Case("softmax 4096 x 4096", softmax, ((4096, 4096),), "float32", once)
    yield Case("x * y + x, 4096 x 4096", multiply_add, ((4096, 4096),) * 2, "float32", once)
    yield Case("rms norm 4096 x 4096", rms_norm, ((4096, 4096),), "float32", once)


def bound_s(found: Estimate, flops: int, least_bytes: int, dtype: str) -> float:
    """Seconds that no program on the core can beat."""
    compute = flops / TOPOLOGY.chip.core.peak_flops(dtype)
    return max(compute, least_bytes / found.hbm_bandwidth)


def compared(case: Case) -> Compared:
    """Both on one function."""
    _, theirs = roofline(case.theirs or case.function)(*case.arguments)
    ours = estimate(case.function, *case.arguments, topology=TOPOLOGY)
    results = jax.tree.leaves(jax.eval_shape(case.function, *case.arguments))
    least = sum(x.size * x.dtype.itemsize for x in (*case.arguments, *results))
    return Compared(
        name=case.name,
        flops=ours.flops,
        roofline_flops=theirs.flops,
        unfused_flops=theirs.unfused_flops,
        bytes=ours.cost.hbm_bytes,
        least_bytes=least,
        roofline_bytes=theirs.hbm_bytes,
        unfused_bytes=theirs.unfused_hbm_bytes,
        time_s=ours.time_s,
        bound_s=bound_s(ours, int(case.needed * theirs.flops), least, case.dtype),
        why=case.why,
    )


HEADER = ("function", "why bytes differ", "GFLOP", "roofline", "unfused", "MB", "least",
          "roofline", "unfused", "time, us", "bound, us", "x")  # fmt: skip


def row(line: Compared) -> list[str]:
    """A line of the table."""
    flops = (line.flops, line.roofline_flops, line.unfused_flops)
    moved = (line.bytes, line.least_bytes, line.roofline_bytes, line.unfused_bytes)
    return [
        line.name,
        line.why,
        *(f"{n / 1e9:.2f}" for n in flops),
        *(f"{n / 1e6:.1f}" for n in moved),
        *(f"{1e6 * s:.1f}" for s in (line.time_s, line.bound_s)),
        f"{line.time_s / line.bound_s:.2f}",
    ]


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    found = [compared(case) for case in cases()]
    if flags.json:
        print(json.dumps([dataclasses.asdict(line) for line in found], indent=2))
    else:
        print_table(HEADER, [row(line) for line in found], "Estimates and jax's roofline")
    below = [line.name for line in found if line.time_s < line.bound_s]
    if below:
        sys.exit(f"faster than the machine: {below}")


if __name__ == "__main__":
    main()
