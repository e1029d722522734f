"""How rows lie in SBUF: one or several a partition, or a row over several partitions."""

import math
from dataclasses import dataclass

PARTITIONS = 128

_LEAST, _MOST = 512, 4096
"""Elements of a partition in one tile: enough that fixed costs do not count, few enough that the
first tile is there soon."""

_TILES = 8
"""Tiles that a program is cut into where it is long enough, so that loads, work and stores
overlap."""


@dataclass(frozen=True)
class Layout:
    """Rows, and the tiles that they are cut into."""

    rows: int
    """Longest rows of the group."""

    lengths: tuple[int, ...]
    """Elements that go into one of each kind of value, ascending, each dividing the next; the first
    is 1, the last the length of the longest row."""

    per: int
    """Rows of a partition in a full tile."""

    split: int
    """Partitions of one row."""

    @property
    def length(self) -> int:
        """Elements of a row in one partition."""
        return -(-self.lengths[-1] // self.split)

    @property
    def width(self) -> int:
        """Elements of a partition in a full tile."""
        return self.per * self.length

    def dimensions(self, every: int) -> tuple[int, ...]:
        """Of a full tile of values that stand for `every` elements each."""
        inner = []
        above = self.length
        for length in reversed(self.lengths[:-1]):
            if length < every:
                break
            inner.append(-(-above // length))
            above = length
        sizes = [self.per, *inner]
        return (PARTITIONS, *(sizes[:1] if every >= self.lengths[-1] else sizes))

    def parts(self) -> tuple[int, list[tuple[int, int]]]:
        """(full tiles, (partitions, rows in each) of the rest)."""
        rows = self.rows * self.split
        if rows % self.per == 0 and rows // self.per <= PARTITIONS:
            return 0, [(rows // self.per, self.per)]
        full, rest = divmod(rows, PARTITIONS * self.per)
        edges = []
        if rest >= PARTITIONS:
            edges.append((PARTITIONS, rest // PARTITIONS))
        if rest % PARTITIONS:
            edges.append((rest % PARTITIONS, 1))
        return full, edges


def row_alone(lengths: set[int]) -> int:
    """The length of the longest rows, if they are long enough for a partition each; else 0. A value
    a row is then a value a partition, which instructions take as an operand."""
    longest = max(lengths, default=1)
    return longest if longest >= _LEAST else 0


def layout(elements: int, lengths: set[int], most: int) -> Layout:
    """Chooses the tiles for values of so many elements, of at most `most` in a partition."""
    chain = tuple(sorted({1, *lengths}))
    length = chain[-1]
    rows = max(1, elements // length)
    split = 1
    while -(-length // split) > most and split < PARTITIONS:
        split *= 2
    if rows < PARTITIONS and length > 1 and len(chain) == 2:
        # Few rows: over as many partitions as there are.
        while rows * split < PARTITIONS and length % (2 * split) == 0 and length // split > _LEAST:
            split *= 2
    length = -(-length // split)
    each = max(1, math.ceil(rows * split * length / PARTITIONS))
    wanted = min(max(each // _TILES, min(each, _LEAST)), _MOST, most)
    per = max(1, wanted // length) if split == 1 and not row_alone(lengths) else 1
    if split == 1 and not row_alone(lengths) and rows <= PARTITIONS * per:
        # One tile, of fewer partitions if it then is one and not two.
        per = next((n for n in range(-(-rows // PARTITIONS), per + 1) if rows % n == 0), per)
        return Layout(rows, chain, per, split)
    return Layout(rows, chain, _even(rows * split, per), split)


def _even(rows: int, per: int) -> int:
    """Rows of a partition, at most `per`, so that little or nothing is left over."""
    for count in range(per, max(1, per // 2), -1):
        if rows % (PARTITIONS * count) == 0:
            return count
    return per
