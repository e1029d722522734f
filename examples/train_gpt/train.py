"""The training step, and what it needs: mesh, optimizer, loss."""

from dataclasses import dataclass, field

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .data import Batches, Text, Tokens
from .model import GPT, GPTConfig


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 200
    seed: int = 0
    batch_size: int = 64
    seq_len: int = 128
    learning_rate: float = 3e-3
    model: GPTConfig = field(default_factory=GPTConfig)


def make_mesh(devices) -> Mesh:
    tensor = 2 if len(devices) % 2 == 0 else 1
    grid = np.asarray(devices).reshape(-1, tensor)
    return Mesh(grid, ("data", "tensor"), axis_types=(AxisType.Auto, AxisType.Auto))


def make_optimizer(c):
    sched = optax.warmup_cosine_decay_schedule(
        0.0, c.learning_rate, warmup_steps=max(1,c.steps // 10), decay_steps=c.steps, end_value=c.learning_rate / 10
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(sched, b2=0.99, weight_decay=0.1))


def loss_fn(model, batch):
    logits = model(batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()


@nnx.jit(donate_argnums=(0, 1))
def train_step(model, optimizer, batch):
    loss, grads = nnx.value_and_grad(loss_fn)(model, batch)
    optimizer.update(model, grads)
    return loss
