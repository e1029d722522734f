"""For the tests of programs: the same program on the CPU backend, arrays, devices, meshes."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

F32 = np.float32
RANDOM = np.random.default_rng(0)

Function = Callable[..., Any]


def array(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(F32)


def on_cpu(function: Function, *arguments: Any) -> Any:
    """What the CPU backend gives."""
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        result = jax.jit(function)(*arguments)
    assert all(leaf.devices() == {cpu} for leaf in jax.tree.leaves(result))
    return jax.tree.map(np.asarray, result)


def same_as_on_cpu(function: Function, *arguments: Any) -> None:
    actual = jax.jit(function)(*arguments)
    for leaf in jax.tree.leaves(actual):
        assert leaf.devices() <= set(jax.devices("trn3"))
    expected = on_cpu(function, *arguments)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), b), actual, expected)


def devices(*ids: int) -> np.ndarray:
    return np.array([jax.devices()[i] for i in ids])


def auto(shape: tuple[int, ...], names: tuple[str, ...]) -> jax.sharding.Mesh:
    kinds = (jax.sharding.AxisType.Auto,) * len(names)
    return jax.make_mesh(shape, names, axis_types=kinds)
