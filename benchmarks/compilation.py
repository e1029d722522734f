"""What a compilation costs: distinct programs, so that nothing is cached, of two sizes."""

import os

os.environ["JAX_PLATFORMS"] = "trn3,cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from timing import Ratio, compare, report

numbers = itertools.count()


def small(device):
    """An elementwise program of one operation."""

    def run():
        n = next(numbers)
        return jax.jit(lambda x: x * n).lower(shape).compile()

    shape = jax.ShapeDtypeStruct(
        (4,), np.float32, sharding=jax.sharding.SingleDeviceSharding(device)
    )
    return run


def network(device):
    """The gradient of a network of eight layers over eight devices."""
    mesh = jax.make_mesh((8,), ("x",), devices=jax.devices(device.platform))
    rows = jax.NamedSharding(mesh, P("x"))
    x = jax.ShapeDtypeStruct((64, 32), np.float32, sharding=rows)
    w = jax.ShapeDtypeStruct((8, 32, 32), np.float32, sharding=jax.NamedSharding(mesh, P()))

    def run():
        n = next(numbers)

        def loss(w, x):
            for layer in range(8):
                x = jnp.tanh(x @ w[layer] + n)
            return (x**2).mean()

        with jax.set_mesh(mesh):
            return jax.jit(jax.grad(loss)).lower(w, x).compile()

    return run


def measure() -> list[Ratio]:
    return [
        compare("compile x * n", small, limit=1.3, rounds=15, calls=3),
        compare("compile a gradient, 8 devices", network, limit=1.3, rounds=8, calls=1),
    ]


if __name__ == "__main__":
    report(measure())
