"""Windows and running sums: reductions that are not of whole rows."""

import math
from collections.abc import Iterable

from jax_trn3.hardware import Chip
from jax_trn3.isa import Access, Index, Tile
from jax_trn3.isa.scalar import activation
from jax_trn3.isa.vector import (
    scalar_tensor_tensor,
    tensor_scalar,
    tensor_tensor,
    tensor_tensor_scan,
)
from jax_trn3.isa.vector_reduce import tensor_reduce
from jax_trn3.simulator import Node, loop, program

from ..graph import Operation
from ..group import Group, Plan
from . import rule
from .transfers import streamed, units


def _counts(operation: Operation) -> tuple[int, int]:
    """(operands that are reduced, results)."""
    return len(operation.results), len(operation.results)


def running(operation: Operation) -> int | None:
    """The axis along which a window takes in everything before, if that is what it does."""
    shape = operation.operands[0].shape
    window = [int(n) for n in operation.attributes.get("window_dimensions", ())]
    wide = [axis for axis, size in enumerate(window) if size > 1]
    if len(wide) == 1 and window[wide[0]] == shape[wide[0]] == operation.results[0].shape[wide[0]]:
        return wide[0]
    return None


@rule("reduce_window")
def reduce_window(group: Group, chip: Chip) -> Plan:
    """Windows on VectorE: an instruction for each place of a window, dimension after dimension, by
    doubling where it is long. Running sums by its scan; what is scattered back is compared at each
    place of the window."""
    operation = group.operations[-1]
    count, _ = _counts(operation)
    window = [int(n) for n in operation.attributes.get("window_dimensions", ())]
    scattered = operation.kind == "stablehlo.select_and_scatter"
    if not scattered and running(operation) is not None:
        return scan(group, chip)
    steps = sum(min(n - 1, 2 * math.ceil(math.log2(n))) for n in window if n > 1)
    passes = 3 * math.prod(window) if scattered else max(1, steps)
    reads = [units(t, chip) for t in operation.operands if t.size > 1]
    writes = [units(t, chip) for t in operation.results]

    def work(ins: list[Access], outs: list[Access], i: Index) -> Iterable[Node]:
        for dst in outs[:count]:
            data = ins[0]
            width = min(data.free_size, dst.free_size)
            height = min(data.partitions, dst.partitions)
            part, into = data[0:height, 0:width], dst[0:height, 0:width]
            body: list[Node] = [tensor_tensor(into, part, part, op="maximum", engine="vector")]
            yield from _again(body, passes)

    nodes = streamed("window", reads, writes, work)
    flops = operation.results[0].size * (math.prod(window) - 1) * (3 if scattered else 1)
    name = operation.kind.partition(".")[2]
    return Plan(program(name, nodes), flops=flops)


def _again(body: list[Node], times: int) -> Iterable[Node]:
    return [loop(times, lambda _: body)] if times > 3 else body * times


@rule("scan")
def scan(group: Group, chip: Chip) -> Plan:
    """A running reduction: VectorE's scan, which takes two cycles an element, for each operation of
    what is carried along."""
    operation = group.operations[-1]
    inner = max(1, sum(len(region.operations) for region in operation.regions))
    reads = [units(t, chip) for t in operation.operands if t.size > 1]
    writes = [units(t, chip) for t in operation.results]

    def work(ins: list[Access], outs: list[Access], i: Index) -> Iterable[Node]:
        for dst in outs:
            data = min(ins, key=lambda a: abs(a.elements - dst.elements))
            width = min(data.free_size, dst.free_size)
            height = min(data.partitions, dst.partitions)
            part, into = data[0:height, 0:width], dst[0:height, 0:width]
            body: list[Node] = [
                tensor_tensor_scan(into, part, part, 0.0, op0="multiply", op1="add")
            ]
            yield from _again(body, inner)

    nodes = streamed("scan", reads, writes, work)
    assumptions = ("the axis of a running reduction lies along the partitions' rows",)
    flops = sum(t.size for t in operation.results) * inner
    return Plan(program("scan", nodes), flops=flops, assumptions=assumptions)


@rule("batch_norm")
def batch_norm(group: Group, chip: Chip) -> Plan:
    """Mean and variance by a first pass, if they are not given; everything else by a second."""
    operation = group.operations[-1]
    kind = operation.kind.partition(".")[2]
    largest = max(operation.operands, key=lambda t: t.size)
    every = [t for t in operation.operands if t.size == largest.size]
    first = [] if kind == "batch_norm_inference" else [units(t, chip) for t in every]
    reads = [units(t, chip) for t in operation.operands]
    writes = [units(t, chip) for t in operation.results]

    def sums(ins: list[Access], outs: list[Access], i: Index) -> Iterable[Node]:
        data = ins[0]
        total = Tile("sum", "sbuf", (128, 1), "float32", 2)
        squares = Tile("sum of squares", "sbuf", (128, 1), "float32", 2)
        scratch = Tile("squares", "sbuf", (128, data.free_size), "float32", 2)
        height = data.partitions
        yield tensor_reduce(total[i][0:height], data, op="add", axis=1)
        yield activation(
            scratch[i][0:height], data, None, None, squares[i][0:height], op="square",
            reduce_op="add", reduce_cmd="reset_reduce",
        )  # fmt: skip

    def normalized(ins: list[Access], outs: list[Access], i: Index) -> Iterable[Node]:
        data, dst = max(ins, key=lambda a: a.elements), max(outs, key=lambda a: a.elements)
        height, width = min(data.partitions, dst.partitions), min(data.free_size, dst.free_size)
        part, into = data[0:height, 0:width], dst[0:height, 0:width]
        scale = Tile("scale and shift", "sbuf", (128, 1), "float32", given=True)
        number = scale[0:height]
        yield tensor_scalar(into, part, number, number, op0="multiply", op1="add")
        if kind == "batch_norm_grad":
            yield scalar_tensor_tensor(into, part, number, part, op0="multiply", op1="add")

    nodes = streamed("statistics", first, [], sums) if first else []
    nodes += streamed("normalize", reads, writes, normalized)
    return Plan(program(kind, nodes), flops=largest.size * (8 if first else 4))
