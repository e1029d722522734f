"""Element by element: SiLU, rotary embedding, AdamW of NKIBench, and a chain of tiny instructions.

NKIBench's baselines (zhang677/AccelOpt, NKIBench/kernels) are what AWS's compiler made of a few
lines of numpy, as a kernel: rows of [128, 1024] in HBM, arithmetic on [128, 512].

Assumed: loads on SyncE's queue, stores on ScalarE's; every tile double-buffered; operations of a
tile and a number, whose engine the text leaves open (`engine=unknown`), on ScalarE, as published
active times of both engines say.
"""

from jax_trn3.hardware import TRAINIUM1
from jax_trn3.isa import Access, Index, Instruction, Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.scalar import activation
from jax_trn3.isa.vector import reciprocal, tensor_tensor
from jax_trn3.isa.vector_move import memset
from jax_trn3.simulator import Program, loop, program

from .row import Figure, Row, engine_share, read_mb, total_us, written_mb

_NKIBENCH = "zhang677/AccelOpt, NKIBench, profile_results.csv"
_STORE = "dma:scalar"


def _tiles(*names: str, width: int = 512, slots: int = 2) -> list[Tile]:
    return [Tile(name, "sbuf", (128, width), "float32", slots=slots) for name in names]


def _streams(*names: str) -> list[Tile]:
    return [Tile(name, "hbm", (128, 1024), "float32", given=True) for name in names]


def _halves(access: Access) -> list[Access]:
    return [access[:, 0:512], access[:, 512:1024]]


def silu(tiles: int) -> Program:
    """x / (1 + exp(-x)): exp and the sum on ScalarE, reciprocal and product on VectorE."""
    (x_hbm,) = _streams("x")
    out = Tile("out", "hbm", (128, 1024), "float32", slots=8)
    x, y = _tiles("x tile", "y tile", width=1024)
    exponential, one_more, inverse = _tiles("exp", "1 + exp", "inverse")
    zero, one = (Tile(name, "sbuf", (128, 1), "float32") for name in ("zero", "one"))

    def step(i: Index):
        nodes = [dma_copy(x[i], x_hbm[0])]
        for h, (part, result) in enumerate(zip(_halves(x[i]), _halves(y[i]))):
            at = 2 * i + h
            nodes += [
                activation(exponential[at], part, zero[0], -1.0, op="exp"),
                activation(one_more[at], exponential[at], one[0], 1.0, op="copy"),
                reciprocal(inverse[at], one_more[at]),
                tensor_tensor(result, part, inverse[at], op="multiply"),
            ]
        return [*nodes, dma_copy(out[i], y[i], engine=_STORE)]

    constants = [memset(zero, value=0.0), memset(one, value=1.0)]
    return program("silu", [*constants, loop(tiles, step)])


def rope(tiles: int) -> Program:
    """Rotary embedding of [128, 512]: one half times cosine and sine, plus and minus the other.

    Four products, a difference and a sum on VectorE; before them a copy that brings the lower half
    of the partitions beside the upper one. Published active times fit that copy and two of the
    result on ScalarE, and VectorE waits for more than a quarter of the time: assumed is that this
    kernel, unrolled by a loop of Python's, has one buffer for each of its tiles.
    """
    x_hbm = Tile("x", "hbm", (128, 4096), "float32", given=True)
    angles = Tile("cos", "hbm", (64, 4096), "float32", given=True)
    out = Tile("out", "hbm", (128, 4096), "float32", slots=8)
    x, y = (Tile(name, "sbuf", (128, 512), "float32") for name in ("x tile", "y tile"))
    names = ("odd", "cos tile", "sin tile", "e cos", "e sin", "o cos", "o sin", "upper", "lower")
    odd, cosine, sine, e_cos, e_sin, o_cos, o_sin, upper, lower = (
        Tile(name, "sbuf", (64, 512), "float32") for name in names
    )
    even = x[0:64]

    def step(i: Index):
        return [
            dma_copy(x, x_hbm[:, 0:512]),
            dma_copy(cosine, angles[:, 0:512]),
            dma_copy(sine, angles[:, 0:512]),
            activation(odd, x[64:128], op="copy"),
            tensor_tensor(e_cos, even, cosine, op="multiply"),
            tensor_tensor(o_cos, odd, cosine, op="multiply"),
            tensor_tensor(e_sin, even, sine, op="multiply"),
            tensor_tensor(o_sin, odd, sine, op="multiply"),
            tensor_tensor(upper, e_cos, o_sin, op="subtract"),
            tensor_tensor(lower, o_cos, e_sin, op="add"),
            activation(y[0:64], upper, op="copy"),
            activation(y[64:128], lower, op="copy"),
            dma_copy(out[i][:, 0:512], y, engine=_STORE),
        ]

    return program("rope", [loop(tiles, step)])


def adamw(tiles: int) -> Program:
    """One step of AdamW on [128, 1024].

    Written as 7 operations with a number, 6 on two tiles, a square root and a reciprocal. Published
    are active times of both engines; what fits them is 8 instructions on ScalarE (operations with a
    number; theta less its decay as one product; the square) and 5 on VectorE.
    """
    theta_h, m_h, v_h, g_h = _streams("theta", "m", "v", "g")
    out = Tile("out", "hbm", (128, 1024), "float32", slots=8)
    theta, m, v, g, new = _tiles("theta t", "m t", "v t", "g t", "new", width=1024)
    names = ("kept", "b1m", "b1g", "m1", "step", "b2v", "gg", "v1", "root", "inverse", "ratio")
    kept, b1m, b1g, m1, stepped, b2v, gg, v1, root, inverse, ratio = _tiles(*names)
    zero, epsilon = (Tile(name, "sbuf", (128, 1), "float32") for name in ("zero", "epsilon"))

    def times(dst: Access, src: Access, number: float, op: str = "copy") -> Instruction:
        return activation(dst, src, zero[0], number, op=op)

    def half(at: Index, th: Access, mm: Access, vv: Access, gr: Access, result: Access):
        return [
            times(kept[at], th, 1 - 1e-5),
            times(b1m[at], mm, 0.9),
            times(b1g[at], gr, 0.1),
            tensor_tensor(m1[at], b1m[at], b1g[at], op="add"),
            times(b2v[at], vv, 0.999),
            times(gg[at], gr, 0.001**0.5, op="square"),
            tensor_tensor(v1[at], b2v[at], gg[at], op="add"),
            times(stepped[at], m1[at], 0.01),
            times(root[at], v1[at], 1000.0, op="sqrt"),
            activation(root[at], root[at], epsilon[0], 1.0, op="copy"),
            reciprocal(inverse[at], root[at]),
            tensor_tensor(ratio[at], stepped[at], inverse[at], op="multiply"),
            tensor_tensor(result, kept[at], ratio[at], op="subtract"),
        ]

    def step(i: Index):
        pairs = ((theta, theta_h), (m, m_h), (v, v_h), (g, g_h))
        nodes = [dma_copy(tile[i], source[0]) for tile, source in pairs]
        for h, parts in enumerate(zip(*(_halves(tile[i]) for tile in (theta, m, v, g, new)))):
            nodes += half(2 * i + h, *parts)
        return [*nodes, dma_copy(out[i], new[i], engine=_STORE)]

    constants = [memset(zero, value=0.0), memset(epsilon, value=1e-8)]
    return program("adamw", [*constants, loop(tiles, step)])


def chain(count: int) -> Program:
    """Instructions of one element a partition on ScalarE, each reading the one before."""
    x = Tile("x", "sbuf", (128, 1), "float32")
    bias = Tile("bias", "sbuf", (128, 1), "float32")
    step = activation(x, x, bias, 1.0, op="copy")
    zeros = [memset(tile, value=0.0) for tile in (x, bias)]
    return program("chain", [*zeros, loop(count, lambda _: [step])])


ROWS = (
    Row(
        "C8",
        "chain of tiny ScalarE instructions",
        TRAINIUM1,
        lambda: chain(1_000),
        (Figure("ns each", 189, lambda t: t.active_ps / 1e3 / 1_000),),
        "nki/deep-dives/nki_perf_guide.rst",
    ),
    Row(
        "C14 rope",
        "rope, 64 heads of [128, 4096] fp32",
        TRAINIUM1,
        lambda: rope(64 * 8),
        (
            total_us(4_333),
            engine_share("vector", 0.716),
            engine_share("scalar", 0.141),
            read_mb(268.4),
            written_mb(134.2),
        ),
        _NKIBENCH,
    ),
    Row(
        "C14 adamw",
        "adamw, [10944, 2048] fp32",
        TRAINIUM1,
        lambda: adamw(171),
        (
            total_us(2_000),
            engine_share("vector", 0.9),
            engine_share("scalar", 0.616),
            read_mb(358.6),
            written_mb(89.7),
        ),
        _NKIBENCH,
    ),
    Row(
        "C14 silu",
        "silu, [4096, 7168] fp32",
        TRAINIUM1,
        lambda: silu(32 * 7),
        (
            total_us(1_333),
            engine_share("vector", 0.739),
            engine_share("scalar", 0.315),
            read_mb(117.4),
            written_mb(117.4),
        ),
        _NKIBENCH,
    ),
)
ASIDE = ()
