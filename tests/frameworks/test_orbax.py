"""Orbax: checkpoints of sharded arrays on the platform, during training and after it."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import jax_trn3


def mesh(*shape: int) -> jax.sharding.Mesh:
    names = ("a", "b")[: len(shape)]
    kinds = (jax.sharding.AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, names, axis_types=kinds)


def sharded(mesh: jax.sharding.Mesh, *spec: str | None) -> jax.sharding.NamedSharding:
    return jax.NamedSharding(mesh, jax.P(*spec))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int4", "float8_e4m3fn", "uint8"])
def test_sharded_array_is_restored_with_its_values_and_sharding(tmp_path: Path, dtype: str) -> None:
    sharding = sharded(mesh(2, 4), "a", "b")
    x = jax.device_put(jnp.arange(64).reshape(8, 8).astype(dtype), sharding)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", {"x": x})
        checkpointer.wait_until_finished()
        target = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)}
        again = checkpointer.restore(tmp_path / "checkpoint", target)["x"]
    assert again.dtype == x.dtype
    assert again.sharding == sharding
    assert {d.platform for d in again.devices()} == {"trn3"}
    np.testing.assert_array_equal(
        np.asarray(again).astype(np.float32), np.asarray(x).astype(np.float32)
    )


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float6_e3m2fn", "float4_e2m1fn", "int8"])
def test_mx_array_is_restored_with_its_values_and_sharding(tmp_path: Path, dtype: str) -> None:
    x = jax.random.normal(jax.random.key(0), (64, 96))
    mx = jax.device_put(jax_trn3.quantize_mx(x, dtype=dtype), sharded(mesh(8), "a"))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", {"x": mx})
        checkpointer.wait_until_finished()
        target = {"x": jax.tree.map(ocp.utils.to_shape_dtype_struct, mx)}
        again = checkpointer.restore(tmp_path / "checkpoint", target)["x"]
    assert repr(again) == repr(mx)
    assert again.data.sharding == mx.data.sharding
    assert again.scale.dtype == jnp.float8_e8m0fnu
    np.testing.assert_array_equal(jax_trn3.dequantize_mx(again), jax_trn3.dequantize_mx(mx))


@pytest.mark.parametrize("spec", [("b", "a"), (None, "a"), ()], ids=str)
def test_array_is_restored_onto_another_mesh(tmp_path: Path, spec: tuple[Any, ...]) -> None:
    values = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    x = jax.device_put(values, sharded(mesh(8), "a"))
    other = sharded(mesh(4, 2), *spec)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", {"x": x})
        checkpointer.wait_until_finished()
        target = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=other)}
        again = checkpointer.restore(tmp_path / "checkpoint", target)["x"]
    assert again.sharding == other
    for shard in again.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), values[shard.index])


def test_training_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    optimizer = optax.adam(0.1)
    data = jax.device_put(np.eye(8, dtype=np.float32), sharded(mesh(8), "a"))

    def loss(w: jax.Array) -> jax.Array:
        return jnp.mean((jnp.tanh(data @ w) - 0.5) ** 2)

    @jax.jit
    def step(state: dict[str, Any]) -> tuple[dict[str, Any], jax.Array]:
        value, gradient = jax.value_and_grad(loss)(state["w"])
        updates, moments = optimizer.update(gradient, state["moments"])
        return {"w": optax.apply_updates(state["w"], updates), "moments": moments}, value

    w = jax.device_put(np.full((8, 4), 0.1, np.float32), sharded(mesh(8), None, None))
    state = {"w": w, "moments": optimizer.init(w)}
    losses = []
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for i in range(6):
            if i == 3:
                manager.save(i, args=ocp.args.StandardSave(state))
            state, value = step(state)
            losses.append(float(value))
        manager.wait_until_finished()
        assert manager.latest_step() == 3
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        state = manager.restore(3, args=ocp.args.StandardRestore(target))
    again = []
    for _ in range(3):
        state, value = step(state)
        again.append(float(value))
    assert again == losses[3:]
    assert losses[-1] < losses[0]
