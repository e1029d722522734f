"""jax.lax.scaled_dot, jax.nn.scaled_matmul and jax.nn.scaled_dot_general on trn3.

All three multiply operands that come with block scales. JAX has them for GPUs; here they are the
operation trn3.scaled_dot: exact values of element * scale, summed in float32. JAX defines no
derivatives of the first two; those for operands of 16 bits or more are added here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax._src.cudnn import scaled_matmul_stablehlo
from jax._src.lax.scaled_dot import scaled_dot_p as jax_scaled_dot_p
from jax.interpreters import ad, batching, mlir

from jax_trn3.numerics import SCALE_DTYPE
from jax_trn3.numerics.float_bits import BIAS, power_of_two
from jax_trn3.numerics.scale_rules import NAN_BYTE

from .dot_dimensions import DimensionNumbers
from .whole import define

# (B, M, K) x (B, N, K) -> (B, M, N), with scales (B, M, K / block) and (B, N, K / block)
_SCALED_MATMUL: DimensionNumbers = ((2,), (2,)), ((0,), (0,))


def lower_scaled_dots(platform: str) -> None:
    """Registers lowerings for `platform`, and derivatives where JAX has none; once a process."""
    lower = mlir.lower_fun(_lowered_scaled_dot, multiple_results=False)
    mlir.register_lowering(jax_scaled_dot_p, lower, platform=platform)
    _define_derivatives(jax_scaled_dot_p, _scaled_dot)
    # Both, because the wrapper of JAX's partitions by callbacks; trn3's operation is partitioned
    # like any other.
    primitives = (
        scaled_matmul_stablehlo._scaled_matmul_p_wrapper,
        scaled_matmul_stablehlo._scaled_matmul_p,
    )
    for primitive in primitives:
        lower = mlir.lower_fun(_lowered_scaled_matmul, multiple_results=True)
        mlir.register_lowering(primitive, lower, platform=platform)
        _define_derivatives(primitive, _scaled_matmul)
    # JAX 0.10 asserts that all operands have the dimension of vmap, at the same place.
    if jax.version.__version_info__ < (0, 12):
        for primitive in primitives:
            batching.primitive_batchers[primitive] = _batch_scaled_matmul


def _scaled_dot(
    lhs: Any,
    rhs: Any,
    lhs_scale: Any,
    rhs_scale: Any,
    *,
    dimension_numbers: DimensionNumbers,
    preferred_element_type: Any,
) -> tuple[jax.Array]:
    """The product of lhs * lhs_scale and rhs * rhs_scale, in float32."""
    out = lax.dot_general(
        _scaled(lhs, lhs_scale),
        _scaled(rhs, rhs_scale),
        dimension_numbers,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return (out.astype(preferred_element_type),)


def _scaled(x: Any, scale: Any) -> jax.Array:
    """float32(x) * scale; each scale is that of a block along every dimension it is shorter in."""
    blocks, of_blocks = [], []
    for size, count in zip(x.shape, scale.shape):
        blocks += [count, size // count] if count else [0, 1]
        of_blocks += [count, 1]
    values = x.astype(jnp.float32).reshape(blocks)
    scale = scale.reshape(of_blocks)
    if scale.dtype != SCALE_DTYPE:
        return (values * scale.astype(jnp.float32)).reshape(x.shape)
    # 2^-127 is a subnormal number, which XLA:CPU takes for 0: the power in two halves.
    byte = lax.bitcast_convert_type(scale, jnp.uint8).astype(jnp.int32)
    exponent = jnp.minimum(byte, NAN_BYTE - 1) - BIAS
    half = exponent >> 1
    values = values * power_of_two(half) * power_of_two(exponent - half)
    return jnp.where(byte == NAN_BYTE, jnp.nan, values).reshape(x.shape)


def _scaled_dot_of_casts(*operands: Any, **parameters: Any) -> tuple[jax.Array]:
    # Without the barrier, XLA takes a cast to float8 and back for excess precision it may keep.
    return _scaled_dot(*lax.optimization_barrier(operands), **parameters)


scaled_dot_p = define("scaled_dot", _scaled_dot_of_casts)


def _lowered_scaled_dot(*operands: Any, preferred_element_type: Any, **parameters: Any) -> Any:
    dtype = jnp.dtype(preferred_element_type).name
    return scaled_dot_p.bind(*operands, preferred_element_type=dtype, **parameters)[0]


def _lowered_scaled_matmul(*operands: Any, preferred_element_type: Any) -> Any:
    dtype = jnp.dtype(preferred_element_type).name
    return scaled_dot_p.bind(
        *operands, dimension_numbers=_SCALED_MATMUL, preferred_element_type=dtype
    )


_scaled_matmul = functools.partial(_scaled_dot, dimension_numbers=_SCALED_MATMUL)


def _batch_scaled_matmul(
    operands: Sequence[Any], dims: Sequence[int | None], **parameters: Any
) -> Any:
    """The new dimension becomes part of B."""
    size = next(x.shape[d] for x, d in zip(operands, dims) if d is not None)
    merged = []
    for x, d in zip(operands, dims):
        x = jnp.broadcast_to(x, (size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
        merged.append(x.reshape(size * x.shape[1], *x.shape[2:]))
    (out,) = scaled_matmul_stablehlo._scaled_matmul_p_wrapper.bind(*merged, **parameters)
    return (out.reshape(size, -1, *out.shape[1:]),), (0,)


def _define_derivatives(primitive: Any, meaning: Callable[..., Any]) -> None:
    """Those of a function linear in lhs and in rhs, unless JAX has come to define them."""
    if primitive in ad.primitive_jvps:
        return

    def jvp(primals: Sequence[Any], tangents: Sequence[Any], **parameters: Any) -> Any:
        _check_differentiable(primitive.name, primals, tangents)
        terms = [
            primitive.bind(*primals[:i], tangent, *primals[i + 1 :], **parameters)
            for i, tangent in enumerate(tangents[:2])
            if type(tangent) is not ad.Zero
        ]
        total = functools.reduce(functools.partial(jax.tree.map, ad.add_tangents), terms)
        return primitive.bind(*primals, **parameters), total

    def transpose(cotangents: Any, *operands: Any, **parameters: Any) -> list[Any]:
        cotangent = cotangents[0] if primitive.multiple_results else cotangents
        side = 0 if ad.is_undefined_primal(operands[0]) else 1
        results: list[Any] = [None] * len(operands)
        aval = operands[side].aval
        if type(cotangent) is ad.Zero:
            results[side] = ad.Zero(aval)
            return results

        def linear(x: Any) -> Any:
            return meaning(*operands[:side], x, *operands[side + 1 :], **parameters)[0]

        (results[side],) = jax.linear_transpose(linear, aval)(cotangent)
        return results

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose


def _check_differentiable(name: str, primals: Sequence[Any], tangents: Sequence[Any]) -> None:
    for what, primal, tangent in zip(("lhs", "rhs", "lhs_scale", "rhs_scale"), primals, tangents):
        if type(tangent) is ad.Zero:
            continue
        if "scale" in what or jnp.dtype(primal.dtype).itemsize < 2:
            raise TypeError(
                f"{name} is not differentiable with respect to {what} of dtype {primal.dtype}, in "
                "which a gradient would be meaningless; operands (not scales) of float32, bfloat16 "
                "and float16 are. jax.nn.scaled_dot_general and jax_trn3.mx_dot_general quantize "
                "and differentiate"
            )
