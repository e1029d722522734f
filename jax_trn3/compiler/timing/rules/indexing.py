"""Rows by their number: gathers and scatters."""

from jax_trn3.hardware import Chip
from jax_trn3.isa import Index, Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.tensor import nc_matmul
from jax_trn3.isa.vector import tensor_tensor
from jax_trn3.simulator import Node, loop, program

from ..graph import Operation, Tensor
from ..group import Group, Plan
from . import rule
from .movement import contiguous
from .tiles import held_as
from .transfers import LOADS, STORE, copied, units

_FAR = 8

_ROWS = 128
"""Rows that one transfer chooses."""


def _slices(result: Tensor, sizes: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Elements of a slice that lie next to each other."""
    return max(1, min(contiguous(sizes, shape), result.size)) if sizes else 1


@rule("gather")
def gather(group: Group, chip: Chip) -> Plan:
    """Rows by DMA, their numbers from SBUF: GpSimdE writes a descriptor for each, so that single
    elements take as long as rows of half a kilobyte."""
    operation = group.operations[-1]
    operand, result = operation.operands[0], operation.results[0]
    sizes = tuple(int(n) for n in operation.attributes.get("slice_sizes", ()))
    if "torch" in operation.kind:
        sizes = (1, *operand.shape[1:])
    run = _slices(result, sizes, operand.shape)
    nodes = _by_number("gather", result, run, operation.operands[1:2], chip)
    return Plan(program("gather", nodes))


def _by_number(
    name: str, moved: Tensor, run: int, indices: tuple[Tensor, ...], chip: Chip
) -> list[Node]:
    elements, dtype = units(moved, chip)
    run = max(1, run * elements // max(1, moved.size))
    rows = elements // run
    table = Tile(f"{name}, table", "hbm", (_ROWS, run + 1), dtype, given=True)
    out = Tile(f"{name}, rows", "hbm", (_ROWS, run), dtype, _FAR)
    places = Tile("places", "sbuf", (_ROWS, 1), "int32", 4)
    far = Tile("places, hbm", "hbm", (_ROWS, 1), "int32", given=True)

    def some(i: Index, count: int) -> list[Node]:
        chosen = places[i][0:count]
        source = table[0:count, 0:run]
        return [
            dma_copy(chosen, far[0:count], engine=LOADS[0]),
            dma_copy(out[i][0:count], source, src_index=chosen, engine=STORE),
        ]

    full, rest = divmod(rows, _ROWS)
    nodes: list[Node] = [loop(full, lambda i: some(i, _ROWS))] if full else []
    return [*nodes, *(some(Index(full), rest) if rest else [])]


@rule("scatter")
def scatter(group: Group, chip: Chip) -> Plan:
    """Rows by DMA to where they belong. Where they are added, rows of the same number are summed by
    a product first, and what is there is read before: a block of 128 after another."""
    operation = group.operations[-1]
    count = (len(operation.operands) - 1) // 2
    whole, update = operation.operands[0], operation.operands[-1]
    nodes: list[Node] = []
    assumptions: tuple[str, ...] = ()
    if not operation.attributes.get("in_place", True):
        elements, dtype = units(whole, chip)
        nodes += copied("copy", 1, elements, dtype)
        assumptions = ("a value that is still needed is copied before rows of it are written",)
    run = _window(operation, update, whole)
    combines = any(inner.operations for inner in operation.regions)
    for _ in range(count):
        if combines and not operation.attributes.get("unique_indices", False):
            nodes += _added(update, run, chip)
            assumptions += ("rows that may meet are added in blocks of 128, one after another",)
        else:
            nodes += _written(update, run, chip)
    return Plan(program("scatter", nodes), flops=update.size * combines, assumptions=assumptions)


def _window(operation: Operation, update: Tensor, whole: Tensor) -> int:
    numbers = operation.attributes.get("scatter_dimension_numbers") or {}
    windows = (
        [int(a) for a in numbers.get("update_window_dims", ())] if hasattr(numbers, "get") else []
    )
    run = 1
    for axis in reversed(range(len(update.shape))):
        if axis not in windows:
            break
        run *= update.shape[axis]
    return max(1, run)


def _written(update: Tensor, run: int, chip: Chip) -> list[Node]:
    elements, dtype = units(update, chip)
    run = max(1, run * elements // max(1, update.size))
    rows = Tile("updates", "hbm", (_ROWS, run), dtype, given=True)
    out = Tile("scattered", "hbm", (_ROWS, run + 1), dtype, _FAR, given=True)
    places = Tile("places", "sbuf", (_ROWS, 1), "int32", 4)
    far = Tile("places, hbm", "hbm", (_ROWS, 1), "int32", given=True)

    def some(i: Index, count: int) -> list[Node]:
        chosen = places[i][0:count]
        return [
            dma_copy(chosen, far[0:count], engine=LOADS[0]),
            dma_copy(out[i][0:count, 0:run], rows[0:count], dst_index=chosen, engine=STORE),
        ]

    full, rest = divmod(elements // run, _ROWS)
    nodes: list[Node] = [loop(full, lambda i: some(i, _ROWS))] if full else []
    return [*nodes, *(some(Index(full), rest) if rest else [])]


_WIDE = 2048
"""Elements of a row that are added at a time."""


def _added(update: Tensor, run: int, chip: Chip) -> list[Node]:
    dtype = held_as(update.dtype, chip.core)
    rows = update.size // run
    nodes: list[Node] = []
    for width, times in ((min(run, _WIDE), run // min(run, _WIDE)), (run % _WIDE, 1)):
        if width and times and (width != run % _WIDE or run > _WIDE or width == run):
            full, rest = divmod(rows, _ROWS)
            if full:
                nodes.append(loop(full * times, lambda i: _added_block(i, _ROWS, width, dtype)))  # noqa: B023
            if rest:
                nodes += _added_block(Index(full), rest, width, dtype)
        if run <= _WIDE:
            break
    return nodes


def _added_block(i: Index, count: int, width: int, dtype: str) -> list[Node]:
    far = Tile(f"updates {width}", "hbm", (_ROWS, width), dtype, given=True)
    table = Tile(f"sums {width}", "hbm", (_ROWS, width + 1), dtype, given=True)
    near = Tile(f"updates in sbuf {width}", "sbuf", (_ROWS, width), dtype, 4)
    there = Tile(f"rows in sbuf {width}", "sbuf", (_ROWS, width), dtype, 2)
    places = Tile("places", "sbuf", (_ROWS, 1), "int32", 4)
    same = Tile("which are the same", "sbuf", (_ROWS, _ROWS), "bfloat16", given=True)
    psum = Tile("summed", "psum", (_ROWS, min(512, width)), "float32", 2)
    numbers = Tile("places, hbm", "hbm", (_ROWS, 1), "int32", given=True)
    chosen = places[i][0:count]
    part = there[i][0:count]
    floats = dtype in ("float32", "bfloat16", "float16")
    nodes: list[Node] = [
        dma_copy(chosen, numbers[0:count], engine=LOADS[0]),
        dma_copy(near[i][0:count], far[0:count], engine=LOADS[1]),
        dma_copy(part, table[0:count, 0:width], src_index=chosen, engine=STORE),
    ]
    for first in range(0, width, 512):
        size = min(512, width - first)
        columns = slice(first, first + size)
        if floats:
            kind = (
                Tile("same in float32", "sbuf", (_ROWS, _ROWS), dtype, given=True)
                if dtype != "bfloat16"
                else same
            )
            nodes.append(
                nc_matmul(
                    psum[i][0:count, 0:size], kind[0:count, 0:count], near[i][0:count, columns],
                    accumulate=False, is_stationary_onezero=dtype == "float32",
                )
            )  # fmt: skip
            nodes.append(
                tensor_tensor(
                    part[:, columns], part[:, columns], psum[i][0:count, 0:size], op="add"
                )
            )
        else:
            nodes.append(
                tensor_tensor(
                    part[:, columns], part[:, columns], near[i][0:count, columns], op="add"
                )
            )
    nodes.append(dma_copy(table[0:count, 0:width], part, dst_index=chosen, engine=STORE))
    return nodes
