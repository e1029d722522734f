"""The precisions that are compared, each a way to do every matmul of a model, backward as well."""

import functools
from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax

from jax_trn3 import mx_dot_general

from .naive import DotGeneral, absmax_dot_general, bf16_dot_general, cast_dot_general


@dataclass(frozen=True)
class Precision:
    """How the matmuls of a model are done.

    - `setting`: of `jax_trn3.matmul_precision`, which holds for an unmodified program
    - `dot_general`: a drop-in for `lax.dot_general` that the model is given, for what there is no
      setting for
    - `nudged`: training starts from parameters that are all one bit off, which measures what the
      chaos of training makes of the smallest difference
    """

    name: str
    about: str
    setting: str = "default"
    dot_general: DotGeneral = lax.dot_general
    nudged: bool = False


FLOAT32 = Precision("float32", "the reference")
NUDGED = Precision("float32, nudged", "first parameters one bit off", nudged=True)
BF16 = Precision("bf16", "operands in bfloat16", dot_general=bf16_dot_general)
MXFP8 = Precision("MXFP8", "E4M3, a scale for each 32", "mxfp8")
FP8_ABSMAX = Precision("FP8 absmax", "E4M3, a scale a tensor", dot_general=absmax_dot_general)
FP8_CAST = Precision("FP8 cast", "E4M3, no scale", dot_general=cast_dot_general)
MXFP4 = Precision("MXFP4", "E2M1, a scale for each 32", "mxfp4")

# What there is no setting for: jax_trn3.mx_dot_general in the place of lax.dot_general.
MXFP8_NEURON = Precision(
    "MXFP8, neuron scales",
    "E4M3, scales twice as large, as Trainium's quantize_mx is documented",
    dot_general=functools.partial(mx_dot_general, scale_rule="neuron"),
)
MXFP8_E5M2 = Precision(
    "MXFP8, E5M2 gradients",
    "E4M3, cotangents E5M2",
    dot_general=functools.partial(mx_dot_general, gradient_dtype=jnp.float8_e5m2),
)

TRAINED = (FLOAT32, BF16, MXFP8, FP8_ABSMAX, FP8_CAST, MXFP4)
SWEPT = (BF16, MXFP8, MXFP8_NEURON, MXFP8_E5M2, FP8_ABSMAX, FP8_CAST, MXFP4)
