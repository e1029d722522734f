"""Cells: the smallest pieces of memory by which one instruction can wait for another.

A slot of a tile is cut wherever an access to it begins or ends; what no access tells apart is one
cell. Tiles that lie in the same place are cut together. Two accesses meet exactly if they have a
cell in common.
"""

import itertools
import math
from collections.abc import Iterable

from jax_trn3.hardware import NeuronCore
from jax_trn3.isa import Access, Tile

from .allocation import extent, pitch

# Memory cut into more boxes than this is taken as a whole: dependencies then are conservative.
_MOST_BOXES = 16_384

_Box = tuple[tuple[int, int], ...]
"""First element and the one after the last, in each dimension of a slot."""


class Cells:
    """Numbers every cell of every tile that a program uses."""

    def __init__(self, accesses: Iterable[Access], core: NeuronCore) -> None:
        boxes: dict[Tile, dict[_Box, None]] = {}
        for access in accesses:
            boxes.setdefault(access.tile, {})[_box(access)] = None
        self.tiles: list[Tile] = []
        """The tile of each cell; of several in one place the first."""
        self._cells: dict[tuple[Tile, int, _Box], tuple[int, ...]] = {}
        for group in _together(list(boxes), core):
            of_group = {tile: list(boxes[tile]) for tile in group}
            if len(group) == 1:
                self._number_alone(group[0], of_group[group[0]])
            else:
                self._number_together(of_group, core)

    def __len__(self) -> int:
        return len(self.tiles)

    def of(self, access: Access, slot: int) -> tuple[int, ...]:
        """The cells of an access whose slot index has the value `slot`."""
        tile, box = access.tile, _box(access)
        if access.slot_count == 1:
            return self._cells[tile, slot % tile.slots, box]
        slots = ((slot + k) % tile.slots for k in range(access.slot_count))
        return tuple(dict.fromkeys(c for k in slots for c in self._cells[tile, k, box]))

    def _number_alone(self, tile: Tile, boxes: list[_Box]) -> None:
        """All slots of a tile are cut alike."""
        pieces, per_slot = _cut(boxes)
        for slot in range(tile.slots):
            first = len(self.tiles) + slot * per_slot
            for box, atoms in zip(boxes, pieces):
                self._cells[tile, slot, box] = tuple(first + atom for atom in atoms)
        self.tiles += [tile] * (per_slot * tile.slots)

    def _number_together(self, boxes: dict[Tile, list[_Box]], core: NeuronCore) -> None:
        """Tiles in one place are cut by what they occupy of it, in partitions and bytes."""
        keys, places = [], []
        for tile, of_tile in boxes.items():
            for slot in range(tile.slots):
                for box in of_tile:
                    keys.append((tile, slot, box))
                    places.append(_place(tile, slot, box, core))
        pieces, count = _cut(places)
        first = len(self.tiles)
        for key, atoms in zip(keys, pieces):
            self._cells[key] = tuple(first + atom for atom in atoms)
        self.tiles += [next(iter(boxes))] * count


def _box(access: Access) -> _Box:
    return tuple(
        (start, start + (size - 1) * step + 1)
        for start, size, step in zip(access.start, access.size, access.step)
    )


def _place(tile: Tile, slot: int, box: _Box, core: NeuronCore) -> _Box:
    """Partitions and bytes from the first element of a box to its last."""
    assert tile.address is not None
    partition, byte = tile.address
    strides = [math.prod(tile.shape[axis + 1 :]) for axis in range(1, len(tile.shape))]
    first = sum(start * stride for (start, _), stride in zip(box[1:], strides))
    last = sum((end - 1) * stride for (_, end), stride in zip(box[1:], strides))
    base, size = byte + slot * pitch(tile, core), tile.element.bytes
    partitions = (partition + box[0][0], partition + box[0][1])
    return partitions, (base + first * size, base + (last + 1) * size)


def _together(tiles: list[Tile], core: NeuronCore) -> list[list[Tile]]:
    """Tiles in groups that share memory; most are alone."""
    groups: list[list[Tile]] = []
    placed = [t for t in tiles if t.address is not None and t.memory != "hbm"]
    groups += [[t] for t in tiles if t.address is None or t.memory == "hbm"]
    placed.sort(key=lambda t: (t.memory, t.core, t.address[1]))  # type: ignore[index]
    end: tuple[str, int, int] = ("", 0, 0)
    for tile in placed:
        assert tile.address is not None
        if end[:2] == (tile.memory, tile.core) and tile.address[1] < end[2]:
            groups[-1].append(tile)
        else:
            groups.append([tile])
            end = (tile.memory, tile.core, 0)
        end = (*end[:2], max(end[2], tile.address[1] + extent(tile, core)))
    return groups


def _cut(boxes: list[_Box]) -> tuple[list[tuple[int, ...]], int]:
    """The pieces of each box, and how many pieces there are."""
    cuts = [sorted({edge for box in boxes for edge in box[axis]}) for axis in range(len(boxes[0]))]
    if math.prod(len(edges) - 1 for edges in cuts) > _MOST_BOXES or len(boxes) == 1:
        return [(0,)] * len(boxes), 1
    owners: dict[tuple[int, ...], list[int]] = {}
    ranks = [{edge: k for k, edge in enumerate(edges)} for edges in cuts]
    for number, box in enumerate(boxes):
        spans = (range(rank[a], rank[b]) for rank, (a, b) in zip(ranks, box))
        for corner in itertools.product(*spans):
            owners.setdefault(corner, []).append(number)
    pieces: dict[tuple[int, ...], int] = {}
    of_box: list[list[int]] = [[] for _ in boxes]
    for numbers in owners.values():
        key = tuple(numbers)
        if key not in pieces:
            pieces[key] = len(pieces)
            for number in key:
                of_box[number].append(pieces[key])
    return [tuple(atoms) for atoms in of_box], len(pieces)
