"""Sorts, the largest k, random numbers."""

import math
from collections.abc import Iterable

from jax_trn3.hardware import Chip
from jax_trn3.isa import Access, Index, Tile
from jax_trn3.isa.random import rng
from jax_trn3.isa.scalar import activation
from jax_trn3.isa.tensor import nc_transpose
from jax_trn3.isa.vector import tensor_tensor
from jax_trn3.isa.vector_move import tensor_copy
from jax_trn3.isa.vector_search import MOST, max8, nc_find_index8, nc_match_replace8
from jax_trn3.simulator import Node, loop, program

from ..graph import Operation
from ..group import Group, Plan
from . import rule
from .tiles import held_as
from .transfers import streamed, units

_EIGHTS = 16
"""Times eight of the largest that are searched for; more of them are sorted."""


@rule("sort")
def sort(group: Group, chip: Chip) -> Plan:
    """A bitonic network: rows over partitions, a row of its own over all of them."""
    operation = group.operations[-1]
    operand = operation.operands[0]
    axis = int(operation.attributes.get("dimension", len(operand.shape) - 1))
    length = operand.shape[axis] if operand.shape else 1
    nodes = _sorted(operation, length, chip)
    flops = operand.size * _stages(length)
    lacks = "no engine sorts: compared and exchanged in a bitonic network on VectorE"
    return Plan(program("sort", nodes), flops=flops, lacks=lacks)


def _stages(length: int) -> int:
    """Comparisons of each element."""
    levels = max(1, math.ceil(math.log2(max(2, length))))
    return levels * (levels + 1) // 2


def _sorted(operation: Operation, length: int, chip: Chip) -> list[Node]:
    count = len(operation.results) or 1
    stages = _stages(length)
    rows = max(1, operation.operands[0].size // max(1, length))
    # Levels above this one exchange elements of different partitions.
    across = max(0, math.ceil(math.log2(max(2, length))) - 8) if rows < 128 and length > 256 else 0
    across = min(across, 7) * 2

    def work(ins: list[Access], outs: list[Access], i: Index) -> Iterable[Node]:
        body: list[Node] = []
        ends: list[Node] = []
        for number, after in enumerate(outs):
            before = ins[min(number, len(ins) - 1)]  # places of top_k are made on the way
            half = max(1, before.free_size // 2)
            one = other = dst = before[:, 0:half]
            last = [
                tensor_copy(after[0:h, 0:w], before[0:h, 0:w], engine="vector")
                for h, w in [_common(before, after)]
            ]
            # The smaller and the larger ones; of what goes along, what belongs to them.
            body += [
                tensor_tensor(dst, one, other, op=op, engine="vector")
                for op in ("minimum", "maximum")
            ]
            if number:
                body.append(tensor_tensor(dst, one, other, op="less", engine="vector"))
            ends += last
        yield loop(stages, lambda _: body)
        if across:
            yield from _exchanged(ins, across)
        yield from ends

    moved = [units(tensor, chip) for tensor in operation.operands[:count]]
    results = [units(tensor, chip) for tensor in operation.results]
    return streamed("sort", moved, results, work)


def _common(one: Access, other: Access) -> tuple[int, int]:
    return min(one.partitions, other.partitions), min(one.free_size, other.free_size)


def _exchanged(ins: list[Access], often: int) -> Iterable[Node]:
    """Blocks of a tile transposed by TensorE, and copied back, so often."""
    for data in ins:
        kind = "bfloat16" if data.tile.element.bytes <= 2 else "float32"
        rows, width = data.partitions, min(128, data.free_size)
        name = f"{kind} {rows} {width}"
        block = Tile(f"block {name}", "sbuf", (rows, width), kind, given=True)
        psum = Tile(f"turned {name}", "psum", (width, rows), kind)
        back = Tile(f"back {name}", "sbuf", (width, rows), kind)
        exchange: list[Node] = [
            nc_transpose(psum, block, engine="tensor"),
            activation(back, psum, op="copy"),
        ]
        yield from _repeated(exchange, often * -(-data.free_size // width))


def _repeated(body: list[Node], times: int) -> Iterable[Node]:
    return [loop(times, lambda _: body)]


@rule("top_k")
def top_k(group: Group, chip: Chip) -> Plan:
    """Eight at a time on VectorE (max8, their places, out with them); more than 128 by sorting."""
    operation = group.operations[-1]
    operand = operation.operands[0]
    length = operand.shape[-1] if operand.shape else 1
    k = int(operation.attributes.get("k", operation.results[0].shape[-1]))
    if k > 8 * _EIGHTS or length < 8:
        nodes = _sorted(operation, length, chip)
        return Plan(program("top_k", nodes), flops=operand.size * _stages(length))
    rounds = -(-k // 8)
    rows = operand.size // length
    parts = -(-length // MOST)
    width = max(8, -(-length // parts))
    dtype = held_as(operand.dtype, chip.core)
    reads, writes = [units(operand, chip)], [units(t, chip) for t in operation.results]
    tiles = -(-rows // 128) * parts

    def work(ins: list[Access], outs: list[Access], i: Index) -> Iterable[Node]:
        return ()

    row = Tile("a row each", "sbuf", (128, width), dtype, 2, given=True)
    best = Tile("best", "sbuf", (128, 8), "float32", 2)
    where = Tile("where", "sbuf", (128, 8), "uint32", 2)

    def search(i: Index) -> list[Node]:
        body: list[Node] = []
        for _ in range(rounds):
            body += [
                max8(best[i], row[i]),
                nc_find_index8(where[i], row[i], best[i]),
                nc_match_replace8(row[i], row[i], best[i], imm=-3e38),
            ]
        return body

    nodes = [*streamed("top_k", reads, writes, work), loop(tiles, search)]
    # Searching and moving go on side by side: they share nothing but the engines' queues.
    return Plan(program("top_k", nodes), flops=operand.size * rounds)


_THREEFRY = 100
"""Instructions of a Threefry-2x32 block: 20 rounds of a sum, a rotation (3) and an exclusive or."""


@rule("random")
def random(group: Group, chip: Chip) -> Plan:
    """The hardware's generator; Threefry, if the program insists on it, in integers."""
    operation = group.operations[-1]
    bits = operation.results[-1]
    algorithm = str(operation.attributes.get("rng_algorithm", "DEFAULT"))
    threefry = "THREE" in algorithm or "threefry" in operation.kind

    def work(ins: list[Access], outs: list[Access], i: Index) -> Iterable[Node]:
        dst = outs[0]
        like = Tile(f"bits {dst.shape}", "sbuf", dst.tile.shape, "uint32", 2)
        made = like[i][0 : dst.size[0], 0 : dst.size[1]]
        if not threefry:
            yield rng(made, engine="vector")
        else:
            seed = Tile(f"counter {dst.shape}", "sbuf", dst.tile.shape, "uint32", given=True)
            count = seed[0 : dst.size[0], 0 : dst.size[1]]
            round_ = [
                tensor_tensor(made, count, count, op="add", engine="gpsimd"),
                *(
                    tensor_tensor(made, count, count, op="bitwise_xor", engine="vector")
                    for _ in range(4)
                ),
            ]
            yield loop(_THREEFRY // 10, lambda _: round_)
        yield tensor_copy(dst, made, engine="scalar" if chip.core.generation >= 3 else "vector")

    nodes = streamed("random", [], [units(bits, chip)], work)
    assumptions = () if threefry else ("random bits are the hardware's generator's",)
    return Plan(program("random", nodes), flops=bits.size, assumptions=assumptions)
