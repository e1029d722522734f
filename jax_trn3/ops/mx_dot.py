"""mx_dot_general: lax.dot_general in microscaling formats, a primitive that stays whole.

Meaning: each operand is quantized to MX in blocks along the contraction, and the values on that
grid are multiplied and summed in float32, as the tensor engine does in PSUM. It is linear in each
operand as far as derivatives are concerned: tangents go through the same operation, and the two
gradient products are quantized along *their* contraction, each operand in its own format again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax._src import core
from jax._src.lax.lax import canonicalize_precision
from jax._src.sharding_impls import canonicalize_sharding
from jax.interpreters import ad, batching

from jax_trn3 import numerics
from jax_trn3.numerics import FLOAT_DTYPES, MXArray

from . import dot_dimensions
from .block_sharding import check_block_sharding
from .dot_dimensions import DimensionNumbers
from .quantize import dequantize_mx, match_batch_dimensions
from .whole import define


def mx_dot_general(
    lhs: jax.typing.ArrayLike | MXArray,
    rhs: jax.typing.ArrayLike | MXArray,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: jax.typing.DTypeLike | None = None,
    *,
    lhs_dtype: Any = jnp.float8_e4m3fn,
    rhs_dtype: Any = jnp.float8_e4m3fn,
    gradient_dtype: Any = None,
    scale_rule: str = "ocp",
    block_size: int = 32,
    out_sharding: Any = None,
) -> jax.Array:
    """lax.dot_general in microscaling formats, with its signature and its derivatives.

    Blocks run along the contraction: several contracting dimensions are taken together in the order
    in which they are named, the last block may be shorter, and without any each element is a block.
    Operands are multiplied and summed in float32 (XLA:CPU takes those below 2^-126 for 0).

    The gradient of an operand is the product of the cotangent and the other operand, each quantized
    along the dimensions that this product contracts: the operand in its own format, the cotangent
    in gradient_dtype, or else in the format of the operand whose gradient it is. An MXArray is
    dequantized and quantized again for that. It is a constant itself: asking for a gradient with
    respect to one is an error.

    Args:
      lhs, rhs: float32, bfloat16 or float16, or an MXArray, which is used as it is.
      dimension_numbers: ((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch)).
      precision: lax.Precision.HIGHEST, for both operands or one of a pair, leaves that operand
        unquantized; for both, this is lax.dot_general (in gradients, too). DEFAULT, HIGH and None
        (whatever jax.default_matmul_precision says) are the same here.
      preferred_element_type: float32, bfloat16 or float16, the result's dtype. By default that of
        lax.dot_general for the plain operands; float32 if both are MXArrays.
      lhs_dtype, rhs_dtype: the format, as in quantize_mx; None leaves the operand as it is. Of no
        meaning for an MXArray, which has a format.
      gradient_dtype: the cotangents' format, float8_e5m2 for instance.
      scale_rule, block_size: as in quantize_mx.
      out_sharding: as in lax.dot_general, for explicit mesh axes.

    Returns:
      An array of batch dimensions, dimensions of lhs, dimensions of rhs.

    Raises:
      TypeError: shapes or dimension_numbers that lax.dot_general refuses, or other dtypes.
      ValueError: an unknown format or rule; precision a DotAlgorithm; an MXArray not blocked along
        the contraction, or in blocks of another size; an axis sharded (Explicit) inside a block.
    """
    numbers = dot_dimensions.canonical(dimension_numbers)
    lhs, rhs = (x if isinstance(x, MXArray) else jnp.asarray(x) for x in (lhs, rhs))
    is_exact = _is_exact(precision)
    formats = [_format_name(dtype) for dtype in (lhs_dtype, rhs_dtype, gradient_dtype)]
    numerics.check_scale_rule(scale_rule)
    numerics.check_block_size(block_size)
    out_sharding = canonicalize_sharding(out_sharding, "mx_dot_general")
    if all(is_exact):
        left, right = (dequantize_mx(x) if isinstance(x, MXArray) else x for x in (lhs, rhs))
        return lax.dot_general(
            left, right, numbers, precision, preferred_element_type, out_sharding=out_sharding
        )
    sides = ("lhs", lhs, formats[0], is_exact[0]), ("rhs", rhs, formats[1], is_exact[1])
    (left, *lhs_scale), lhs_format = _operand(*sides[0], numbers[0][0], block_size)
    (right, *rhs_scale), rhs_format = _operand(*sides[1], numbers[0][1], block_size)
    dtype = _result_dtype(lhs, rhs, numbers, preferred_element_type)
    (out,) = mx_dot_general_p.bind(
        *core.auto_insert_reshard(left, right, *lhs_scale, *rhs_scale),
        dimension_numbers=numbers,
        lhs_format=lhs_format,
        rhs_format=rhs_format,
        gradient_format=formats[2],
        lhs_is_mx=bool(lhs_scale),
        rhs_is_mx=bool(rhs_scale),
        scale_rule=scale_rule,
        block_size=block_size,
        preferred_element_type=dtype,
        out_sharding=out_sharding,
    )
    return out


def _is_exact(precision: Any) -> tuple[bool, bool]:
    """Whether lhs, rhs are to be left as they are."""
    if precision is None:
        return False, False
    pair = canonicalize_precision(precision)
    if not isinstance(pair, tuple):
        raise ValueError(
            f"precision={precision} names the types of a product; in mx_dot_general lhs_dtype and "
            "rhs_dtype do. Allowed are None and lax.Precision (HIGHEST: not quantized)"
        )
    return pair[0] == lax.Precision.HIGHEST, pair[1] == lax.Precision.HIGHEST


def _format_name(dtype: Any) -> str | None:
    return None if dtype is None else numerics.element_format(dtype).name


def _operand(
    side: str,
    x: Any,
    format: str | None,
    is_exact: bool,
    contracting: Sequence[int],
    block_size: int,
) -> tuple[tuple[Any, ...], str | None]:
    """The operand's array, with its scales if it is an MXArray, and its format."""
    if not isinstance(x, MXArray):
        if x.dtype.name not in FLOAT_DTYPES:
            raise TypeError(
                f"{side} is {x.dtype}; mx_dot_general takes {', '.join(FLOAT_DTYPES)} or an "
                "MXArray (with precision=HIGHEST what lax.dot_general takes)"
            )
        return (x,), None if is_exact else format
    if is_exact:
        return (dequantize_mx(x),), None
    axis = dot_dimensions.block_axis(x.shape, contracting, block_size)
    if axis is None or axis != x.axis % x.ndim or x.block_size != block_size:
        raise ValueError(
            f"{side} is an MXArray of shape {x.shape} in blocks of {x.block_size} along axis "
            f"{x.axis % x.ndim}, and contracted along {tuple(contracting)} in blocks of "
            f"{block_size}; an MXArray must be blocked along the contraction (of several "
            "dimensions the last, full blocks only). Quantize it along that axis, or "
            "dequantize_mx it"
        )
    return (x.data, x.scale), x.format.name


def _result_dtype(lhs: Any, rhs: Any, numbers: DimensionNumbers, preferred: Any) -> str:
    """lax.dot_general's result dtype; with its errors for shapes that don't match."""
    if preferred is not None and jnp.dtype(preferred).name not in FLOAT_DTYPES:
        raise TypeError(
            f"preferred_element_type={jnp.dtype(preferred).name}; allowed are "
            f"{', '.join(FLOAT_DTYPES)}"
        )
    plain = [jnp.asarray(x).dtype for x in (lhs, rhs) if not isinstance(x, MXArray)]
    dtype = plain[0] if plain else jnp.dtype(jnp.float32)
    stand_ins = (
        jax.ShapeDtypeStruct(
            jnp.shape(x), dtype if isinstance(x, MXArray) else jnp.asarray(x).dtype
        )
        for x in (lhs, rhs)
    )
    product = functools.partial(
        lax.dot_general, dimension_numbers=numbers, preferred_element_type=preferred
    )
    return jax.eval_shape(product, *stand_ins).dtype.name


def _mx_dot_general(
    *operands: Any,
    dimension_numbers: DimensionNumbers,
    lhs_format: str | None,
    rhs_format: str | None,
    gradient_format: str | None,
    lhs_is_mx: bool,
    rhs_is_mx: bool,
    scale_rule: str,
    block_size: int,
    preferred_element_type: str,
    out_sharding: Any,
) -> tuple[jax.Array]:
    """The meaning of the primitive, on (lhs, rhs), then the scales of those that are MXArrays."""
    del gradient_format  # the transpose's
    lhs, rhs, *scales = operands
    lhs_scale = scales.pop(0) if lhs_is_mx else None
    rhs_scale = scales.pop(0) if rhs_is_mx else None
    contracting, _ = dimension_numbers
    values = functools.partial(_values, scale_rule=scale_rule, block_size=block_size)
    # HIGHEST, so that nothing rounds or quantizes the values again.
    out = lax.dot_general(
        values(lhs, lhs_scale, lhs_format, contracting[0]),
        values(rhs, rhs_scale, rhs_format, contracting[1]),
        dimension_numbers,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
        out_sharding=out_sharding,
    )
    return (out.astype(preferred_element_type),)


def _values(
    x: Any,
    scale: Any,
    format: str | None,
    contracting: Sequence[int],
    *,
    scale_rule: str,
    block_size: int,
) -> jax.Array:
    """An operand's values in float32, on the grid of its format unless that is None."""
    axis = dot_dimensions.block_axis(x.shape, contracting, block_size)
    if axis is not None and format is not None:
        check_block_sharding(x, axis, block_size)
    if scale is not None:
        assert axis is not None  # _operand
        return numerics.dequantize(x, scale, axis, format, block_size)
    if format is None:
        return x.astype(jnp.float32)
    quantize = functools.partial(
        numerics.quantize_dequantize,
        format=format,
        block_size=block_size,
        scale_rule=scale_rule,
        dtype=jnp.float32,
    )
    if axis is not None:
        return quantize(x, axis)
    # Blocks go across several dimensions: side by side at the end, they are one.
    end = tuple(range(x.ndim - len(contracting), x.ndim))
    moved = jnp.moveaxis(x, contracting, end)
    kept = moved.shape[: x.ndim - len(contracting)]
    flat = moved.reshape(*kept, math.prod(x.shape[d] for d in contracting))
    check_block_sharding(flat, flat.ndim - 1, block_size)
    return jnp.moveaxis(quantize(flat).reshape(moved.shape), end, contracting)


mx_dot_general_p = define("mx_dot_general", _mx_dot_general)


def _refuse_mx_tangents(is_constant: Sequence[bool], tangents: Sequence[Any]) -> None:
    if any(c and type(t) is not ad.Zero for c, t in zip(is_constant, tangents)):
        raise TypeError(
            "mx_dot_general is not differentiable with respect to an MXArray, whose gradient would "
            "have its few bits: leave it out of what is differentiated, jax.lax.stop_gradient it, "
            "or pass the plain array, which is quantized here"
        )


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], **parameters: Any) -> Any:
    """Each operand's tangent takes its place; MXArrays have none."""
    lhs_is_mx, rhs_is_mx = parameters["lhs_is_mx"], parameters["rhs_is_mx"]
    scales = [True] * (lhs_is_mx + rhs_is_mx)
    _refuse_mx_tangents([lhs_is_mx, rhs_is_mx, *scales], tangents)
    out = mx_dot_general_p.bind(*primals, **parameters)
    terms = [
        mx_dot_general_p.bind(*primals[:i], tangent, *primals[i + 1 :], **parameters)[0]
        for i, tangent in enumerate(tangents[:2])
        if type(tangent) is not ad.Zero
    ]
    return out, [functools.reduce(ad.add_tangents, terms)]


def _transpose(cotangents: Sequence[Any], *operands: Any, **parameters: Any) -> list[Any]:
    """The gradient of the one operand of lhs, rhs that is linear."""
    (cotangent,) = cotangents
    results: list[Any] = [None] * len(operands)
    side = 0 if ad.is_undefined_primal(operands[0]) else 1
    linear = operands[side].aval
    if type(cotangent) is ad.Zero:
        results[side] = ad.Zero(linear.to_ct_aval())
        return results
    own, other = ("lhs", "rhs")[:: 1 - 2 * side]
    constant = operands[1 - side]
    if parameters[f"{other}_is_mx"]:
        constant = _constant_of_mx(constant, operands[2], other, **parameters)
    rule = (dot_dimensions.gradient_of_lhs, dot_dimensions.gradient_of_rhs)[side]
    ndims = (linear.ndim, constant.ndim) if side == 0 else (constant.ndim, linear.ndim)
    numbers, order = rule(parameters["dimension_numbers"], *ndims)
    (product,) = mx_dot_general_p.bind(
        cotangent,
        constant,
        **parameters
        | {
            "dimension_numbers": numbers,
            "lhs_format": parameters["gradient_format"] or parameters[f"{own}_format"],
            "rhs_format": parameters[f"{other}_format"],
            "lhs_is_mx": False,
            "rhs_is_mx": False,
            "preferred_element_type": linear.dtype.name,
            "out_sharding": _sharding_of(linear, order),
        },
    )
    results[side] = lax.transpose(product, sorted(range(linear.ndim), key=order.__getitem__))
    return results


def _constant_of_mx(data: Any, scale: Any, side: str, **parameters: Any) -> jax.Array:
    """An MXArray operand's values, which are quantized along other dimensions in gradients."""
    format = numerics.element_format(parameters[f"{side}_format"])
    contracting = parameters["dimension_numbers"][0][("lhs", "rhs").index(side)]
    axis = dot_dimensions.block_axis(data.shape, contracting, parameters["block_size"])
    assert axis is not None
    return dequantize_mx(
        MXArray(
            data,
            scale,
            format=format,
            axis=axis - data.ndim,
            block_size=parameters["block_size"],
        )
    )


def _sharding_of(aval: Any, order: Sequence[int]) -> Any:
    """The sharding of explicit mesh axes that an operand's gradient has, dimensions in `order`."""
    sharding = aval.sharding
    if sharding.mesh.empty:
        return core.get_cur_mesh_sharding(jax.P(*[None] * aval.ndim)) if _has_explicit() else None
    spec = sharding.spec
    return sharding.update(spec=spec.update(partitions=tuple(spec.partitions[d] for d in order)))


def _has_explicit() -> bool:
    return bool(jax.sharding.get_abstract_mesh().explicit_axes)


def _batch(
    axis_data: Any, operands: Sequence[Any], dims: Sequence[int | None], **parameters: Any
) -> Any:
    """A batch dimension of both operands is one more of the product's; of one, it is free."""
    if all(dim is None for dim in dims):
        return mx_dot_general_p.bind(*operands, **parameters), [None]
    arrays = [list(operands[:1]), list(operands[1:2])]
    places = [list(dims[:1]), list(dims[1:2])]
    scales = iter(zip(operands[2:], dims[2:]))
    for side, name in enumerate(("lhs", "rhs")):
        if parameters[f"{name}_is_mx"]:
            scale, dim = next(scales)
            if (dim, places[side][0]) != (None, None):
                pair, place = match_batch_dimensions(
                    [arrays[side][0], scale], [places[side][0], dim]
                )
                arrays[side], places[side] = pair, [place, place]
            else:
                arrays[side].append(scale)
    (lhs, *lhs_scale), (rhs, *rhs_scale) = arrays
    numbers, out_dim = dot_dimensions.batched(
        parameters["dimension_numbers"], (lhs.ndim, rhs.ndim), (places[0][0], places[1][0])
    )
    out_sharding = dot_dimensions.batched_sharding(axis_data, parameters["out_sharding"], out_dim)
    out = mx_dot_general_p.bind(
        lhs,
        rhs,
        *lhs_scale,
        *rhs_scale,
        **parameters | {"dimension_numbers": numbers, "out_sharding": out_sharding},
    )
    return out, [out_dim]


ad.primitive_jvps[mx_dot_general_p] = _jvp
ad.primitive_transposes[mx_dot_general_p] = _transpose
batching.fancy_primitive_batchers[mx_dot_general_p] = _batch
