"""Operands that are worked on before a product and used several times: once through SBUF, and back
to HBM as the product reads them."""

from collections.abc import Iterable, Iterator

from jax_trn3.isa import Access, Index, Instruction, Tile
from jax_trn3.isa.dma import dma_copy, dma_transpose
from jax_trn3.isa.scalar import activation
from jax_trn3.isa.tensor import nc_transpose
from jax_trn3.isa.vector import quantize_mx, tensor_scalar
from jax_trn3.isa.vector_move import tensor_copy
from jax_trn3.simulator import Node, loop

from .product import Precision, Side
from .tiles import COLUMNS, ROWS, ceil_div

_LOADS, _STORES = "dma:sync", "dma:scalar"


def prepared(
    name: str, side: Side, k: int, batch: int, precision: Precision, share: int = 1
) -> list[Node]:
    """Brings an operand to SBUF, works on it, and stores it with the contracted axis outside; of
    the work one part in `share`."""
    if side.quantized:
        return _quantized(name, side, k, batch, share)
    dtype = precision.stationary if name == "lhs" else precision.moving
    tiles = batch * ceil_div(k, ROWS)
    columns = min(side.size, 2 * COLUMNS)
    shape = (min(k, ROWS), columns)
    raw = Tile(f"{name} raw", "sbuf", shape, side.stored, 4)
    ready = Tile(f"{name} ready", "sbuf", shape, dtype, 4)
    far = Tile(f"{name} prepared", "hbm", (shape[0], 2 * columns), dtype)

    def block(index: Index) -> Iterable[Instruction]:
        yield _loaded(name, raw[index], side)
        source = raw[index]
        for number in range(side.passes):
            into = ready[index] if number == side.passes - 1 else raw[index]
            yield tensor_scalar(into, source, 1.0, op0="multiply", engine="vector")
        yield dma_copy(far[:, 0:columns], ready[index], engine=_STORES)

    return [loop(ceil_div(tiles * ceil_div(side.size, columns), share), block)]


def _loaded(name: str, into: Access, side: Side) -> Instruction:
    """[contracted, free] from HBM."""
    partitions, columns = into.shape
    if side.transposed:
        source = Tile(f"{name} raw in hbm", "hbm", (columns, partitions), side.stored, given=True)
        return dma_transpose(into, source[0], engine=_LOADS)
    run = _divisor(columns, side.run)
    shape = (partitions, columns // run, 2 * run)
    source = Tile(f"{name} raw in hbm", "hbm", shape, side.stored, given=True)
    return dma_copy(into, source[:, :, 0:run], engine=_LOADS)


def _divisor(total: int, most: int) -> int:
    """The largest divisor of `total` that is at most `most`."""
    return next(n for n in range(min(total, most), 0, -1) if total % n == 0)


def _quantized(name: str, side: Side, k: int, batch: int, share: int) -> list[Node]:
    """As MX: four neighbours of the contracted axis side by side, then VectorE's quantize_mx.

    Where the contracted axis is outside, the four rows come into one partition by DMA and
    are interleaved by copies; where it is the last one, TensorE transposes every fourth column.
    """
    columns = min(COLUMNS, ceil_div(side.size, 2) * 2)
    tiles = ceil_div(k, 512)
    partitions = ceil_div(ceil_div(ceil_div(k, tiles), 4), 32) * 32
    chunk = min(4, tiles)
    bf16 = "bfloat16" if side.stored != "float16" else "float16"
    plain = Tile(f"{name} by fours", "sbuf", (partitions, columns, 4), bf16, 4)
    data = Tile(f"{name} quantized", "sbuf", (partitions, columns), "float8_e4m3fn_x4", 2 * chunk)
    scales = Tile(f"{name} new scales", "sbuf", (partitions, columns), "uint8", 2)
    far = Tile(f"{name} quantized in hbm", "hbm", (partitions, chunk, 2 * columns), data.dtype)
    far_scales = Tile(f"{name} scales in hbm", "hbm", (partitions, 2 * columns), "uint8")
    written = partitions - 28 + 4 * (chunk - 1)
    by_fours = _turned_by_fours if side.transposed else _interleaved

    def block(index: Index) -> Iterator[Node]:
        for tile in range(chunk):
            place = index * chunk + tile
            yield from by_fours(name, side, plain[place], place)
            rows = slice(4 * tile, 4 * tile + partitions - 28)
            yield quantize_mx(data[place], plain[place], scales[index][rows])
        yield dma_copy(far[:, :, 0:columns], data.run(index * chunk, chunk), engine=_STORES)
        yield dma_copy(far_scales[0:written, 0:columns], scales[index][0:written], engine=_STORES)

    blocks = batch * ceil_div(tiles, chunk) * ceil_div(side.size, columns)
    return [loop(ceil_div(blocks, share), block)]


def _interleaved(name: str, side: Side, into: Access, place: Index) -> Iterator[Instruction]:
    partitions, columns, _ = into.shape
    raw = Tile(f"{name} rows", "sbuf", (partitions, 4, columns), into.dtype, 4)
    run = _divisor(columns, side.run)
    shape = (partitions, 4, columns // run, 2 * run)
    source = Tile(f"{name} rows in hbm", "hbm", shape, side.stored, given=True)
    yield dma_copy(raw[place], source[:, :, :, 0:run], engine=_LOADS)
    for part in range(4):
        engine = ("vector", "scalar", "scalar", "scalar")[part]
        yield _copy(into[:, :, part], raw[place][:, part], engine)


def _turned_by_fours(name: str, side: Side, into: Access, place: Index) -> Iterator[Instruction]:
    partitions, columns, _ = into.shape
    wide = 4 * partitions
    for piece, first in enumerate(range(0, columns, ROWS)):
        height = min(ROWS, columns - first)
        raw = Tile(f"{name} columns", "sbuf", (ROWS, wide), into.dtype, 16)
        back = Tile(f"{name} turned", "psum", (partitions, ROWS), into.dtype, 16)
        at = place * 4 + piece
        source = Tile(f"{name} columns in hbm", "hbm", (ROWS, 2 * wide), side.stored, given=True)
        yield dma_copy(raw[at][0:height], source[0:height, 0:wide], engine=_LOADS)
        for part in range(4):
            result = back[at * 4 + part][:, 0:height]
            yield nc_transpose(result, raw[at][0:height, part:wide:4])
            span = slice(first, first + height)
            engine = "vector" if part == 0 or (part == 1 and piece % 2) else "scalar"
            yield _copy(into[:, span, part], result, engine)


def _copy(into: Access, source: Access, engine: str) -> Instruction:
    if engine == "scalar":
        return activation(into, source, op="copy")
    return tensor_copy(into, source, engine=engine)
