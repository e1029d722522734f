"""What an instruction works on: tiles of memory, and the parts of them that it reads and writes."""

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal

from .dtypes import DType, dtype_named

Memory = Literal["sbuf", "psum", "hbm"]

_loop_ids = itertools.count()


@dataclass(frozen=True)
class Index:
    """An integer that depends on loops: `const + sum(coefficient * loop index)`.

    Add, subtract and multiply it with integers, add it to another.
    """

    const: int = 0
    terms: tuple[tuple[int, int], ...] = ()
    """(id of a loop, coefficient), sorted by id, no coefficient zero."""

    def __add__(self, other: "Index | int") -> "Index":
        other = as_index(other)
        terms = dict(self.terms)
        for loop, coefficient in other.terms:
            terms[loop] = terms.get(loop, 0) + coefficient
        return Index(self.const + other.const, tuple(sorted((k, c) for k, c in terms.items() if c)))

    __radd__ = __add__

    def __mul__(self, factor: int) -> "Index":
        if not factor:
            return Index()
        return Index(self.const * factor, tuple((k, c * factor) for k, c in self.terms))

    __rmul__ = __mul__

    def __sub__(self, other: "Index | int") -> "Index":
        return self + as_index(other) * -1

    def at(self, indices: dict[int, int]) -> int:
        """Its value where loop `k` is in iteration `indices[k]`."""
        return self.const + sum(c * indices[k] for k, c in self.terms)


def as_index(value: Index | int) -> Index:
    """`value` as an `Index`."""
    return value if isinstance(value, Index) else Index(int(value))


def new_loop_index() -> Index:
    """The index of a loop that nobody has used yet."""
    return Index(0, ((next(_loop_ids), 1),))


@dataclass(frozen=True)
class Tile:
    """Memory that a program allocates as one: `slots` equal tiles, used in turn.

    Two slots are double buffering; a grid of blocks is as many slots as it has blocks. `tile[i]` is
    slot i, `tile[i][0:64, :]` a part of it, `tile.run(4 * i, 4)` slots 4 * i to 4 * i + 3. A tile
    of one slot is sliced directly: `tile[0:64, :]`.
    """

    name: str
    memory: Memory
    shape: tuple[int, ...]
    """Of one slot. SBUF, PSUM: partitions first, then up to four free dimensions."""

    dtype: str
    """NKI's name of the element type."""

    slots: int = 1
    """Tiles in rotation; slot `i` is the same memory as slot `i + slots`."""

    address: tuple[int, int] | None = None
    """First partition and byte in it, where the program allocates itself; None: ours to choose.
    Slots lie one after another. An HBM tile has none."""

    core: int = 0
    """The core whose SBUF or PSUM it is (an HBM tile can be reached by all)."""

    given: bool = False
    """Whether it holds values before the program starts (inputs, weights)."""

    def __post_init__(self) -> None:
        if self.memory not in ("sbuf", "psum", "hbm"):
            raise ValueError(f"tile {self.name}: no memory {self.memory!r}; sbuf, psum or hbm")
        if not self.shape or any(size < 1 for size in self.shape):
            raise ValueError(f"tile {self.name}: shape {self.shape} needs dimensions >= 1")
        if self.slots < 1:
            raise ValueError(f"tile {self.name}: {self.slots} slots; at least 1")
        dtype_named(self.dtype)

    @property
    def element(self) -> DType:
        """The element type."""
        return dtype_named(self.dtype)

    @property
    def partitions(self) -> int:
        """Partitions that a slot covers (SBUF, PSUM)."""
        return self.shape[0]

    @property
    def partition_bytes(self) -> int:
        """Bytes of one slot in one partition (SBUF, PSUM)."""
        return math.prod(self.shape[1:]) * self.element.bytes

    @property
    def bytes(self) -> int:
        """Bytes of one slot."""
        return math.prod(self.shape) * self.element.bytes

    def __getitem__(self, key: object) -> "Access":
        """Slot `key`; or, of a tile with one slot, a part of it."""
        if isinstance(key, (int, Index)):
            return Access(self, slot=as_index(key))
        if self.slots > 1:
            raise TypeError(
                f"tile {self.name} has {self.slots} slots: choose one, tile[i], and slice that"
            )
        return Access(self)[key]

    def run(self, first: "int | Index", count: int) -> "Access":
        """`count` consecutive slots from `first` on."""
        return Access(self, slot=as_index(first), slot_count=count)

    @property
    def all(self) -> "Access":
        """Every slot at once."""
        return Access(self, slot_count=self.slots)


@dataclass(frozen=True)
class Access:
    """The part of a tile that an instruction reads or writes."""

    tile: Tile
    slot: Index = field(default_factory=Index)
    slot_count: int = 1
    """Consecutive slots, from `slot` on, modulo the tile's."""

    start: tuple[int, ...] = ()
    """First element in each dimension of a slot."""

    size: tuple[int, ...] = ()
    """Elements in each dimension."""

    step: tuple[int, ...] = ()
    """Distance between two elements in each dimension."""

    def __post_init__(self) -> None:
        if not self.size:
            rank = len(self.tile.shape)
            object.__setattr__(self, "start", (0,) * rank)
            object.__setattr__(self, "size", self.tile.shape)
            object.__setattr__(self, "step", (1,) * rank)
        if not 1 <= self.slot_count <= self.tile.slots:
            raise ValueError(
                f"tile {self.tile.name}: {self.slot_count} slots asked for, "
                f"it has {self.tile.slots}"
            )

    def __getitem__(self, key: object) -> "Access":
        """A part, sliced as in numpy with constant bounds (integers keep their dimension)."""
        keys = key if isinstance(key, tuple) else (key,)
        if len(keys) > len(self.size):
            raise IndexError(f"tile {self.tile.name}: {len(keys)} indices, {len(self.size)} dims")
        start, size, step = list(self.start), list(self.size), list(self.step)
        for axis, part in enumerate(keys):
            extent = size[axis]
            if isinstance(part, slice):
                first, last, stride = part.indices(extent)
                outside = (part.stop or 0) > extent or (part.start or 0) > extent
                count = len(range(first, last, stride))
            elif isinstance(part, int):
                first, stride, count, outside = part % extent, 1, 1, not -extent <= part < extent
            else:
                raise TypeError(f"tile {self.tile.name}: {part!r} is neither integer nor slice")
            if outside or count < 1 or stride < 1:
                raise IndexError(
                    f"tile {self.tile.name}: {part} is outside dimension {axis} of size {extent}"
                )
            start[axis] += first * step[axis]
            size[axis] = count
            step[axis] *= stride
        return Access(self.tile, self.slot, self.slot_count, tuple(start), tuple(size), tuple(step))

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements in each dimension; several slots are a dimension after the partitions."""
        if self.slot_count == 1:
            return self.size
        return (self.size[0], self.slot_count, *self.size[1:])

    @property
    def partitions(self) -> int:
        """Partitions that it covers (SBUF, PSUM)."""
        return self.size[0]

    @property
    def free_size(self) -> int:
        """Elements in each partition (SBUF, PSUM)."""
        return self.slot_count * math.prod(self.size[1:])

    @property
    def elements(self) -> int:
        """Elements in all."""
        return self.slot_count * math.prod(self.size)

    @property
    def bytes(self) -> int:
        """Bytes in all."""
        return self.elements * self.tile.element.bytes

    @property
    def dtype(self) -> str:
        """NKI's name of the element type."""
        return self.tile.dtype

    @property
    def memory(self) -> Memory:
        """The memory it lies in."""
        return self.tile.memory

    @property
    def stride(self) -> int:
        """Elements from one element of a partition to the next (SBUF, PSUM)."""
        for axis in reversed(range(1, len(self.size))):
            if self.size[axis] > 1:
                return self.step[axis] * math.prod(self.tile.shape[axis + 1 :])
        return math.prod(self.tile.shape[1:]) if self.slot_count > 1 else 1

    @property
    def run_bytes(self) -> int:
        """Bytes that lie next to each other in memory, from each first element on."""
        run = 1
        inner = 0 if self.memory == "hbm" else 1  # partitions are not next to each other
        for axis in reversed(range(inner, len(self.size))):
            if self.step[axis] != 1 and self.size[axis] > 1:
                break
            run *= self.size[axis]
            if self.size[axis] != self.tile.shape[axis]:
                break
        else:
            run *= self.slot_count
        return run * self.tile.element.bytes

    def __str__(self) -> str:
        parts = ", ".join(
            f"{s}:{s + n * k}" + (f":{k}" if k > 1 else "")
            for s, n, k in zip(self.start, self.size, self.step)
        )
        return f"{self.tile.name}[{parts}] ({self.tile.memory}, {self.dtype})"
