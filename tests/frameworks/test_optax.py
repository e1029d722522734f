"""Optax: a few steps of many optimizers, parameters against the CPU backend."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

OPTIMIZERS = {
    "sgd": optax.sgd(0.05, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.05),
    "adamw": optax.adamw(optax.warmup_cosine_decay_schedule(0, 0.02, 2, 8)),
    "lion": optax.lion(0.01),
    "adafactor": optax.adafactor(0.05),
    "rmsprop": optax.rmsprop(0.01),
    "lamb, clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.lamb(0.05)),
    "accumulated": optax.MultiSteps(optax.adam(0.05), every_k_schedule=2),
    "lbfgs": optax.lbfgs(),
}

X = np.random.default_rng(0).normal(size=(32, 5)).astype(np.float32)
Y = np.cos(X @ np.arange(5.0, dtype=np.float32))


def loss(params: dict[str, jax.Array]) -> jax.Array:
    hidden = jnp.tanh(X @ params["w"] + params["b"])
    return jnp.mean((hidden @ params["v"] - Y) ** 2)


def train(optimizer: Any) -> tuple[list[float], Any]:
    params = {
        "w": jnp.ones((5, 8)) / 5 + jnp.arange(8) / 10,
        "b": jnp.zeros(8),
        "v": jnp.linspace(-1, 1, 8),
    }
    state = optimizer.init(params)
    arguments = {"value_fn": loss} if optimizer is OPTIMIZERS["lbfgs"] else {}

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(params)
        extra = {"value": value, "grad": gradients, **arguments} if arguments else {}
        updates, state = optimizer.update(gradients, state, params, **extra)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for _ in range(6):
        params, state, value = step(params, state)
        losses.append(float(value))
    return losses, params


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_losses_and_parameters_are_the_cpus(name: str) -> None:
    losses, params = train(OPTIMIZERS[name])
    assert {d.platform for p in jax.tree.leaves(params) for d in p.devices()} == {"trn3"}
    with jax.default_device(jax.devices("cpu")[0]):
        expected_losses, expected_params = train(OPTIMIZERS[name])
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    assert losses[-1] < losses[0]
    for actual, expected in zip(
        jax.tree.leaves(params), jax.tree.leaves(expected_params), strict=True
    ):
        np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=1e-3, atol=1e-5)
