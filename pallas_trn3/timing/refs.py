"""The memory that a kernel names: its Refs, how they are indexed, and the tiles that they become.

A dimension that is indexed by integers, before the partitions, is a dimension of slots; so is each
piece of a free dimension that is cut at places which loops decide. Refs that no instruction works
on have their rows over partitions, 128 at a time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax._src.state import indexing

from jax_trn3.isa import DTYPES, Access, Index, Tile, as_index

from ..memory import Memory, dtype_name
from .scalars import UNKNOWN, Mod, is_integer, plain

PARTITIONS = 128
_ALIGNMENT = 32  # bytes; tiles' slots begin at multiples
_LONGEST = 32_768  # elements of a row that lies in one partition


@dataclass(frozen=True)
class Span:
    """Of a dimension, the elements `start, start + step, ...`."""

    start: Any
    size: int
    step: int = 1


@dataclass(frozen=True)
class At:
    """Of a dimension one element; the dimension is gone."""

    index: Any


Key = Span | At


@dataclass(frozen=True)
class Seen(Access):
    """An access as the kernel sees it: dimensions that it indexes by integers are gone, slots are
    dimensions where it has them."""

    seen: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements in each dimension."""
        return self.seen


def seen(found: Access, keys: Sequence[Key]) -> Access:
    """The access, of the shape that these keys leave."""
    shape = tuple(key.size for key in keys if isinstance(key, Span))
    if math.prod(shape) == 4 * found.elements and shape[-1:] == (4,):
        shape = shape[:-1]  # four values are one element
    if shape == found.shape or math.prod(shape) != found.elements or not shape:
        return found
    if found.memory != "hbm" and shape[0] != found.partitions and len(shape) < 3:
        return found
    return Seen(
        found.tile, found.slot, found.slot_count, found.start, found.size, found.step, shape
    )


class Recut(Exception):
    """A Ref's dimension is cut at other places than was thought."""

    def __init__(self, ref: Ref, axis: int, piece: int) -> None:
        super().__init__(ref.name, axis, piece)
        self.ref, self.axis, self.piece = ref, axis, piece


@dataclass(frozen=True)
class Use:
    """One place in the kernel where a Ref is used."""

    keys: tuple[Key, ...]
    by: str
    """"engine" (an operand of an engine's instruction), "dma", "value" or "semaphore"."""

    writes: bool
    packed: bool = False
    jaxpr: Any = None
    equation: Any = None
    """Where a value is read or written."""


@dataclass(eq=False)
class Ref:
    """Memory that a kernel names."""

    name: str
    memory: Memory
    shape: tuple[int, ...]
    dtype: Any
    address: tuple[int, int] | None = None
    given: bool = False
    """Whether it holds values before the kernel starts."""

    buffers: int = 1
    """Equal ones in rotation, for blocks."""

    turn: Index = field(default_factory=Index)
    """Which of them it is now."""

    uses: list[Use] = field(default_factory=list)
    recut: dict[int, int] = field(default_factory=dict)
    """Sizes of pieces that were found while the kernel was walked."""

    transposed: bool = False
    """Whether it is loaded transposed, its columns over partitions."""

    tile: Tile | None = None
    """Made by `laid_out`."""

    slot_axes: tuple[int, ...] = ()
    """Dimensions that are slots."""

    pieces: tuple[int, ...] = ()
    """Size of a piece in each dimension; 1 in those that are slots."""

    @functools.cached_property
    def written(self) -> bool:
        """Whether the kernel writes it."""
        return any(use.writes for use in self.uses)

    @functools.cached_property
    def packed(self) -> bool:
        """Whether four values are one element."""
        return any(use.packed for use in self.uses)

    @functools.cached_property
    def rows(self) -> bool:
        """Whether its rows lie over partitions, 128 at a time."""
        return self.memory != "hbm" and not any(use.by == "engine" for use in self.uses)


def keys_of(shape: Sequence[int], transforms: Sequence[Any]) -> tuple[Key, ...] | None:
    """What indexing leaves of each dimension; None for gathers and changes of shape."""
    keys: list[Key] = [Span(0, n) for n in shape]
    for transform in transforms:
        if not isinstance(transform, indexing.NDIndexer):
            return None
        left = [k for k, key in enumerate(keys) if isinstance(key, Span)]
        for axis, index in zip(left, transform.indices, strict=True):
            held = keys[axis]
            assert isinstance(held, Span)
            if isinstance(index, indexing.Slice):
                if not isinstance(index.size, int):
                    return None
                start = _place(held, plain(index.start))
                keys[axis] = Span(start, index.size, held.step * index.stride)
            elif getattr(index, "shape", ()):
                if getattr(index, "view", "") != "iota" or len(index.shape) != 1:
                    return None
                keys[axis] = Span(_place(held, 0), index.shape[0], held.step)
            else:
                keys[axis] = At(_place(held, plain(index)))
    return tuple(keys)


def _place(held: Span, start: Any) -> Any:
    """Where an index into a part lies in the whole."""
    if held == Span(0, held.size):
        return start
    if not (is_integer(start) and is_integer(held.start)):
        return UNKNOWN
    return plain(as_index(held.start) + as_index(start) * held.step)


def element_name(dtype: Any, packed: bool = False) -> str:
    """NKI's name of an element type; of one that engines do not know, one as wide."""
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return "uint32"
    name = dtype_name(dtype) or str(dtype)
    if packed or name.startswith("float4"):
        return f"{name}_x4"
    if name in DTYPES:
        return name
    width = jnp.dtype(dtype).itemsize
    return {1: "uint8", 2: "uint16"}.get(width, "float32")


def matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of an array on partitions: its last dimension lies in one. A vector fills as
    many partitions as it can."""
    if not shape:
        return 1, 1
    if len(shape) == 1:
        rows = min(shape[0], PARTITIONS)
        return rows, -(-shape[0] // rows) if rows else 1
    rows, columns = math.prod(shape[:-1]), shape[-1]
    while columns > _LONGEST and columns % 2 == 0:  # more than an instruction reaches
        rows, columns = rows * 2, columns // 2
    return rows, columns


def laid_out(ref: Ref) -> None:
    """Chooses the tile of a Ref."""
    shape = tuple(max(1, n) for n in ref.shape)
    dtype = element_name(ref.dtype, ref.packed)
    if dtype.endswith("_x4") and shape[-1:] == (4,):
        shape = shape[:-1] or (1,)
    if ref.memory == "hbm":
        ref.pieces = tuple(_piece(ref, k, n) for k, n in enumerate(shape))
        slots = math.prod(n // p for n, p in zip(shape, ref.pieces)) if ref.written else 1
        ref.tile = Tile(ref.name, "hbm", shape or (1,), dtype, slots, given=ref.given)
        return
    memory: Literal["sbuf", "psum"] = "psum" if ref.memory == "psum" else "sbuf"
    size: tuple[int, ...]
    if ref.rows:
        rows, columns = matrix(shape[:-3:-1] if ref.transposed else shape)
        size, slots = (min(rows, PARTITIONS), columns), -(-rows // PARTITIONS)
    else:
        ref.slot_axes = _slot_axes(ref, shape)
        kept = [k for k in range(len(shape)) if k not in ref.slot_axes]
        pieces = {k: _free_piece(ref, k, shape, dtype, memory) for k in kept[1:]}
        pieces |= dict.fromkeys(ref.slot_axes, 1)
        ref.pieces = tuple(pieces.get(k, n) for k, n in enumerate(shape))
        size = tuple(ref.pieces[k] for k in kept)
        size = size if len(size) > 1 else (*size, 1)
        slots = math.prod(n // p for n, p in zip(shape, ref.pieces))
    ref.tile = Tile(
        ref.name, memory, size, dtype, slots * ref.buffers, address=ref.address, given=ref.given
    )


def _slot_axes(ref: Ref, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Dimensions that engines' instructions index by integers; two are left at least."""
    engine = [use.keys for use in ref.uses if use.by == "engine"]
    axes = [k for k in range(len(shape)) if all(isinstance(keys[k], At) for keys in engine)]
    return tuple(axes[: max(0, len(shape) - 2)])


def _piece(ref: Ref, axis: int, size: int) -> int:
    """How a dimension is cut by places that loops decide."""
    if axis in ref.recut:
        return ref.recut[axis]
    piece = size
    cut = False
    for use in ref.uses:
        key = use.keys[axis]
        start = key.index if isinstance(key, At) else key.start
        length = 1 if isinstance(key, At) else key.size
        if isinstance(key, Span) and key.step != 1:
            return size
        cut |= not isinstance(start, int)
        piece = math.gcd(piece, length, start if isinstance(start, int) else 0)
    return piece if cut else size


def _free_piece(ref: Ref, axis: int, shape: tuple[int, ...], dtype: str, memory: str) -> int:
    """The same, where slots of that size waste nothing."""
    piece = _piece(ref, axis, shape[axis])
    inner = math.prod(shape[axis + 1 :]) * DTYPES[dtype].bytes
    aligned = 2048 % (piece * inner) == 0 or piece * inner % 2048 == 0
    fits = piece * inner % _ALIGNMENT == 0 if memory == "sbuf" else aligned
    return piece if fits else shape[axis]


def access(ref: Ref, keys: Sequence[Key]) -> Access:
    """The part of a Ref's tile that these keys leave.

    **Raises:** `Recut`.
    """
    tile, given = ref.tile, keys
    assert tile is not None
    if tile.dtype.endswith("_x4") and len(keys) > len(ref.pieces or tile.shape):
        keys = keys[:-1]
    if ref.memory == "hbm":
        return seen(_in_hbm(ref, tile, keys), given)
    if ref.rows:
        return _rows(ref, tile, keys)
    slot, count, inner = as_index(0), 1, 1
    starts, sizes, steps = [], [], []
    partitions = next(k for k in range(len(keys)) if k not in ref.slot_axes)
    for axis in reversed(range(len(keys))):
        key, piece, extent = keys[axis], ref.pieces[axis], ref.shape[axis]
        first = key.index if isinstance(key, At) else key.start
        length = key.size if isinstance(key, Span) else 1
        if axis not in ref.slot_axes:
            uncut = piece == extent or axis == partitions
            starts.append(first if isinstance(first, int) and uncut else 0)
            sizes.append(min(piece, length))
            steps.append(key.step if isinstance(key, Span) else 1)
            if uncut:
                continue
        slot += _cut(ref, axis, first, piece) * inner
        count *= max(1, length // piece)
        inner *= extent // piece
    slot += ref.turn * inner
    if len(tile.shape) > len(sizes):
        starts, sizes, steps = [0, *starts], [1, *sizes], [1, *steps]
    found = Access(
        tile,
        slot,
        min(count, tile.slots),
        tuple(reversed(starts)),
        tuple(reversed(sizes)),
        tuple(reversed(steps)),
    )
    return seen(found, given)


def turns(ref: Ref, axis: int, place: Mod) -> bool:
    """Whether a place that comes again and again does so as slots do: modulo all of them."""
    if ref.memory == "hbm" or not ref.pieces:
        return True
    size = ref.shape[axis]
    outer = [n // p for n, p in zip(ref.shape[:axis], ref.pieces[:axis])]
    alone = ref.buffers == 1 and all(count == 1 for count in outer)
    return alone and place.by * place.scale == size and ref.pieces[axis] < size


def _cut(ref: Ref, axis: int, first: Any, piece: int) -> Index:
    """Number of the piece that begins at `first`; of one that data decide, the first."""
    if isinstance(first, Mod):  # slots are counted modulo their number anyway
        first = first.index * first.scale + first.offset
    if not is_integer(first):
        return as_index(0)
    place = as_index(first)
    common = math.gcd(piece, place.const, *(c for _, c in place.terms))
    if common != piece:
        raise Recut(ref, axis, common)
    return Index(place.const // piece, tuple((k, c // piece) for k, c in place.terms))


def _in_hbm(ref: Ref, tile: Tile, keys: Sequence[Key]) -> Access:
    slot, inner = as_index(0), 1
    for axis in reversed(range(len(keys))):
        key, piece = keys[axis], ref.pieces[axis]
        first = key.index if isinstance(key, At) else key.start
        count = ref.shape[axis] // piece
        if count > 1 and is_integer(first):
            place = as_index(first)
            terms = tuple((k, c // piece) for k, c in place.terms if c // piece)
            slot += Index(place.const // piece, terms) * inner
        inner *= count
    starts = tuple(
        key.start
        if isinstance(key, Span) and isinstance(key.start, int) and ref.pieces[k] == ref.shape[k]
        else 0
        for k, key in enumerate(keys)
    )
    sizes = tuple(key.size if isinstance(key, Span) else 1 for key in keys)
    steps = tuple(key.step if isinstance(key, Span) else 1 for key in keys)
    if not keys:
        return Access(tile)
    return Access(tile, slot if tile.slots > 1 else Index(), 1, starts, sizes, steps)


def _rows(ref: Ref, tile: Tile, keys: Sequence[Key]) -> Access:
    """Of rows over partitions: all chunks that are touched."""
    pieces = row_pieces(ref, keys)
    if len(pieces) == 1:
        return pieces[0]
    first = pieces[0]
    count = min(len(pieces), tile.slots)
    return Access(tile, first.slot, count, first.start, first.size, first.step)


def row_pieces(ref: Ref, keys: Sequence[Key]) -> list[Access]:
    """The same, one access for each 128 rows."""
    tile = ref.tile
    assert tile is not None
    chunks = tile.slots // ref.buffers
    shape = ref.shape[: len(keys)]
    lengths = [key.size if isinstance(key, Span) else 1 for key in keys]
    firsts = [key.index if isinstance(key, At) else key.start for key in keys]
    base = ref.turn * chunks
    if ref.transposed:
        last, wide = ref.shape[-1], tile.shape[1]
        tall = [min(PARTITIONS, last - k * PARTITIONS) for k in range(chunks)]
        return [Access(tile, base + k, 1, (0, 0), (h, wide), (1, 1)) for k, h in enumerate(tall)]
    if len(shape) < 2:
        return [_vector(tile, base, firsts, lengths)]
    rows, columns = matrix(lengths)
    split = rows // max(1, math.prod(lengths[:-1]))
    row = as_index(0)
    for size, first in zip(shape[:-1], firsts[:-1]):
        row = row * size + (as_index(first) if is_integer(first) else 0)
    row = row * split
    column = firsts[-1] if isinstance(firsts[-1], int) and split == 1 else 0
    column = min(column, tile.shape[1] - columns)
    chunk = row.const // PARTITIONS
    start = row.const % PARTITIONS
    terms = tuple((k, c // PARTITIONS) for k, c in row.terms if c % PARTITIONS == 0)
    slot = base + Index(chunk, terms)
    along = keys[-1]
    step = along.step if isinstance(along, Span) else 1
    found = []
    while rows > 0:
        high = min(rows, tile.shape[0] - start)
        found.append(Access(tile, slot, 1, (start, column), (high, columns), (1, step)))
        rows, start, slot = rows - high, 0, slot + 1
    return found


def _vector(tile: Tile, slot: Index, firsts: Sequence[Any], lengths: Sequence[int]) -> Access:
    """A part of a vector, or of a single number."""
    count = max(1, lengths[0] if lengths else 1)
    rows = min(count, tile.shape[0])
    columns = min(-(-count // rows), tile.shape[1])
    return Access(tile, slot, 1, (0, 0), (rows, columns), (1, 1))
