"""A training step of the demo: 8 devices, data x tensor mesh, the loss fetched after every step."""

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "trn3,cpu"
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax

jax.config.update("jax_num_cpu_devices", 8)

from timing import Ratio, compare, report

from examples.train_gpt.data import load_text
from examples.train_gpt.train import Run, TrainConfig, make_mesh


def measure() -> list[Ratio]:
    text = load_text()

    def make(device):
        mesh = make_mesh(jax.devices(device.platform)[:8])
        with jax.set_mesh(mesh):
            run = Run(TrainConfig(), text)

        def step():
            with jax.set_mesh(mesh):
                run.advance()

        return step

    return [compare("a training step of the demo, 8 devices", make, limit=1.05, rounds=15, calls=3)]


if __name__ == "__main__":
    report(measure())
