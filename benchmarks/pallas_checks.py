"""What the checks of kernels cost: the tiled 1024^3 matmul kernel, 128-blocks, on the host.

The reference executor without and with checks, compiled values with the kernel under the checks,
and JAX's own TPU interpreter looking for races, in one process, interleaved, the fastest of a few
rounds. Needs both platforms: JAX_PLATFORMS=trn3,cpu.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "trn3,cpu")

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

import pallas_trn3 as pltrn
from pallas_trn3.kernel import kernel_of
from pallas_trn3.reference import run

N, BLOCK, ROUNDS = 1024, 128, 5


def kernel(x_ref, y_ref, o_ref, acc_ref):
    """A block of the product, summed over the innermost dimension of the grid."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        acc_ref[...] = jnp.zeros_like(acc_ref)

    acc_ref[...] += jnp.dot(x_ref[...], y_ref[...], preferred_element_type=jnp.float32)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        o_ref[...] = acc_ref[...]


def matmul(x, y, scratch=pltrn.PSUM, **options):
    """The product of two float32 matrices."""
    steps = N // BLOCK
    return pl.pallas_call(
        kernel,
        grid=(steps, steps, steps),
        in_specs=[
            pl.BlockSpec((BLOCK, BLOCK), lambda i, j, k: (i, k)),
            pl.BlockSpec((BLOCK, BLOCK), lambda i, j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((BLOCK, BLOCK), lambda i, j, k: (i, j)),
        out_shape=jax.ShapeDtypeStruct((N, N), jnp.float32),
        scratch_shapes=[scratch((BLOCK, BLOCK), jnp.float32)],
        **options,
    )(x, y)


def main() -> None:
    """Prints milliseconds, and how much faster than JAX's interpreter each one is."""
    x, y = np.random.default_rng(0).normal(size=(2, N, N)).astype(np.float32)
    (equation,) = jax.make_jaxpr(matmul)(x, y).eqns
    traced = kernel_of(**equation.params)
    cpu = jax.devices("cpu")[0]
    checked = jax.jit(lambda x, y: matmul(x, y, compiler_params=pltrn.CompilerParams(check=True)))
    races = pltpu.InterpretParams(detect_races=True)
    interpreted = jax.jit(lambda x, y: matmul(x, y, scratch=pltpu.VMEM, interpret=races))

    def beside(x, y):
        with jax.default_device(cpu):
            return interpreted(x, y)

    functions = {
        "reference": lambda: run(traced, (x, y)),
        "reference, checked": lambda: run(traced, (x, y), check=True),
        "under jit, checked": lambda: checked(x, y),
        "InterpretParams(detect_races=True)": lambda: beside(x, y),
    }
    best = dict.fromkeys(functions, float("inf"))
    for function in functions.values():
        found = np.asarray(jax.block_until_ready(function())).reshape(N, N)
        np.testing.assert_allclose(found, x @ y, rtol=1e-4, atol=1e-3)
    for turn in range(ROUNDS):
        for name, function in functions.items():
            if name.startswith("Interpret") and turn > 1:
                continue
            start = time.perf_counter()
            jax.block_until_ready(function())
            best[name] = min(best[name], time.perf_counter() - start)
    slowest = best["InterpretParams(detect_races=True)"]
    for name, seconds in best.items():
        print(f"{name:36} {1e3 * seconds:8.1f} ms  {slowest / seconds:6.1f}x faster")
    print(f"checks cost {best['reference, checked'] / best['reference']:.2f}x")


if __name__ == "__main__":
    main()
