"""Lowering rules of dot_general and conv_general_dilated that follow matmul_precision.

Everything that multiplies matrices in JAX (matmul, einsum, the layers of Flax, ragged_dot) lowers
to one of the two, and so do the derivatives.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax._src import core, mesh
from jax._src.interpreters import mlir

from jax_trn3 import numerics

from . import name_scopes
from .mx_dot import mx_dot_general
from .precision_setting import as_written, current, keep_scopes
from .whole import define

# What a product means: (precision, parameters of the primitive, lhs, rhs) -> float32.
Product = Callable[..., jax.Array]


def lower_products(platform: str) -> None:
    """Lets dot_general and conv_general_dilated on `platform` follow matmul_precision; once a
    process, after the rules that they have at "default" are registered."""
    for primitive, product in ((lax.dot_general_p, _dot), (lax.conv_general_dilated_p, _conv)):
        own = mlir._platform_specific_lowerings[platform].get(primitive)
        as_default = (own or mlir._lowerings[primitive]).rule
        rule = functools.partial(_lower, as_default, product)
        mlir.register_lowering(primitive, rule, platform=platform)
    keep_scopes()


def _lower(
    as_default: Callable[..., Any],
    product: Product,
    context: mlir.LoweringRuleContext,
    *operands: Any,
    **params: Any,
) -> Sequence[Any]:
    setting = current(context)
    names = name_scopes.scopes(context)
    if (
        setting.precision == "default"
        or not _follows_setting(context, params["precision"])
        or any(name_scopes.matches(pattern, names) for pattern in setting.except_scopes)
    ):
        return as_default(context, *operands, **params)

    (out_aval,) = context.avals_out
    function = functools.partial(
        _traced, product, setting.precision, tuple(params.items()), out_aval.dtype
    )
    # Traced without a mesh: the shards of explicit axes need not be multiples of a block.
    with as_written(context) as inner, mesh.use_abstract_mesh(mesh.empty_abstract_mesh):
        avals = [core.ShapedArray(aval.shape, aval.dtype) for aval in context.avals_in]
        (out,) = mlir.lower_fun(function, multiple_results=False)(
            inner.replace(avals_in=avals), *operands
        )
    return [mlir.lower_with_sharding_in_types(context, out, out_aval)]


# jit, so that equal products are traced once.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), inline=True)
def _traced(
    product: Product, precision: str, params: Any, dtype: Any, lhs: Any, rhs: Any
) -> jax.Array:
    return product(precision, dict(params), lhs, rhs).astype(dtype)


def _follows_setting(context: mlir.LoweringRuleContext, precision: Any) -> bool:
    """Whether it is a product of floats, of which the program says nothing more precise."""
    avals = (*context.avals_in, *context.avals_out)
    has_work = all(math.prod(aval.shape) for aval in avals)
    return (
        has_work
        and all(aval.dtype.name in numerics.FLOAT_DTYPES for aval in avals)
        and precision in (None, lax.DotAlgorithmPreset.DEFAULT, (lax.Precision.DEFAULT,) * 2)
    )


def _dot(precision: str, params: dict[str, Any], lhs: Any, rhs: Any) -> jax.Array:
    dimension_numbers = params["dimension_numbers"]
    if precision == "bf16":
        (out,) = bf16_dot_general_p.bind(lhs, rhs, dimension_numbers=dimension_numbers)
        return out
    return mx_dot_general(
        lhs,
        rhs,
        dimension_numbers,
        preferred_element_type=jnp.float32,
        lhs_dtype=precision,
        rhs_dtype=precision,
    )


def _conv(precision: str, params: dict[str, Any], lhs: Any, rhs: Any) -> jax.Array:
    window = {
        name: params[name]
        for name in (
            "window_strides",
            "padding",
            "lhs_dilation",
            "rhs_dilation",
            "dimension_numbers",
            "feature_group_count",
            "batch_group_count",
        )
    }
    if precision == "bf16":
        (out,) = bf16_conv_general_dilated_p.bind(lhs, rhs, **window)
        return out
    format = numerics.element_format(precision).name
    (out,) = mx_conv_general_dilated_p.bind(lhs, rhs, **window, format=format)
    return out


def _mx_conv_general_dilated(
    lhs: Any, rhs: Any, *, format: str, dimension_numbers: Any, **window: Any
) -> tuple[jax.Array]:
    """The meaning of the primitive: both operands on the grid of `format`, a float32 convolution.

    Blocks run along the input features that one output feature sums over, those of its group.
    """
    lhs_axis, rhs_axis = dimension_numbers.lhs_spec[1], dimension_numbers.rhs_spec[1]
    groups = window["feature_group_count"]
    shape = lhs.shape
    split = (*shape[:lhs_axis], groups, shape[lhs_axis] // groups, *shape[lhs_axis + 1 :])
    quantize = functools.partial(numerics.quantize_dequantize, format=format, dtype=jnp.float32)
    out = lax.conv_general_dilated(
        quantize(lhs.reshape(split), lhs_axis + 1).reshape(shape),
        quantize(rhs, rhs_axis),
        dimension_numbers=dimension_numbers,
        **window,
        precision=lax.Precision.HIGHEST,
    )
    return (out,)


mx_conv_general_dilated_p = define("mx_conv_general_dilated", _mx_conv_general_dilated)


# Products of bfloat16 are exact in float32, and so multiplied: jaxlib 0.10's CPU backend fails at
# run time where the transpose of a bfloat16 product with a float32 result is wanted.
def _bf16_dot_general(lhs: Any, rhs: Any, *, dimension_numbers: Any) -> tuple[jax.Array]:
    operands = _round_to_bfloat16(lhs), _round_to_bfloat16(rhs)
    return (lax.dot_general(*operands, dimension_numbers, precision=lax.Precision.HIGHEST),)


def _bf16_conv_general_dilated(lhs: Any, rhs: Any, **window: Any) -> tuple[jax.Array]:
    operands = _round_to_bfloat16(lhs), _round_to_bfloat16(rhs)
    return (lax.conv_general_dilated(*operands, **window, precision=lax.Precision.HIGHEST),)


bf16_dot_general_p = define("bf16_dot_general", _bf16_dot_general)
bf16_conv_general_dilated_p = define("bf16_conv_general_dilated", _bf16_conv_general_dilated)


def _round_to_bfloat16(x: Any) -> jax.Array:
    # reduce_precision, because XLA may take a conversion and its reverse for nothing at all.
    return lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)
