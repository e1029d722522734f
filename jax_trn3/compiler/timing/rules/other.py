"""What the hardware lacks: Fourier transforms, factorizations, hosts, and what nobody knows."""

import math
from collections.abc import Iterable

from jax_trn3.hardware import Chip
from jax_trn3.isa import Access, Index, Tile
from jax_trn3.isa.scalar import activation
from jax_trn3.isa.tensor import nc_matmul
from jax_trn3.isa.vector import scalar_tensor_tensor, tensor_scalar, tensor_tensor
from jax_trn3.isa.vector_move import tensor_copy
from jax_trn3.simulator import Node, loop, program

from ..group import Group, Plan
from . import rule
from .transfers import streamed, units


@rule("other")
def other(group: Group, chip: Chip) -> Plan:
    """An operation that nobody has described: its operands and results go through HBM once."""
    kind = group.operations[-1].kind
    nodes = _through(group, chip)
    lacks = f"nothing is known of {kind}: counted are its operands and results, no work"
    return Plan(program(kind, nodes), lacks=lacks)


def _through(group: Group, chip: Chip) -> list[Node]:
    reads = [units(t, chip) for t in group.inputs if t.dtype != "token"]
    writes = [units(t, chip) for t in group.outputs if t.dtype != "token"]

    def nothing(ins: list[Access], outs: list[Access], i: Index) -> Iterable[Node]:
        return ()

    return streamed("through", reads, writes, nothing)


@rule("host")
def host(group: Group, chip: Chip) -> Plan:
    """A call of the host: what it reads and writes crosses HBM; the host's own time is unknown."""
    kind = group.operations[-1].kind
    lacks = "a NeuronCore calls no host: the program would have to be cut here"
    assumptions = (f"{kind}: the time on the host and on the way there is not counted",)
    return Plan(program(kind, _through(group, chip)), assumptions=assumptions, lacks=lacks)


# Fourier transforms.

_RADIX = 128


@rule("fft")
def fft(group: Group, chip: Chip) -> Plan:
    """Products with DFT matrices of up to 128 points, and twiddle factors between them."""
    operation = group.operations[-1]
    operand, result = operation.operands[0], operation.results[0]
    lengths = [int(n) for n in operation.attributes.get("fft_length", ())] or [operand.shape[-1]]
    rounds = sum(max(1, math.ceil(math.log(max(2, n), _RADIX))) for n in lengths)
    reads, writes = [units(operand, chip)], [units(result, chip)]

    def work(ins: list[Access], outs: list[Access], i: Index) -> Iterable[Node]:
        data, dst = (ins or outs)[0], (outs or ins)[0]
        height = min(data.partitions, dst.partitions)
        matrix = Tile("DFT", "sbuf", (128, 128), "float32", given=True)
        width = min(512, data.free_size, dst.free_size)
        times = -(-max(data.free_size, dst.free_size) // width)
        turned = Tile(f"turned {width}", "sbuf", (128, width), "float32", 2)
        psum = Tile(f"sums {width}", "psum", (128, width), "float32", 2)
        twiddle = Tile(f"twiddle {width}", "sbuf", (128, width), "float32", given=True)
        near = Tile(f"points {width}", "sbuf", (128, width), "float32", given=True)

        def one(k: Index) -> list[Node]:
            # Real and imaginary parts: four products, of which a column is one of both.
            products: list[Node] = [
                nc_matmul(
                    psum[k][0:height], matrix[0:height, 0:height], near[0:height],
                    accumulate=bool(part),
                )
                for part in range(2)
            ]  # fmt: skip
            return [
                *products,
                tensor_copy(turned[k][0:height], psum[k][0:height], engine="vector"),
                tensor_tensor(
                    turned[k][0:height], turned[k][0:height], twiddle[0:height], op="multiply"
                ),
                scalar_tensor_tensor(
                    turned[k][0:height], twiddle[0:height], 1.0, turned[k][0:height],
                    op0="multiply", op1="add",
                ),
            ]  # fmt: skip

        yield loop(times * rounds, one)
        del dst

    nodes = streamed("fft", reads, writes, work)
    points = math.prod(lengths)
    flops = int(5 * operand.size * math.log2(max(2, points)))
    lacks = "no engine transforms, nor computes with complex numbers: products with DFT matrices"
    return Plan(program("fft", nodes), flops=flops, lacks=lacks)


# Factorizations.

_SWEEPS = 10
"""Sweeps of an iterative eigenvalue or singular value decomposition that are assumed."""

_COSTS = (
    # Part of the target's name, multiply-adds over n^3 as products, steps one after another a
    # column, how often.
    ("triangular_solve", 0.5, 1, 1),
    ("trsm", 0.5, 1, 1),
    ("potrf", 1 / 6, 3, 1),
    ("cholesky", 1 / 6, 3, 1),
    ("getrf", 1 / 3, 5, 1),
    ("lu_pivots", 0, 2, 1),
    ("geqrf", 2 / 3, 6, 1),
    ("geqp3", 2 / 3, 8, 1),
    ("qr", 2 / 3, 6, 1),
    ("orgqr", 2 / 3, 4, 1),
    ("ungqr", 2 / 3, 4, 1),
    ("householder", 2 / 3, 4, 1),
    ("tridiagonal", 2 / 3, 8, 1),
    ("sytrd", 2 / 3, 8, 1),
    ("hetrd", 2 / 3, 8, 1),
    ("gehrd", 5 / 3, 8, 1),
    ("syevd", 2, 8, _SWEEPS),
    ("heevd", 2, 8, _SWEEPS),
    ("eigh", 2, 8, _SWEEPS),
    ("gesdd", 4, 12, _SWEEPS),
    ("gesvd", 4, 12, _SWEEPS),
    ("svd", 4, 12, _SWEEPS),
    ("geev", 4, 12, _SWEEPS),
    ("gees", 4, 12, _SWEEPS),
    ("eig", 4, 12, _SWEEPS),
    ("schur", 4, 12, _SWEEPS),
)


@rule("linear_algebra")
def linear_algebra(group: Group, chip: Chip) -> Plan:
    """Blocks of 128 columns: in a block column after column on VectorE and ScalarE, each waiting
    for the one before; the rest by products."""
    operation = group.operations[-1]
    name = operation.kind.lower()
    share, steps, sweeps = next((c[1:] for c in _COSTS if c[0] in name), (1.0, 8, _SWEEPS))
    matrix = max(
        (t for t in operation.operands if len(t.shape) >= 2), key=lambda t: t.size, default=None
    )
    if matrix is None:
        return other(group, chip)
    rows, columns = matrix.shape[-2:]
    batch = max(1, matrix.size // (rows * columns))
    multiply_adds = share * rows * columns * min(rows, columns) * sweeps
    width = min(512, max(rows, columns))
    products = math.ceil(multiply_adds / (128 * 128 * width))
    nodes = [
        *_through(group, chip),
        *_panels(batch * min(rows, columns), width, steps, sweeps),
        *_products(batch * products, width),
    ]
    assumptions = (f"{_SWEEPS} sweeps until values have settled",) if sweeps > 1 else ()
    lacks = "no engine factorizes: blocks of 128 columns, one column after another"
    flops = int(2 * multiply_adds * batch)
    return Plan(program(operation.kind, nodes), 1, flops, assumptions, lacks)


def _panels(columns: int, width: int, steps: int, sweeps: int) -> list[Node]:
    """Column after column: a pivot, a scaled column, what it takes from the others of its block."""
    panel = Tile("panel", "sbuf", (128, width), "float32", given=True)
    pivot = Tile("pivot", "sbuf", (128, 1), "float32", given=True)
    column: list[Node] = [
        activation(pivot, pivot, op="rsqrt"),
        tensor_scalar(panel, panel, pivot[:, 0:1], op0="multiply"),
        *(
            scalar_tensor_tensor(panel, panel, pivot[:, 0:1], panel, op0="multiply", op1="subtract")
            for _ in range(steps)
        ),
    ]
    return [loop(max(1, columns * sweeps), lambda _: column)]


def _products(count: int, width: int) -> list[Node]:
    """Products of [128, 128] and [128, width], four of them a sum."""
    if not count:
        return []
    left = Tile("left", "sbuf", (128, 128), "float32", given=True)
    right = Tile("right", "sbuf", (128, width), "float32", given=True)
    psum = Tile("product", "psum", (128, width), "float32", 2)
    out = Tile("update", "sbuf", (128, width), "float32", 2)

    def some(i: Index) -> list[Node]:
        return [
            *(nc_matmul(psum[i], left, right, accumulate=bool(k)) for k in range(4)),
            tensor_tensor(out[i], right, psum[i], op="subtract"),
        ]

    return [loop(-(-count // 4), some)]
