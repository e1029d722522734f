"""Matrix products of AWS's tutorials: tiled, hoisted, blocked.

[M, K] @ [K, N] with the left operand given transposed, [K, M]; tiles of TensorE are [128, 128]
stationary and [128, 512] moving.

Assumed: loads on one queue of SyncE, stores on one of ScalarE; a dozen tiles in rotation where a
kernel declares them in its innermost loop, else as many buffers as fit SBUF.
"""

from jax_trn3.hardware import TRAINIUM1, TRAINIUM2
from jax_trn3.isa import Access, Index, Instruction, Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.scalar import activation
from jax_trn3.isa.tensor import nc_matmul
from jax_trn3.isa.vector import tensor_tensor
from jax_trn3.isa.vector_move import memset, tensor_copy
from jax_trn3.simulator import Program, loop, program

from .row import (
    Row,
    dma_gb_per_s,
    dma_us,
    engine_us,
    hfu,
    tensor_tflops,
    total_us,
)

K_TILE, M_TILE, N_TILE = 128, 128, 512
_RESULTS = 16  # places of the result that are told apart


def _load(dst: Access, src: Access, dge_mode: str) -> Instruction:
    return dma_copy(dst, src, engine="dma:sync", dge_mode=dge_mode)


def _store(dst: Access, src: Access, dge_mode: str) -> Instruction:
    return dma_copy(dst, src, engine="dma:scalar", dge_mode=dge_mode)


def _matrices(m: int, k: int, n: int, dtype: str) -> tuple[Tile, Tile, Tile]:
    """The operands whole, and the result as rows of tiles."""
    lhs = Tile("lhsT", "hbm", (k, m), dtype, given=True)
    rhs = Tile("rhs", "hbm", (k, n), dtype, given=True)
    return lhs, rhs, Tile("result", "hbm", (M_TILE, n), dtype, slots=_RESULTS)


def _finish(
    out: Tile, sbuf: Tile, psum: Tile, place: Index | int, dge_mode: str
) -> list[Instruction]:
    """A result tile from PSUM through SBUF to HBM."""
    return [
        tensor_copy(sbuf[place], psum[place], engine="vector"),
        _store(out[place][:, 0:N_TILE], sbuf[place], dge_mode),
    ]


def tiled(m: int, k: int, n: int, dtype: str, dge_mode: str = "none") -> Program:
    """Both tiles loaded before every multiplication."""
    lhs, rhs, out = _matrices(m, k, n, dtype)
    stationary = Tile("stationary", "sbuf", (K_TILE, M_TILE), dtype, slots=12)
    moving = Tile("moving", "sbuf", (K_TILE, N_TILE), dtype, slots=12)
    psum = Tile("psum", "psum", (M_TILE, N_TILE), "float32", slots=4)
    copied = Tile("copied", "sbuf", (M_TILE, N_TILE), dtype, slots=4)
    tiles_k, tiles_n = k // K_TILE, n // N_TILE

    def row(i: Index):
        def column(j: Index):
            def step(kk: Index | int, accumulate: bool):
                return [
                    _load(stationary[kk], lhs[0:K_TILE, 0:M_TILE], dge_mode),
                    _load(moving[kk], rhs[0:K_TILE, 0:N_TILE], dge_mode),
                    nc_matmul(psum[j], stationary[kk], moving[kk], accumulate=accumulate),
                ]

            rest = loop(tiles_k - 1, lambda kk: step(kk + 1, True))
            return [*step(0, False), rest, *_finish(out, copied, psum, j, dge_mode)]

        return [loop(tiles_n, column)]

    return program(f"tiled matmul {m}x{k}x{n} {dtype}", [loop(m // M_TILE, row)])


def blocked(
    m: int,
    k: int,
    n: int,
    dtype: str,
    *,
    block_m: int,
    block_n: int,
    buffers: tuple[int, int],
    row_loads: bool = False,
    dge_mode: str = "none",
) -> Program:
    """The free dimensions in blocks: all of K of a block of the left operand stays while those of
    the right one pass by.

    **Arguments:**

    - `block_m`, `block_n`: Tiles in a block.
    - `buffers`: Rows of K tiles that are in SBUF at once, of the left and of the right operand.
    - `row_loads`: Whether a load brings the whole width of a block, not one tile.
    """
    lhs, rhs, out = _matrices(m, k, n, dtype)
    tiles_k = k // K_TILE
    width_m, width_n = block_m * M_TILE, block_n * N_TILE
    left = Tile("left", "sbuf", (K_TILE, width_m), dtype, slots=buffers[0])
    right = Tile("right", "sbuf", (K_TILE, width_n), dtype, slots=buffers[1])
    psum = Tile("psum", "psum", (M_TILE, N_TILE), "float32", slots=8)
    copied = Tile("copied", "sbuf", (M_TILE, N_TILE), dtype, slots=4)

    def loads(tile: Tile, source: Tile, at: Index, pieces: int, width: int):
        parts = 1 if row_loads else pieces
        step = width // parts
        return [
            _load(
                tile[at + kk][:, p * step : (p + 1) * step],
                source[0:K_TILE, p * step : (p + 1) * step],
                dge_mode,
            )
            for p in range(parts)
            for kk in range(tiles_k)
        ]

    blocks_n = n // width_n

    def row(i: Index):
        def column(j: Index):
            at = (i * blocks_n + j) * tiles_k
            nodes = loads(right, rhs, at, block_n, width_n)
            for bm in range(block_m):
                for bn in range(block_n):
                    place = bm * block_n + bn
                    nodes += [
                        nc_matmul(
                            psum[place],
                            left[i * tiles_k + kk][:, bm * M_TILE : (bm + 1) * M_TILE],
                            right[at + kk][:, bn * N_TILE : (bn + 1) * N_TILE],
                            accumulate=kk > 0,
                        )
                        for kk in range(tiles_k)
                    ]
                    nodes += _finish(out, copied, psum, place, dge_mode)
            return nodes

        return [*loads(left, lhs, i * tiles_k, block_m, width_m), loop(blocks_n, column)]

    return program(f"blocked matmul {m}x{k}x{n} {dtype}", [loop(m // width_m, row)])


def fully_blocked(m: int, k: int, n: int, dtype: str, dge_mode: str = "none") -> Program:
    """All three dimensions in blocks of 16 tiles (M), 2 (N) and 8 (K); partial sums in SBUF.

    TILES_IN_BLOCK_M = 16, _N = 2, _K = 8 as published. Assumed: operands double-buffered; zeros on
    GpSimdE and the last copies on ScalarE, so that VectorE is free for the sums.
    """
    block_m, block_n, block_k = 16, 2, 8
    width_m, width_n = block_m * M_TILE, block_n * N_TILE
    lhs = Tile("lhsT", "hbm", (k, m), dtype, given=True)
    rhs = Tile("rhs", "hbm", (k, n), dtype, given=True)
    out = Tile("result", "hbm", (M_TILE, n), dtype, slots=_RESULTS)
    left = Tile("left", "sbuf", (K_TILE, width_m), dtype, slots=2 * block_k)
    right = Tile("right", "sbuf", (K_TILE, width_n), dtype, slots=2 * block_k)
    psum = Tile("psum", "psum", (M_TILE, N_TILE), "float32", slots=8)
    blocks_m, blocks_n, blocks_k = m // width_m, n // width_n, k // (block_k * K_TILE)
    sums = Tile("sums", "sbuf", (M_TILE, N_TILE), dtype, slots=blocks_m * block_m * block_n)
    packed = Tile("packed", "sbuf", (M_TILE, width_n), dtype, slots=4)

    def multiply(at_left: Index, at_right: Index, block: Index):
        nodes: list[Instruction] = []
        for bn in range(block_n):
            for bm in range(block_m):
                result = psum[bn * block_m + bm]
                nodes += [
                    nc_matmul(
                        result,
                        left[at_left + kk][:, bm * M_TILE : (bm + 1) * M_TILE],
                        right[at_right + kk][:, bn * N_TILE : (bn + 1) * N_TILE],
                        accumulate=kk > 0,
                    )
                    for kk in range(block_k)
                ]
                total = sums[(block * block_m + bm) * block_n + bn]
                nodes.append(tensor_tensor(total, total, result, op="add"))
        return nodes

    def block_of_n(nb: Index):
        def block_of_k(kb: Index):
            right_at = (nb * blocks_k + kb) * block_k
            load_right = [
                _load(right[right_at + kk], rhs[0:K_TILE, 0:width_n], dge_mode)
                for kk in range(block_k)
            ]

            def block_of_m(mb: Index):
                left_at = mb * block_k
                load_left = [
                    _load(left[left_at + kk], lhs[0:K_TILE, 0:width_m], dge_mode)
                    for kk in range(block_k)
                ]
                return [*load_left, *multiply(left_at, right_at, mb)]

            return [*load_right, loop(blocks_m, block_of_m)]

        def finish(row: Index):
            copies = [
                activation(
                    packed[row][:, bn * N_TILE : (bn + 1) * N_TILE],
                    sums[row * block_n + bn],
                    op="copy",
                )
                for bn in range(block_n)
            ]
            return [*copies, _store(out[row][:, 0:width_n], packed[row], dge_mode)]

        zeros = loop(sums.slots, lambda i: [memset(sums[i], value=0.0, engine="gpsimd")])
        return [zeros, loop(blocks_k, block_of_k), loop(blocks_m * block_m, finish)]

    return program(f"fully blocked matmul {m}x{k}x{n} {dtype}", [loop(blocks_n, block_of_n)])


def back_to_back(shapes: tuple[tuple[int, int, int], ...], count: int) -> Program:
    """`count` multiplications of each shape: contracted, stationary, moving elements."""
    lhs = Tile("lhsT", "hbm", (K_TILE, M_TILE), "bfloat16", given=True)
    rhs = Tile("rhs", "hbm", (K_TILE, N_TILE), "bfloat16", given=True)
    stationary = Tile("stationary", "sbuf", (K_TILE, M_TILE), "bfloat16")
    moving = Tile("moving", "sbuf", (K_TILE, N_TILE), "bfloat16")
    psum = Tile("psum", "psum", (M_TILE, N_TILE), "float32", slots=len(shapes))

    def section(place: int, shape: tuple[int, int, int]):
        k, m, n = shape

        def step(_: Index):
            return [
                nc_matmul(
                    psum[place][0:m, 0:n],
                    stationary[0:k, 0:m],
                    moving[0:k, 0:n],
                    accumulate=False,
                )
            ]

        return loop(count, step)

    loads = [_load(stationary[0], lhs[0], "hwdge"), _load(moving[0], rhs[0], "hwdge")]
    sections = [section(place, shape) for place, shape in enumerate(shapes)]
    return program("back-to-back matmuls", [*loads, *sections])


_SMALL = ((128, 32, 512), (128, 128, 64), (32, 128, 512), (128, 128, 512))
_TUTORIAL = "general/nki/tutorials/matrix_multiplication.rst, SDK 2.26"
_BOUNDS = "neuron-agentic-development, references/performance-bounds.md, example-bounds-analysis.md"
_INEFFICIENCY = "neuron-agentic-development, investigations/te_inefficiency.md"

ROWS = (
    Row(
        "C1",
        "matmul, tiled, bf16",
        TRAINIUM1,
        lambda: tiled(4096, 8192, 8192, "bfloat16"),
        (total_us(51_800), hfu(0.1098)),
        _TUTORIAL,
    ),
    Row(
        "C2",
        "matmul, fully blocked, bf16",
        TRAINIUM1,
        lambda: fully_blocked(4096, 8192, 8192, "bfloat16"),
        (total_us(6_970), hfu(0.8524)),
        _TUTORIAL,
    ),
    Row(
        "C3",
        "matmul, tiled, fp32",
        TRAINIUM2,
        lambda: tiled(4096, 8192, 8192, "float32", "hwdge"),
        (
            total_us(39_890),
            engine_us("tensor", 34_820),
            hfu(0.1752, counted=0.25),
            dma_us(0.9993 * 39_890),
        ),
        "nki/guides/tutorials/kernel-optimization.rst",
    ),
    Row(
        "C4",
        "matmul, blocked, row loads, bf16",
        TRAINIUM2,
        lambda: blocked(
            4096, 4096, 4096, "bfloat16",
            block_m=8, block_n=2, buffers=(44, 56), row_loads=True, dge_mode="hwdge",
        ),
        (
            total_us(1_801),
            dma_us(819),
            engine_us("tensor", 1_781),
            engine_us("vector", 172),
            dma_gb_per_s(245.8),
        ),
        _BOUNDS,
    ),
    Row(
        "C5",
        "matmuls back to back, 128x128x512",
        TRAINIUM2,
        lambda: back_to_back(((128, 128, 512),), 2048),
        (tensor_tflops(77.2),),
        _INEFFICIENCY,
    ),
)  # fmt: skip

ASIDE = (
    Row(
        "A1",
        "matmul, blocked 8 x 2, tile loads, bf16",
        TRAINIUM2,
        lambda: blocked(
            4096, 4096, 4096, "bfloat16",
            block_m=8, block_n=2, buffers=(44, 56), dge_mode="hwdge",
        ),
        (
            total_us(2_451),
            dma_us(1_325),
            engine_us("tensor", 2_163),
            engine_us("vector", 174),
        ),
        _BOUNDS,
    ),
    Row(
        "A2",
        "matmul, free dimensions blocked, bf16",
        TRAINIUM1,
        lambda: blocked(
            4096, 8192, 8192, "bfloat16", block_m=2, block_n=2, buffers=(64, 68)
        ),
        (total_us(22_070), hfu(0.2651)),
        _TUTORIAL,
    ),
    Row(
        "A3",
        "matmul, loads hoisted, bf16",
        TRAINIUM1,
        lambda: blocked(
            4096, 8192, 8192, "bfloat16", block_m=1, block_n=1, buffers=(64, 68)
        ),
        (total_us(42_960), hfu(0.1324)),
        _TUTORIAL,
    ),
    Row(
        "A13",
        "matmul, tiled, bf16",
        TRAINIUM2,
        lambda: tiled(4096, 4096, 4096, "bfloat16", "hwdge"),
        (total_us(8_602), dma_us(7_906), engine_us("tensor", 4_806), engine_us("vector", 176)),
        _BOUNDS,
    ),
    Row(
        "A4",
        "matmuls back to back, small and full",
        TRAINIUM2,
        lambda: back_to_back(_SMALL, 512),
        (tensor_tflops(30.8),),
        _INEFFICIENCY,
        reason="half speed in one of the two sections that use a quarter of the array would give "
        "31.0: the throttle seems to go by cells in use, not by time; not modelled",
    ),
)  # fmt: skip
