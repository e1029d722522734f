"""MX quantization as operations that stay whole: trn3.quantize_mx, .dequantize_mx and both in one.

What they compute is numerics.quantize's, dequantize's and quantize_dequantize's. An MXArray is a
constant for differentiation: its elements have eight bits or fewer, and so would their tangents.
"""

from __future__ import annotations

from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax._src import core
from jax.interpreters import ad, batching

from jax_trn3 import numerics
from jax_trn3.numerics import MXArray

from .block_sharding import check_block_sharding
from .whole import define


def quantize_mx(
    x: jax.typing.ArrayLike,
    axis: int = -1,
    dtype: Any = jnp.float8_e4m3fn,
    *,
    block_size: int = 32,
    scale_rule: str = "ocp",
    rounding: str = "nearest_even",
    key: jax.Array | None = None,
) -> MXArray:
    """x in a microscaling format: blocks along an axis share a power of two (OCP MX v1.0).

    Not differentiable: see quantize_dequantize_mx, whose derivative passes straight through, and
    mx_dot_general, which quantizes its gradients, too.

    Args:
      x: float32, bfloat16 or float16 of at least one dimension.
      axis: the dimension cut into blocks; the last block may be shorter.
      dtype: the elements': float8_e4m3fn, float8_e5m2, float6_e3m2fn, float6_e2m3fn,
        float4_e2m1fn, int8, or the format's name ("mxfp8_e4m3"; "mxfp8" for short, "mxfp4").
      block_size: elements that share a scale.
      scale_rule: "ocp", "neuron", "rceil", "ceil" or "even"; numerics/scale_rules.py defines them.
      rounding: "nearest_even" or "stochastic".
      key: a key of jax.random's, with stochastic rounding only.

    Returns:
      MXArray with `data` of x's shape and `scale` (float8_e8m0fnu) of one value a block.

    Raises:
      TypeError: x is not of a dtype named above.
      ValueError: an unknown format, rule or rounding, an axis that x does not have, a block_size
        below 1, a key missing or not needed, or an axis sharded (Explicit) inside a block.
    """
    operands, parameters = _quantizer(x, axis, dtype, block_size, scale_rule, rounding, key)
    data, scale = quantize_mx_p.bind(*operands, **parameters)
    return MXArray(
        data,
        scale,
        format=numerics.element_format(parameters["format"]),
        axis=parameters["axis"] - data.ndim,
        block_size=parameters["block_size"],
    )


def dequantize_mx(mx: MXArray, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """The values of an MXArray, in float32 (exact), bfloat16 or float16 (correctly rounded).

    Raises:
      TypeError: mx is no MXArray, or dtype is another.
      ValueError: the shapes of mx.data and mx.scale don't belong together.
    """
    if not isinstance(mx, MXArray):
        raise TypeError(f"dequantize_mx of {type(mx).__name__}; allowed is an MXArray")
    (values,) = dequantize_mx_p.bind(
        *core.auto_insert_reshard(mx.data, mx.scale),
        axis=mx.axis % mx.ndim,
        format=mx.format.name,
        block_size=mx.block_size,
        dtype=jnp.dtype(dtype).name,
    )
    return values


def quantize_dequantize_mx(
    x: jax.typing.ArrayLike,
    axis: int = -1,
    dtype: Any = jnp.float8_e4m3fn,
    *,
    block_size: int = 32,
    scale_rule: str = "ocp",
    rounding: str = "nearest_even",
    key: jax.Array | None = None,
) -> jax.Array:
    """dequantize_mx(quantize_mx(x, ...), x.dtype), with a derivative: that of the identity.

    The function is a staircase; its derivative is taken to be 1 everywhere (straight-through),
    also where elements saturate.

    Args and errors as in quantize_mx.
    """
    operands, parameters = _quantizer(x, axis, dtype, block_size, scale_rule, rounding, key)
    (values,) = quantize_dequantize_mx_p.bind(*operands, **parameters)
    return values


def _quantizer(
    x: Any, axis: int, dtype: Any, block_size: int, scale_rule: str, rounding: str, key: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Operands and parameters of the primitives that quantize."""
    x = jnp.asarray(x)
    if (key is not None) != (rounding == "stochastic"):
        problem = "no key" if key is None else "a key"
        raise ValueError(
            f"rounding={rounding!r} with {problem}; a key (jax.random.key) is needed for "
            f'"stochastic", and only there'
        )
    random_bits = () if key is None else (jax.random.bits(key, x.shape, jnp.uint32),)
    parameters = {
        "axis": numerics.canonical_axis(axis, x.ndim),
        "format": numerics.element_format(dtype).name,
        "block_size": block_size,
        "scale_rule": scale_rule,
        "rounding": rounding,
    }
    return core.auto_insert_reshard(x, *random_bits), parameters


def _quantize(x: Any, *random_bits: Any, axis: int, block_size: int, **parameters: Any) -> Any:
    check_block_sharding(x, axis, block_size)
    return numerics.quantize(
        x, axis, block_size=block_size, random_bits=next(iter(random_bits), None), **parameters
    )


def _quantize_dequantize(
    x: Any, *random_bits: Any, axis: int, block_size: int, **parameters: Any
) -> Any:
    check_block_sharding(x, axis, block_size)
    values = numerics.quantize_dequantize(
        x, axis, block_size=block_size, random_bits=next(iter(random_bits), None), **parameters
    )
    return (values,)


def _dequantize(data: Any, scale: Any, *, axis: int, block_size: int, **parameters: Any) -> Any:
    check_block_sharding(data, axis, block_size)
    return (numerics.dequantize(data, scale, axis, block_size=block_size, **parameters),)


quantize_mx_p = define("quantize_mx", _quantize)
dequantize_mx_p = define("dequantize_mx", _dequantize)
quantize_dequantize_mx_p = define("quantize_dequantize_mx", _quantize_dequantize)


def match_batch_dimensions(operands: Any, dims: Any) -> tuple[list[Any], int]:
    """Operands of one rank with their batch dimension at the same place, and that place."""
    first = next(d for d in dims if d is not None)
    size = next(x.shape[d] for x, d in zip(operands, dims) if d is not None)
    moved = [
        jnp.broadcast_to(jnp.expand_dims(x, first), (*x.shape[:first], size, *x.shape[first:]))
        if d is None
        else jnp.moveaxis(x, d, first)
        for x, d in zip(operands, dims)
    ]
    return moved, first


def _define_batching(primitive: Any) -> None:
    """The batch dimension stays where it is, and the block axis after it moves up."""

    def batch(operands: Any, dims: Any, *, axis: int, **parameters: Any) -> Any:
        operands, dim = match_batch_dimensions(operands, dims)
        results = primitive.bind(*operands, axis=axis + (dim <= axis), **parameters)
        return results, [dim] * len(results)

    batching.primitive_batchers[primitive] = batch


for _primitive in (quantize_mx_p, dequantize_mx_p, quantize_dequantize_mx_p):
    _define_batching(_primitive)


def _refuse_derivative(primals: Any, tangents: Any, **parameters: Any) -> NoReturn:
    del primals, tangents, parameters
    raise TypeError(
        "quantize_mx and dequantize_mx are not differentiable: tangents of an MXArray would have "
        "its few bits. Use quantize_dequantize_mx (straight-through derivative) or mx_dot_general, "
        "or jax.lax.stop_gradient on what is quantized"
    )


ad.primitive_jvps[quantize_mx_p] = _refuse_derivative
ad.primitive_jvps[dequantize_mx_p] = _refuse_derivative


def _pass_through(primals: Any, tangents: Any, **parameters: Any) -> Any:
    return quantize_dequantize_mx_p.bind(*primals, **parameters), [tangents[0]]


ad.primitive_jvps[quantize_dequantize_mx_p] = _pass_through
