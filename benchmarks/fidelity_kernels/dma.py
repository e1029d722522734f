"""Transfers alone: bandwidth by the bytes of a row, and streams."""

from jax_trn3.hardware import TRAINIUM1, TRAINIUM2
from jax_trn3.isa import Index, Tile
from jax_trn3.isa.dma import dma_copy, dma_transpose
from jax_trn3.simulator import Program, loop, program

from .row import Figure, Row, dma_gb_per_s, dma_us

_EFFICIENCY = "neuron-agentic-development, investigations/dma_efficiency.md"


def mixed_modes(free: int) -> Program:
    """[128, 8192] bfloat16 through SBUF in tiles of [128, free]: four times four loads and stores,
    one set in each descriptor mode, then transposes.

    Published: `dge_mixed.py`: 16 tile loads and stores in the modes none, swdge, hwdge, unknown, 4
    transposed loads of [16, 128] and 4 transposes from SBUF to SBUF. Assumed: "unknown" is the
    hardware's; loads on SyncE's queue and stores on ScalarE's, software's on GpSimdE's.
    """
    given = Tile("input", "hbm", (128, 8192), "bfloat16", given=True)
    out = Tile("output", "hbm", (128, 8192), "bfloat16", slots=16)
    tile = Tile("tile", "sbuf", (128, free), "bfloat16", slots=16)
    flat = Tile("flat", "sbuf", (128, 16), "bfloat16", slots=4)
    turned = Tile("turned", "sbuf", (128, 16), "bfloat16", slots=4)
    nodes = []
    for number, mode in enumerate(("none", "swdge", "hwdge", "hwdge")):
        load, store = ("gpsimd", "gpsimd") if mode == "swdge" else ("sync", "scalar")
        places = range(4 * number, 4 * number + 4)
        nodes += [
            dma_copy(tile[i], given[:, 0:free], engine=f"dma:{load}", dge_mode=mode) for i in places
        ]
        nodes += [
            dma_copy(out[i][:, 0:free], tile[i], engine=f"dma:{store}", dge_mode=mode)
            for i in places
        ]
    for i in range(4):
        nodes.append(dma_transpose(flat[i], given[0:16, 0:128], dge_mode="hwdge"))
    for i in range(4):
        nodes.append(dma_transpose(turned[i], tile[i][0:16, 0:128], dge_mode="hwdge"))
    return program(f"copies of rows of {2 * free} bytes", nodes)


def stream(direction: str, count: int = 256) -> Program:
    """`count` transfers of [128, 4096] float32, all from HBM ("read") or all to it ("write").

    Assumed: rows of 16 KiB on two queues.
    """
    shape = (128, 4096)
    read = direction == "read"
    hbm = Tile("hbm", "hbm", shape, "float32", slots=1 if read else 8, given=read)
    sbuf = Tile("sbuf", "sbuf", shape, "float32", slots=8 if read else 1, given=not read)

    def step(i: Index):
        pairs = ((2 * i, "dma:sync"), (2 * i + 1, "dma:scalar"))
        if read:
            return [dma_copy(sbuf[at], hbm[0], engine=queue) for at, queue in pairs]
        return [dma_copy(hbm[at], sbuf[0], engine=queue) for at, queue in pairs]

    return program(f"stream, {direction}", [loop(count // 2, step)])


def _total_gb_per_s(published: float, cores: int) -> Figure:
    """Of `cores` alike that share the memory, while DMA engines work."""
    one = dma_gb_per_s(published)
    return Figure(f"GB/s, {cores} cores", published, lambda t: cores * one.read(t))


ROWS = (
    Row(
        "C6",
        "copies, 1-KiB rows",
        TRAINIUM2,
        lambda: mixed_modes(512),
        (dma_gb_per_s(259), dma_us(16)),
        _EFFICIENCY,
    ),
    Row(
        "C15 r",
        "stream, read",
        TRAINIUM1,
        lambda: stream("read"),
        (dma_gb_per_s(272.98),),
        "a third party's measurement (facts, section 7)",
    ),
    Row(
        "C15 w",
        "stream, write",
        TRAINIUM1,
        lambda: stream("write"),
        (dma_gb_per_s(274.8),),
        "a third party's measurement (facts, section 7)",
    ),
    Row(
        "C15 2",
        "stream, read, two cores",
        TRAINIUM1,
        lambda: stream("read"),
        (_total_gb_per_s(543.7, 2),),
        "a third party's measurement (facts, section 7)",
    ),
)

ASIDE = (
    Row(
        "A8",
        "copies, 4-KiB rows",
        TRAINIUM2,
        lambda: mixed_modes(2048),
        (dma_gb_per_s(354), dma_us(47)),
        _EFFICIENCY,
    ),
)
