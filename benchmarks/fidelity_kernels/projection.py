"""Projection of a few tokens to queries, keys and values: nki-library's `qkv_tkg`.

Two cores share the work: each has half of the contracted dimension. One transfer brings 2048 rows
of weights; a few tokens are stationary and the weights move, 512 columns at a time. The cores then
exchange their sums. Before it all either a residual sum that passes through HBM, or an RMS norm.

Published: performance figures of its integration tests in an inferred unit, of a logical core of
two physical ones. Assumed: what one of the two does, with half of the HBM stack; as many weight
buffers as fit, at most 4. Left out: how the two cores start and meet; it takes time, as the two
small cases show, and nothing is published about it.
"""

from jax_trn3.hardware import TRAINIUM2
from jax_trn3.isa import Instruction, Tile
from jax_trn3.isa.dma import dma_copy, sendrecv
from jax_trn3.isa.scalar import activation, activation_reduce
from jax_trn3.isa.tensor import nc_matmul
from jax_trn3.isa.vector import tensor_scalar, tensor_tensor
from jax_trn3.isa.vector_move import memset
from jax_trn3.simulator import Program, program

from .row import Row, total_us

_SOURCE = "nki-library, test/integration/nkilib/core/qkv/test_qkv_tkg.py"
_BLOCK = 16  # tiles of 128 rows of weights that are loaded at once
_COLUMNS = 4096  # of a result that PSUM holds
_WEIGHTS = 160 * 1024  # bytes a partition for weights
_DTYPE = "bfloat16"
_REASON = "about 48 us are fixed, whatever the size: how two cores start and meet is not published"


def _residual_sum(hidden: Tile, tokens: int, width: int) -> list[Instruction]:
    """hidden + two more, written to HBM."""
    shape = (128, tokens * width)
    given = Tile("residuals", "hbm", shape, _DTYPE, given=True)
    parts = Tile("residual", "sbuf", shape, _DTYPE, slots=3)
    first, second, third = (parts[k] for k in range(3))
    return [
        *(dma_copy(parts[k], given[0]) for k in range(3)),
        tensor_tensor(first, first, second, op="add"),
        tensor_tensor(first, first, third, op="add"),
        dma_copy(hidden[0], first),
    ]


def _rms_norm(x: Tile, tokens: int, width: int) -> list[Instruction]:
    """x over the root of its mean square, token by token: the sum over a partition on ScalarE, over
    partitions by ones on TensorE."""
    square = Tile("square", "sbuf", (128, width), "float32", slots=2)
    sums = Tile("sums", "sbuf", (128, tokens), "float32")
    ones = Tile("ones", "sbuf", (128, 128), "float32")
    mean = Tile("mean", "psum", (128, tokens), "float32")
    root = Tile("1 / root", "sbuf", (128, tokens), "float32")
    part = [x[:, t * width : (t + 1) * width] for t in range(tokens)]
    return [
        memset(ones, value=1.0),
        *(
            activation_reduce(square[t], part[t], sums[:, t : t + 1], op="square", reduce_op="add")
            for t in range(tokens)
        ),
        nc_matmul(mean, ones, sums, accumulate=False),
        activation(root, mean, scale=1.0 / (128 * width), op="rsqrt"),
        *(
            tensor_scalar(part[t], part[t], root[:, t : t + 1], op0="multiply")
            for t in range(tokens)
        ),
    ]


def projection(tokens: int, hidden: int, columns: int, first: str) -> Program:
    """[tokens, hidden] @ [hidden, columns], one core's half, after a "residual sum" or a "norm"."""
    tiles = hidden // 2 // 128
    x_hbm = Tile("hidden", "hbm", (128, tokens * tiles), _DTYPE, given=first == "norm")
    x = Tile("hidden tile", "sbuf", (128, tokens * tiles), _DTYPE)
    weights = Tile("weights", "hbm", (128, hidden // 128, columns), _DTYPE, given=True)
    out = Tile("out", "hbm", (tokens, columns), _DTYPE)
    width = min(columns, _COLUMNS)
    buffers = min(4, max(1, _WEIGHTS // (_BLOCK * width * 2)))
    w = Tile("weight tile", "sbuf", (128, _BLOCK, width), _DTYPE, slots=buffers)
    psum = Tile("sums", "psum", (tokens, 512), "float32", slots=width // 512 + (width % 512 > 0))
    if first == "norm":
        nodes = [dma_copy(x, x_hbm[0]), *_rms_norm(x, tokens, tiles)]
    else:
        nodes = [*_residual_sum(x_hbm, tokens, tiles), dma_copy(x, x_hbm[0])]
    number = 0
    for start in range(0, columns, _COLUMNS):
        size = min(_COLUMNS, columns - start)
        mine, theirs = (
            Tile(f"{s} {start}", "sbuf", (tokens, size), _DTYPE) for s in ("mine", "theirs")
        )
        pieces = [(c, min(512, size - c)) for c in range(0, size, 512)]
        for block in range(0, tiles, _BLOCK):
            rows = min(_BLOCK, tiles - block)
            source = weights[:, block : block + rows, start : start + size]
            # On a queue of their own: they need not wait for the tokens.
            nodes.append(dma_copy(w[number][:, 0:rows, 0:size], source, engine="dma:scalar"))
            for row in range(rows):
                stationary = x[:, block + row : tokens * tiles : tiles]
                nodes += [
                    nc_matmul(
                        psum[c // 512][:, 0:n],
                        stationary,
                        w[number][:, row, c : c + n],
                        accumulate=block + row > 0,
                    )
                    for c, n in pieces
                ]
            number += 1
        nodes += [
            activation(mine[:, c : c + n], psum[c // 512][:, 0:n], op="copy") for c, n in pieces
        ]
        nodes += [
            sendrecv(mine, theirs, send_to_rank=1, recv_from_rank=1, pipe_id=0),
            tensor_tensor(mine, mine, theirs, op="add"),
            dma_copy(out[:, start : start + size], mine),
        ]
    return program(f"qkv, {tokens} x {hidden} x {columns}", nodes)


def _row(name: str, tokens: int, hidden: int, columns: int, first: str, published: float) -> Row:
    return Row(
        f"C13 {name}",
        f"qkv, {tokens} tokens, {hidden} x {columns} bf16",
        TRAINIUM2,
        lambda: projection(tokens, hidden, columns, first),
        (total_us(published),),
        _SOURCE,
        active_cores=2,
        reason=_REASON if published < 100 else "",
    )


ROWS = (
    _row("a", 1, 8192, 896, "residual sum", 70.5),
    _row("b", 40, 8192, 5120, "norm", 265.2),
    _row("c", 16, 3072, 640, "norm", 59.4),
)
ASIDE = ()
