"""Element by element: SiLU, rotary embedding, AdamW of NKIBench, and a chain of tiny instructions.

NKIBench's baselines (zhang677/AccelOpt, NKIBench/kernels) are what AWS's compiler made of a few
lines of numpy, as a kernel: rows of [128, 1024] in HBM, arithmetic on [128, 512].

Assumed: loads on SyncE's queue, stores on ScalarE's; every tile double-buffered.
"""

from jax_trn3.hardware import TRAINIUM1
from jax_trn3.isa import Access, Index, Instruction, Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.scalar import activation
from jax_trn3.isa.vector import reciprocal, scalar_tensor_tensor, tensor_scalar, tensor_tensor
from jax_trn3.isa.vector_move import memset, tensor_copy
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
    """x / (1 + exp(-x)): exp on ScalarE; add, reciprocal and multiply on VectorE."""
    (x_hbm,) = _streams("x")
    out = Tile("out", "hbm", (128, 1024), "float32", slots=8)
    x, y = _tiles("x tile", "y tile", width=1024)
    exponential, one_more, inverse = _tiles("exp", "1 + exp", "inverse")
    zero = Tile("zero", "sbuf", (128, 1), "float32")

    def step(i: Index):
        nodes = [dma_copy(x[i], x_hbm[0])]
        for h, (part, result) in enumerate(zip(_halves(x[i]), _halves(y[i]))):
            at = 2 * i + h
            nodes += [
                activation(exponential[at], part, zero[0], -1.0, op="exp"),
                tensor_scalar(one_more[at], exponential[at], 1.0, op0="add"),
                reciprocal(inverse[at], one_more[at]),
                tensor_tensor(result, part, inverse[at], op="multiply"),
            ]
        return [*nodes, dma_copy(out[i], y[i], engine=_STORE)]

    return program("silu", [memset(zero, value=0.0), loop(tiles, step)])


def rope(tiles: int) -> Program:
    """Rotary embedding of [128, 512]: one half times cosine and sine, plus and minus the other.

    A copy brings the lower half of the partitions beside the upper one; then four products, a
    difference and a sum on VectorE.
    """
    x_hbm = Tile("x", "hbm", (128, 512), "float32", given=True)
    angles = Tile("cos", "hbm", (64, 512), "float32", given=True)
    out = Tile("out", "hbm", (128, 512), "float32", slots=8)
    x, y = _tiles("x tile", "y tile")
    odd, cosine, sine, e_cos, e_sin, o_cos, o_sin = (
        Tile(name, "sbuf", (64, 512), "float32", slots=2)
        for name in ("odd", "cos tile", "sin tile", "e cos", "e sin", "o cos", "o sin")
    )

    def step(i: Index):
        even, lower = x[i][0:64], x[i][64:128]
        return [
            dma_copy(x[i], x_hbm[0]),
            dma_copy(cosine[i], angles[0]),
            dma_copy(sine[i], angles[0]),
            tensor_copy(odd[i], lower, engine="vector"),
            tensor_tensor(e_cos[i], even, cosine[i], op="multiply"),
            tensor_tensor(o_cos[i], odd[i], cosine[i], op="multiply"),
            tensor_tensor(e_sin[i], even, sine[i], op="multiply"),
            tensor_tensor(o_sin[i], odd[i], sine[i], op="multiply"),
            tensor_tensor(y[i][0:64], e_cos[i], o_sin[i], op="subtract"),
            tensor_tensor(y[i][64:128], o_cos[i], e_sin[i], op="add"),
            dma_copy(out[i], y[i], engine=_STORE),
        ]

    return program("rope", [loop(tiles, step)])


def adamw(tiles: int) -> Program:
    """One step of AdamW on [128, 1024].

    Written as 7 multiplications or sums with a number, 6 operations on two tiles, a square root and
    a reciprocal. With each of them an instruction of its own VectorE would be active for longer
    than the published 1.8 ms; so assumed is that the compiler fused a multiplication by a number
    with the operation after it (scalar_tensor_tensor), the sum and the reciprocal, and put the
    square on ScalarE.
    """
    theta_h, m_h, v_h, g_h = _streams("theta", "m", "v", "g")
    out = Tile("out", "hbm", (128, 1024), "float32", slots=8)
    theta, m, v, g, new = _tiles("theta t", "m t", "v t", "g t", "new", width=1024)
    names = ("kept", "b1m", "m1", "gg", "v1", "root", "inverse", "ratio")
    kept, b1m, m1, gg, v1, root, inverse, ratio = _tiles(*names)
    zero = Tile("zero", "sbuf", (128, 1), "float32")

    def half(at: Index, th: Access, mm: Access, vv: Access, gr: Access, result: Access):
        def fused(dst: Access, x: Access, number: float, y: Access, op1: str) -> Instruction:
            return scalar_tensor_tensor(dst, x, number, y, op0="multiply", op1=op1)

        return [
            fused(kept[at], th, -1e-5, th, "add"),
            activation(b1m[at], mm, zero[0], 0.9, op="copy"),
            fused(m1[at], gr, 0.1, b1m[at], "add"),
            activation(gg[at], gr, zero[0], 0.001**0.5, op="square"),
            fused(v1[at], vv, 0.999, gg[at], "add"),
            activation(root[at], v1[at], zero[0], 1000.0, op="sqrt"),
            tensor_scalar(inverse[at], root[at], 1e-8, -1.0, op0="add", op1="power"),
            fused(ratio[at], m1[at], 0.01, inverse[at], "multiply"),
            tensor_tensor(result, kept[at], ratio[at], op="subtract"),
        ]

    def step(i: Index):
        pairs = ((theta, theta_h), (m, m_h), (v, v_h), (g, g_h))
        nodes = [dma_copy(tile[i], source[0]) for tile, source in pairs]
        for h, parts in enumerate(zip(*(_halves(tile[i]) for tile in (theta, m, v, g, new)))):
            nodes += half(2 * i + h, *parts)
        return [*nodes, dma_copy(out[i], new[i], engine=_STORE)]

    return program("adamw", [memset(zero, value=0.0), loop(tiles, step)])


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
        (total_us(4_333), engine_share("vector", 0.716), read_mb(268.4), written_mb(134.2)),
        _NKIBENCH,
    ),
    Row(
        "C14 adamw",
        "adamw, [10944, 2048] fp32",
        TRAINIUM1,
        lambda: adamw(171),
        (total_us(2_000), engine_share("vector", 0.9), read_mb(358.6), written_mb(89.7)),
        _NKIBENCH,
    ),
    Row(
        "C14 silu",
        "silu, [4096, 7168] fp32",
        TRAINIUM1,
        lambda: silu(32 * 7),
        (total_us(1_333), engine_share("vector", 0.739), read_mb(117.4), written_mb(117.4)),
        _NKIBENCH,
    ),
)
ASIDE = ()
