"""What a call costs: a jitted x + 1, in a shallow stack."""

import os

os.environ["JAX_PLATFORMS"] = "trn3,cpu"

import jax
import numpy as np
from timing import Ratio, compare, report


def measure() -> list[Ratio]:
    def make(device):
        function = jax.jit(lambda x: x + 1)
        x = jax.device_put(np.ones(4, np.float32), device)
        return lambda: function(x)

    return [compare("dispatch of a jitted x + 1", make, limit=2.0, rounds=60, calls=1000)]


if __name__ == "__main__":
    report(measure())
