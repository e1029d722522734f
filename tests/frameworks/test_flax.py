"""Flax: training with NNX and with Linen, losses against the CPU backend."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(16, 12)).astype(np.float32)
Y = RANDOM.integers(0, 5, 16)


class NNXModel(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Linear(12, 16, rngs=rngs)
        self.norm = nnx.LayerNorm(16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 16, rngs=rngs, decode=False)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.dropout(nnx.gelu(self.norm(self.embed(x))))
        return self.head(x + self.attention(x[None])[0])


def train_nnx(x: Any, y: Any) -> list[float]:
    model = NNXModel(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model: NNXModel, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
        def loss(model: NNXModel) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    return [float(step(model, optimizer, x, y)) for _ in range(6)]


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.relu(linen.Conv(8, (3,))(x[..., None]))
        x = linen.BatchNorm(use_running_average=False)(x)
        return linen.Dense(5)(x.reshape(len(x), -1))


def train_linen(x: Any, y: Any) -> list[float]:
    model = LinenModel()
    variables = model.init(jax.random.key(0), x)
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = optimizer.init(variables["params"])

    @jax.jit
    def step(variables: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            logits, updates = model.apply(
                {**variables, "params": params}, x, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), updates

        (value, updates), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        change, state = optimizer.update(gradients, state)
        params = optax.apply_updates(variables["params"], change)
        return {"params": params, **updates}, state, value

    losses = []
    for _ in range(6):
        variables, state, value = step(variables, state, x, y)
        losses.append(float(value))
    return losses


@pytest.mark.parametrize("train", [train_nnx, train_linen])
def test_losses_are_the_cpus_and_fall(train: Callable[[Any, Any], list[float]]) -> None:
    losses = train(X, Y)
    with jax.default_device(jax.devices("cpu")[0]):
        expected = train(X, Y)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert losses[-1] < losses[0]


def test_sharded_training_has_the_losses_of_one_device() -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "data")
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    sharded = train_linen(jax.device_put(X, sharding), jax.device_put(Y, sharding))
    np.testing.assert_allclose(sharded, train_linen(X, Y), rtol=1e-4)


def test_model_lives_on_the_platform() -> None:
    model = NNXModel(nnx.Rngs(0))
    devices = {
        d.platform for p in jax.tree.leaves(nnx.state(model, nnx.Param)) for d in p.devices()
    }
    assert devices == {"trn3"}
    assert jnp.shape(model(X)) == (16, 5)
