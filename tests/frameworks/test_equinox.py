"""Equinox: training with filtered transformations, losses against the CPU backend."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(16, 6)).astype(np.float32)
Y = np.sin(X.sum(1, keepdims=True))


def train() -> list[float]:
    model = eqx.nn.MLP(6, 1, 16, 2, key=jax.random.key(0))
    optimizer = optax.adam(1e-2)
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit(donate="all-except-first")
    def step(data: tuple[Any, Any], model: Any, state: Any) -> Any:
        x, y = data
        loss = lambda model: jnp.mean((jax.vmap(model)(x) - y) ** 2)  # noqa: E731
        value, gradients = eqx.filter_value_and_grad(loss)(model)
        updates, state = optimizer.update(gradients, state, model)
        return eqx.apply_updates(model, updates), state, value

    losses = []
    for _ in range(8):
        model, state, value = step((X, Y), model, state)
        losses.append(float(value))
    return losses


def test_losses_are_the_cpus_and_fall() -> None:
    losses = train()
    with jax.default_device(jax.devices("cpu")[0]):
        expected = train()
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert losses[-1] < losses[0]


def test_error_if_raises_with_its_message() -> None:
    @eqx.filter_jit
    def positive(x: jax.Array) -> jax.Array:
        return eqx.error_if(x, x < 0, "x must not be negative")

    assert float(positive(jnp.float32(2))) == 2
    with pytest.raises(eqx.EquinoxRuntimeError, match="x must not be negative"):
        jax.block_until_ready(positive(jnp.float32(-2)))


def test_stateful_layers_keep_their_state_on_the_platform() -> None:
    model, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(6, axis_name="batch", mode="batch")
    run = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    y, state = eqx.filter_jit(run)(X, state)
    expected = (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5)
    np.testing.assert_allclose(np.asarray(y), expected, rtol=1e-3, atol=1e-4)
    assert {d.platform for leaf in jax.tree.leaves(state) for d in leaf.devices()} == {"trn3"}


def test_model_makes_the_round_trip_through_a_file(tmp_path: Any) -> None:
    model = eqx.nn.Linear(3, 4, key=jax.random.key(0))
    eqx.tree_serialise_leaves(tmp_path / "model.eqx", model)
    again = eqx.tree_deserialise_leaves(
        tmp_path / "model.eqx", eqx.nn.Linear(3, 4, key=jax.random.key(1))
    )
    assert eqx.tree_equal(model, again)
