"""A dozen programs whose whole traces are kept (`recorded/`): what a change of the simulator that
claims to change nothing must leave as it is, to the picosecond.

    python tests/simulator/recorded_programs.py     # records them anew, after a change on purpose
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from examples.headline_programs.matmul import matmul  # noqa: E402
from jax_trn3.hardware import TRAINIUM1, TRAINIUM2, TRAINIUM3, Chip, get_topology  # noqa: E402
from jax_trn3.isa import Semaphore, Tile  # noqa: E402
from jax_trn3.isa.dma import dma_copy, dma_transpose  # noqa: E402
from jax_trn3.isa.gpsimd import iota  # noqa: E402
from jax_trn3.isa.scalar import activation  # noqa: E402
from jax_trn3.isa.tensor import nc_matmul, nc_transpose  # noqa: E402
from jax_trn3.isa.vector import tensor_tensor  # noqa: E402
from jax_trn3.isa.vector_move import tensor_copy  # noqa: E402
from jax_trn3.simulator import Program, loop, program, simulate, spill  # noqa: E402
from jax_trn3.simulator.collectives import collective_in_program  # noqa: E402

FOLDER = Path(__file__).parent / "recorded"


def _hbm(name: str, shape: tuple[int, ...], dtype: str = "bfloat16", **options: int) -> Tile:
    return Tile(name, "hbm", shape, dtype, **options)


def _sbuf(name: str, shape: tuple[int, ...], slots: int = 1, dtype: str = "bfloat16") -> Tile:
    return Tile(name, "sbuf", shape, dtype, slots)


def vector_add() -> Program:
    """Two loads, a sum and a store, double-buffered, three queues."""
    a, b, c = (_hbm(n, (128, 2048), given=n != "c") for n in "abc")
    x, y, z = (_sbuf(n, (128, 2048), 2) for n in "xyz")
    return program(
        "vector add",
        [
            loop(
                40,
                lambda i: [
                    dma_copy(x[i], a, engine="dma:sync"),
                    dma_copy(y[i], b, engine="dma:scalar"),
                    tensor_tensor(z[i], x[i], y[i], op="add"),
                    dma_copy(c, z[i], engine="dma:gpsimd"),
                ],
            )
        ],
    )


def triangle() -> Program:
    """An inner loop that grows with the outer one, as under a causal mask."""
    x, y = _sbuf("x", (128, 512)), _sbuf("y", (128, 512), 4)
    return program(
        "triangle",
        [
            dma_copy(x, _hbm("a", (128, 512), given=True)),
            loop(12, lambda i: [loop(i + 1, lambda j: [activation(y[i + j], x, op="exp")])]),
        ],
    )


def handshake() -> Program:
    """Two engines that pass a token to and fro."""
    go, back = Semaphore("go"), Semaphore("back")
    x, y = _sbuf("x", (128, 256), 2), _sbuf("y", (128, 256), 2)
    source = _hbm("a", (128, 256), given=True)
    return program(
        "handshake",
        [
            dma_copy(x.all, source_of(x), signal=((back, 1),)),
            loop(
                30,
                lambda i: [
                    dma_copy(x[i], source, wait=((back, 1),), signal=((go, 1),)),
                    tensor_copy(y[i], x[i], wait=((go, 1),), signal=((back, 1),)),
                ],
            ),
            tensor_copy(y[0], x[0], wait=((back, 1),)),
        ],
    )


def source_of(tile: Tile) -> Tile:
    """A tensor in HBM of the size of all slots of a tile."""
    shape = tile.all.shape
    return _hbm(f"{tile.name} in hbm", shape, tile.dtype, given=True)


def transposes() -> Program:
    """A chain of transposes, copied out by two engines: every other one in the background on v4."""
    identity, x = _sbuf("identity", (128, 128)), _sbuf("x", (128, 128), 4)
    out, psum = _sbuf("out", (128, 128), 4), Tile("p", "psum", (128, 128), "bfloat16", 8)

    def body(i):
        transposed = [nc_transpose(psum[4 * i + k], x[k]) for k in range(4)]
        copies = [
            tensor_copy(out[k], psum[4 * i + k], engine="vector" if k % 2 else "scalar")
            for k in range(4)
        ]
        return [*transposed, *copies]

    loads = [dma_copy(x.all, source_of(x)), dma_copy(identity, source_of(identity))]
    return program("transposes", [*loads, loop(20, body)])


def dependent_chain() -> Program:
    """Each instruction needs the one before it."""
    x = _sbuf("x", (128, 8))
    load = dma_copy(x, _hbm("a", (128, 8), given=True))
    return program("chain", [load, loop(50, lambda i: [activation(x, x, op="exp")])])


def narrow_transfers() -> Program:
    """Few partitions, short rows, transposes: what DMA engines are bad at."""
    source = _hbm("a", (2048, 64), given=True)
    rows, turned = _sbuf("rows", (32, 64), 2), _sbuf("turned", (64, 128), 2)
    return program(
        "narrow transfers",
        [
            loop(
                25,
                lambda i: [
                    dma_copy(rows[i], source[0:64:2, :]),
                    dma_transpose(turned[i], source[0:128, :], engine="dma:scalar"),
                ],
            )
        ],
    )


def gpsimd_beside_vector() -> Program:
    """GpSimdE and VectorE, which share a port or a bus to SBUF."""
    x, y = _sbuf("x", (128, 512), 2, "int32"), _sbuf("y", (128, 512), 2)
    given = _sbuf("z", (128, 512))
    return program(
        "gpsimd beside vector",
        [
            dma_copy(given, source_of(given)),
            loop(
                30,
                lambda i: [
                    iota(x[i], pattern=((1, 512),), offset=0),
                    tensor_copy(y[i], given, engine="vector"),
                ],
            ),
        ],
    )


def spilled() -> Program:
    """More than fits, saved and reloaded."""
    one, other = (_sbuf(n, (128, 35_000), dtype="float32") for n in ("one", "other"))
    text = [dma_copy(one, source_of(one)), dma_copy(other, source_of(other))]
    results = [dma_copy(_hbm(f"of {t.name}", (128, 35_000), "float32"), t) for t in (other, one)]
    return spill(program("spilled", [*text, *results]), TRAINIUM3.core)


def reduce_beside_matmul() -> Program:
    """A reduce-scatter of gradients while the next product runs."""
    dst, src = _hbm("dst", (128, 4096)), _hbm("src", (128, 32768), given=True)
    chain = collective_in_program(
        "reduce_scatter", dst[0], src[0], get_topology("trn3-chip"), num_bytes=src.bytes
    )
    return program("reduce beside matmul", [*chain, *matmul(512, 1024, 1024).body])


def accumulation_groups() -> Program:
    """Sums of different lengths in PSUM, read while the next one is written."""
    x, out = _sbuf("x", (128, 512), 4), _sbuf("out", (128, 512), 2)
    psum = Tile("p", "psum", (128, 512), "float32", slots=2)

    def body(i):
        products = [nc_matmul(psum[i], x[k][:, 0:128], x[3 - k]) for k in range(4)]
        return [*products, tensor_copy(out[i], psum[i])]

    return program("groups", [dma_copy(x.all, source_of(x)), loop(30, body)])


SCENARIOS: dict[str, tuple[Callable[[], Program], Chip]] = {
    "vector_add_trn1": (vector_add, TRAINIUM1),
    "vector_add_trn3": (vector_add, TRAINIUM3),
    "triangle": (triangle, TRAINIUM3),
    "handshake": (handshake, TRAINIUM2),
    "transposes_trn2": (transposes, TRAINIUM2),
    "transposes_trn3": (transposes, TRAINIUM3),
    "dependent_chain": (dependent_chain, TRAINIUM3),
    "narrow_transfers": (narrow_transfers, TRAINIUM2),
    "gpsimd_beside_vector": (gpsimd_beside_vector, TRAINIUM3),
    "spilled": (spilled, TRAINIUM3),
    "reduce_beside_matmul": (reduce_beside_matmul, TRAINIUM3),
    "accumulation_groups": (accumulation_groups, TRAINIUM2),
    "matmul_bfloat16": (lambda: matmul(1024, 1024, 1024), TRAINIUM3),
    "matmul_float8": (lambda: matmul(512, 2048, 1024, "float8"), TRAINIUM2),
    "matmul_mxfp8": (lambda: matmul(512, 4096, 1024, "mxfp8"), TRAINIUM3),
}


def trace(name: str) -> np.ndarray:
    """Every run of every instruction: int64[runs, 6], the columns of `Timeline.expand`."""
    make, chip = SCENARIOS[name]
    return simulate(make(), chip).expand()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in SCENARIOS:
        np.savez_compressed(FOLDER / f"{name}.npz", trace=trace(name))
        print(name, len(trace(name)), "runs")


if __name__ == "__main__":
    main()
