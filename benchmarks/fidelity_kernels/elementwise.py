"""Element by element: SiLU, rotary embedding, AdamW of NKIBench, and a chain of tiny instructions.

NKIBench's baselines (zhang677/AccelOpt, NKIBench/kernels) are what AWS's compiler made of a few
lines of numpy, as a kernel: rows of [128, 1024] in HBM, arithmetic on [128, 512].

Assumed: loads on SyncE's queue, stores on ScalarE's; buffers for four tiles.
"""

from jax_trn3.hardware import TRAINIUM1
from jax_trn3.isa import Access, Index, Instruction, Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.scalar import activation
from jax_trn3.isa.vector import reciprocal, tensor_scalar, tensor_tensor
from jax_trn3.isa.vector_move import memset, tensor_copy
from jax_trn3.simulator import Program, loop, program

from .row import Figure, Row, engine_share, read_mb, total_us, written_mb

_NKIBENCH = "zhang677/AccelOpt, NKIBench, profile_results.csv"
_STORE = "dma:scalar"


def _tiles(*names: str, width: int = 512, slots: int = 4) -> list[Tile]:
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
        Tile(name, "sbuf", (64, 512), "float32", slots=4)
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
    """One step of AdamW on [128, 1024]: seven multiplications or sums with a number, six with a
    tile, a square root and a reciprocal.

    Assumed: what works on a number goes to ScalarE where the text leaves the engine open
    (`engine=unknown`).
    """
    theta_h, m_h, v_h, g_h = _streams("theta", "m", "v", "g")
    out = Tile("out", "hbm", (128, 1024), "float32", slots=8)
    theta, m, v, g, new = _tiles("theta t", "m t", "v t", "g t", "new", width=1024)
    names = ("decay", "kept", "b1m", "b1g", "m1", "step", "b2v", "b2g", "gg", "v1", "root")
    decay, kept, b1m, b1g, m1, stepped, b2v, b2g, gg, v1, root = _tiles(*names, slots=2)
    eps, inverse, ratio = _tiles("root + eps", "inverse", "ratio", slots=2)
    zero = Tile("zero", "sbuf", (128, 1), "float32")

    def times(dst: Access, src: Access, number: float) -> Instruction:
        return activation(dst, src, zero[0], number, op="copy")

    def half(at: Index, th: Access, mm: Access, vv: Access, gr: Access, res: Access):
        return [
            times(decay[at], th, 1e-5),
            tensor_tensor(kept[at], th, decay[at], op="subtract"),
            times(b1m[at], mm, 0.9),
            times(b1g[at], gr, 0.1),
            tensor_tensor(m1[at], b1m[at], b1g[at], op="add"),
            times(stepped[at], m1[at], 0.01),
            times(b2v[at], vv, 0.999),
            times(b2g[at], gr, 0.001),
            tensor_tensor(gg[at], b2g[at], gr, op="multiply"),
            tensor_tensor(v1[at], b2v[at], gg[at], op="add"),
            activation(root[at], v1[at], zero[0], 1000.0, op="sqrt"),
            tensor_scalar(eps[at], root[at], 1e-8, op0="add"),
            reciprocal(inverse[at], eps[at]),
            tensor_tensor(ratio[at], stepped[at], inverse[at], op="multiply"),
            tensor_tensor(res, kept[at], ratio[at], op="subtract"),
        ]

    def step(i: Index):
        pairs = ((theta, theta_h), (m, m_h), (v, v_h), (g, g_h))
        nodes = [dma_copy(tile[i], source[0]) for tile, source in pairs]
        parts = zip(*(_halves(tile[i]) for tile in (theta, m, v, g, new)))
        for h, accesses in enumerate(parts):
            nodes += half(2 * i + h, *accesses)
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
