"""Values that move: slices, concatenations, transposes, gathers and scatters."""

import math
from collections.abc import Iterable

from jax_trn3.hardware import Chip
from jax_trn3.isa import DTYPES, Access, Index, Instruction, Tile
from jax_trn3.isa.dma import dma_copy, dma_transpose
from jax_trn3.isa.scalar import activation
from jax_trn3.isa.tensor import nc_transpose
from jax_trn3.isa.vector_move import memset, tensor_copy
from jax_trn3.simulator import Node, loop, program

from ..graph import Operation, Tensor
from ..group import Group, Plan
from . import rule
from .tiles import words
from .transfers import LOADS, STORE, copied, streamed, units

_FAR = 8


def contiguous(part: tuple[int, ...], whole: tuple[int, ...], strides: tuple[int, ...] = ()) -> int:
    """Elements of a part that lie next to each other in the whole."""
    run = 1
    for axis in reversed(range(len(part))):
        if strides and int(strides[axis]) != 1:
            return run
        run *= part[axis]
        if part[axis] != whole[axis]:
            break
    return run


@rule("copy")
def copy(group: Group, chip: Chip) -> Plan:
    """Slices, pads and concatenations: DMA from HBM to HBM, in runs as long as they are."""
    operation = group.operations[-1]
    result = operation.results[0]
    name = operation.kind.partition(".")[2]
    nodes: list[Node] = []
    if _shuffled(operation, chip):
        return Plan(program(name, _by_engines(name, operation, chip)))
    if name == "concatenate":
        axis = int(operation.attributes.get("dimension", 0))
        for number, operand in enumerate(operation.operands):
            run = math.prod(operand.shape[axis:])
            nodes += _moved(f"{name} {number}", operand, run, chip)
    elif "pad" in name:
        operand = operation.operands[0]
        low = operation.attributes.get("edge_padding_low", ())
        inner = operation.attributes.get("interior_padding", ())
        spread = [int(n) for n in inner] or [0] * len(operand.shape)
        apart = tuple(1 + n for n in spread)
        kept = min(operand.size, result.size)
        run = contiguous(operand.shape, result.shape, apart) if low is not None else 1
        nodes += _moved(name, Tensor(operand.id, (kept,), operand.dtype), min(run, kept), chip)
        nodes += _filled(result.size - kept, result, chip)
    else:
        strides = tuple(operation.attributes.get("strides", ()))
        run = contiguous(result.shape, operation.operands[0].shape, strides)
        nodes += _moved(name, result, run, chip)
    return Plan(program(name, nodes))


def _run(operation: Operation) -> int:
    """Elements that lie next to each other on both sides."""
    result, kind = operation.results[0], operation.kind
    if kind.endswith("concatenate"):
        axis = int(operation.attributes.get("dimension", 0))
        return min(math.prod(t.shape[axis:]) for t in operation.operands)
    if "pad" in kind:
        spread = tuple(1 + int(n) for n in operation.attributes.get("interior_padding", ()))
        return contiguous(operation.operands[0].shape, result.shape, spread)
    strides = tuple(operation.attributes.get("strides", ()))
    return contiguous(result.shape, operation.operands[0].shape, strides)


_SHORT = 128
"""Bytes of runs of which DMA engines move so few in a packet's time that VectorE is faster."""


def _shuffled(operation: Operation, chip: Chip) -> bool:
    """Whether whole rows had better come to SBUF, where instructions pick elements."""
    _, dtype = units(operation.results[0], chip)
    short = _run(operation) * DTYPES[dtype].bytes < _SHORT
    read = sum(t.size for t in operation.operands if t.size > 1)
    return short and operation.results[0].size > 4096 and read <= 8 * operation.results[0].size


def _by_engines(name: str, operation: Operation, chip: Chip) -> list[Node]:
    """Loads, copies between access patterns, stores."""
    reads = [units(t, chip) for t in operation.operands if t.size > 1]
    writes = [units(t, chip) for t in operation.results]

    def picked(ins: list[Access], outs: list[Access], i: Index) -> Iterable[Node]:
        for dst in outs:
            for data in ins:
                height = min(dst.partitions, data.partitions)
                width = max(1, min(dst.free_size // len(ins), data.free_size))
                width = min(width, dst.free_size)
                yield tensor_copy(dst[0:height, 0:width], data[0:height, 0:width], engine="vector")

    return streamed(name, reads, writes, picked)


def _moved(name: str, tensor: Tensor, run: int, chip: Chip) -> list[Node]:
    elements, dtype = units(tensor, chip)
    run = max(1, run * elements // max(1, tensor.size))
    return copied(name, elements // run, run, dtype)


def _filled(size: int, like: Tensor, chip: Chip) -> list[Node]:
    """Writes a number `size` times."""
    if size <= 0:
        return []
    _, dtype = units(like, chip)
    size *= words(like.dtype)
    number = Tile("padding", "sbuf", (128, min(2048, -(-size // 128))), dtype)
    nodes: list[Node] = [memset(number, value=0)]

    width = number.shape[1]
    far = Tile("padded", "hbm", number.shape, dtype, _FAR)
    full, rest = divmod(size, 128 * width)
    if full:
        nodes.append(loop(full, lambda i: [dma_copy(far[i], number, engine=STORE)]))
    if rest >= 128:
        columns = rest // 128
        nodes.append(dma_copy(far[0][:, 0:columns], number[:, 0:columns], engine=STORE))
    if rest % 128:
        rows = rest % 128
        nodes.append(dma_copy(far[1][0:rows, 0:1], number[0:rows, 0:1], engine=STORE))
    return nodes


@rule("update_slice")
def update_slice(group: Group, chip: Chip) -> Plan:
    """A slice written into a larger value: in place where that is not needed any more."""
    operation = group.operations[-1]
    whole, update = operation.operands[:2]
    nodes: list[Node] = []
    assumptions: tuple[str, ...] = ()
    if not operation.attributes.get("in_place", True):
        elements, dtype = units(whole, chip)
        nodes += copied("copy", 1, elements, dtype)
        assumptions = ("a value that is still needed is copied before a slice of it is written",)
    nodes += _moved("update", update, contiguous(update.shape, whole.shape), chip)
    return Plan(program("dynamic_update_slice", nodes), assumptions=assumptions)


@rule("reverse")
def reverse(group: Group, chip: Chip) -> Plan:
    """Rows in another order by DMA; elements of a row by VectorE, which reads backwards."""
    operation = group.operations[-1]
    operand = operation.operands[0]
    axes = [int(a) for a in operation.attributes.get("dimensions", ())]
    inner = math.prod(operand.shape[max(axes, default=-1) + 1 :]) if axes else operand.size
    elements, dtype = units(operand, chip)
    if inner * DTYPES[dtype].bytes >= 512:
        return Plan(program("reverse", _moved("reverse", operand, inner, chip)))

    def turned(ins: list[Access], outs: list[Access], _: Index) -> Iterable[Node]:
        return [tensor_copy(b, a, engine="vector") for a, b in zip(ins, outs)]

    moved = [(elements, dtype)]
    return Plan(program("reverse", streamed("reverse", moved, moved, turned)))


# Transposes.


@rule("transpose")
def transpose(group: Group, chip: Chip) -> Plan:
    """Rows to other places by DMA where the last dimension stays; else blocks: values of 2 bytes by
    transposing DMA, others by TensorE."""
    operation = group.operations[-1]
    operand = operation.operands[0]
    order = [int(a) for a in operation.attributes["permutation"]]
    shape = [operand.shape[a] for a in order]
    name = "transpose"
    kept = 1
    for place in reversed(range(len(order))):
        if operand.shape[order[place]] > 1 and order[place] != place:
            break
        kept *= shape[place]
    counting = [a for a in order if operand.shape[a] > 1]
    elements, dtype = units(operand, chip)
    if counting == sorted(counting):
        return Plan(program(name, copied(name, 1, elements, dtype)))
    last = max(counting)
    if counting[-1] == last and kept * DTYPES[dtype].bytes < _SHORT and operand.size > 4096:
        return Plan(program(name, _by_engines(name, operation, chip)))
    if counting[-1] == last:
        return Plan(program(name, _moved(name, operand, kept, chip)))
    columns, rows = operand.shape[last], operand.shape[counting[-1]]
    batch = operand.size // (columns * rows) * words(operand.dtype)
    return Plan(program(name, _blocks(batch, rows, columns, dtype)))


def _pieces(size: int) -> list[tuple[int, int, int]]:
    """(rows, groups of as many, how often): 4 x 128, then 128, then the rest."""
    found = []
    if size >= 512:
        found.append((128, 4, size // 512))
    size %= 512
    if size >= 128:
        found.append((128, 1, size // 128))
    if size % 128:
        found.append((size % 128, 1, 1))
    return found


def _blocks(batch: int, rows: int, columns: int, dtype: str) -> list[Node]:
    nodes: list[Node] = []
    for height, high, times in _pieces(rows):
        for width, wide, again in _pieces(columns):
            count = batch * times * again
            by_dma = DTYPES[dtype].bytes == 2
            block = _block_by_dma if by_dma else _block_by_tensor
            nodes.append(loop(count, lambda i: block(i, height, high, width, wide, dtype)))  # noqa: B023
    return nodes


def _block_by_dma(
    i: Index, height: int, high: int, width: int, wide: int, dtype: str
) -> list[Instruction]:
    """[high * height, wide * width] -> [width, wide, high * height]."""
    far = Tile(
        f"rows {height} {high} {width}", "hbm", (high * height, width + 1), dtype, given=True
    )
    name = f"columns {height} {high} {width}"
    near = Tile(name, "sbuf", (width, high * height), dtype, 8)
    out = Tile(f"{name}, hbm", "hbm", (width, high * height + 1), dtype, _FAR)
    found: list[Instruction] = []
    for k in range(wide):
        at = i * wide + k
        found.append(dma_transpose(near[at], far[:, 0:width], engine=LOADS[k % 2]))
        found.append(dma_copy(out[at][:, 0 : high * height], near[at], engine=STORE))
    return found


def _block_by_tensor(
    i: Index, height: int, high: int, width: int, wide: int, dtype: str
) -> list[Instruction]:
    """Blocks of 128 x 128 through PSUM; bits are moved, whatever they mean."""
    kind = "float32" if DTYPES[dtype].bytes == 4 else "bfloat16"
    name = f"{height} {high} {width} {wide}"
    far = Tile(f"rows {name}", "hbm", (height, high, wide * width + 1), dtype, given=True)
    near = Tile(f"rows in sbuf {name}", "sbuf", (height, high, wide * width), kind, 4)
    psum = Tile(f"columns in psum {width} {high * height}", "psum", (width, high * height), kind, 2)
    turned = Tile(f"columns {name}", "sbuf", (width, high * height), kind, 4)
    out = Tile(f"columns, hbm {name}", "hbm", (width, high * height + 1), dtype, _FAR)
    load = far[:, :, 0 : wide * width]
    found: list[Instruction] = [dma_copy(near[i], load, engine=LOADS[0])]
    for k in range(wide):
        at = i * wide + k
        for h in range(high):
            block = near[i][:, h : h + 1, k * width : (k + 1) * width]
            found.append(nc_transpose(psum[at][:, h * height : (h + 1) * height], block))
        evacuated = turned[at], psum[at]
        found.append(tensor_copy(*evacuated) if k % 2 else activation(*evacuated, op="copy"))
        found.append(dma_copy(out[at][:, 0 : high * height], turned[at], engine=STORE))
    return found
