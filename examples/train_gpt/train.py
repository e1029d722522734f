"""The training run: mesh, optimizer, loss, step, and the state that a step moves on."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import chex
import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .data import Batches, Text, Tokens, windows
from .model import GPT, GPTConfig


@dataclass(frozen=True)
class TrainConfig:
    """A training run; together with the text it decides every loss on the way.

    - `steps`: length of the run, and of its learning rate schedule
    - `batch_size`: windows a step, over all devices
    - `seq_len`: bytes a window
    - `learning_rate`: the peak, after `warmup` of the steps; it ends at a tenth of it
    """

    steps: int = 700
    seed: int = 0
    batch_size: int = 16
    seq_len: int = 128
    learning_rate: float = 3e-3
    warmup: float = 0.1
    weight_decay: float = 0.1
    model: GPTConfig = field(default_factory=GPTConfig)


def make_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """Two devices share a model where their number is even; the rest of them shares the data."""
    tensor = 2 if len(devices) % 2 == 0 else 1
    grid = np.asarray(devices).reshape(-1, tensor)
    return Mesh(grid, ("data", "tensor"), axis_types=(AxisType.Auto, AxisType.Auto))


def put_batch(tokens: Tokens) -> jax.Array:
    """Spread `tokens: [B, ...]` over the `data` axis of the current mesh."""
    mesh = jax.sharding.get_mesh()
    shards = mesh.shape["data"]
    if len(tokens) % shards:
        raise ValueError(f"a batch of {len(tokens)} does not divide over {shards} data shards")
    batch: jax.Array = jax.device_put(tokens, NamedSharding(mesh, P("data")))
    return batch


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW with clipped gradients, a linear warmup and a cosine decay."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=max(1, round(config.warmup * config.steps)),
        decay_steps=max(2, config.steps),
        end_value=config.learning_rate / 10,
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.99, weight_decay=config.weight_decay),
    )


@nnx.jit(static_argnums=0)
def initialize(config: TrainConfig) -> tuple[GPT, nnx.Optimizer[GPT]]:
    """Make model and optimizer in their shards, none of them ever whole on one device."""
    model = GPT(config.model, rngs=nnx.Rngs(config.seed))
    return model, nnx.Optimizer(model, make_optimizer(config), wrt=nnx.Param)


def loss_fn(model: GPT, tokens: jax.Array) -> jax.Array:
    """Mean nats per byte over `tokens: int32[B, T + 1]`, a scalar."""
    losses = optax.softmax_cross_entropy_with_integer_labels(model(tokens[:, :-1]), tokens[:, 1:])
    chex.assert_shape(losses, (tokens.shape[0], tokens.shape[1] - 1))
    return losses.mean()


held_out_loss = nnx.jit(loss_fn)


@nnx.jit(donate_argnums=(0, 1))
def train_step(
    model: GPT, optimizer: nnx.Optimizer[GPT], tokens: jax.Array
) -> dict[str, jax.Array]:
    """One update of `model` and `optimizer`, in place, on `tokens: int32[B, T + 1]`.

    Returns the scalars `loss`, before the update, and `grad_norm`.
    """
    loss, grads = nnx.value_and_grad(loss_fn)(model, tokens)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    chex.assert_rank(list(metrics.values()), 0)
    optimizer.update(model, grads)
    return metrics


class Run:
    """A training run in progress, on the current mesh (`jax.set_mesh`).

    `curve` holds the pairs (step, loss), the steps being counted from 1; `held_out` holds windows
    `int32[count, seq_len + 1]` that are not trained on.
    """

    def __init__(self, config: TrainConfig, text: Text) -> None:
        self.config = config
        self.model, self.optimizer = initialize(config)
        self.batches = Batches(
            text.train,
            batch_size=config.batch_size,
            seq_len=config.seq_len,
            seed=config.seed,
        )
        self.curve: list[tuple[int, float]] = []
        self.held_out = windows(text.held_out, config.seq_len)

    @property
    def step(self) -> int:
        """How many steps are done."""
        return len(self.curve)

    def advance(self) -> None:
        """Do one step and wait for it; raises `AssertionError` where a loss is not finite."""
        metrics = jax.device_get(
            train_step(self.model, self.optimizer, put_batch(next(self.batches)))
        )
        chex.assert_tree_all_finite(metrics)
        self.curve.append((self.step + 1, float(metrics["loss"])))

    def train_loss(self, last: int = 50) -> float:
        """Mean loss of the `last` steps, in nats per byte."""
        return float(np.mean([loss for _, loss in self.curve[-last:]]))

    def held_out_loss(self, num_batches: int = 16) -> float:
        """Mean loss on batches from all over the held-out text, in nats per byte."""
        starts = np.linspace(0, len(self.held_out) - self.config.batch_size, num_batches, dtype=int)
        batches = [self.held_out[start:][: self.config.batch_size] for start in starts]
        return float(np.mean([held_out_loss(self.model, put_batch(batch)) for batch in batches]))
