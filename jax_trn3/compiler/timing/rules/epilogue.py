"""What happens to a product on its way from PSUM to HBM: elementwise operations, and the store."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from jax_trn3.isa import DTYPES, Access, Index, Instruction, Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.scalar import activation
from jax_trn3.isa.tensor import nc_transpose
from jax_trn3.isa.vector import tensor_scalar, tensor_tensor
from jax_trn3.isa.vector_move import tensor_copy

from .product import runs_of
from .tiles import ROWS

_LOADS, _STORES = "dma:sync.epilogue", "dma:scalar"

STAGED_BYTES = 56 * 1024
"""Bytes of a partition for what is on its way out."""


@dataclass(frozen=True)
class Step:
    """One elementwise operation on a result."""

    engine: str
    """"scalar": a function or a product and sum with numbers; "vector": with another tensor, or
    what ScalarE has no function for."""

    op: str
    """A function of ScalarE's, or an operation of the ALU's."""

    dtype: str
    """Of what it writes."""

    other: str = ""
    """The other operand's type in HBM, if it has one that is not a number."""

    along: str = ""
    """Which elements that has: "all", "columns" (the same for every row) or "rows"; "own": the
    other operand is a value of the group's own."""

    passes: int = 1
    """Instructions that it takes."""

    kept: bool = False
    """Whether its result goes to HBM, too."""


@dataclass(frozen=True)
class Epilogue:
    """The way out of PSUM."""

    result: str
    """Element type of the last result."""

    steps: tuple[Step, ...] = ()
    plain: str = ""
    """Element type in which the product itself goes to HBM, too; "" if it does not."""

    deep: int = 16
    """Tiles of results that may be on their way at once, at most."""

    rows: int = 4
    """Row tiles in a block."""

    @property
    def tiles(self) -> int:
        """Tiles in SBUF as large as a row of results."""
        others = sum(step.along in ("all", "columns") for step in self.steps)
        kept = sum(step.kept for step in self.steps)
        return 1 + (len(self.steps) > 1) + bool(self.plain) + kept + others

    def stored(
        self, sums: list[list[Access]], place: Index, room: int, whole: bool
    ) -> Iterator[Instruction]:
        """A block of results to HBM: rows of tiles in PSUM, each at most 128 x 512."""
        spans = [0, *itertools.accumulate(part.shape[1] for part in sums[0])]
        values = {
            (row, first, last): part
            for row, parts in enumerate(sums)
            for part, first, last in zip(parts, spans, spans[1:])
        }
        yield from self._worked(values, place, room, "result", self.result)
        names = {"result": self.result}
        names |= {"product": self.plain} if self.plain else {}
        names |= {f"step {n}": step.dtype for n, step in enumerate(self.steps) if step.kept}
        for name, dtype in names.items():
            tile = self._tile(name, room, dtype)
            first = 0
            for height, count in runs_of(parts[0].shape[0] for parts in sums):
                run = tile.run(place + first, count)[0:height, 0 : spans[-1]]
                yield _store(name, run, whole)
                first += count

    def turned(self, sums: list[Access], place: Index) -> Iterator[Instruction]:
        """Tiles of a transposed result: through the tensor engine, then to HBM."""
        width = sums[0].shape[1]
        # The tensor engine transposes floats.
        kept = self.result in ("float32", "bfloat16", "float16")
        dtype = self.result if kept else "float32"
        values = {(row, 0, width): part for row, part in enumerate(sums)}
        yield from self._worked(values, place, width, "turning", dtype)
        for row, parts in enumerate(sums):
            height = parts.shape[0]
            ready = self._tile("turning", width, dtype)[place + row][0:height]
            for first in range(0, width, ROWS):
                part = ready[:, first : min(width, first + ROWS)]
                back = Tile("turned", "psum", (ROWS, ROWS), dtype, 4)
                out = self._tile("result", ROWS, self.result)
                index = (place + row) * 2 + first // ROWS
                size = slice(0, part.shape[1]), slice(0, height)
                yield nc_transpose(back[index][size], part)
                yield _copied(out[index][size], back[index][size], row)
                yield _store("result", out[index][size], False)

    def _worked(
        self,
        values: dict[tuple[int, int, int], Access],
        place: Index,
        room: int,
        name: str,
        dtype: str,
    ) -> Iterator[Instruction]:
        """Step after step, each on all tiles of a block: engines overlap from tile to tile."""

        def part(tile: Tile, row: int, span: slice, like: Access) -> Access:
            return tile[place + row][0 : like.shape[0], span]

        last = self._tile(name, room, dtype)
        for number, ((row, first, end), value) in enumerate(values.items()):
            span = slice(first, end)
            if self.plain:
                product = self._tile("product", room, self.plain)
                yield _copied(part(product, row, span, value), value, number)
            if not self.steps:
                yield _copied(part(last, row, span, value), value, number)
        for index, step in enumerate(self.steps):
            final = index == len(self.steps) - 1
            target = last if final else self._scratch(room)
            if step.kept:
                target = self._tile(f"step {index}", room, step.dtype)
            if step.along:
                yield from self._loaded(step, index, values, place, room)
            for (row, first, end), value in values.items():
                span = slice(first, end)
                into = part(target, row, span, value)
                for count in range(step.passes):
                    other = self._other(step, index, row, span, value, place, room, count == 0)
                    yield _done(step, into, value, other)
                    value = into
                values[row, first, end] = value

    def _loaded(
        self,
        step: Step,
        index: int,
        values: dict[tuple[int, int, int], Access],
        place: Index,
        room: int,
    ) -> Iterator[Instruction]:
        """The other operand from HBM, as much of it as a block needs."""
        if step.along == "own":
            return
        other = self._operand(step, index, room)
        heights = {row: value.shape[0] for (row, *_), value in values.items()}
        width = max(end for *_, end in values) if step.along != "rows" else 1
        apart = 2 * width if width > 1 else 1
        for row, height in heights.items():
            if step.along == "columns" and row:
                break
            source = Tile(f"other {index} in hbm", "hbm", (ROWS, apart), other.dtype, given=True)
            into = other[place + row][0:height, 0:width]
            yield dma_copy(into, source[0:height, 0:width], engine=_LOADS)

    def _operand(self, step: Step, index: int, room: int) -> Tile:
        if step.along == "rows":
            return Tile(f"other {index}", "sbuf", (ROWS, 1), "float32", 16)
        return self._tile(f"other {index}", room, step.other)

    def _other(
        self,
        step: Step,
        index: int,
        row: int,
        span: slice,
        value: Access,
        place: Index,
        room: int,
        first: bool,
    ) -> Access | None:
        """The other operand of a step on one tile, if it is no number."""
        if not step.along or not first:
            return None
        if step.along == "own":
            return value
        tile = self._operand(step, index, room)
        at = place + (0 if step.along == "columns" else row)
        columns = slice(0, 1) if step.along == "rows" else span
        return tile[at][0 : value.shape[0], columns]

    def _scratch(self, room: int) -> Tile:
        wide = any(DTYPES[step.dtype].bytes > 2 for step in self.steps)
        return self._tile("between", room, "float32" if wide else "bfloat16")

    def _tile(self, name: str, columns: int, dtype: str) -> Tile:
        slots = STAGED_BYTES // self.tiles // (columns * DTYPES[dtype].bytes)
        least = 1 << (self.rows - 1).bit_length()
        slots = next(n for n in (16, 8, 4, 2, 1) if n <= max(least, min(slots, self.deep)))
        return Tile(name, "sbuf", (ROWS, columns), dtype, slots)


def staged_bytes(epilogue: Epilogue, rows: int, columns: int) -> int:
    """Bytes of a partition that results on their way out take, at most."""
    least = (1 << (rows - 1).bit_length()) * columns * 4
    return max(STAGED_BYTES, epilogue.tiles * least) + 4096


def _done(step: Step, into: Access, value: Access, other: Access | None) -> Instruction:
    """One step on one tile."""
    if step.along == "rows" and other is not None:
        return tensor_scalar(into, value, other, op0=step.op, engine="vector")
    if other is not None and value.memory == "psum" and other.memory == "psum":
        return activation(into, value, op="square")
    if other is not None:
        return tensor_tensor(into, value, other, op=step.op)
    if step.engine == "scalar":
        return activation(into, value, op=step.op)
    return tensor_scalar(into, value, 1.0, op0=step.op, engine="vector")


def _copied(into: Access, value: Access, number: int) -> Instruction:
    """Out of PSUM, by VectorE and ScalarE in turn."""
    if number % 2:
        return tensor_copy(into, value, engine="vector")
    return activation(into, value, op="copy")


def _store(name: str, value: Access, whole: bool) -> Instruction:
    *outer, width = value.shape
    shape = (*outer, width if whole else 2 * width)
    tile = Tile(f"{name} in hbm {'x'.join(map(str, shape))}", "hbm", shape, value.dtype)
    part = (slice(None),) * len(outer) + (slice(0, width),)
    return dma_copy(tile[part], value, engine=_STORES)
