"""A blocked matrix product in each of the tensor engine's precisions: one program, other operands.

[M, N] = [K, M].T @ [K, N]. Four results of [128, 512] are summed in PSUM at a time while four
others are copied out. The columns of the stationary operand that they need stay in SBUF for all of
N, if they fit; the moving operand streams by in blocks of four tiles of the contracted axis.
Operands lie in HBM as they are loaded, a block after another.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from jax_trn3.isa import DTYPES, Access, Index, Instruction, Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.scalar import activation
from jax_trn3.isa.tensor import nc_matmul, nc_matmul_mx
from jax_trn3.isa.vector_move import tensor_copy
from jax_trn3.simulator import Node, Program, loop, program

ROWS, COLUMNS = 128, 512
"""Of a result tile: rows from the stationary operand, columns from the moving one."""

_GROUP = 4
"""Results summed at the same time."""

_BLOCK = 4
"""Tiles of the contracted axis that are loaded at once."""

_BUFFERS = 4
"""Blocks of a streaming operand in rotation: one in use, the others there or on their way."""

_PANEL_BYTES = 164 * 1024
"""Bytes of a partition for the stationary operand; the rest of SBUF is for what streams."""


@dataclass(frozen=True)
class Precision:
    """How the operands are held."""

    dtype: str
    contracted: int
    """Length of the contracted axis in one tile: partitions times values in each."""

    @property
    def scaled(self) -> bool:
        """Whether scales come with the operands (MX)."""
        return self.dtype.endswith("_x4")

    @property
    def bytes(self) -> int:
        """Bytes in a partition of one column of a tile, its scale included."""
        return DTYPES[self.dtype].bytes * self.pairs + self.scaled

    @property
    def pairs(self) -> int:
        """Values of the contracted axis that lie side by side in a partition, unpacked."""
        return 2 if self.contracted == 256 else 1


PRECISIONS = {
    "float32": Precision("float32", 128),
    "bfloat16": Precision("bfloat16", 128),
    "float8": Precision("float8_e4m3", 256),
    "mxfp8": Precision("float8_e4m3fn_x4", 512),
    "mxfp4": Precision("float4_e2m1fn_x4", 512),
}


def matmul(m: int, k: int, n: int, precision: str = "bfloat16") -> Program:
    """The product as a program.

    **Arguments:**

    - `m`, `n`: Multiples of 512.
    - `k`: A multiple of 512 ("float32", "bfloat16"), 1024 ("float8") or 2048 (MX).
    - `precision`: A key of `PRECISIONS`. "float8" is the double-row mode of Trainium2 and 3.

    **Raises:** `ValueError` for other sizes.
    """
    kind = PRECISIONS[precision]
    step = {"m": _GROUP * ROWS, "k": _BLOCK * kind.contracted, "n": COLUMNS}
    for name, size in {"m": m, "k": k, "n": n}.items():
        if size % step[name]:
            raise ValueError(f"{name}={size} is not a multiple of {step[name]} ({precision})")
    blocks, panels = k // step["k"], n // COLUMNS
    panel = blocks * _GROUP * _BLOCK * ROWS * kind.bytes
    stays = panel <= _PANEL_BYTES
    kept = blocks * min(2, _PANEL_BYTES // panel) if stays else _BUFFERS
    stationary = _Operand("lhsT", kind, ROWS, _GROUP * _BLOCK, kept)
    moving = _Operand("rhs", kind, COLUMNS, _BLOCK, _BUFFERS)
    psum = Tile("psum", "psum", (ROWS, COLUMNS), "float32", slots=2 * _GROUP)
    staged = Tile("staged", "sbuf", (ROWS, COLUMNS), "bfloat16", slots=2 * _GROUP)
    result = Tile("result", "hbm", (ROWS, COLUMNS), "bfloat16", slots=2 * _GROUP)

    def results(rows: Index, columns: Index) -> list[Node]:
        """Four results, from all blocks of the contracted axis."""
        group = rows * panels + columns

        def block(index: Index) -> Iterable[Node]:
            streamed = group * blocks + index
            held = rows * blocks + index if stays else streamed
            yield from [] if stays else stationary.load(held)
            yield from moving.load(streamed)
            for tile in range(_BLOCK):
                for row in range(_GROUP):
                    left = stationary.tile(held, tile * _GROUP + row)
                    right = moving.tile(streamed, tile)
                    yield _multiply(kind, psum[group * _GROUP + row], left, right)

        out = [group * _GROUP + row for row in range(_GROUP)]
        return [
            loop(blocks, block),
            *(_copied(staged[place], psum[place], place.const) for place in out),
            *(dma_copy(result[place], staged[place], engine="dma:scalar") for place in out),
        ]

    def rows_of_results(rows: Index) -> Iterable[Node]:
        if stays:
            yield loop(blocks, lambda index: stationary.load(rows * blocks + index))
        yield loop(panels, lambda columns: results(rows, columns))

    return program(f"matmul {m}x{k}x{n} {precision}", [loop(m // step["m"], rows_of_results)])


@dataclass(frozen=True)
class _Operand:
    """One operand: blocks of tiles in HBM and SBUF, with their scales if it has any."""

    name: str
    kind: Precision
    columns: int
    tiles: int
    """Tiles in a block."""

    buffers: int
    """Blocks that SBUF holds."""

    def load(self, block: Index) -> list[Instruction]:
        """Brings a block to SBUF."""
        return [
            dma_copy(sbuf.run(block * self.tiles, self.tiles), hbm, engine="dma:sync")
            for hbm, sbuf in self._places()
        ]

    def tile(self, block: Index, number: int) -> tuple[Access, ...]:
        """One tile of a block, and its scales."""
        return tuple(sbuf[block * self.tiles + number] for _, sbuf in self._places())

    def _places(self) -> list[tuple[Tile, Tile]]:
        columns = (2, self.columns) if self.kind.pairs == 2 else (self.columns,)
        parts = [(self.name, self.kind.dtype)]
        if self.kind.scaled:
            parts.append((f"{self.name} scales", "uint8"))
        slots = self.buffers * self.tiles
        return [
            (
                Tile(name, "hbm", (128, self.tiles, *columns), dtype, given=True),
                Tile(f"{name} in sbuf", "sbuf", (128, *columns), dtype, slots),
            )
            for name, dtype in parts
        ]


def _multiply(
    kind: Precision, dst: Access, left: tuple[Access, ...], right: tuple[Access, ...]
) -> Instruction:
    if kind.scaled:
        return nc_matmul_mx(dst, left[0], right[0], left[1], right[1])
    if kind.pairs == 2:
        return nc_matmul(dst, left[0], right[0], perf_mode="double_row")
    return nc_matmul(dst, left[0], right[0])


def _copied(dst: Access, src: Access, number: int) -> Instruction:
    """Out of PSUM, by VectorE and ScalarE in turn."""
    return tensor_copy(dst, src) if number % 2 else activation(dst, src, op="copy")
