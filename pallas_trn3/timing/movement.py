"""Arrays in other shapes and places: mostly views, else copies by engines or DMA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jax_trn3.isa import Access

from .arrays import Array, fill, layout_of, temporary
from .emission import copy, evacuated, issue, moved, passes
from .views import laid, stored
from .walk import Scope, Walker

_STARTS = (0, 32, 64, 96)


def broadcast(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> list[Any]:
    """`broadcast_in_dim`: seen as what it repeats."""
    (var,) = equation.outvars
    shape, dtype = var.aval.shape, var.aval.dtype
    value = args[0]
    if not isinstance(value, Array):
        return [fill(value, shape, dtype)] if shape else [value]
    if value.view == "fill":
        return [fill(value.number, shape, dtype)]
    if value.elements == math.prod(shape):
        return [reshaped(walker, value, shape)]
    if value.view in ("iota", "mask"):
        return [value.of(shape)]
    given = equation.invars[0].aval.shape
    behind = range(len(shape) - len(given), len(shape))
    dims = equation.params.get("broadcast_dimensions", behind)
    return [seen_as(walker, value, given, dims, shape)]


def seen_as(
    walker: Walker, value: Array, given: Sequence[int], dims: Sequence[int], shape: Sequence[int]
) -> Array:
    """A value whose dimensions are `dims` of a larger shape."""
    kept = {d for d, n in zip(dims, given) if n != 1}
    last = len(shape) - 1
    wanted = {d for d, n in enumerate(shape) if n != 1}
    if value.elements == 1:
        if value.view == "fill":
            return fill(value.number, shape, value.dtype)
        return Array(tuple(shape), value.dtype, [], "column", value)
    if kept == wanted - {last}:
        base = value.base if value.view == "column" and value.base is not None else value
        return Array(tuple(shape), value.dtype, [], "column", base)
    if kept == {last}:
        base = value.base if value.view == "row" and value.base is not None else value
        return Array(tuple(shape), value.dtype, [], "row", base)
    found = temporary(walker, shape, value.dtype, "broadcast")
    source = stored(walker, value)
    for k, dst in enumerate(found.pieces):
        piece = source.pieces[k % len(source.pieces)]
        if (piece.partitions, piece.free_size) == (dst.partitions, dst.free_size):
            copy(walker, dst, piece)
        else:
            passes(walker, dst, [piece])
    return found


def reshape(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> list[Any]:
    """Another shape of as many elements."""
    (var,) = equation.outvars
    if not isinstance(args[0], Array):
        return [args[0] if not var.aval.shape else fill(args[0], var.aval.shape, var.aval.dtype)]
    return [reshaped(walker, args[0], var.aval.shape)]


def reshaped(walker: Walker, value: Array, shape: Sequence[int]) -> Array:
    """The same elements in another shape: the same memory where rows stay rows."""
    if value.view in ("fill", "iota", "mask"):
        return value.of(shape)
    before = [n for n in value.shape if n != 1]
    after = [n for n in shape if n != 1]
    if before == after and value.view in ("column", "row"):
        last = (value.shape[-1:] == shape[-1:]) or value.view == "column"
        return value.of(shape) if last else stored(walker, value).of(shape)
    if value.view == "transposed" and before != after:
        value = stored(walker, value)
    if before == after and value.view in ("", "affine"):
        return value.of(shape)
    value = stored(walker, value)
    if value.shape[-1:] == tuple(shape[-1:]) or not shape or len(after) < 1:
        return value.of(shape)
    target = layout_of(shape)
    if value.layout == target:
        return value.of(shape)
    return laid(walker, value.of(shape), target)


def iota(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> list[Any]:
    """Numbers that grow along a dimension: a pattern, until someone needs them."""
    (var,) = equation.outvars
    return [Array(var.aval.shape, var.aval.dtype, [], "iota")]


def cut(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> list[Any]:
    """`slice`, `dynamic_slice`: a part of where it lies, if engines can begin there."""
    value, (var,) = args[0], equation.outvars
    shape, dtype = var.aval.shape, var.aval.dtype
    if not isinstance(value, Array) or value.view in ("fill", "iota", "mask"):
        return [value.of(shape) if isinstance(value, Array) else value]
    given = equation.invars[0].aval.shape
    if equation.primitive.name == "slice":
        starts, strides = equation.params["start_indices"], equation.params["strides"]
    else:
        starts, strides = [a if isinstance(a, int) else 0 for a in args[1:]], None
    value = stored(walker, value)
    rows = all(n == m for n, m in zip(given[:-1], shape[:-1]))
    if rows and not strides and all(len(p.size) == 2 for p in value.pieces) and len(given) > 1:
        first, count = starts[-1], shape[-1]
        return [Array(shape, dtype, [p[:, first : first + count] for p in value.pieces])]
    found = _rows_cut(value, given, shape, starts, strides)
    return [found if found is not None else _copied(walker, value, shape, dtype)]


def _rows_cut(
    value: Array, given: Sequence[int], shape: Sequence[int], starts: Any, strides: Any
) -> Array | None:
    """Whole rows of one piece, or whole pieces."""
    if strides or len(given) < 2 or given[-1] != shape[-1] or given[1:-1] != shape[1:-1]:
        return None
    inner = math.prod(given[1:-1])
    first, count = starts[0] * inner, shape[0] * inner
    number, start = divmod(first, 128)
    if len(value.pieces) != -(-math.prod(given[:-1]) // 128):
        return None
    if start + count <= value.pieces[number].partitions and start in _STARTS:
        if start and count > 128 - start:
            return None
        piece = value.pieces[number]
        if start in (32, 96) and count > 32:
            return None
        return Array(tuple(shape), value.dtype, [piece[start : start + count]])
    if start == 0 and count % 128 == 0:
        return Array(tuple(shape), value.dtype, value.pieces[number : number + count // 128])
    return None


def _copied(walker: Walker, value: Array, shape: Sequence[int], dtype: Any) -> Array:
    found = temporary(walker, shape, dtype)
    value = evacuated(walker, value)
    for dst in found.pieces:
        source = next((p for p in value.pieces if _covers(p, dst)), None)
        if source is None:
            passes(walker, dst, [])
        else:
            moved(walker, dst, _corner(source, dst))
    return found


def _covers(piece: Access, dst: Access) -> bool:
    return len(piece.size) == 2 and piece.partitions >= dst.partitions and piece.free_size >= dst.free_size  # noqa: E501  # fmt: skip


def _corner(piece: Access, dst: Access) -> Access:
    return piece[0 : dst.partitions, 0 : dst.free_size]


def concatenate(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> list[Any]:
    """Parts copied side by side; whole pieces one after another are left where they are."""
    (var,) = equation.outvars
    shape, dtype = var.aval.shape, var.aval.dtype
    parts = [stored(walker, a, v.aval.shape, dtype) for a, v in zip(args, equation.invars)]
    dimension = equation.params["dimension"]
    if (
        dimension == 0
        and len(shape) > 1
        and all(math.prod(p.shape[:-1]) % 128 == 0 for p in parts[:-1])
    ):
        return [Array(shape, dtype, [piece for p in parts for piece in p.pieces])]
    found = temporary(walker, shape, dtype)
    if dimension == len(shape) - 1 and len(shape) > 1:
        for k, dst in enumerate(found.pieces):
            first = 0
            for p in parts:
                piece = p.pieces[min(k, len(p.pieces) - 1)]
                copy(walker, dst[:, first : first + p.shape[-1]], piece)
                first += p.shape[-1]
        return [found]
    for number, dst in enumerate(found.pieces):
        source = parts[min(number, len(parts) - 1)].pieces[0]
        if source.elements == dst.elements:
            moved(walker, dst, source)
        else:
            passes(walker, dst, [p.pieces[0] for p in parts])
    return [found]


def roll(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> list[Any]:
    """Two copies along rows; over partitions a transfer."""
    (var,) = equation.outvars
    value = evacuated(walker, stored(walker, args[0], var.aval.shape, var.aval.dtype))
    found = temporary(walker, var.aval.shape, var.aval.dtype, layout=value.layout)
    along = equation.params.get("axis") == len(var.aval.shape) - 1
    for dst, src in zip(found.pieces, value.pieces):
        half = dst.free_size // 2
        if not along or not half or len(src.size) != 2:
            moved(walker, dst, src)
            continue
        copy(walker, dst[:, :half], src[:, -half:])
        copy(walker, dst[:, half:], src[:, :-half])
    return [found]


_RUNNING = {"cumsum": "add", "cumprod": "multiply", "cummax": "maximum", "cummin": "minimum"}


def running(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> list[Any]:
    """Running sums and their like: one instruction along rows."""
    (var,) = equation.outvars
    value = stored(walker, args[0], var.aval.shape, var.aval.dtype)
    found = temporary(walker, var.aval.shape, var.aval.dtype, layout=value.layout)
    op = _RUNNING[equation.primitive.name]
    along = equation.params["axis"] == len(var.aval.shape) - 1 and len(var.aval.shape) > 1
    for dst, src in zip(found.pieces, value.pieces):
        if along:
            issue(
                walker, "tensor_scalar_cumulative", dst, src, 0.0, op0="add", op1=op,
                engine="vector",
            )  # fmt: skip
        else:
            passes(walker, dst, [src], 2 * dst.partitions.bit_length())
    return [found]


def sort(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> list[Any]:
    """Eight of the largest at a time, found and taken out, as long as any are left."""
    found = []
    for var, value in zip(equation.outvars, args):
        source = stored(walker, value, var.aval.shape, var.aval.dtype)
        out = temporary(walker, var.aval.shape, var.aval.dtype)
        rounds = -(-(var.aval.shape[-1] if var.aval.shape else 1) // 8)
        for number, dst in enumerate(out.pieces):
            src = source.pieces[min(number, len(source.pieces) - 1)]
            passes(walker, dst, [src], 2 * rounds)
        found.append(out)
    return found


def update(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> list[Any]:
    """`dynamic_update_slice`, `pad`: a copy of the whole, and of the part."""
    (var,) = equation.outvars
    found = temporary(walker, var.aval.shape, var.aval.dtype)
    first = stored(walker, args[0], equation.invars[0].aval.shape, var.aval.dtype)
    for k, dst in enumerate(found.pieces):
        src = first.pieces[min(k, len(first.pieces) - 1)]
        if (src.partitions, src.free_size) == (dst.partitions, dst.free_size):
            copy(walker, dst, src)
        else:
            passes(walker, dst, [src])
    if equation.primitive.name == "dynamic_update_slice" and isinstance(args[1], Array):
        part = stored(walker, args[1])
        for src in part.pieces:
            dst = found.pieces[0]
            if _covers(dst, src):
                copy(walker, _corner(dst, src), src)
    return [found]
