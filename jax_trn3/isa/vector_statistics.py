"""VectorE: mean and variance of a partition's elements, in parts."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from jax_trn3.hardware import NeuronCore

from .cost import streaming
from .spec import Instruction, instruction, reads, writes
from .vector import rows
from .vector_rules import elements_within

_NISA = "nki/api/nki/isa/__init__.py"

BN_STATS_MAX = 512
"""`nki.language.tile_size.bn_stats_fmax`."""


@instruction(
    writes("dst"),
    reads("data"),
    engines=("vector",),
    cost=streaming(of="data", flops=3),
    rules=(elements_within("data", 1, BN_STATS_MAX), elements_within("dst", 6, 6, like="data")),
    source=f"{_NISA}, bn_stats",
)
def bn_stats(data: jax.Array) -> jax.Array:
    """Count, mean and variance times count of a partition's even elements, then of its odd ones.

    Of no odd elements they are 0, 0, 0; AWS does not say.
    """
    values = rows(data).astype(jnp.float32)
    return jnp.stack([*_moments(values[:, 0::2]), *_moments(values[:, 1::2])], axis=1)


def _moments(values: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    count = values.shape[1]
    mean = jnp.sum(values, axis=1) / max(count, 1)
    deviation = jnp.sum(jnp.square(values - mean[:, None]), axis=1)
    return jnp.full(values.shape[:1], count, jnp.float32), mean, deviation


def _bn_aggr_rules(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """data: triples."""
    if instruction.free_size("data") % 3:
        size = instruction.free_size("data")
        yield f"data has {size} elements a partition; it must have a multiple of 3"


@instruction(
    writes("dst"),
    reads("data"),
    engines=("vector",),
    cost=streaming(of="data", factor=13 / 3, flops=3),
    rules=(_bn_aggr_rules, elements_within("dst", 2, 2, like="data")),
    source=f"{_NISA}, bn_aggr",
)
def bn_aggr(data: jax.Array) -> jax.Array:
    """Mean and variance of all elements that the triples of `bn_stats` in `data` describe."""
    triples = rows(data).astype(jnp.float32).reshape(data.shape[0], -1, 3)
    count, mean, deviation = triples[..., 0], triples[..., 1], triples[..., 2]
    total = jnp.sum(count, axis=1)
    overall = jnp.sum(count * mean, axis=1) / total
    spread = deviation + count * jnp.square(mean - overall[:, None])
    return jnp.stack([overall, jnp.sum(spread, axis=1) / total], axis=1)
