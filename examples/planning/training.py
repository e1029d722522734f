"""A training step: gradients of microbatches, summed and clipped, and AdamW."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .forward import loss
from .layout import BATCH, Layout
from .models import Model
from .parameters import parameters

SEQUENCE = 8192
BATCH_SIZE = 1152
"""Sequences of a step."""

Tree = Any


def training_step(
    model: Model, layout: Layout, batch_size: int = BATCH_SIZE, sequence: int = SEQUENCE
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The step, jitted, and the shapes of its arguments: parameters and moments, which it
    replaces, its number, and tokens [microbatches, sequences, tokens + 1].

    **Raises:** `ValueError` where the layout does not divide the model or the batch.
    """
    each, rest = divmod(batch_size, layout.microbatches)
    if rest:
        raise ValueError(f"{layout.microbatches} microbatches do not divide {batch_size}")
    params = parameters(model, layout)
    moments = parameters(model, layout, jnp.dtype(model.moment_dtype))
    tokens = layout.shape((layout.microbatches, each, sequence + 1), jnp.int32, None, BATCH, None)
    number = layout.shape((), jnp.int32)
    step = functools.partial(_step, model=model, layout=layout)
    return jax.jit(step, donate_argnums=(0, 1, 2)), (params, moments, moments, number, tokens)


def _step(
    params: Tree, first: Tree, second: Tree, number: jax.Array, tokens: jax.Array,
    *, model: Model, layout: Layout,
) -> tuple[Tree, Tree, Tree, jax.Array]:  # fmt: skip
    value, gradients = _summed(params, tokens, model, layout)
    params, first, second = adamw(params, gradients, first, second, number)
    return params, first, second, value


def _summed(
    params: Tree, tokens: jax.Array, model: Model, layout: Layout
) -> tuple[jax.Array, Tree]:
    """Mean loss and gradient of all microbatches, one after another."""
    count = tokens.shape[0]
    gradient = jax.value_and_grad(functools.partial(loss, model=model, layout=layout))

    def add(sums: tuple[jax.Array, Tree], some: jax.Array) -> tuple[tuple[jax.Array, Tree], None]:
        return jax.tree.map(jnp.add, sums, gradient(params, some)), None

    if count == 1:
        return gradient(params, tokens[0])
    shapes = parameters(model, layout)
    zeros = jax.tree.map(
        lambda p: jax.lax.with_sharding_constraint(jnp.zeros(p.shape, p.dtype), p.sharding), shapes
    )
    sums, _ = jax.lax.scan(add, (jnp.zeros(()), zeros), tokens)
    return jax.tree.map(lambda x: x / count, sums)


def adamw(
    params: Tree, gradients: Tree, first: Tree, second: Tree, number: jax.Array,
    *, rate: float = 3e-4, decay: float = 0.1, betas: tuple[float, float] = (0.9, 0.95),
) -> tuple[Tree, Tree, Tree]:  # fmt: skip
    """One step of AdamW; gradients clipped to a norm of 1."""
    squares = [jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradients)]
    clip = jnp.minimum(1.0, jax.lax.rsqrt(sum(squares) + 1e-12))
    time = number.astype(jnp.float32) + 1
    bias = tuple(1 - beta**time for beta in betas)

    def new(
        p: jax.Array, g: jax.Array, m: jax.Array, v: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        g = g * clip
        wide = betas[0] * m.astype(p.dtype) + (1 - betas[0]) * g
        square = betas[1] * v.astype(p.dtype) + (1 - betas[1]) * g * g
        update = (wide / bias[0]) / (jnp.sqrt(square / bias[1]) + 1e-8)
        return p - rate * (update + decay * p), wide.astype(m.dtype), square.astype(v.dtype)

    together = jax.tree.map(new, params, gradients, first, second)
    return jax.tree.transpose(jax.tree.structure(params), jax.tree.structure((0, 0, 0)), together)
