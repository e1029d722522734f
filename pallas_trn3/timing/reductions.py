"""Reductions: along rows on VectorE, over partitions by a product with ones or on GpSimdE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from jax_trn3.isa import Access, Instruction

from .arrays import Array, fill, layout_of, temporary
from .emission import built, evacuated, issue, passes
from .scalars import UNKNOWN
from .views import stored
from .walk import Scope, Walker

REDUCTIONS = {
    "reduce_sum": "add", "reduce_max": "maximum", "reduce_min": "minimum",
    "reduce_prod": "multiply", "reduce_and": "logical_and", "reduce_or": "logical_or",
    "argmax": "maximum", "argmin": "minimum",
}  # fmt: skip


def reduce(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> list[Any]:
    """A reduction over some of the dimensions."""
    name, value = equation.primitive.name, args[0]
    (var,) = equation.outvars
    shape, dtype = var.aval.shape, var.aval.dtype
    given = equation.invars[0].aval.shape
    axes = [a for a in equation.params["axes"] if given[a] != 1]
    if not isinstance(value, Array) or value.view == "fill":
        return [fill(UNKNOWN, shape, dtype)]
    if not axes:
        return [stored(walker, value).of(shape, dtype)]
    value = stored(walker, value)
    op = REDUCTIONS[name]
    last = len(given) - 1
    if len(given) == 1:
        return [_everything(walker, value, op, shape, dtype)]
    if axes == [last] and name.startswith("arg"):
        return [_searched(walker, value, shape)]
    found = value
    if last in axes:
        found = _along_rows(walker, value, op, dtype)
        axes.remove(last)
        given = (*given[:-1], 1)
    if not axes:
        return [_as_vector(found, shape, dtype)]
    if axes == [k for k in range(last) if given[k] != 1]:
        return [_over_rows(walker, found, op, shape, dtype)]
    return [_over_leading(walker, found, op, shape, dtype)]


def _along_rows(walker: Walker, value: Array, op: str, dtype: Any) -> Array:
    layout = tuple((p, 1) for p, _ in value.layout)
    narrow = op in ("maximum", "minimum") and value.pieces[0].dtype == "bfloat16"
    held = "bfloat16" if narrow else dtype  # exact, and twice as fast
    found = temporary(walker, (*value.shape[:-1], 1), held, layout=layout)
    found.dtype = dtype
    for number, (dst, src) in enumerate(zip(found.pieces, value.pieces)):
        if op == "add" and _with_function(walker, value, number, dst):
            continue
        issue(walker, "tensor_reduce", dst, src, op=op, axis=_free_axes(src), engine="vector")
    return found


def _free_axes(access: Access) -> tuple[int, ...]:
    return tuple(range(1, len(access.shape)))


def _with_function(walker: Walker, value: Array, number: int, dst: Access) -> bool:
    """Lets the function that made a piece sum it up on the way (activation_reduce)."""
    if value.made is None or value.made[0] is not walker.nodes or dst.dtype != "float32":
        return False
    piece = value.pieces[number]
    nodes, start = value.made
    for place in range(start, len(nodes)):
        node = nodes[place]
        if not isinstance(node, Instruction) or node.name != "activation":
            continue
        if node["dst"] != piece or node.get("reduce_res") is not None:
            continue
        operands: dict[str, Any] = dict(node.operands)
        params = {k: v for k, v in node.params if k != "reduce_cmd"}
        made = built(
            walker, "activation", piece, operands.pop("data"),
            reduce_res=dst, reduce_op="add", reduce_cmd="reset_reduce",
            **{k: v for k, v in operands.items() if k != "dst"}, **params,
        )  # fmt: skip
        if made is None:
            return False
        nodes[place] = replace(made, origin=node.origin)
        return True
    return False


def _as_vector(value: Array, shape: Sequence[int], dtype: Any) -> Array:
    """A value a row: its pieces are columns, whatever its shape says."""
    return value.of(shape, dtype)


def _over_rows(walker: Walker, value: Array, op: str, shape: Sequence[int], dtype: Any) -> Array:
    """Over all partitions: sums by the tensor engine, the rest on GpSimdE."""
    wide = value.pieces[0].free_size
    if op == "add" and jnp.issubdtype(dtype, jnp.floating):
        value = evacuated(walker, value)
        ones = temporary(
            walker, (max(p for p, _ in value.layout), 1), value.pieces[0].dtype, "ones"
        )
        issue(walker, "memset", ones.pieces[0], value=1, engine="gpsimd")
        found = temporary(walker, shape, "float32", "sum", "psum", layout=((1, wide),))
        for first in range(0, wide, 512):
            count = min(512, wide - first)
            for k, piece in enumerate(value.pieces):
                issue(
                    walker, "nc_matmul", found.pieces[0][:, first : first + count],
                    ones.pieces[0][0 : piece.partitions], piece[:, first : first + count],
                    accumulate=k > 0,
                )  # fmt: skip
        return found
    total = _together(walker, evacuated(walker, value), op)
    found = temporary(walker, shape, dtype, layout=((1, wide),))
    if op in ("maximum", "add"):
        issue(walker, "tensor_partition_reduce", found.pieces[0], total, op=op, engine="gpsimd")
    else:
        passes(walker, found.pieces[0], [total])
    return found


def _together(walker: Walker, value: Array, op: str) -> Access:
    """All pieces, combined into the first."""
    total = value.pieces[0]
    if len(value.pieces) == 1:
        return total
    found = temporary(walker, value.shape, value.dtype, layout=value.layout[:1]).pieces[0]
    for k, piece in enumerate(value.pieces[1:]):
        if piece.partitions == found.partitions:
            issue(walker, "tensor_tensor", found, found if k else total, piece, op=op)
        else:
            passes(walker, found, [piece])
    return found


def _over_leading(walker: Walker, value: Array, op: str, shape: Any, dtype: Any) -> Array:
    """Over leading dimensions: pieces with each other."""
    layout = layout_of(shape)
    found = temporary(walker, shape, dtype, layout=layout if len(shape) > 1 else None)
    each = len(found.pieces)
    if each and len(value.pieces) % each == 0 and value.layout[:each] == found.layout:
        for k, dst in enumerate(found.pieces):
            parts = value.pieces[k::each]
            if len(parts) == 1:
                passes(walker, dst, parts)
            for n, piece in enumerate(parts[1:]):
                issue(walker, "tensor_tensor", dst, dst if n else parts[0], piece, op=op)
        return found
    for dst in found.pieces:
        passes(walker, dst, value.pieces)
    return found


def _everything(walker: Walker, value: Array, op: str, shape: Any, dtype: Any) -> Array:
    """One number of all elements."""
    column = _along_rows(walker, value, op, dtype) if value.pieces[0].free_size > 1 else value
    return _over_rows(walker, column, op, shape, dtype)


def _searched(walker: Walker, value: Array, shape: Sequence[int]) -> Array:
    """Where the largest of a row is."""
    layout = tuple((p, 8) for p, _ in value.layout)
    values = temporary(walker, (*shape, 8), value.pieces[0].dtype, layout=layout)
    places = temporary(walker, (*shape, 8), "uint32", layout=layout)
    for best, place, src in zip(values.pieces, places.pieces, value.pieces):
        issue(walker, "max8", best, src)
        issue(walker, "nc_find_index8", place, src, best)
    first = [place[:, 0:1] for place in places.pieces]
    return Array(tuple(shape), jnp.int32, first)
