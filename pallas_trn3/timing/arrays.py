"""Arrays of a kernel's own: where their elements lie, or what they are seen through.

An array lies with its last dimension along the free axis and all others, as rows, over partitions,
128 at a time: a list of pieces [128, columns].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jax_trn3.isa import Access, Index, Tile, as_index

from .refs import PARTITIONS, Ref, element_name, matrix

if TYPE_CHECKING:
    from .walk import Walker

View = Literal["", "fill", "column", "row", "transposed"]


@dataclass(eq=False)
class Array:
    """A value of the kernel's."""

    shape: tuple[int, ...]
    dtype: Any
    pieces: list[Access]
    """Of a view, none."""

    view: View = ""
    """"fill": one number; "column": a value a row; "row": the same row everywhere; "transposed":
    the last two dimensions of `base` exchanged."""

    base: Array | None = None
    number: Any = None
    """Of "fill", the number."""

    ref: Ref | None = None
    """The Ref whose memory it is."""

    @property
    def elements(self) -> int:
        """Elements in all."""
        return math.prod(self.shape)


def fill(number: Any, shape: Sequence[int], dtype: Any) -> Array:
    """One number everywhere."""
    return Array(tuple(shape), dtype, [], "fill", None, number)


def temporary(
    walker: Walker,
    shape: Sequence[int],
    dtype: Any,
    what: str = "",
    memory: Literal["sbuf", "psum"] = "sbuf",
) -> Array:
    """Memory for a value; two of it in rotation inside of loops."""
    rows, columns = matrix(tuple(max(1, n) for n in shape))
    chunks = -(-rows // PARTITIONS)
    inside = max(walker.ranges.counts, default=None)
    turn = as_index(0) if inside is None else Index(0, ((inside, 1),))
    number = walker.state["values"] = walker.state.get("values", 0) + 1
    name = f"{what or walker.origin.operation} {number} of line {walker.origin.line}"
    tile = Tile(
        name,
        memory,
        (min(rows, PARTITIONS), columns),
        element_name(dtype) if not isinstance(dtype, str) else dtype,
        chunks * (1 if inside is None else 2),
    )
    pieces = [
        Access(tile, turn * chunks + k, 1, (0, 0), (min(PARTITIONS, rows - k * PARTITIONS), columns), (1, 1))
        for k in range(chunks)
    ]  # fmt: skip
    return Array(tuple(shape), dtype, pieces)


def whole(array: Array) -> Access:
    """All pieces as one access, for a transfer."""
    first = array.pieces[0]
    if len(array.pieces) == 1:
        return first
    return Access(first.tile, first.slot, len(array.pieces), first.start, first.size, first.step)
