"""Arithmetic on dimension numbers: ((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch))."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from jax._src.interpreters import batching

Dims = tuple[int, ...]
DimensionNumbers = tuple[tuple[Dims, Dims], tuple[Dims, Dims]]


def canonical(dimension_numbers: Any) -> DimensionNumbers:
    """As tuples of int."""
    (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch) = dimension_numbers
    return (_dims(lhs_contracting), _dims(rhs_contracting)), (_dims(lhs_batch), _dims(rhs_batch))


def _dims(dims: Sequence[Any]) -> Dims:
    return tuple(operator.index(d) for d in dims)


def free_dims(ndim: int, contracting: Dims, batch: Dims) -> Dims:
    """The dimensions of an operand that are neither contracted nor batch dimensions."""
    return tuple(d for d in range(ndim) if d not in contracting and d not in batch)


def block_axis(shape: Sequence[Any], contracting: Sequence[int], block_size: int) -> int | None:
    """The dimension along which to cut blocks of the contracting dimensions taken together.

    None if the blocks go across several dimensions, or there is none to contract.
    """
    long = [d for d in contracting if shape[d] != 1] or list(contracting[-1:])
    if not long or (len(long) > 1 and shape[long[-1]] % block_size != 0):
        return None
    return long[-1]


def batched(
    numbers: DimensionNumbers, ndims: tuple[int, int], dims: tuple[int | None, int | None]
) -> tuple[DimensionNumbers, int]:
    """Dimension numbers with one more dimension in lhs, rhs or both, and where the result has it.

    ndims: ranks of the operands, the new dimensions included. dims: where those are.
    """
    (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch) = numbers
    lhs_dim, rhs_dim = dims
    lhs_contracting, lhs_batch = _moved(lhs_contracting, lhs_dim), _moved(lhs_batch, lhs_dim)
    rhs_contracting, rhs_batch = _moved(rhs_contracting, rhs_dim), _moved(rhs_batch, rhs_dim)
    if lhs_dim is not None and rhs_dim is not None:
        lhs_batch, rhs_batch = (lhs_dim, *lhs_batch), (rhs_dim, *rhs_batch)
    lhs_free = free_dims(ndims[0], lhs_contracting, lhs_batch)
    rhs_free = free_dims(ndims[1], rhs_contracting, rhs_batch)
    numbers = (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch)
    if lhs_dim is None:
        assert rhs_dim is not None
        return numbers, len(lhs_batch) + len(lhs_free) + rhs_free.index(rhs_dim)
    if rhs_dim is None:
        return numbers, len(lhs_batch) + lhs_free.index(lhs_dim)
    return numbers, 0


def batched_sharding(axis_data: Any, out_sharding: Any, out_dim: int) -> Any:
    """The out_sharding of a product that vmap gives one more dimension, at `out_dim`."""
    if out_sharding is None:
        return None
    # A spec may end early; JAX 0.10 inserts into it as it is.
    partitions = out_sharding.spec.partitions
    partitions += (None,) * (out_dim - len(partitions))
    full = out_sharding.update(spec=out_sharding.spec.update(partitions=partitions))
    return batching.get_sharding_for_vmap(axis_data, full, out_dim)


def _moved(dims: Dims, new: int | None) -> Dims:
    """Where `dims` are once there is a new dimension at `new`."""
    return dims if new is None else tuple(d + (d >= new) for d in dims)


def gradient_of_lhs(
    numbers: DimensionNumbers, lhs_ndim: int, rhs_ndim: int
) -> tuple[DimensionNumbers, Dims]:
    """The product (cotangent, rhs) that is the gradient of lhs.

    Returns its dimension numbers, and the dimensions of lhs in the order in which it has them.
    """
    (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch) = numbers
    lhs_free = free_dims(lhs_ndim, lhs_contracting, lhs_batch)
    rhs_free = free_dims(rhs_ndim, rhs_contracting, rhs_batch)
    result_batch = tuple(range(len(lhs_batch)))
    rhs_start = len(lhs_batch) + len(lhs_free)
    result_rhs = tuple(range(rhs_start, rhs_start + len(rhs_free)))
    by_rhs = sorted(range(len(rhs_contracting)), key=rhs_contracting.__getitem__)
    order = lhs_batch + lhs_free + tuple(lhs_contracting[i] for i in by_rhs)
    return ((result_rhs, rhs_free), (result_batch, rhs_batch)), order


def gradient_of_rhs(
    numbers: DimensionNumbers, lhs_ndim: int, rhs_ndim: int
) -> tuple[DimensionNumbers, Dims]:
    """The product (cotangent, lhs) that is the gradient of rhs, as `gradient_of_lhs`."""
    (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch) = numbers
    lhs_free = free_dims(lhs_ndim, lhs_contracting, lhs_batch)
    rhs_free = free_dims(rhs_ndim, rhs_contracting, rhs_batch)
    result_batch = tuple(range(len(lhs_batch)))
    result_lhs = tuple(range(len(lhs_batch), len(lhs_batch) + len(lhs_free)))
    by_lhs = sorted(range(len(lhs_contracting)), key=lhs_contracting.__getitem__)
    order = rhs_batch + rhs_free + tuple(rhs_contracting[i] for i in by_lhs)
    return ((result_lhs, lhs_free), (result_batch, lhs_batch)), order
