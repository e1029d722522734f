"""The instructions of a blocked matrix product."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from jax_trn3.hardware import Chip
from jax_trn3.isa import Access, Index, Instruction, Tile, as_index
from jax_trn3.isa.dma import dma_copy, dma_transpose
from jax_trn3.isa.tensor import nc_matmul, nc_matmul_mx
from jax_trn3.isa.vector import tensor_scalar
from jax_trn3.simulator import Node, Program, loop, program

from .epilogue import Epilogue
from .prepare import prepared
from .product import Blocking, Product, Side, blocking, runs_of, spans
from .tiles import ROWS, ceil_div

_LOADS = {"lhs": "dma:gpsimd", "rhs": "dma:sync"}
_STORES = "dma:scalar"

_MANY = 32
"""Blocks among which one more or less does not count."""

_LONG = 1500
"""Multiplications after which a program is long enough: its start and end no longer count."""


def multiply(
    title: str, product: Product, chip: Chip, epilogue: Epilogue
) -> tuple[Program, int, Blocking]:
    """A product as a program, how often that runs, and how it is blocked."""
    before: list[tuple[str, Side]] = []
    given = product
    blocks = blocking(product, chip)
    for name, operand in (("lhs", product.lhs), ("rhs", product.rhs)):
        if operand.quantized or (operand.passes and _times(blocks, name) > 1):
            before.append((name, operand))
            ready = replace(
                operand, passes=0, quantized=False, transposed=False, run=operand.size,
                packed=product.precision.scaled, stored=_dtype(product, name),
            )  # fmt: skip
            product = replace(product, lhs=ready) if name == "lhs" else replace(product, rhs=ready)
            blocks = blocking(product, chip)
    body, repeat = _Writer(blocks, chip, epilogue).program()
    # Where the program runs several times, each does its part of what comes before.
    first = [
        node
        for name, operand in before
        for node in prepared(name, operand, given.k, given.batch, given.precision, repeat)
    ]
    return program(title, [*first, *body]), repeat, blocks


def _dtype(product: Product, side: str) -> str:
    precision = product.precision
    return precision.stationary if side == "lhs" else precision.moving


def _times(blocks: Blocking, side: str) -> int:
    """How often an operand is brought to SBUF."""
    if side == ("rhs" if blocks.product.turned else "lhs"):
        name, others = "lhs", ceil_div(blocks.product.rhs.size, blocks.width * blocks.columns)
    else:
        name, others = "rhs", ceil_div(blocks.product.lhs.size, ROWS * blocks.rows)
    return 1 if name == blocks.keeps else others


@dataclass(frozen=True)
class _Operand:
    """One operand in SBUF: tiles of the contracted axis, each as wide as a block."""

    name: str
    side: Side
    dtype: str
    blocks: Blocking
    columns: int
    """Of a full block."""

    slots: int

    def load(self, at: Index, count: int, columns: int) -> Iterator[Instruction]:
        """Brings `count` tiles of the contracted axis to SBUF."""
        into = self._sbuf.run(at, count)
        columns = ceil_div(columns * self.side.thin, self.side.reuse)
        if self.side.passes:
            yield from self._load(self._raw.run(at, count), count, columns)
            yield from self._worked(at, count, columns)
        else:
            yield from self._load(into, count, columns)
        if self.side.packed:
            scales = self._scales.run(_whole(at, self.blocks.chunk), 1)
            source = Tile(
                f"{self.name} scales", "hbm", (self._scales.shape[0], 2 * self.columns), "uint8",
                given=True,
            )  # fmt: skip
            yield dma_copy(
                scales[:, 0:columns], source[:, 0:columns], engine=_LOADS[self.name] + ".scales"
            )

    def tile(self, at: Index, place: int, first: int, last: int) -> list[Access]:
        """Columns of tile `place` of the chunk that begins at `at`, and their scales."""
        pairs = self.blocks.product.precision.pairs
        part = (slice(None), *([slice(None)] * (pairs > 1)), slice(first, last))
        found = [self._sbuf[at + place][part]]
        if self.side.packed:
            start = 4 * place
            rows = slice(start, start + self.blocks.partitions - 28)
            chunk = _whole(at, self.blocks.chunk)
            found.append(self._scales[chunk][rows, first:last])
        return found

    @property
    def _shape(self) -> tuple[int, ...]:
        pairs = self.blocks.product.precision.pairs
        columns = self.columns * self.side.thin
        return (self.blocks.partitions, *((pairs,) if pairs > 1 else ()), columns)

    @property
    def _sbuf(self) -> Tile:
        return Tile(
            f"{self.name} in sbuf", "sbuf", self._shape, self.dtype, self.slots,
            given=self.side.reuse > 1,
        )  # fmt: skip

    @property
    def _raw(self) -> Tile:
        slots = min(self.slots, 2 * self.blocks.chunk)
        return Tile(f"{self.name} as it lies", "sbuf", self._shape, self.side.stored, slots)

    @property
    def _scales(self) -> Tile:
        slots = ceil_div(self.slots, self.blocks.chunk)
        shape = (self.blocks.partitions, self.columns)
        return Tile(f"{self.name} scales in sbuf", "sbuf", shape, "uint8", slots)

    def _load(self, into: Access, count: int, columns: int) -> Iterator[Instruction]:
        engine = _LOADS[self.name]
        pairs = self._shape[1:-1]
        counts = (count,) if count > 1 else ()
        if self.side.transposed and not self.side.packed:
            rows = (columns, *counts, *pairs, self.blocks.partitions)
            source = Tile(self.name, "hbm", rows, self.side.stored, given=True)
            yield dma_transpose(_first(into, 0, columns), source[0], engine=engine)
            return
        at = 0
        for run, pieces in _runs(columns, self.side.run):
            whole = run == columns == self.side.size
            shape = (self.blocks.partitions, *counts, *pairs, pieces, run if whole else 2 * run)
            source = Tile(f"{self.name} by {run}", "hbm", shape, self.side.stored, given=True)
            part = source[(slice(None),) * (len(shape) - 1) + (slice(0, run),)]
            yield dma_copy(_first(into, at, at + run * pieces), part, engine=engine)
            at += run * pieces

    def _worked(self, at: Index, count: int, columns: int) -> Iterator[Instruction]:
        """The elementwise operations before the product."""
        raw, ready = self._raw.run(at, count), self._sbuf.run(at, count)
        source = _first(raw, 0, columns)
        for number in range(self.side.passes):
            into = _first(ready, 0, columns)
            if number < self.side.passes - 1:
                into = source
            yield tensor_scalar(into, source, 1.0, op0="multiply", engine="vector")


def _whole(at: Index, chunk: int) -> Index:
    """Number of the chunk that begins at tile `at`."""
    return Index(at.const // chunk, tuple((k, c // chunk) for k, c in at.terms if c // chunk))


def _first(access: Access, first: int, last: int) -> Access:
    """Columns `first` to `last` in the last dimension of the slots."""
    return access[(slice(None),) * (len(access.size) - 1) + (slice(first, last),)]


def _runs(columns: int, run: int) -> Iterator[tuple[int, int]]:
    """(length, number) of the pieces that lie next to each other in memory."""
    run = min(run, columns)
    if columns // run:
        yield run, columns // run
    if columns % run:
        yield columns % run, 1


class _Writer:
    """Writes the program of one blocking."""

    def __init__(self, blocks: Blocking, chip: Chip, epilogue: Epilogue) -> None:
        product, precision = blocks.product, blocks.product.precision
        self.blocks, self.product, self.chip = blocks, product, chip
        # Fewer in rotation repeat sooner; where results come slowly, they are enough.
        deep = 2 * blocks.rows if blocks.tiles >= 8 else 16
        self.epilogue = replace(epilogue, deep=max(4, deep), rows=blocks.rows)
        wide = {"lhs": blocks.rows * ROWS, "rhs": blocks.columns * blocks.width}
        self.operands = {
            name: _Operand(
                name, side, dtype, blocks, min(wide[name], ceil_div(side.size, 2) * 2),
                blocks.slots(name),
            )
            for name, side, dtype in (
                ("lhs", product.lhs, precision.stationary),
                ("rhs", product.rhs, precision.moving),
            )
        }  # fmt: skip
        places = blocks.rows * blocks.columns
        slots = min(8, 2 * places) if not product.turned else min(4, 2 * places)
        # A power of two, of which a bank holds a whole number.
        width = 1 << (blocks.width - 1).bit_length()
        self.psum = Tile("sums", "psum", (ROWS, width), "float32", slots)

    def program(self) -> tuple[list[Node], int]:
        """Its body, and how often that runs."""
        kept = self.blocks.keeps or "lhs"
        streamed = "rhs" if kept == "lhs" else "lhs"
        steps = {name: self.operands[name].columns for name in self.operands}
        outer = runs_of(spans(self._size(kept), steps[kept]))
        inner = spans(self._size(streamed), steps[streamed])
        if len(outer) == 2 and outer[0][1] >= _MANY:
            # So many blocks that the last one may as well be full.
            outer = [(outer[0][0], outer[0][1] + 1)]
        if len(outer) > 1 or self.product.batch * outer[0][1] == 1:
            return self._batched(outer, inner, kept, streamed), 1
        ((size, often),) = outer
        total = self.product.batch * often
        one = self.blocks.tiles * len(inner) * self.blocks.rows * self.blocks.columns
        inside = next((d for d in range(1, total) if total % d == 0 and d * one >= _LONG), total)
        body = loop(inside, lambda i: self._pass(i, size, inner, kept, streamed))
        return [body], total // inside

    def _size(self, name: str) -> int:
        side: Side = getattr(self.product, name)
        return side.size

    def _batched(
        self, outer: list[tuple[int, int]], inner: list[int], kept: str, streamed: str
    ) -> list[Node]:
        def one(_: Index) -> Iterable[Node]:
            for size, often in outer:
                if often > 1:
                    one_of = functools.partial(
                        self._pass, size=size, inner=inner, kept=kept, streamed=streamed
                    )
                    yield loop(often, one_of)
                else:
                    yield from self._pass(as_index(0), size, inner, kept, streamed)

        batch = self.product.batch
        return [loop(batch, one)] if batch > 1 else list(one(as_index(0)))

    def _pass(
        self, i: Index, size: int, inner: list[int], kept: str, streamed: str
    ) -> Iterator[Node]:
        """A block of the kept operand against all of the other one."""
        stride = len(inner)
        sizes = {kept: size}
        yield from self._block(i, i * stride, {**sizes, streamed: inner[0]}, first=True)
        done = 1
        for width, often in runs_of(inner[1:]):
            base = i * stride + done
            if often > 1:
                yield loop(
                    often, functools.partial(self._later, i, base, {**sizes, streamed: width})
                )
            else:
                yield from self._block(i, base, {**sizes, streamed: width})
            done += often

    def _later(self, i: Index, base: Index, sizes: dict[str, int], j: Index) -> Iterator[Node]:
        return self._block(i, base + j, sizes)

    def _block(
        self, outer: Index, number: Index, sizes: dict[str, int], first: bool = False
    ) -> Iterator[Node]:
        """One block of results, from all of the contracted axis."""
        blocks = self.blocks
        chunk, tiles = blocks.chunk, blocks.tiles
        rows, columns = spans(sizes["lhs"], ROWS), spans(sizes["rhs"], blocks.width)
        results = number * (blocks.rows * blocks.columns)

        def step(index: Index, count: int) -> Iterator[Node]:
            at = {
                name: ((outer if name == blocks.keeps else number) * blocks.chunks + index) * chunk
                for name in self.operands
            }
            for name, operand in self.operands.items():
                if first or name != blocks.keeps:
                    yield from operand.load(at[name], count, sizes[name])
            for tile in range(count):
                for row, height in enumerate(rows):
                    start = row * ROWS
                    left = self.operands["lhs"].tile(at["lhs"], tile, start, start + height)
                    for column, width in enumerate(columns):
                        start = column * blocks.width
                        right = self.operands["rhs"].tile(at["rhs"], tile, start, start + width)
                        sums = self.psum[results + (row * blocks.columns + column)]
                        yield self._multiplied(sums[0:height, 0:width], left, right)

        full, rest = divmod(tiles, chunk)
        if full > 1:
            yield loop(full, lambda index: step(index, chunk))
        elif full:
            yield from step(as_index(0), chunk)
        if rest:
            yield from step(as_index(full), rest)
        yield from self._out(number, results, rows, columns)

    def _multiplied(self, into: Access, left: list[Access], right: list[Access]) -> Instruction:
        kind = self.product.precision.kind
        if kind == "mx":
            return nc_matmul_mx(into, left[0], right[0], left[1], right[1])
        if kind == "float8_double_row":
            return nc_matmul(into, left[0], right[0], perf_mode="double_row")
        return nc_matmul(into, left[0], right[0])

    def _out(
        self, number: Index, results: Index, rows: list[int], columns: list[int]
    ) -> Iterator[Node]:
        """The results through the epilogue to HBM."""
        blocks = self.blocks
        sums = [
            [
                self.psum[results + (row * blocks.columns + column)][0:height, 0:width]
                for column, width in enumerate(columns)
            ]
            for row, height in enumerate(rows)
        ]
        place = number * blocks.rows
        if self.product.turned and min(self.product.lhs.size, self.product.rhs.size) > 1:
            yield from self.epilogue.turned([part for (part,) in sums], place)
            return
        whole = blocks.product.rhs.size == sum(columns)
        yield from self.epilogue.stored(sums, place, blocks.columns * blocks.width, whole)
