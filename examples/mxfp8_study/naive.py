"""Narrow formats without microscaling: a plain cast, or one scale for a whole tensor.

The two ways that a first attempt at FP8 takes; what they get wrong is what microscaling is for.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

Quantizer = Callable[[jax.Array], jax.Array]
DimensionNumbers = tuple[tuple[Any, Any], tuple[Any, Any]]
DotGeneral = Callable[..., jax.Array]

E4M3 = jnp.dtype(jnp.float8_e4m3fn)


def largest(dtype: np.dtype[Any]) -> float:
    """The largest number of a narrow format; for int8 also of the negative ones."""
    return 127.0 if dtype == np.int8 else float(ml_dtypes.finfo(dtype).max)


def cast(x: jax.Array, dtype: np.dtype[Any] = E4M3) -> jax.Array:
    """Round `x: float32[...]` to what `dtype` can hold, float32 again.

    What is too large becomes the largest number: the kinder cast, as some formats would give NaN.
    """
    clipped = jnp.clip(x, -largest(dtype), largest(dtype))
    if dtype == np.int8:
        return jnp.round(clipped)
    return clipped.astype(dtype).astype(jnp.float32)


def absmax(x: jax.Array, dtype: np.dtype[Any] = E4M3) -> jax.Array:
    """Round `x: float32[...]` with one float32 scale that makes its largest magnitude `dtype`'s.

    What is returned is what the numbers stand for: those that `dtype` holds, times the scale.
    """
    amax = jnp.max(jnp.abs(x))
    scale = jnp.where(amax > 0, amax / largest(dtype), 1.0)
    return cast(x / scale, dtype) * scale


def round_to_bf16(x: jax.Array) -> jax.Array:
    """Round `x: float32[...]` to bfloat16's values, in a way that no compiler takes for nothing."""
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def quantized_dot_general(quantize: Quantizer) -> DotGeneral:
    """Return a `lax.dot_general` whose operands pass through `quantize`, backward as well.

    Forward it is the product of the quantized operands. Each of the two gradient products has the
    quantized cotangent as one operand and the quantized operand of the forward product as the
    other. Products are summed in float32.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def product(lhs: jax.Array, rhs: jax.Array, dimension_numbers: DimensionNumbers) -> jax.Array:
        return dot(quantize(lhs), quantize(rhs), dimension_numbers)

    def forward(lhs: jax.Array, rhs: jax.Array, dimension_numbers: DimensionNumbers) -> Any:
        operands = quantize(lhs), quantize(rhs)
        return dot(*operands, dimension_numbers), operands

    def backward(dimension_numbers: DimensionNumbers, operands: Any, cotangent: jax.Array) -> Any:
        _, transpose = jax.vjp(lambda *xs: dot(*xs, dimension_numbers), *operands)
        return transpose(quantize(cotangent))

    product.defvjp(forward, backward)

    def dot_general(
        lhs: jax.Array, rhs: jax.Array, dimension_numbers: DimensionNumbers
    ) -> jax.Array:
        if lhs.dtype != jnp.float32 or rhs.dtype != jnp.float32:
            raise TypeError(f"operands must be float32, not {lhs.dtype} and {rhs.dtype}")
        return product(lhs, rhs, dimension_numbers)

    return dot_general


def dot(lhs: jax.Array, rhs: jax.Array, dimension_numbers: DimensionNumbers) -> jax.Array:
    """Multiply in float32, whatever precision its surroundings ask for."""
    return lax.dot_general(lhs, rhs, dimension_numbers, precision=lax.Precision.HIGHEST)


cast_dot_general = quantized_dot_general(cast)
bf16_dot_general = quantized_dot_general(round_to_bf16)
absmax_dot_general = quantized_dot_general(absmax)
