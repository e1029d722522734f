"""What a call costs: a jitted x + 1, and an all-reduce over eight devices, in a shallow stack."""

import os

os.environ["JAX_PLATFORMS"] = "trn3,cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from timing import Ratio, compare, report


def plus_one(device):
    function = jax.jit(lambda x: x + 1)
    x = jax.device_put(np.ones(4, np.float32), device)
    return lambda: function(x)


def psum(device):
    mesh = jax.make_mesh((8,), ("x",), devices=jax.devices(device.platform))
    body = jax.shard_map(lambda x: jax.lax.psum(x, "x"), mesh=mesh, in_specs=P("x"), out_specs=P())
    function = jax.jit(body)
    x = jax.device_put(np.ones((8, 4), np.float32), jax.NamedSharding(mesh, P("x")))
    return lambda: jax.block_until_ready(function(x))


def measure() -> list[Ratio]:
    return [
        compare("dispatch of a jitted x + 1", plus_one, limit=2.0, rounds=60, calls=1000),
        compare("psum over 8 devices, waited for", psum, limit=2.0, rounds=30, calls=20),
    ]


if __name__ == "__main__":
    report(measure())
