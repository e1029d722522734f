"""Arrays of a kernel's own: where their elements lie, or what they are seen through.

An array lies with its last dimension along the free axis and all others, as rows, over partitions,
128 at a time: a list of pieces [128, columns]. A vector fills partitions first: element i lies in
partition i % 128.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp

from jax_trn3.isa import Access, Index, Tile, as_index

from .refs import PARTITIONS, Ref, element_name, matrix

if TYPE_CHECKING:
    from jax_trn3.simulator import Node

    from .walk import Walker

View = Literal["", "fill", "column", "row", "transposed", "affine", "iota", "mask"]

Layout = tuple[tuple[int, int], ...]
"""(partitions, elements in each) of every piece."""


@dataclass(eq=False)
class Array:
    """A value of the kernel's."""

    shape: tuple[int, ...]
    dtype: Any
    pieces: list[Access]
    """Of a view, none."""

    view: View = ""
    """"fill": one number; "column": a value a row; "row": the same row everywhere; "transposed":
    the last two dimensions of `base` exchanged; "affine": `base * scale + bias`; "iota": numbers
    that grow by constants; "mask": where such numbers compare so."""

    base: Array | None = None
    number: Any = None
    """Of "fill", the number; of "mask", how many comparisons."""

    scale: Any = None
    bias: Any = None
    ref: Ref | None = None
    """The Ref whose memory it is."""

    made: tuple[list[Node], int] | None = None
    """The list in which the instructions are that made it, and the first of them."""

    @property
    def elements(self) -> int:
        """Elements in all."""
        return math.prod(self.shape)

    @property
    def layout(self) -> Layout:
        """Sizes of its pieces."""
        return tuple((piece.partitions, piece.free_size) for piece in self.pieces)

    @property
    def in_psum(self) -> bool:
        """Whether it lies in PSUM."""
        return any(piece.memory == "psum" for piece in self.pieces)

    def of(self, shape: Sequence[int], dtype: Any = None) -> Array:
        """The same memory as an array of another shape or type."""
        return replace(self, shape=tuple(shape), dtype=dtype or self.dtype)


def fill(number: Any, shape: Sequence[int], dtype: Any) -> Array:
    """One number everywhere."""
    return Array(tuple(shape), dtype, [], "fill", None, number)


def layout_of(shape: Sequence[int]) -> Layout:
    """How an array of this shape lies, if nothing else decides."""
    rows, columns = matrix(tuple(max(1, n) for n in shape))
    first = range(0, rows, PARTITIONS)
    return tuple((min(PARTITIONS, rows - row), columns) for row in first)


def temporary(
    walker: Walker,
    shape: Sequence[int],
    dtype: Any,
    what: str = "",
    memory: Literal["sbuf", "psum"] = "sbuf",
    layout: Layout | None = None,
) -> Array:
    """Memory for a value; two of it in rotation inside of loops."""
    layout = layout or layout_of(shape)
    inside = max(walker.ranges.counts, default=None) if walker.room != "once" else None
    turn = as_index(0) if inside is None else Index(0, ((inside, 1),))
    number = walker.state["values"] = walker.state.get("values", 0) + 1
    high, wide = max(p for p, _ in layout), max(f for _, f in layout)
    chunks = len(layout)
    tile = Tile(
        f"{what or walker.origin.operation} {number} (line {walker.origin.line})",
        memory,
        (high, wide),
        stored_as(dtype),
        chunks * (1 if inside is None else 2),
    )
    pieces = [
        Access(tile, turn * chunks + k, 1, (0, 0), size, (1, 1)) for k, size in enumerate(layout)
    ]
    return Array(tuple(shape), dtype, pieces, made=(walker.nodes, len(walker.nodes)))


def stored_as(dtype: Any) -> str:
    """NKI's name of the type in which engines hold elements: truth values as uint8."""
    if isinstance(dtype, str):
        return dtype
    return "uint8" if dtype == jnp.bool_ else element_name(dtype)


def part(piece: Access, first: int, count: int) -> Access:
    """Columns of a piece."""
    if (first, count) == (0, piece.free_size):
        return piece
    if len(piece.size) == 2 and piece.slot_count == 1:
        step = piece.step[1]
        return Access(
            piece.tile, piece.slot, 1, (piece.start[0], piece.start[1] + first * step),
            (piece.size[0], count), (1, step),
        )  # fmt: skip
    flat = Tile(piece.tile.name, piece.memory, (piece.tile.shape[0], piece.free_size), piece.dtype, piece.tile.slots, given=True)  # noqa: E501  # fmt: skip
    return Access(flat, piece.slot, 1, (0, first), (piece.partitions, count), (1, 1))


def whole(array: Array) -> Access:
    """All pieces as one access, for a transfer."""
    first = array.pieces[0]
    alike = all(piece.size == first.size for piece in array.pieces)
    if len(array.pieces) == 1 or not alike:
        return first
    return Access(first.tile, first.slot, len(array.pieces), first.start, first.size, first.step)
