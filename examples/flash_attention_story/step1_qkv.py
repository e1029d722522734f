"""Step 1: queries, keys and values of all tokens, in bfloat16, then in FP8.

    python -m examples.flash_attention_story.step1_qkv

One product [4096 tokens, 4096] @ [4096, (8 + 2 + 2) * 128]. In the double-row mode each row of the
tensor engine contracts two FP8 values in a cycle instead of one of bfloat16.
"""

import functools

import jax
import jax.numpy as jnp

from jax_trn3.hardware import Chip
from pallas_trn3.kernels.matmul import matmul

from .shape import FEATURES, HEADS, KV_HEADS, TOKENS, TRN2, WIDTH, Step, array, timed

COLUMNS = (HEADS + 2 * KV_HEADS) * FEATURES


def projection(x: jax.Array, weights: jax.Array) -> jax.Array:
    """x @ weights in bfloat16; FP8 operands in the double-row mode."""
    return matmul(x, weights, preferred_element_type=jnp.bfloat16)


@functools.cache
def step(chip: Chip = TRN2) -> Step:
    """The projection in both formats."""
    before, after = (
        timed(projection, array(TOKENS, WIDTH, dtype=d), array(WIDTH, COLUMNS, dtype=d), chip=chip)
        for d in (jnp.bfloat16, jnp.float8_e4m3)
    )
    return Step("QKV projection: bfloat16, then FP8", before, after, said=2.0)


if __name__ == "__main__":
    from .report import printed

    printed(step())
