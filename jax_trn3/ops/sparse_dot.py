"""sparse_dot_general: lax.dot_general with one operand in N:M structured sparsity.

The operation is whole in the program, `trn3.sparse_dot_general`, with the packed operand: the
Tensor Engine reads only the values that are kept. The decomposition unpacks and multiplies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax._src.sharding_impls import canonicalize_sharding
from jax.interpreters import ad, batching

from jax_trn3.numerics.sparsity import (
    NMSparse,
    check_sparse,
    pack_sparse,
    parse_pattern,
    unpack_sparse,
)

from . import dot_dimensions
from .dot_dimensions import DimensionNumbers
from .quantize import match_batch_dimensions
from .whole import define


def sparse_dot_general(
    lhs: Any,
    rhs: Any,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    pattern: str | None = None,
    sparse_operand: Literal["lhs", "rhs"] | None = None,
    out_sharding: Any = None,
) -> jax.Array:
    """lax.dot_general(lhs, rhs, ...) where one operand is sparse along a contracting dimension.

    The sparse operand is the one that is an NMSparse. If neither is, `pattern` says to prune one
    by magnitude: rhs (where Flax has the weights), or `sparse_operand`; along its contracting
    dimension, of several the last in `dimension_numbers`. A size that M does not divide is as if
    filled with zeros.

    The derivatives are those of the product with the unpacked operand: the gradient of an operand
    that is pruned here is zero where it was pruned, that of an NMSparse's values is packed as
    they are.

    Args:
      lhs, rhs: arrays, or at most one NMSparse whose axis is one of its contracting dimensions.
      dimension_numbers, precision, preferred_element_type, out_sharding: as for
        lax.dot_general, in terms of the dense shapes.
      pattern: "4:16", "4:12", "4:8", "2:8", "2:4", "1:4" or "1:2".
      sparse_operand: "lhs" or "rhs": which dense operand to prune. (jnp.einsum may exchange the
        operands of the dot_general that it calls: give it an NMSparse's dense form, not this.)

    Returns:
      The product, as lax.dot_general's of the unpacked operand.

    Raises:
      ValueError: both operands are NMSparse, or neither is and there is no pattern; an unknown
        pattern, or another than the operand's; nothing is contracted along the sparse axis.
    """
    dims = dot_dimensions.canonical(dimension_numbers)
    side = _sparse_side(lhs, rhs, pattern, sparse_operand)
    dense, operand = (rhs, lhs) if side == "lhs" else (lhs, rhs)
    contracting = dims[0][side == "rhs"]
    if not isinstance(operand, NMSparse):
        assert pattern is not None
        if not contracting:
            raise ValueError("a dot_general without contracting dimensions cannot be sparse")
        operand = pack_sparse(operand, pattern, contracting[-1])
    check_sparse(operand)
    if operand.axis + operand.ndim not in contracting:
        raise ValueError(
            f"{side} is sparse along axis {operand.axis + operand.ndim}, which is none of its "
            f"contracting dimensions {list(contracting)}; pack it along one of them"
        )
    (product,) = sparse_dot_general_p.bind(
        jnp.asarray(dense),
        operand.values,
        operand.indices,
        sparse_operand=side,
        pattern=operand.pattern,
        axis=operand.axis,
        size=operand.size,
        dimension_numbers=dims,
        precision=precision,
        preferred_element_type=_dtype(preferred_element_type),
        out_sharding=canonicalize_sharding(out_sharding, "sparse_dot_general"),
    )
    return product


def _sparse_side(lhs: Any, rhs: Any, pattern: str | None, wanted: str | None) -> str:
    """ "lhs" or "rhs"; raises the errors of what is given."""
    if wanted not in (None, "lhs", "rhs"):
        raise ValueError(f"sparse_operand must be 'lhs' or 'rhs', got {wanted!r}")
    if pattern is not None:
        parse_pattern(pattern)
    packed = {side: x for side, x in (("lhs", lhs), ("rhs", rhs)) if isinstance(x, NMSparse)}
    if len(packed) == 2:
        raise ValueError("both operands are NMSparse; one can be sparse: unpack_sparse the other")
    if not packed:
        if pattern is None:
            raise ValueError(
                "neither operand is an NMSparse, and there is no pattern to prune one to; "
                "give pattern=, or pack_sparse the operand"
            )
        return wanted or "rhs"
    ((side, operand),) = packed.items()
    if pattern not in (None, operand.pattern):
        raise ValueError(f"{side} has the pattern {operand.pattern!r}, but pattern={pattern!r}")
    if wanted not in (None, side):
        raise ValueError(f"{side} is the NMSparse, but sparse_operand={wanted!r}")
    return side


def _dtype(dtype: Any) -> str | None:
    """By name: what a composite's attribute can be."""
    return None if dtype is None else jnp.dtype(dtype).name


def _sparse_dot_general(
    dense: jax.Array,
    values: jax.Array,
    indices: jax.Array,
    *,
    sparse_operand: str,
    pattern: str,
    axis: int,
    size: int,
    dimension_numbers: DimensionNumbers,
    precision: Any,
    preferred_element_type: str | None,
    out_sharding: Any,
) -> tuple[jax.Array]:
    unpacked = unpack_sparse(NMSparse(values, indices, pattern, axis, size))
    lhs, rhs = (unpacked, dense) if sparse_operand == "lhs" else (dense, unpacked)
    product = lax.dot_general(
        lhs,
        rhs,
        dimension_numbers,
        precision,
        preferred_element_type,
        out_sharding=out_sharding,
    )
    return (product,)


sparse_dot_general_p = define("sparse_dot_general", _sparse_dot_general)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> Any:
    """Linear in the dense operand and in the values."""
    dense, values, indices = primals
    dense_tangent, values_tangent, _ = tangents
    (product,) = sparse_dot_general_p.bind(*primals, **params)
    parts = []
    if type(dense_tangent) is not ad.Zero:
        parts += sparse_dot_general_p.bind(dense_tangent, values, indices, **params)
    if type(values_tangent) is not ad.Zero:
        parts += sparse_dot_general_p.bind(dense, values_tangent, indices, **params)
    return [product], [sum(parts[1:], parts[0])]


def _transpose(
    cotangents: Sequence[Any], dense: Any, values: Any, indices: Any, **params: Any
) -> list[Any]:
    """Neither product is sparse along what it contracts, so both are plain ones.

    That for the values is masked and packed by the transpose of unpacking.
    """
    (cotangent,) = cotangents
    if type(cotangent) is ad.Zero:
        return [None, None, None]
    if ad.is_undefined_primal(dense):
        linear = jax.linear_transpose(
            lambda dense: _sparse_dot_general(dense, values, indices, **params)[0], dense.aval
        )
        return [*linear(cotangent), None, None]
    linear = jax.linear_transpose(
        lambda values: _sparse_dot_general(dense, values, indices, **params)[0], values.aval
    )
    return [None, *linear(cotangent), None]


def _batch(
    axis_data: Any, operands: Sequence[Any], dims: Sequence[int | None], **parameters: Any
) -> Any:
    """A dimension that both operands have is a batch dimension; otherwise it is a free one."""
    if all(dim is None for dim in dims):
        return sparse_dot_general_p.bind(*operands, **parameters), [None]
    (dense, *sparse), (dense_dim, *sparse_dims) = operands, dims
    sparse_dim = None
    if sparse_dims != [None, None]:
        sparse, place = match_batch_dimensions(sparse, sparse_dims)
        # In front, where it does not move the sparse axis, which counts from the end.
        sparse, sparse_dim = [jnp.moveaxis(x, place, 0) for x in sparse], 0
    ndims, places = (dense.ndim, sparse[0].ndim), (dense_dim, sparse_dim)
    if parameters["sparse_operand"] == "lhs":
        ndims, places = ndims[::-1], places[::-1]
    numbers, out_dim = dot_dimensions.batched(parameters["dimension_numbers"], ndims, places)
    out_sharding = dot_dimensions.batched_sharding(axis_data, parameters["out_sharding"], out_dim)
    products = sparse_dot_general_p.bind(
        dense,
        *sparse,
        **parameters | {"dimension_numbers": numbers, "out_sharding": out_sharding},
    )
    return products, [out_dim]


ad.primitive_jvps[sparse_dot_general_p] = _jvp
ad.primitive_transposes[sparse_dot_general_p] = _transpose
batching.fancy_primitive_batchers[sparse_dot_general_p] = _batch
