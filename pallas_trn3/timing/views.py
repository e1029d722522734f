"""Arrays in memory, however they are seen: constants, repeated rows and columns, patterns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jax_trn3.isa import Access

from .arrays import Array, Layout, fill, layout_of, temporary, whole
from .emission import copy, evacuated, issue, moved, passes
from .scalars import UNKNOWN
from .walk import Walker


def stored(walker: Walker, value: Any, shape: Sequence[int] = (), dtype: Any = "float32") -> Array:
    """A value in memory, however it was seen."""
    if not isinstance(value, Array):
        value = fill(value, shape, dtype)
    if value.pieces:
        return value
    make = {"fill": _filled, "column": _columns, "row": _rows, "affine": _affine}
    if value.view in make:
        found = make[value.view](walker, value)
    elif value.view == "transposed":
        from .products import transposed

        found = transposed(walker, value.base)
    else:
        found = _pattern(walker, value)
    value.pieces, value.view, value.made = found.pieces, "", found.made
    return value


def _filled(walker: Walker, value: Array) -> Array:
    found = temporary(walker, value.shape, value.dtype, "constant")
    number = value.number if isinstance(value.number, (int, float)) else 0
    number = number if math.isfinite(number) else 0
    for piece in found.pieces:
        issue(walker, "memset", piece, value=number, engine="gpsimd")
    return found


def _columns(walker: Walker, value: Array) -> Array:
    """A value a row, all over the row."""
    assert value.base is not None
    found = temporary(walker, value.shape, value.dtype, "along rows")
    for dst, column in zip(found.pieces, columns(walker, value.base)):
        issue(walker, "memset", dst, value=0, engine="gpsimd")
        issue(walker, "tensor_scalar", dst, dst, column, op0="add", engine="vector")
    return found


def _rows(walker: Walker, value: Array) -> Array:
    """A row on all partitions: a product with a column of ones."""
    assert value.base is not None
    high = max(p for p, _ in layout_of(value.shape))
    wide = value.shape[-1]
    made = spread(walker, value.base, high, wide)
    pieces = [made for _ in layout_of(value.shape)]
    return Array(value.shape, value.dtype, _cut_rows(pieces, layout_of(value.shape)))


def _cut_rows(pieces: list[Access], layout: Layout) -> list[Access]:
    return [p if p.partitions == high else p[0:high] for p, (high, _) in zip(pieces, layout)]


def spread(walker: Walker, base: Array, high: int, wide: int) -> Access:
    """One row on `high` partitions."""
    key = ("spread", id(base), high)
    known = walker.state.get(key)
    if known is not None and known[0] is base and known[2] == tuple(walker.ranges.counts):
        found: Access = known[1]
        return found
    row = one_row(walker, base, wide)
    ones = temporary(walker, (1, high), row.dtype, "ones")
    issue(walker, "memset", ones.pieces[0], value=1, engine="gpsimd")
    found = temporary(walker, (high, wide), base.dtype, "row everywhere").pieces[0]
    for first in range(0, wide, 512):
        count = min(512, wide - first)
        psum = temporary(walker, (high, count), "float32", "spread", "psum").pieces[0]
        issue(walker, "nc_matmul", psum, ones.pieces[0], row[:, first : first + count])
        copy(walker, found[:, first : first + count], psum)
    walker.state[key] = (base, found, tuple(walker.ranges.counts))
    return found


def one_row(walker: Walker, value: Array, wide: int) -> Access:
    """A vector in one partition."""
    value = evacuated(walker, stored(walker, value))
    piece = value.pieces[0]
    if len(value.pieces) == 1 and (piece.partitions, piece.free_size) == (1, wide):
        return piece
    found = temporary(walker, (1, wide), value.dtype, "one row", layout=((1, wide),)).pieces[0]
    moved(walker, found, piece)
    return found


def _everywhere(walker: Walker, value: Array, high: int) -> Access:
    """One number of the kernel's own on `high` partitions, float32."""
    (one,) = columns(walker, value)
    if high == 1:
        return one
    one = evacuated(walker, Array((1,), "float32", [one])).pieces[0]
    ones = temporary(walker, (1, high), "float32", "ones", layout=((1, high),)).pieces[0]
    issue(walker, "memset", ones, value=1, engine="gpsimd")
    psum = temporary(walker, (high, 1), "float32", "everywhere", "psum", ((high, 1),)).pieces[0]
    issue(walker, "nc_matmul", psum, ones, one)
    found = temporary(walker, (high, 1), "float32", "everywhere", layout=((high, 1),)).pieces[0]
    issue(walker, "tensor_copy", found, psum, engine="vector")
    return found


def columns(walker: Walker, base: Array) -> list[Access]:
    """A value a row as operands of one element a partition, float32."""
    base = stored(walker, base)
    rows = base.elements
    pieces = list(base.pieces)
    if len(pieces) == 1 and pieces[0].free_size > 1 and rows > 128:
        pieces = [pieces[0][:, k : k + 1] for k in range(pieces[0].free_size)]
    if all(p.dtype == "float32" for p in pieces):
        return pieces
    wide = temporary(walker, base.shape, "float32", "column", layout=tuple((p.partitions, p.free_size) for p in pieces))  # noqa: E501  # fmt: skip
    for dst, src in zip(wide.pieces, pieces):
        issue(walker, "tensor_copy", dst, src, engine="vector")
    return wide.pieces


def _affine(walker: Walker, value: Array) -> Array:
    assert value.base is not None
    base = stored(walker, value.base)
    found = temporary(walker, value.shape, value.dtype, layout=base.layout)
    scales, biases = per_piece(walker, value.scale, base), per_piece(walker, value.bias, base)
    for dst, src, scale, bias in zip(found.pieces, base.pieces, scales, biases):
        if bias in (0, None):
            issue(walker, "tensor_scalar", dst, src, scale, op0="multiply", engine="vector")
        elif scale == 1:
            issue(walker, "tensor_scalar", dst, src, bias, op0="add", engine="vector")
        else:
            issue(
                walker, "tensor_scalar", dst, src, scale, bias, op0="multiply", op1="add",
                engine="vector",
            )  # fmt: skip
    return found


def per_piece(walker: Walker, value: Any, base: Array) -> list[Any]:
    """An operand beside each piece of `base`: a number, or a value a row."""
    if isinstance(value, Array) and value.elements == 1:
        everywhere = _everywhere(walker, value, max(p for p, _ in base.layout))
        return [everywhere[0:high] for high, _ in base.layout]
    if isinstance(value, Array):
        found = columns(walker, value)
        last = len(found) - 1
        return [_rows_of(found[min(k, last)], high) for k, (high, _) in enumerate(base.layout)]
    return [1.0 if value is UNKNOWN or isinstance(value, bool) else value] * len(base.pieces)


def _rows_of(column: Access, high: int) -> Any:
    """As many rows of a column; a number where it has not so many."""
    if column.partitions == high:
        return column
    return column[0:high] if column.partitions > high else 1.0


def _pattern(walker: Walker, value: Array) -> Array:
    """Numbers that grow by constants, or how they compare."""
    found = temporary(walker, value.shape, value.dtype)
    for piece in found.pieces:
        pattern = [[1, piece.free_size]]
        issue(walker, "iota", piece, pattern=pattern, channel_multiplier=1)
        for _ in range(int(value.number or 0) if value.view == "mask" else 0):
            issue(walker, "tensor_scalar", piece, piece, 0.0, op0="greater_equal", engine="vector")
    return found


def laid(walker: Walker, value: Array, layout: Layout) -> Array:
    """An array that lies otherwise: moved by DMA."""
    if value.layout == layout:
        return value
    value = evacuated(walker, stored(walker, value))
    found = temporary(walker, value.shape, value.dtype, "moved", layout=layout)
    if whole(found).elements == whole(value).elements == value.elements:
        moved(walker, whole(found), whole(value))
        return found
    for dst in found.pieces:
        source = next((p for p in value.pieces if p.elements == dst.elements), None)
        if source is not None:
            moved(walker, dst, source)
        else:
            passes(walker, dst, value.pieces[:1])
    return found
