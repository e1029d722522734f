"""Matrix products in float32, operands transposed on the way: NKIBench's matmul, swiglu and others.

NKIBench's baselines (zhang677/AccelOpt, NKIBench/kernels) are what AWS's compiler made of a few
lines of numpy. The text is not all that runs: it is compiled once more. HBM bytes in the profiles
tell what became of the loads.

Assumed: copies out of PSUM on ScalarE, loads on SyncE's queue, stores on ScalarE's.
"""

from jax_trn3.hardware import TRAINIUM1
from jax_trn3.isa import Access, Index, Instruction, Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.scalar import activation
from jax_trn3.isa.tensor import nc_matmul, nc_transpose
from jax_trn3.isa.vector import reciprocal, tensor_tensor
from jax_trn3.isa.vector_move import memset
from jax_trn3.simulator import Program, loop, program

from .row import Row, engine_share, hfu, read_mb, total_us, written_mb

_NKIBENCH = "zhang677/AccelOpt, NKIBench, profile_results.csv"
_STORE = "dma:scalar"


def _sbuf(name: str, width: int, slots: int = 2) -> Tile:
    return Tile(name, "sbuf", (128, width), "float32", slots=slots)


def _psum(name: str, width: int, slots: int) -> Tile:
    return Tile(name, "psum", (128, width), "float32", slots=slots)


def _copy(dst: Access, src: Access) -> Instruction:
    return activation(dst, src, op="copy")


def _transposed(
    dst: Access, src: Access, psum: Tile, place: Index | int, count: int
) -> list[Instruction]:
    """`count` blocks of [128, 128] side by side, each transposed through PSUM."""
    nodes: list[Instruction] = []
    for k in range(count):
        block = slice(128 * k, 128 * (k + 1))
        nodes += [
            nc_transpose(psum[place + k], src[:, block]),
            _copy(dst[:, block], psum[place + k]),
        ]
    return nodes


def matmul(m: int, n: int, k: int) -> Program:
    """[m, k] @ [k, n]: 1024 columns of the result at a time, in blocks of 128 rows.

    The text loads 1024 columns of the right operand once; the profile shows them read again for
    every block of rows (9.06 GB), streaming past both halves of the result.
    """
    left_hbm = Tile("left", "hbm", (m, k), "float32", given=True)
    right_hbm = Tile("right", "hbm", (k, n), "float32", given=True)
    out = Tile("out", "hbm", (128, 1024), "float32", slots=8)
    left, turned = _sbuf("left rows", 1024), _sbuf("left transposed", 1024, k // 1024)
    right, result = _sbuf("right rows", 1024, 16), _sbuf("result", 1024)
    blocks, sums = _psum("blocks", 128, 8), _psum("sums", 512, 4)

    def rows(i: Index):
        nodes = []
        for part in range(k // 1024):
            at = i * (k // 1024) + part
            nodes.append(dma_copy(left[at], left_hbm[0:128, 0:1024]))
            nodes += _transposed(turned[part], left[at], blocks, 8 * part, 8)
        for row in range(k // 128):
            at = i * (k // 128) + row
            nodes.append(dma_copy(right[at], right_hbm[0:128, 0:1024]))
            stationary = turned[row // 8][:, 128 * (row % 8) : 128 * (row % 8 + 1)]
            nodes += [
                nc_matmul(
                    sums[2 * i + half],
                    stationary,
                    right[at][:, 512 * half : 512 * (half + 1)],
                    accumulate=row > 0,
                )
                for half in range(2)
            ]
        nodes += [
            _copy(result[i][:, 512 * half : 512 * (half + 1)], sums[2 * i + half])
            for half in range(2)
        ]
        return [*nodes, dma_copy(out[i], result[i], engine=_STORE)]

    return program("matmul fp32", [loop(n // 1024 * (m // 128), rows)])


def transposed_left(m: int, n: int, k: int) -> Program:
    """[k, m].T @ [k, n]: nothing to transpose; 1024 x 1024 of the result at once, k in SBUF."""
    left_hbm = Tile("left", "hbm", (k, m), "float32", given=True)
    right_hbm = Tile("right", "hbm", (k, n), "float32", given=True)
    out = Tile("out", "hbm", (128, 1024), "float32", slots=8)
    rows = k // 128
    left, right = _sbuf("left rows", 1024, rows + 4), _sbuf("right rows", 1024, rows + 4)
    result, sums = _sbuf("result", 1024), _psum("sums", 512, 4)

    def columns(i: Index, j: Index | int, width: int):
        at = (i * (n // 1024 + 1) + j) * rows
        halves = [slice(c, min(c + 512, width)) for c in range(0, width, 512)]
        nodes = [
            dma_copy(right[at + r][:, 0:width], right_hbm[0:128, 0:width]) for r in range(rows)
        ]
        for block in range(8):
            for h, half in enumerate(halves):
                into = sums[2 * block + h][:, 0 : half.stop - half.start]
                nodes += [
                    nc_matmul(
                        into,
                        left[i * rows + r][:, 128 * block : 128 * (block + 1)],
                        right[at + r][:, half],
                        accumulate=r > 0,
                    )
                    for r in range(rows)
                ]
                nodes.append(_copy(result[block][:, half], into))
            store = dma_copy(out[block][:, 0:width], result[block][:, 0:width], engine=_STORE)
            nodes.append(store)
        return nodes

    def block_of_rows(i: Index):
        loads = [dma_copy(left[i * rows + r], left_hbm[0:128, 0:1024]) for r in range(rows)]
        full, rest = divmod(n, 1024)
        last = columns(i, full, rest) if rest else []
        return [*loads, loop(full, lambda j: columns(i, j, 1024)), *last]

    return program("matmul of a transposed left operand", [loop(m // 1024, block_of_rows)])


def batched(batch: int, m: int, n: int, k: int) -> Program:
    """`batch` products [m, k] @ [k, n] with k = 64: half of the array's rows, and mostly stores."""
    left_hbm = Tile("left", "hbm", (m, k), "float32", given=True)
    right_hbm = Tile("right", "hbm", (k, n), "float32", given=True)
    out = Tile("out", "hbm", (128, 1024), "float32", slots=8)
    left = _sbuf("left rows", k, 8)
    turned = Tile("left transposed", "sbuf", (k, 1024), "float32", slots=2)
    right = Tile("right", "sbuf", (k, 1024), "float32", slots=2)
    blocks = Tile("blocks", "psum", (k, 128), "float32", slots=8)
    sums, result = _psum("sums", 512, 4), _sbuf("result", 1024, 4)

    def columns(i: Index):
        def rows(j: Index):
            nodes: list[Instruction] = []
            for block in range(8):
                part = slice(128 * block, 128 * (block + 1))
                nodes += [
                    dma_copy(left[block], left_hbm[0:128, 0:k]),
                    nc_transpose(blocks[block], left[block]),
                    _copy(turned[j][:, part], blocks[block]),
                ]
            for block in range(8):
                part = slice(128 * block, 128 * (block + 1))
                for half in range(2):
                    half_of = slice(512 * half, 512 * (half + 1))
                    into = sums[2 * block + half]
                    nodes += [
                        nc_matmul(into, turned[j][:, part], right[i][:, half_of], accumulate=False),
                        _copy(result[block][:, half_of], into),
                    ]
                nodes.append(dma_copy(out[block], result[block], engine=_STORE))
            return nodes

        return [dma_copy(right[i], right_hbm[0:k, 0:1024]), loop(m // 1024, rows)]

    return program("batched matmul fp32", [loop(batch * (n // 1024), columns)])


def swiglu(m: int, n: int, k: int) -> Program:
    """(silu(x @ gate) * (x @ up)) @ down, x [m, k], gate and up [k, n], down [n, k].

    As in the text: a phase for the gate, one for up and the elementwise part, one for down. The
    profile counts one transpose of x in each of the first two, so assumed is that x transposed
    stays in SBUF through a phase. What does not fit passes through HBM: here the whole gate (in the
    profile a third of it) and the product.
    """
    x_hbm = Tile("x", "hbm", (128, k), "float32", given=True)
    weights = Tile("weights", "hbm", (n, k), "float32", given=True)
    gate_hbm = Tile("gate", "hbm", (128, 512), "float32", slots=m // 512 * n // 128)
    product_hbm = Tile("product", "hbm", (128, 512), "float32", slots=m // 512 * n // 128)
    out = Tile("out", "hbm", (128, k), "float32", slots=8)
    parts, columns, blocks_m = k // 128, n // 1024, m // 512
    x = _sbuf("x rows", k)
    turned = _sbuf("x transposed", parts * 512, blocks_m)
    w = _sbuf("weight rows", 1024, parts)
    result, gate = _sbuf("result", 512), _sbuf("gate tile", 512)
    one = Tile("one", "sbuf", (128, 1), "float32")
    inner, product = _sbuf("silu", 512), _sbuf("product tile", 512)
    blocks, sums = _psum("blocks", 128, 8), _psum("sums", 512, 4)

    def turn(block: Index):
        nodes = []
        for row in range(4):
            nodes.append(dma_copy(x[4 * block + row], x_hbm[0]))
            for p in range(parts):
                place = 8 * row + p
                nodes += [
                    nc_transpose(blocks[place], x[4 * block + row][:, 128 * p : 128 * (p + 1)]),
                    _copy(
                        turned[block][:, 512 * p + 128 * row : 512 * p + 128 * (row + 1)],
                        blocks[place],
                    ),
                ]
        return nodes

    def dot(into: Access, block: Index, column: int) -> list[Instruction]:
        return [
            nc_matmul(
                into,
                w[p][:, 128 * column : 128 * (column + 1)],
                turned[block][:, 512 * p : 512 * (p + 1)],
                accumulate=p > 0,
            )
            for p in range(parts)
        ]

    def load_weights() -> list[Instruction]:
        return [dma_copy(w[p], weights[0:128, 0:1024]) for p in range(parts)]

    def gate_columns(i: Index):
        def block(j: Index):
            nodes = []
            for c in range(8):
                place = (i * blocks_m + j) * 8 + c
                nodes += [
                    *dot(sums[c], j, c),
                    _copy(result[c], sums[c]),
                    dma_copy(gate_hbm[place], result[c], engine=_STORE),
                ]
            return nodes

        return [*load_weights(), loop(blocks_m, block)]

    def up_columns(i: Index):
        def block(j: Index):
            nodes = []
            for c in range(8):
                place = (i * blocks_m + j) * 8 + c
                nodes += [
                    dma_copy(gate[c], gate_hbm[place]),
                    *dot(sums[c], j, c),
                    activation(inner[c], gate[c], scale=-1.0, op="exp"),
                    activation(inner[c], inner[c], one, op="copy"),
                    reciprocal(inner[c], inner[c]),
                    tensor_tensor(inner[c], gate[c], inner[c], op="multiply"),
                    tensor_tensor(product[c], inner[c], sums[c], op="multiply"),
                    dma_copy(product_hbm[place], product[c], engine=_STORE),
                ]
            return nodes

        return [*load_weights(), loop(blocks_m, block)]

    # Down: all its weights stay, the products of 512 rows at a time.
    rows = n // 128
    down, again = _sbuf("down", k, rows), _sbuf("product again", 512, rows + 4)
    final = _sbuf("final", k)

    def down_block(i: Index):
        nodes = [dma_copy(again[i * rows + r], product_hbm[i * rows + r]) for r in range(rows)]
        for row in range(4):
            for half in range(2):
                place = 2 * row + half
                nodes += [
                    nc_matmul(
                        sums[place],
                        again[i * rows + r][:, 128 * row : 128 * (row + 1)],
                        down[r][:, 512 * half : 512 * (half + 1)],
                        accumulate=r > 0,
                    )
                    for r in range(rows)
                ]
                nodes.append(_copy(final[row][:, 512 * half : 512 * (half + 1)], sums[place]))
            nodes.append(dma_copy(out[4 * i + row], final[row], engine=_STORE))
        return nodes

    body = [
        memset(one, value=1.0),
        loop(blocks_m, turn),
        loop(columns, gate_columns),
        loop(blocks_m, turn),
        loop(columns, up_columns),
        *(dma_copy(down[r], weights[0:128, 0:k]) for r in range(rows)),
        loop(blocks_m, down_block),
    ]
    return program("swiglu fp32", body)


ROWS = (
    Row(
        "C14 swiglu",
        "swiglu, M 4096, N 3072, K 1024 fp32",
        TRAINIUM1,
        lambda: swiglu(4096, 3072, 1024),
        (
            total_us(4_222),
            hfu(0.414, counted=0.5),
            engine_share("vector", 0.1347),
            engine_share("scalar", 0.0933),
            read_mb(141.6),
            written_mb(83.9),
        ),
        _NKIBENCH,
    ),
    Row(
        "C14 matmul",
        "matmul, M 4096, N 12288, K 5120 fp32",
        TRAINIUM1,
        lambda: matmul(4096, 12288, 5120),
        (total_us(35_200), hfu(0.360, counted=0.5), read_mb(9_059.8), written_mb(201.3)),
        _NKIBENCH,
    ),
)

ASIDE = (
    Row(
        "A11",
        "matmul, transposed left operand fp32",
        TRAINIUM1,
        lambda: transposed_left(4096, 10944, 2048),
        (total_us(9_610), hfu(0.435, counted=0.5), read_mb(392.2), written_mb(179.3)),
        _NKIBENCH,
    ),
    Row(
        "A12",
        "batched matmul, 16 x 4096 x 64 x 4096 fp32",
        TRAINIUM1,
        lambda: batched(16, 4096, 4096, 64),
        (total_us(4_611), engine_share("scalar", 0.373), written_mb(1_086.3)),
        _NKIBENCH,
    ),
)
