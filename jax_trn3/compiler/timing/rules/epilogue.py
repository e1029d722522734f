"""What happens to a product on its way from PSUM to HBM: elementwise operations, and the store."""

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

_STAGED_BYTES = 56 * 1024
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
    """Which elements that has: "all", "columns" (the same for every row) or "rows"."""

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

    def stored(
        self, sums: list[list[Access]], place: Index, room: int, whole: bool
    ) -> Iterator[Instruction]:
        """A block of results to HBM: rows of tiles in PSUM, each at most 128 x 512."""
        for row, parts in enumerate(sums):
            at = 0
            for number, part in enumerate(parts):
                height, width = part.shape
                last = self._tile("result", room, self.result)[place + row]
                into = last[0:height, at : at + width]
                span = slice(at, at + width)
                yield from self._worked(
                    part, into, place + row, row * len(parts) + number, room, span
                )
                at += width
        names = {"result": self.result}
        names |= {"product": self.plain} if self.plain else {}
        names |= {f"step {n}": step.dtype for n, step in enumerate(self.steps) if step.kept}
        for name, dtype in names.items():
            tile = self._tile(name, room, dtype)
            first = 0
            for height, count in runs_of(parts[0].shape[0] for parts in sums):
                run = tile.run(place + first, count)[0:height, 0:at]
                yield _store(name, run, whole)
                first += count

    def turned(self, sums: Access, place: Index, row: int) -> Iterator[Instruction]:
        """A tile of a transposed result: through the tensor engine, then to HBM."""
        height, width = sums.shape
        # The tensor engine transposes floats.
        kept = self.result in ("float32", "bfloat16", "float16")
        ready = self._tile("turning", width, self.result if kept else "float32")[place]
        yield from self._worked(sums, ready[0:height], place, row, width, slice(0, width))
        for first in range(0, width, ROWS):
            part = ready[0:height, first : min(width, first + ROWS)]
            back = Tile("turned", "psum", (ROWS, ROWS), ready.dtype, 4)
            out = self._tile("result", ROWS, self.result)
            index = place * 2 + first // ROWS
            size = slice(0, part.shape[1]), slice(0, height)
            yield nc_transpose(back[index][size], part)
            yield _copied(out[index][size], back[index][size], row)
            yield _store("result", out[index][size], False)

    def _worked(
        self, sums: Access, last: Access, place: Index, number: int, room: int, span: slice
    ) -> Iterator[Instruction]:
        height = sums.shape[0]
        if self.plain:
            product = self._tile("product", room, self.plain)[place][0:height, span]
            yield _copied(product, sums, number)
        if not self.steps:
            yield _copied(last, sums, number)
            return
        value = sums
        for index, step in enumerate(self.steps):
            into = last
            if index < len(self.steps) - 1 or step.kept:
                into = self._tile(f"step {index}", room, step.dtype)[place][0:height, span]
            for part in range(step.passes):
                yield from self._step(step, index, into, value, place, part == 0)
                value = into
        if self.steps[-1].kept:
            yield _copied(last, value, number)

    def _step(
        self, step: Step, index: int, into: Access, value: Access, place: Index, loads: bool
    ) -> Iterator[Instruction]:
        height, width = value.shape[0], into.shape[1]
        if step.along in ("all", "columns") and loads:
            slots = 2
            other = Tile(f"other {index}", "sbuf", (ROWS, into.tile.shape[1]), step.other, slots)
            span = slice(into.start[1], into.start[1] + width)
            access = other[place][0:height, span]
            source = Tile(
                f"other {index} in hbm {width}", "hbm", (ROWS, 2 * width), step.other, given=True
            )
            yield dma_copy(access, source[0:height, 0:width], engine=_LOADS)
            yield tensor_tensor(into, value, access, op=step.op)
        elif step.along == "rows" and loads:
            other = Tile(f"other {index}", "sbuf", (ROWS, 1), "float32", 2)
            source = Tile(f"other {index} in hbm", "hbm", (ROWS, 1), "float32", given=True)
            yield dma_copy(other[place][0:height], source[0:height], engine=_LOADS)
            yield tensor_scalar(into, value, other[place][0:height], op0=step.op, engine="vector")
        elif step.engine == "scalar":
            yield activation(into, value, op=step.op)
        else:
            yield tensor_scalar(into, value, 1.0, op0=step.op, engine="vector")

    def _tile(self, name: str, columns: int, dtype: str) -> Tile:
        share = _STAGED_BYTES // (1 + len(self.steps) + bool(self.plain))
        slots = share // (columns * DTYPES[dtype].bytes)
        slots = next(n for n in (16, 8, 4) if n <= max(4, min(slots, self.deep)))
        return Tile(name, "sbuf", (ROWS, columns), dtype, slots)


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
