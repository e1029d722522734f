"""Vector addition of Stanford's CS149, assignment 4: the cost of small transfers.

Published: kernels in the assignment's README (stanford-cs149/asst4-trainium2), times and profiles
in students' write-ups. Compiled by neuronx-cc 2.21 with its middle-end transformations off, so that
every `dma_copy` of the text is one transfer with descriptors written before the start.

Assumed: all transfers on the one queue of SyncE (qSyncIO0 in profiles), loads a few iterations
ahead.
"""

from jax_trn3.hardware import TRAINIUM1, TRAINIUM2
from jax_trn3.isa import Index, Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.vector import tensor_scalar, tensor_tensor
from jax_trn3.simulator import Program, program

from .pipeline import pipelined
from .row import Row, active_us, dma_us, engine_us, total_us

_BUFFERS = 8
_SOURCE = "students' write-ups of stanford-cs149/asst4-trainium and asst4-trainium2"


def vector_add(count: int, rows: int, free: int) -> Program:
    """`count` tiles of [rows, free] float32: two loads, a sum, a store."""
    # Rows of more than one element are parts of longer ones.
    pitch = free if free == 1 else count * free
    a_hbm, b_hbm = (Tile(name, "hbm", (rows, pitch), "float32", given=True) for name in ("a", "b"))
    out = Tile("out", "hbm", (rows, pitch), "float32", slots=2 * _BUFFERS)
    a, b, total = (
        Tile(name, "sbuf", (rows, free), "float32", slots=min(_BUFFERS, count))
        for name in ("a tile", "b tile", "sum")
    )

    def load(i: Index | int):
        return [dma_copy(a[i], a_hbm[:, 0:free]), dma_copy(b[i], b_hbm[:, 0:free])]

    def work(i: Index | int):
        # A tile of one element a partition is a scalar operand.
        if free == 1:
            add = tensor_scalar(total[i], a[i], b[i], op0="add")
        else:
            add = tensor_tensor(total[i], a[i], b[i], op="add")
        return [add, dma_copy(out[i][:, 0:free], total[i])]

    name = f"vector add, {count} tiles of [{rows}, {free}]"
    return program(name, pipelined(count, load, work, _BUFFERS - 1))


ROWS = (
    *(
        Row(
            f"C9 {chip.name[-1]}",
            "vector add, one row a tile",
            chip,
            lambda: vector_add(25_600, 1, 1),
            (total_us(published),),
            _SOURCE,
        )
        for chip, published in ((TRAINIUM2, 37_318), (TRAINIUM1, 27_404))
    ),
    *(
        Row(
            f"C10 {chip.name[-1]}",
            "vector add, 128 rows a tile",
            chip,
            lambda: vector_add(200, 128, 1),
            (total_us(published),),
            _SOURCE,
        )
        for chip, published in ((TRAINIUM2, 378), (TRAINIUM1, 206))
    ),
    Row(
        "C11",
        "vector add, stream [128, 2000]",
        TRAINIUM2,
        lambda: vector_add(1, 128, 2000),
        (total_us(28.36), active_us(15.56), dma_us(8.85), engine_us("vector", 3.64)),
        _SOURCE,
    ),
)

ASIDE = (
    Row(
        "A5",
        "vector add, 100 tiles of [128, 2]",
        TRAINIUM2,
        lambda: vector_add(100, 128, 2),
        (total_us(186),),
        _SOURCE,
    ),
    Row(
        "A6",
        "vector add, one tile of [128, 200]",
        TRAINIUM2,
        lambda: vector_add(1, 128, 200),
        (total_us(15),),
        _SOURCE,
        reason="15 us is little more than start and stop in profiles (12.4 to 13.3 us), of which a "
        "run without profiler seems to count less",
    ),
    Row(
        "A7",
        "vector add, 2 tiles of [128, 1000]",
        TRAINIUM2,
        lambda: vector_add(2, 128, 1000),
        (total_us(26),),
        _SOURCE,
    ),
)
