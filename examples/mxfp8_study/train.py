"""Training runs that differ only in the precision of their matmuls, a device for each seed."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

from jax_trn3 import matmul_precision

from ..train_gpt.data import Batches, Text, windows
from .model import ModelConfig, Params, init_params, logits
from .naive import DotGeneral
from .precisions import FLOAT32, Precision

Floats = NDArray[np.float32]

SYNCHRONIZED = 8
"""Every so many steps the host waits for the devices, so that progress is what was done."""


@dataclass(frozen=True)
class Scenario:
    """What is put in the way of the formats. In float32 `outlier` and `loss_scale` change nothing.

    - `outlier`: factor of the outlier channels (`model.logits`), a power of two
    - `loss_scale`: the loss is multiplied by it and the gradients divided, a power of two
    - `tail`: each byte's loss is weighted by a draw of a Pareto distribution with this index;
      None: all weigh the same
    """

    name: str
    about: str
    model: ModelConfig = field(default_factory=ModelConfig)
    outlier: float = 1.0
    loss_scale: float = 1.0
    tail: float | None = None

    def __post_init__(self) -> None:
        for name, factor in {"outlier": self.outlier, "loss_scale": self.loss_scale}.items():
            if factor <= 0 or np.frexp(factor)[0] != 0.5:
                raise ValueError(f"{name} {factor} is not a power of two")


@dataclass(frozen=True)
class TrainConfig:
    """A training run, the same for every precision.

    - `seeds`: each decides the first parameters, the order of the batches and the weights
    - `learning_rate`: the peak, after a tenth of the steps; it ends at a tenth of it
    """

    steps: int
    seeds: tuple[int, ...]
    batch_size: int = 8
    held_out_batches: int = 8
    learning_rate: float = 4e-3
    weight_decay: float = 0.1


@dataclass(frozen=True)
class Outcome:
    """What one precision made of one scenario, losses in nats per byte.

    - `curve`: `[seeds, steps]`, of each batch before its step, weighted as in training
    - `held_out`: `[seeds]`, of the last parameters in the precision they were trained in
    - `held_out_float32`: `[seeds]`, of the same parameters in float32
    - `params`: the last parameters, with a first axis of seeds
    """

    curve: Floats
    held_out: Floats
    held_out_float32: Floats
    params: Params


def seed_mesh(num_seeds: int) -> Mesh:
    """As many devices as can have the same number of seeds each."""
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if num_seeds % n == 0)
    return Mesh(np.asarray(devices[:count]), ("seed",))


def for_each_seed(function: Callable[..., Any], mesh: Mesh, shared: int = 0) -> Callable[..., Any]:
    """Compile `function` of one seed for arrays with a first axis of seeds, spread over `mesh`.

    The last `shared` arguments have no such axis. No device waits for another one.
    """

    def on_device(*arguments: Any) -> Any:
        split = len(arguments) - shared
        return lax.map(lambda own: function(*own, *arguments[split:]), arguments[:split])

    @jax.jit
    def everywhere(*arguments: Any) -> Any:
        specs = (P("seed"),) * (len(arguments) - shared) + (P(),) * shared
        return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=P("seed"))(*arguments)

    return everywhere


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW with a linear warmup and a cosine decay."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=max(1, config.steps // 10),
        decay_steps=max(2, config.steps),
        end_value=config.learning_rate / 10,
    )
    return optax.adamw(schedule, b2=0.99, weight_decay=config.weight_decay)


def gradients_in(precision: Precision, model: ModelConfig, mesh: Mesh) -> Callable[..., Any]:
    """`gradient_program` run in `precision`."""
    program = gradient_program(model, precision.dot_general, mesh)

    def run(*arguments: Any) -> tuple[jax.Array, Params]:
        with matmul_precision(precision.setting):
            return program(*arguments)

    return run


@functools.cache
def gradient_program(model: ModelConfig, dot_general: DotGeneral, mesh: Mesh) -> Callable[..., Any]:
    """Loss and gradients of all seeds, the only program of a run that depends on the precision.

    Its arguments are parameters, `tokens: int32[B, T + 1]`, `weights: [B, T]`, outlier factor and
    loss scale; its results the weighted mean of nats per byte, and the gradients.
    """

    def loss(
        params: Params, tokens: jax.Array, weights: jax.Array, outlier: jax.Array
    ) -> jax.Array:
        predicted = logits(model, params, tokens[:, :-1], dot_general, outlier)
        losses = optax.softmax_cross_entropy_with_integer_labels(predicted, tokens[:, 1:])
        return jnp.mean(losses * weights)

    def loss_and_gradients(params: Params, *arguments: jax.Array) -> tuple[jax.Array, Params]:
        *batch, scale = arguments
        value, grads = jax.value_and_grad(lambda p: loss(p, *batch) * scale)(params)
        return value / scale, jax.tree.map(lambda g: g / scale, grads)

    return for_each_seed(loss_and_gradients, mesh, shared=2)


@functools.cache
def update_of(config: TrainConfig, mesh: Mesh) -> Callable[..., Any]:
    """The program that takes state and gradients to the next state, the same in all precisions."""
    optimizer = make_optimizer(config)

    def update(state: Any, grads: Params) -> Any:
        params, moments = state
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments

    return for_each_seed(update, mesh)


def train(
    scenario: Scenario,
    config: TrainConfig,
    precision: Precision,
    text: Text,
    on_step: Callable[[int], None] = lambda step: None,
) -> Outcome:
    """Train once for each seed; losses that are not finite are returned like all others."""
    mesh = seed_mesh(len(config.seeds))
    gradients = gradients_in(precision, scenario.model, mesh)
    update = update_of(config, mesh)
    first_state = first_state_of(scenario.model, config, mesh, precision.nudged)
    state, curve = first_state(np.asarray(config.seeds, np.uint32)), []
    for tokens, weights in batches(scenario, config, text):
        loss, grads = gradients(state[0], *on_devices(mesh, tokens, weights), *factors(scenario))
        state = update(state, grads)
        curve.append(loss)
        if len(curve) % SYNCHRONIZED == 0:
            jax.block_until_ready(loss)
        on_step(len(curve))
    held_out = functools.partial(held_out_loss, scenario, config, text, state[0])
    return Outcome(
        curve=np.stack(jax.device_get(curve), axis=1),
        held_out=held_out(precision),
        held_out_float32=held_out(FLOAT32),
        params=state[0],
    )


def factors(scenario: Scenario) -> tuple[np.float32, np.float32]:
    """Outlier factor and loss scale, as `gradient_program` takes them."""
    return np.float32(scenario.outlier), np.float32(scenario.loss_scale)


def on_devices(mesh: Mesh, *arrays: NDArray[Any]) -> list[jax.Array]:
    """Put arrays with a first axis of seeds on the devices of `mesh`."""
    return jax.device_put(list(arrays), NamedSharding(mesh, P("seed")))


@functools.cache
def first_state_of(
    model: ModelConfig, config: TrainConfig, mesh: Mesh, nudged: bool
) -> Callable[..., Any]:
    """The program that takes seeds to parameters, each the next number above if `nudged`, and
    optimizer state."""

    def one(seed: jax.Array) -> Any:
        params = init_params(model, jax.random.key(seed))
        if nudged:
            params = jax.tree.map(lambda x: jnp.nextafter(x, jnp.inf), params)
        return params, make_optimizer(config).init(params)

    return for_each_seed(one, mesh)


def batches(
    scenario: Scenario, config: TrainConfig, text: Text
) -> Iterator[tuple[NDArray[np.int32], Floats]]:
    """For each step the windows `[seeds, B, T + 1]` and the weights of their bytes `[seeds, B, T]`.

    They depend on the seeds only, so every precision sees the same.
    """
    shape = config.batch_size, scenario.model.max_len
    streams = [
        Batches(text.train, batch_size=shape[0], seq_len=shape[1], seed=seed)
        for seed in config.seeds
    ]
    random = [np.random.default_rng(seed) for seed in config.seeds]
    for _ in range(config.steps):
        tokens = np.stack([next(stream) for stream in streams])
        yield tokens, np.stack([draw_weights(rng, shape, scenario.tail) for rng in random])


def draw_weights(random: np.random.Generator, shape: tuple[int, ...], tail: float | None) -> Floats:
    """Weights with a mean of 1, equal or drawn from a Pareto distribution."""
    if tail is None:
        return np.ones(shape, np.float32)
    drawn = random.pareto(tail, shape) + 1
    return (drawn / drawn.mean()).astype(np.float32)


def held_out_loss(
    scenario: Scenario, config: TrainConfig, text: Text, params: Params, precision: Precision
) -> Floats:
    """Mean nats per byte of each seed's `params` on windows from all over the held-out text.

    By the program that training has compiled; its gradients are not looked at.
    """
    mesh = seed_mesh(len(config.seeds))
    gradients = gradients_in(precision, scenario.model, mesh)
    cut = windows(text.held_out, scenario.model.max_len)
    count = config.held_out_batches * config.batch_size
    chosen = cut[np.linspace(0, len(cut) - 1, count, dtype=int)]
    losses = []
    for batch in np.split(chosen, config.held_out_batches):
        tokens = np.stack([batch] * len(config.seeds))
        weights = np.ones_like(tokens[..., 1:], np.float32)
        loss, _ = gradients(params, *on_devices(mesh, tokens, weights), *factors(scenario))
        losses.append(loss)
    return np.mean(jax.device_get(losses), axis=0)
