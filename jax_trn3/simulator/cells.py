"""Cells: the smallest pieces of memory by which one instruction can wait for another.

A slot of a tile is cut wherever an access to it begins or ends; what no access tells apart is one
cell. Two accesses meet exactly if they have a cell in common.
"""

import itertools
import math
from collections.abc import Iterable

from jax_trn3.isa import Access, Tile

# A tile cut into more boxes than this is taken as a whole: dependencies then are conservative.
_MOST_BOXES = 4096

_Box = tuple[tuple[int, int], ...]
"""First element and the one after the last, in each dimension of a slot."""


class Cells:
    """Numbers every cell of every tile that a program uses."""

    def __init__(self, accesses: Iterable[Access]) -> None:
        boxes: dict[Tile, dict[_Box, None]] = {}
        for access in accesses:
            boxes.setdefault(access.tile, {})[_box(access)] = None
        self.tiles: list[Tile] = []
        """The tile of each cell."""
        self._first: dict[Tile, int] = {}
        self._atoms: dict[Tile, dict[_Box, tuple[int, ...]]] = {}
        self._per_slot: dict[Tile, int] = {}
        for tile, of_tile in boxes.items():
            self._atoms[tile], per_slot = _cut(list(of_tile))
            self._first[tile] = len(self.tiles)
            self._per_slot[tile] = per_slot
            self.tiles += [tile] * (per_slot * tile.slots)

    def __len__(self) -> int:
        return len(self.tiles)

    def of(self, access: Access, slot: int) -> tuple[int, ...]:
        """The cells of an access whose slot index has the value `slot`."""
        tile = access.tile
        first, per_slot = self._first[tile], self._per_slot[tile]
        atoms = self._atoms[tile][_box(access)]
        return tuple(
            first + (slot + k) % tile.slots * per_slot + atom
            for k in range(access.slot_count)
            for atom in atoms
        )


def _box(access: Access) -> _Box:
    return tuple(
        (start, start + (size - 1) * step + 1)
        for start, size, step in zip(access.start, access.size, access.step)
    )


def _cut(boxes: list[_Box]) -> tuple[dict[_Box, tuple[int, ...]], int]:
    """The pieces of each box, and how many pieces there are."""
    cuts = [sorted({edge for box in boxes for edge in box[axis]}) for axis in range(len(boxes[0]))]
    if math.prod(len(edges) - 1 for edges in cuts) > _MOST_BOXES or len(boxes) == 1:
        return dict.fromkeys(boxes, (0,)), 1
    pieces: dict[tuple[int, ...], int] = {}
    of_box: dict[_Box, set[int]] = {box: set() for box in boxes}
    for corner in itertools.product(*(edges[:-1] for edges in cuts)):
        owners = tuple(k for k, box in enumerate(boxes) if _inside(corner, box))
        if owners:
            piece = pieces.setdefault(owners, len(pieces))
            for owner in owners:
                of_box[boxes[owner]].add(piece)
    return {box: tuple(sorted(of_box[box])) for box in boxes}, len(pieces)


def _inside(corner: tuple[int, ...], box: _Box) -> bool:
    return all(first <= x < last for x, (first, last) in zip(corner, box))
