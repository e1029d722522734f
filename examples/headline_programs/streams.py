"""Programs of the DMA engines and of VectorE: a stream from HBM, and a sum of two vectors."""

from collections.abc import Iterable

from jax_trn3.isa import Index, Instruction, Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.vector import tensor_tensor
from jax_trn3.simulator import Program, loop, program

_BUFFERS = 4


def dma_stream(transfers: int, columns: int = 4096) -> Program:
    """So many copies of [128, `columns`] in bfloat16 from HBM to SBUF, one after another."""
    near = Tile("near", "sbuf", (128, columns), "bfloat16", _BUFFERS)
    far = Tile("far", "hbm", (128, columns), "bfloat16", _BUFFERS, given=True)

    def transfer(i: Index) -> Iterable[Instruction]:
        yield dma_copy(near[i], far[i], engine="dma:sync")

    return program(f"dma stream of {transfers} x {columns}", [loop(transfers, transfer)])


def vector_add(tiles: int, columns: int = 512) -> Program:
    """The sum of two float32 vectors in HBM, [128, `columns`] at a time."""
    shape = (128, columns)
    a, b = (Tile(name, "hbm", shape, "float32", tiles, given=True) for name in "ab")
    total = Tile("c", "hbm", shape, "float32", tiles)
    near_a, near_b, near_total = (
        Tile(f"{name} in sbuf", "sbuf", shape, "float32", _BUFFERS) for name in "abc"
    )

    def one(i: Index) -> Iterable[Instruction]:
        yield dma_copy(near_a[i], a[i], engine="dma:sync")
        yield dma_copy(near_b[i], b[i], engine="dma:scalar")
        yield tensor_tensor(near_total[i], near_a[i], near_b[i], op="add")
        yield dma_copy(total[i], near_total[i], engine="dma:gpsimd")

    return program(f"vector add {tiles} x {columns}", [loop(tiles, one)])
