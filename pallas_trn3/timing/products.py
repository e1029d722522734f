"""Matrix products on the tensor engine, and transposes.

`dot_general` sums into PSUM over pieces of the contracted dimension, which must lie over
partitions: an operand that has it last is transposed, by the DMA that loads it where nothing else
reads it (`survey.py`), else on the tensor engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jax_trn3.isa import Access
from jax_trn3.isa.dtypes import FLOATS

from .arrays import Array, temporary
from .emission import copy, evacuated, issue, moved, passes
from .refs import PARTITIONS, Ref, keys_of, matrix, row_pieces
from .views import stored
from .walk import Scope, Walker

COLUMNS = 512
"""Of a result that one multiplication writes: float32 of a PSUM bank."""

_IN_PSUM = 4096
"""Bytes of a partition up to which a result stays in PSUM until it is read."""


@dataclass(frozen=True)
class _Operand:
    """A matrix with its contracted dimension over partitions: pieces of 128 of it."""

    pieces: list[Access]
    columns: int


def dot_general(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> list[Any]:
    """A product of matrices, batches one after another."""
    ((left, right), (left_batch, right_batch)) = equation.params["dimension_numbers"]
    (var,) = equation.outvars
    shape, dtype = var.aval.shape, var.aval.dtype
    one, other = args
    avals = [atom.aval for atom in equation.invars]
    if not all(isinstance(a, Array) for a in args) or len(left) != 1:
        return [_as_passes(walker, args, shape, dtype)]
    batches = math.prod(avals[0].shape[d] for d in left_batch)
    if left_batch and (tuple(left_batch) != tuple(range(len(left_batch))) or batches > 64):
        return [_as_passes(walker, args, shape, dtype)]
    first = _batches(walker, one, avals[0].shape, len(left_batch))
    second = _batches(walker, other, avals[1].shape, len(right_batch))
    near = len(left_batch)
    made = []
    target = accumulated(scope, equation) if not left_batch else None
    for a, b in zip(first, second):
        lhs = _operand(walker, a, avals[0].shape[near:], left[0] - near)
        rhs = _operand(walker, b, avals[1].shape[near:], right[0] - near)
        lhs, rhs = _same_kind(walker, lhs, rhs)
        made.append(_product(walker, scope, lhs, rhs, dtype, target))
    if len(made) == 1:
        return [made[0].of(shape, dtype)]
    pieces = [piece for array in made for piece in array.pieces]
    return [Array(tuple(shape), dtype, pieces)]


def _as_passes(walker: Walker, args: Sequence[Any], shape: Any, dtype: Any) -> Array:
    found = temporary(walker, shape, dtype)
    sources = [p for a in args if isinstance(a, Array) for p in stored(walker, a).pieces]
    for dst in found.pieces:
        passes(walker, dst, sources)
    return found


def _batches(walker: Walker, value: Array, shape: Sequence[int], batch: int) -> list[Array]:
    """The matrices of a batch."""
    count = math.prod(shape[:batch])
    if count == 1:
        return [value]
    inner = tuple(shape[batch:])
    rows, _ = matrix(inner)
    value = evacuated(walker, stored(walker, value))
    each = len(value.pieces) // count
    if each and each * count == len(value.pieces):
        cut = [value.pieces[k * each : (k + 1) * each] for k in range(count)]
        return [Array(inner, value.dtype, pieces) for pieces in cut]
    found = []
    for number in range(count):
        part = temporary(walker, inner, value.dtype, "of the batch")
        source = value.pieces[min(len(value.pieces) - 1, number * rows // PARTITIONS)]
        for dst in part.pieces:
            if source.elements >= dst.elements and source.free_size == dst.free_size:
                moved(walker, dst, source[0 : dst.partitions])
            else:
                passes(walker, dst, [source])
        found.append(part)
    return found


def _operand(walker: Walker, value: Array, shape: Sequence[int], contracted: int) -> _Operand:
    """The operand with its contracted dimension over partitions."""
    size = shape[contracted]
    columns = math.prod(shape) // size
    if value.view == "transposed" and value.base is not None and len(shape) == 2:
        return _operand(walker, value.base, value.base.shape, 1 - contracted)
    if value.ref is not None and value.ref.transposed and contracted == len(shape) - 1:
        return _Operand(value.pieces, columns)
    value = evacuated(walker, stored(walker, value))
    if len(shape) == 1 or (contracted == 0 and len(shape) == 2):
        return _Operand(value.pieces, columns)
    if contracted == len(shape) - 1:
        return _Operand(_turned(walker, value), columns)
    found = temporary(walker, (size, columns), value.dtype, "contracted first")
    for dst in found.pieces:
        passes(walker, dst, value.pieces)
    return _Operand(found.pieces, columns)


def _turned(walker: Walker, value: Array) -> list[Access]:
    """[R, K] -> pieces of [128 of K, R], 128 x 128 at a time by the tensor engine; remembered."""
    key = ("turned", tuple(value.pieces), tuple(walker.ranges.counts))
    known: list[Access] | None = walker.state.get(key)
    if known is not None and value.ref is None:
        return known
    rows = sum(p.partitions for p in value.pieces)
    columns = value.pieces[0].free_size
    found = temporary(walker, (columns, rows), value.dtype, "transposed")
    for k, dst in enumerate(found.pieces):
        first = 0
        for src in value.pieces:
            part = _columns_of(src, k * PARTITIONS, dst.partitions)
            _turn(walker, dst[:, first : first + src.partitions], part)
            first += src.partitions
    walker.state[key] = found.pieces
    return found.pieces


def _columns_of(piece: Access, first: int, count: int) -> Access:
    if len(piece.size) == 2:
        return piece[:, first : first + count]
    return piece


def _turn(walker: Walker, dst: Access, src: Access) -> None:
    """A transpose of up to [128, 128] on the tensor engine, by way of PSUM."""
    if src.dtype not in FLOATS or src.memory == "psum" or src.elements != dst.elements:
        passes(walker, dst, [src])
        return
    narrow = src.tile.element.bytes == 1
    psum = temporary(
        walker,
        (dst.partitions, dst.free_size),
        "uint16" if narrow else src.dtype,
        "transposed",
        "psum",
    )
    issue(walker, "nc_transpose", psum.pieces[0], src, engine="tensor")
    copy(walker, dst, psum.pieces[0])


def _same_kind(walker: Walker, one: _Operand, other: _Operand) -> tuple[_Operand, _Operand]:
    """Operands that the tensor engine takes together."""
    kinds = [o.pieces[0].dtype for o in (one, other)]
    if all(k in FLOATS for k in kinds) and ("float32" in kinds) == (kinds == ["float32"] * 2):
        return one, other
    to = "float32" if "float32" in kinds else "bfloat16"
    return _of_kind(walker, one, to), _of_kind(walker, other, to)


def _of_kind(walker: Walker, operand: _Operand, dtype: str) -> _Operand:
    if operand.pieces[0].dtype == dtype:
        return operand
    if dtype == "bfloat16" and operand.pieces[0].dtype not in FLOATS:
        walker.assume("integers are multiplied in bfloat16 on the tensor engine")
    layout = tuple((p.partitions, p.free_size) for p in operand.pieces)
    found = temporary(walker, (1,), dtype, "cast", layout=layout)
    for dst, src in zip(found.pieces, operand.pieces):
        copy(walker, dst, src)
    return _Operand(found.pieces, operand.columns)


def _product(
    walker: Walker, scope: Scope, lhs: _Operand, rhs: _Operand, dtype: Any, target: Any
) -> Array:
    rows, columns = lhs.columns, rhs.columns
    if [p.partitions for p in lhs.pieces] != [p.partitions for p in rhs.pieces]:
        return _as_passes(
            walker, [Array((1,), dtype, [*lhs.pieces, *rhs.pieces])], (rows, columns), dtype
        )
    high = [min(PARTITIONS, rows - m) for m in range(0, rows, PARTITIONS)]
    if target is not None:
        found = _summed_in(walker, target, rows, columns)
        if found is not None:
            for number, dst in enumerate(found.pieces):
                for n in range(0, columns, COLUMNS):
                    wide = min(COLUMNS, columns - n)
                    _sum(walker, dst[:, n : n + wide], lhs, rhs, number * PARTITIONS, n, True)
            return found
    small = len(high) * columns * 4 <= _IN_PSUM
    if small:
        found = temporary(walker, (rows, columns), "float32", "product", "psum")
        found.made = None
        for number, dst in enumerate(found.pieces):
            for n in range(0, columns, COLUMNS):
                wide = min(COLUMNS, columns - n)
                _sum(walker, dst[:, n : n + wide], lhs, rhs, number * PARTITIONS, n, None)
        return found
    found = temporary(walker, (rows, columns), dtype, "product")
    for number, dst in enumerate(found.pieces):
        for n in range(0, columns, COLUMNS):
            wide = min(COLUMNS, columns - n)
            psum = temporary(walker, (high[number], wide), "float32", "product", "psum").pieces[0]
            _sum(walker, psum, lhs, rhs, number * PARTITIONS, n, None)
            copy(walker, dst[:, n : n + wide], psum)
    return found


def _sum(
    walker: Walker, dst: Access, lhs: _Operand, rhs: _Operand, m: int, n: int, before: bool | None
) -> None:
    """One result, summed over the contracted dimension."""
    for k, (left, right) in enumerate(zip(lhs.pieces, rhs.pieces)):
        stationary = _columns_of(left, m, dst.partitions)
        moving = _columns_of(right, n, dst.free_size)
        issue(walker, "nc_matmul", dst, stationary, moving, accumulate=before or k > 0)


# ---- sums that stay in PSUM ----


def accumulated(scope: Scope, equation: Any) -> Any:
    """(Ref, what is done to it) where the kernel goes on to say `ref[...] += this product`."""
    found = sum_into(scope.jaxpr, equation, scope.readers)
    if found is None:
        return None
    var, read = found
    ref = scope.env.get(var)
    if not isinstance(ref, Ref) or ref.memory != "psum":
        return None
    return ref, read


def sum_into(jaxpr: Any, equation: Any, readers: Any) -> Any:
    """(variable of the Ref, the `get` before) of a product that is added to a Ref, and nothing
    else."""
    (var,) = equation.outvars
    places = readers(var)
    if len(places) != 1 or places[0] >= len(jaxpr.eqns):
        return None
    adding = jaxpr.eqns[places[0]]
    if adding.primitive.name == "addupdate" and adding.invars[1] is var:
        return adding.invars[0], None
    if adding.primitive.name != "add":
        return None
    others = [atom for atom in adding.invars if atom is not var]
    after = readers(adding.outvars[0])
    if len(others) != 1 or len(after) != 1 or after[0] >= len(jaxpr.eqns):
        return None
    swap = jaxpr.eqns[after[0]]
    if swap.primitive.name != "swap" or swap.invars[1] is not adding.outvars[0]:
        return None
    for get in jaxpr.eqns:
        if get.primitive.name == "get" and get.outvars[0] is others[0]:
            same = get.invars[0] is swap.invars[0] and len(get.invars) == len(swap.invars) - 1
            return (swap.invars[0], get) if same else None
    return None


def _summed_in(walker: Walker, target: Any, rows: int, columns: int) -> Array | None:
    """The Ref's own memory for a sum; None if it is cut otherwise."""
    import jax

    ref, get = target
    transforms: Any = ()
    if get is not None and walker.scope is not None:
        leaves = [walker.scope.value(atom) for atom in get.invars[1:]]
        transforms = jax.tree.unflatten(get.params["tree"], leaves)
    keys = keys_of(ref.shape, transforms)
    if keys is None:
        return None
    pieces = row_pieces(ref, keys) if ref.rows else [walker.access(ref, transforms)]
    if sum(p.partitions for p in pieces) != rows or pieces[0].free_size != columns:
        return None
    if any(len(p.size) != 2 or p.slot_count > 1 for p in pieces):
        return None
    return Array((rows, columns), jnp.float32, pieces, ref=ref, number="summed")


# ---- transposes ----


def transpose(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> list[Any]:
    """The last two dimensions exchanged: a view, until someone needs it; others by DMA."""
    value, permutation = args[0], equation.params["permutation"]
    (var,) = equation.outvars
    shape, dtype = var.aval.shape, var.aval.dtype
    if not isinstance(value, Array):
        return [value]
    if value.view == "fill":
        return [value.of(shape)]
    rank = len(permutation)
    kept = [d for d in permutation if equation.invars[0].aval.shape[d] != 1]
    if kept == sorted(kept):
        return [value.of(shape)] if value.view == "" else [stored(walker, value).of(shape)]
    plain = value if rank == 2 else None
    if rank == 2:
        return [Array(shape, dtype, [], "transposed", plain)]
    source = evacuated(walker, stored(walker, value))
    found = temporary(walker, shape, dtype)
    sizes = [p.elements for p in source.pieces]
    if len(found.pieces) == len(sizes) and [p.elements for p in found.pieces] == sizes:
        for dst, src in zip(found.pieces, source.pieces):
            moved(walker, dst, src)
    else:
        for dst in found.pieces:
            passes(walker, dst, source.pieces[:1])
    return [found]


def transposed(walker: Walker, base: Any) -> Array:
    """A matrix transposed, in memory."""
    source = evacuated(walker, stored(walker, base))
    pieces = _turned(walker, source)
    shape = (*base.shape[:-2], base.shape[-1], base.shape[-2])
    return Array(shape, base.dtype, list(pieces))
