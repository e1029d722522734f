"""A matrix product as an instruction program: what is multiplied, and how it is blocked.

[M, N] = [K, M].T @ [K, N], for each of a batch. One operand is stationary, the other moves; eight
results of [128, 512] are summed in PSUM at a time, K in the innermost loop. Of one operand all of K
that the eight results need stays in SBUF while the other streams by, if it fits. While the last
tiles of K are multiplied the first of the results are copied out.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from jax_trn3.hardware import Chip
from jax_trn3.isa import DTYPES

from .tiles import BANKS, COLUMNS, ROWS, Rates, ceil_div

_BUFFERS = (4, 3, 5, 6, 7)
"""Blocks of the streaming operand in rotation; best if the blocks of K are a multiple of it, so
that a pass over K ends where it began."""

_CHUNK_BYTES = 8 * 1024
"""Bytes of a partition that one transfer of the streaming operand brings, at most."""

_TURNING_NS = 1_500
"""Time that a result's way through the tensor engine and PSUM takes on its own, ns."""

_KEPT_BYTES = 64 * 1024
"""Bytes of a partition up to which the operand that stays is there several times: loaded for the
next results while these are under way."""


@dataclass(frozen=True)
class Precision:
    """How the tensor engine takes the operands."""

    stationary: str
    """Element type in SBUF."""

    moving: str

    kind: str
    """A key of `TensorEngine.passes`."""

    @property
    def pairs(self) -> int:
        """Values of the contracted axis that lie side by side in a partition, unpacked."""
        return 2 if self.kind == "float8_double_row" else 1

    @property
    def scaled(self) -> bool:
        """Whether scales come with the operands (MX)."""
        return self.kind == "mx"

    @property
    def depth(self) -> int:
        """Values of the contracted axis in a full tile."""
        return 512 if self.scaled else 128 * self.pairs

    def column_bytes(self, dtype: str) -> float:
        """Bytes in a partition of one column of a tile, its scale included."""
        return DTYPES[dtype].bytes * self.pairs + 0.25 * self.scaled

    def swapped(self) -> "Precision":
        """With the operands exchanged."""
        return replace(self, stationary=self.moving, moving=self.stationary)


@dataclass(frozen=True)
class Side:
    """One operand: its free axis, and how it lies in HBM."""

    size: int
    """Elements of the free axis, of one of the batch."""

    stored: str
    """Element type in HBM; with `packed` that of SBUF."""

    run: int
    """Elements that lie next to each other in HBM."""

    transposed: bool = False
    """Whether the contracted axis is the last one in HBM, not the free one."""

    passes: int = 0
    """Elementwise operations that it goes through before the product."""

    quantized: bool = False
    """Whether it is to be quantized to MX."""

    packed: bool = False
    """Whether it lies in HBM as MX data with scales."""

    thin: int = 1
    """Elements that come in for each that the array is given (sparsity, strides)."""

    reuse: int = 1
    """Tiles of the contracted axis that read the same elements, shifted (convolutions)."""


@dataclass(frozen=True)
class Product:
    """What is to be multiplied."""

    batch: int
    k: int
    lhs: Side
    rhs: Side
    precision: Precision
    result: str
    """Element type of the result in HBM."""

    turned: bool = False
    """Whether the operands are exchanged: the result comes out transposed."""

    staged: Callable[[int, int], int] = lambda rows, columns: 64 * 1024
    """Bytes of a partition for a block of results on its way out, by row tiles and columns."""

    def exchanged(self) -> "Product":
        """The same product with the other operand stationary."""
        return replace(
            self,
            lhs=self.rhs,
            rhs=self.lhs,
            precision=self.precision.swapped(),
            turned=not self.turned,
        )


@dataclass(frozen=True)
class Blocking:
    """How a product is cut; `lhs` is stationary."""

    product: Product
    keeps: str
    """The operand of which all of K stays in SBUF: "lhs", "rhs", or "" where neither fits."""

    rows: int
    """Tiles of rows in a block."""

    columns: int
    """Tiles of columns in a block."""

    width: int
    """Columns of a tile."""

    @property
    def tiles(self) -> int:
        """Tiles of the contracted axis."""
        return ceil_div(self.product.k, self.product.precision.depth)

    @property
    def partitions(self) -> int:
        """Partitions of each."""
        each = ceil_div(ceil_div(self.product.k, self.tiles), self.product.precision.depth // 128)
        return ceil_div(each, 32) * 32 if self.product.precision.scaled else each

    @property
    def chunk(self) -> int:
        """Tiles of the contracted axis that one transfer brings."""
        precision = self.product.precision
        widest = max(
            self.rows * ROWS * precision.column_bytes(precision.stationary),
            self.columns * self.width * precision.column_bytes(precision.moving),
        )
        if precision.scaled:
            return min(4, self.tiles)  # whose scales lie in one tile
        return max(1, min(4, self.tiles, int(_CHUNK_BYTES // widest)))

    @property
    def chunks(self) -> int:
        """Transfers that all of K takes."""
        return ceil_div(self.tiles, self.chunk)

    @property
    def buffers(self) -> int:
        """Chunks of the streaming operand in rotation."""
        return next((n for n in _BUFFERS if self.chunks % n == 0), _BUFFERS[0])

    def slots(self, name: str) -> int:
        """Tiles of the contracted axis that SBUF holds of an operand."""
        if name != self.keeps:
            return self.buffers * self.chunk
        once = self.chunks * self.chunk
        copies = int(_KEPT_BYTES // (once * self.tile_bytes(name)))
        several = (4, 2, 1) if self.chunks <= 2 else (2, 1)
        return once * next(n for n in several if n <= max(1, copies))

    def tile_bytes(self, name: str) -> float:
        """Bytes of a partition of one tile of the contracted axis, as wide as a block."""
        precision = self.product.precision
        side: Side = getattr(self.product, name)
        if name == "lhs":
            return self.rows * ROWS * precision.column_bytes(precision.stationary) * side.thin
        return self.columns * self.width * precision.column_bytes(precision.moving) * side.thin

    def worked_bytes(self, name: str) -> float:
        """Bytes of a partition for what an operand is before engines worked on it."""
        side: Side = getattr(self.product, name)
        if not side.passes:
            return 0
        columns = self.rows * ROWS if name == "lhs" else self.columns * self.width
        return 2 * self.chunk * columns * DTYPES[side.stored].bytes * self.product.precision.pairs

    def fits(self, chip: Chip) -> bool:
        """Whether SBUF holds it."""
        wide = self.columns * self.width
        room = chip.core.sbuf_usable_partition_bytes - self.product.staged(self.rows, wide)
        used = sum(
            self.slots(name) * max(32, self.tile_bytes(name)) + self.worked_bytes(name)
            for name in ("lhs", "rhs")
        )
        return used <= room


def blocking(product: Product, chip: Chip) -> Blocking:
    """The blocking that takes the least time, as far as rates alone say."""
    fitting = [b for b in _candidates(product) if b.fits(chip)]
    return min(fitting, key=lambda b: _seconds(b, chip))


def _candidates(product: Product) -> Iterator[Blocking]:
    exchanged = product.exchanged()
    # What comes out transposed goes through the tensor engine once more, for which PSUM needs room.
    turnable = exchanged.rhs.size <= COLUMNS // 2
    for way in (product, exchanged) if turnable else (product,):
        tiles_m = ceil_div(way.lhs.size, ROWS)
        tiles_n = ceil_div(way.rhs.size, COLUMNS)
        for rows, keeps in itertools.product((1, 2, 4), ("lhs", "rhs", "")):
            if rows > 1 and rows >= 2 * tiles_m:
                continue
            most = 1 if way.turned else min(BANKS // rows, tiles_n)
            for columns in sorted({most, min(most, 2), 1}):
                # Tiles a little narrower, and all blocks are equal.
                width = ceil_div(way.rhs.size, ceil_div(tiles_n, columns) * columns)
                yield Blocking(way, keeps, min(rows, tiles_m), columns, width)


def _seconds(blocks: Blocking, chip: Chip) -> float:
    """About how long one of the batch takes: what the busiest server does, and a share of all."""
    product, rates = blocks.product, Rates(chip)
    tiles_m = ceil_div(product.lhs.size, ROWS)
    tiles_n = ceil_div(product.rhs.size, blocks.width)
    streamed = tiles_m * tiles_n * max(blocks.width, 64) * blocks.tiles
    tensor = rates.tensor_s(streamed, chip.core.tensor.passes[product.precision.kind])
    again = {
        "lhs": ceil_div(tiles_n, blocks.columns),
        "rhs": ceil_div(tiles_m, blocks.rows),
    }
    if blocks.keeps:
        again[blocks.keeps] = 1
    block = {"lhs": blocks.rows * ROWS, "rhs": blocks.columns * blocks.width}
    moved = 0.0
    for name, side in (("lhs", product.lhs), ("rhs", product.rhs)):
        width = DTYPES[side.stored].bytes
        held = width * side.size * product.k * side.thin / (4 if side.packed else side.reuse)
        if side.transposed:
            moved += again[name] * rates.transposed_s(held)
        else:
            moved += again[name] * rates.copy_s(held, min(side.run, block[name]) * width)
    width = DTYPES[product.result].bytes
    run = blocks.rows * ROWS if product.turned else block["rhs"]
    moved += rates.copy_s(product.lhs.size * product.rhs.size * width, run * width)
    # Results out of PSUM, by two engines.
    drained = tiles_m * tiles_n * max(blocks.width, 64) * (3 if product.turned else 1)
    out = drained / 2 / float(chip.core.vector.clock_hz)
    # A chunk of each operand before the first multiplication.
    first = sum(blocks.tile_bytes(name) * blocks.chunk * ROWS for name in block)
    start = rates.copy_s(first, 4096) / product.batch
    issue = float(chip.core.dma.issue_ns["none"]) * 1e-9
    most = max(
        ceil_div(tiles_m, blocks.rows) * ceil_div(tiles_n, blocks.columns) * blocks.chunks
        if name != blocks.keeps
        else ceil_div(side.size, block[name]) * blocks.chunks
        for name, side in (("lhs", product.lhs), ("rhs", product.rhs))
    )
    # Results that are transposed wait for one engine after another.
    start += product.turned * _TURNING_NS * 1e-9 / product.batch
    # Between one block and the next engines wait for each other if few results are under way.
    few = tiles_m * tiles_n * 3e-7 / (blocks.rows * blocks.columns)
    times = (tensor, moved, out, most * issue)
    # Equal blocks, if it makes no difference.
    uneven = bool(blocks.keeps) and getattr(product, blocks.keeps).size % block[blocks.keeps] > 0
    return (max(times) + 0.05 * sum(times)) * (1 + 0.002 * uneven) + start + few


def spans(total: int, step: int) -> list[int]:
    """Sizes of the pieces of `total`: full steps, then the rest."""
    full, rest = divmod(total, step)
    return [step] * full + ([rest] if rest else [])


def runs_of(pieces: Iterable[int]) -> list[tuple[int, int]]:
    """(piece, how many of it follow each other)."""
    return [(piece, len(list(group))) for piece, group in itertools.groupby(pieces)]
