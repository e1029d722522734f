"""sparse_dot_general: lax.dot_general with one operand in N:M structured sparsity.

The operation is whole in the program, `trn3.sparse_dot_general`, with the packed operand: the
Tensor Engine reads only the values that are kept. The decomposition unpacks and multiplies.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad, batching
from jax.sharding import NamedSharding, PartitionSpec

from jax_trn3.numerics.sparsity import (
    NMSparse,
    check_sparse,
    pack_sparse,
    parse_pattern,
    unpack_sparse,
)

from . import whole

_Dims = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


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
    dims = _canonical(dimension_numbers)
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
        out_sharding=out_sharding,
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


def _canonical(dimension_numbers: Any) -> _Dims:
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers

    def ints(dims: Any) -> tuple[int, ...]:
        return tuple(map(operator.index, dims))

    return (ints(lhs_contract), ints(rhs_contract)), (ints(lhs_batch), ints(rhs_batch))


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
    dimension_numbers: _Dims,
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


sparse_dot_general_p = whole.define("sparse_dot_general", _sparse_dot_general)


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
    arrays: Sequence[Any],
    dims: Sequence[int | None],
    *,
    sparse_operand: str,
    dimension_numbers: _Dims,
    out_sharding: Any,
    **params: Any,
) -> Any:
    """A dimension that both operands have is a batch dimension; otherwise it is a free one."""
    mapped_size = next(x.shape[d] for x, d in zip(arrays, dims) if d is not None)
    dense, values, indices = (
        x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(arrays, dims)
    )
    is_sparse_mapped = dims[1] is not None or dims[2] is not None
    if is_sparse_mapped and dims[1] is None:
        values = jnp.broadcast_to(values, (mapped_size, *values.shape))
    if is_sparse_mapped and dims[2] is None:
        indices = jnp.broadcast_to(indices, (mapped_size, *indices.shape))

    is_mapped = (dims[0] is not None, is_sparse_mapped)
    ranks = (dense.ndim, values.ndim)
    if sparse_operand == "lhs":
        is_mapped, ranks = is_mapped[::-1], ranks[::-1]
    contracting, batch = (
        tuple(tuple(d + mapped for d in side) for side, mapped in zip(sides, is_mapped))
        for sides in dimension_numbers
    )
    lhs_free = ranks[0] - len(contracting[0]) - len(batch[0])
    if all(is_mapped):
        out = 0
        batch = tuple((0, *side) for side in batch)
    else:
        out = len(batch[0]) if is_mapped[0] else len(batch[0]) + lhs_free
    products = sparse_dot_general_p.bind(
        dense,
        values,
        indices,
        sparse_operand=sparse_operand,
        dimension_numbers=(contracting, batch),
        out_sharding=_with_dimension(out_sharding, out),
        **params,
    )
    return products, [out]


def _with_dimension(sharding: Any, index: int) -> Any:
    """The sharding of a result that has one more dimension, which is not sharded."""
    if sharding is None:
        return None
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, _with_dimension(sharding.spec, index))
    entries = [*sharding, *[None] * (index - len(sharding))]
    return PartitionSpec(*entries[:index], None, *entries[index:])


ad.primitive_jvps[sparse_dot_general_p] = _jvp
ad.primitive_transposes[sparse_dot_general_p] = _transpose
batching.primitive_batchers[sparse_dot_general_p] = _batch
