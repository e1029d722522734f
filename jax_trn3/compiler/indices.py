"""Which index each dimension of an operation's operands and results runs over, as in an einsum.

`stablehlo.add` is "ij,ij->ij", a batched product of matrices "bik,bkj->bij", a sum over columns
"ij->i". Where an index stands in an operation says whether the operation can be done for a few
places of that index at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from .operations import integers, is_splat, producer, shape, splat

Letters = tuple[int | None, ...]  # None: a dimension that has no counterpart

_ELEMENTWISE = {
    "chlo.square",
    "sdy.sharding_constraint",
    "stablehlo.abs",
    "stablehlo.add",
    "stablehlo.and",
    "stablehlo.atan2",
    "stablehlo.bitcast_convert",
    "stablehlo.cbrt",
    "stablehlo.ceil",
    "stablehlo.clamp",
    "stablehlo.compare",
    "stablehlo.convert",
    "stablehlo.cosine",
    "stablehlo.divide",
    "stablehlo.exponential",
    "stablehlo.exponential_minus_one",
    "stablehlo.floor",
    "stablehlo.is_finite",
    "stablehlo.log",
    "stablehlo.log_plus_one",
    "stablehlo.logistic",
    "stablehlo.maximum",
    "stablehlo.minimum",
    "stablehlo.multiply",
    "stablehlo.negate",
    "stablehlo.not",
    "stablehlo.optimization_barrier",
    "stablehlo.or",
    "stablehlo.popcnt",
    "stablehlo.power",
    "stablehlo.reduce_precision",
    "stablehlo.remainder",
    "stablehlo.round_nearest_afz",
    "stablehlo.round_nearest_even",
    "stablehlo.rsqrt",
    "stablehlo.select",
    "stablehlo.shift_left",
    "stablehlo.shift_right_arithmetic",
    "stablehlo.shift_right_logical",
    "stablehlo.sign",
    "stablehlo.sine",
    "stablehlo.sqrt",
    "stablehlo.subtract",
    "stablehlo.tan",
    "stablehlo.tanh",
    "stablehlo.xor",
}


@dataclasses.dataclass(frozen=True)
class Indices:
    """operands, results: an index for each dimension of each of them.

    fixed: indices at whose places the operation does different things (the one that it concatenates
      along, the one that it takes the maximum over).
    summed: indices that it sums over.
    """

    operands: tuple[Letters, ...]
    results: tuple[Letters, ...]
    fixed: frozenset[int] = frozenset()
    summed: frozenset[int] = frozenset()


def indices(op: Any) -> Indices | None:
    """The indices of an operation; None if it is not one of those known here."""
    name = op.name
    if name in _ELEMENTWISE:
        return _elementwise(op)
    rule = _RULES.get(name)
    return rule(op) if rule else None


def dot_numbers(op: Any) -> Any:
    return stablehlo.DotDimensionNumbers(op.attributes["dot_dimension_numbers"])


def _all(value: Any) -> Letters:
    return tuple(range(len(shape(value))))


def _elementwise(op: Any) -> Indices | None:
    if len(op.results) != 1:  # an optimization barrier of several arrays
        return None
    result = shape(op.results[0])
    if any(shape(operand) not in ((), result) for operand in op.operands):
        return None
    return Indices(tuple(map(_all, op.operands)), (_all(op.results[0]),))


def _broadcast(op: Any) -> Indices:
    result = shape(op.results[0])
    dims = integers(op.attributes["broadcast_dimensions"])
    size = shape(op.operands[0])
    letters = tuple(to if size[at] == result[to] else None for at, to in enumerate(dims))
    return Indices((letters,), (_all(op.results[0]),))


def _transpose(op: Any) -> Indices:
    permutation = integers(op.attributes["permutation"])
    return Indices((_all(op.operands[0]),), (tuple(permutation),))


def _reshape(op: Any) -> Indices:
    old, new = shape(op.operands[0]), shape(op.results[0])
    result: list[int | None] = [None] * len(new)
    for at, to in _kept_dimensions(old, new):
        result[to] = at
    return Indices((_all(op.operands[0]),), (tuple(result),))


def _kept_dimensions(old: Sequence[int], new: Sequence[int]) -> list[tuple[int, int]]:
    """Dimensions (in `old`, in `new`) that a reshape neither splits nor merges."""
    olds = [i for i, size in enumerate(old) if size != 1]
    news = [i for i, size in enumerate(new) if size != 1]
    kept, i, j = [], 0, 0
    while i < len(olds) and j < len(news):
        left, right, first = old[olds[i]], new[news[j]], (i, j)
        while left != right:
            if left < right:
                i += 1
                left *= old[olds[i]]
            else:
                j += 1
                right *= new[news[j]]
        if (i, j) == first:
            kept.append((olds[i], news[j]))
        i, j = i + 1, j + 1
    return kept


def _reduce(op: Any) -> Indices | None:
    if len(op.results) != 1:
        return None
    body = [inner.operation.name for inner in op.regions[0].blocks[0]]
    reduced = frozenset(integers(op.attributes["dimensions"]))
    letters = _all(op.operands[0])
    kept = tuple(letter for letter in letters if letter not in reduced)
    is_sum = body == ["stablehlo.add", "stablehlo.return"] and splat(producer(op.operands[1])) == 0
    fixed, summed = (frozenset[int](), reduced) if is_sum else (reduced, frozenset[int]())
    return Indices((letters, ()), (kept,), fixed, summed)


def _dot(op: Any) -> Indices:
    numbers = dot_numbers(op)
    lhs = _all(op.operands[0])
    rhs: list[int | None] = [len(lhs) + i for i in _all(op.operands[1]) if i is not None]
    for left, right in (
        (numbers.lhs_batching_dimensions, numbers.rhs_batching_dimensions),
        (numbers.lhs_contracting_dimensions, numbers.rhs_contracting_dimensions),
    ):
        for at, to in zip(left, right):
            rhs[to] = at
    batch, summed = numbers.lhs_batching_dimensions, frozenset(numbers.lhs_contracting_dimensions)
    free = [i for i in lhs if i not in summed and i not in batch]
    own = [i for i in rhs if i is not None and i >= len(lhs)]
    return Indices((lhs, tuple(rhs)), ((*batch, *free, *own),), summed=summed)


def _iota(op: Any) -> Indices:
    return Indices((), (_all(op.results[0]),))


def _constant(op: Any) -> Indices | None:
    return Indices((), (_all(op.results[0]),)) if is_splat(op) else None


def _concatenate(op: Any) -> Indices:
    along = ir.IntegerAttr(op.attributes["dimension"]).value
    return Indices(tuple(map(_all, op.operands)), (_all(op.results[0]),), fixed=frozenset({along}))


def _slice(op: Any) -> Indices:
    old, new = shape(op.operands[0]), shape(op.results[0])
    cut = frozenset(i for i, sizes in enumerate(zip(old, new)) if sizes[0] != sizes[1])
    return Indices((_all(op.operands[0]),), (_all(op.results[0]),), fixed=cut)


_RULES: dict[str, Callable[[Any], Indices | None]] = {
    "stablehlo.broadcast_in_dim": _broadcast,
    "stablehlo.transpose": _transpose,
    "stablehlo.reshape": _reshape,
    "stablehlo.reduce": _reduce,
    "stablehlo.dot_general": _dot,
    "stablehlo.iota": _iota,
    "stablehlo.constant": _constant,
    "stablehlo.concatenate": _concatenate,
    "stablehlo.slice": _slice,
}
