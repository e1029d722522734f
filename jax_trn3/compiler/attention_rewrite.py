"""Attention in a program, rewritten so that the rows x columns matrix never exists as a whole.

Each level of an attention (attention_pattern.py) becomes one operation, a
`stablehlo.composite "trn3.recognized_attention"`, whose decomposition is a loop over blocks of
rows. Every block does what the program says for its rows. What comes out row by row is written in
its place, what is summed over rows is added up in float32. A later level (the backward pass)
computes the matrix again from the row statistics that the earlier one left, instead of keeping it.

Operands and results of the composite are whatever arrays the program has there, in no fixed order;
`trn3.dot_product_attention` is another operation, of ops/, with operands of its own.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Sequence
from typing import Any

from jax._src.interpreters import mlir
from jaxlib.mlir import ir, passmanager
from jaxlib.mlir.dialects import func
from jaxlib.mlir.dialects import stablehlo as hlo

from . import attention_tile as tiles
from .attention_causal import causal_offset
from .attention_pattern import (
    BLOCK_ROWS,
    MIN_ELEMENTS,
    Attention,
    Axes,
    find_attention,
    matrix_axes,
)
from .attention_residuals import recompute_residuals, sink_masks
from .attention_sharding import with_whole_rows
from .inline import blocks_of, functions, inline_calls
from .operations import producer, shape
from .order import sort_block
from .program import Program

NAME = "trn3.recognized_attention"

# Loops that a causal mask makes of one, each over the columns that its rows can see: four save 3/8
# of the work (of the half that could be saved), and eight only 1/16 more, for twice the code.
MAX_BANDS = 4

_NEEDED = (b"exponential", b"dot_general")

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Phase:
    """What one loop over the rows computes.

    operations: in the program's order; of those of earlier levels, what is computed again.
    inputs: arrays from outside the loop. outputs: arrays that are used outside of it.
    """

    level: int
    operations: tuple[Any, ...]
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


def rewrite_attention(program: Program) -> Program:
    """The program with its attentions computed block by block; the same one if it has none."""
    if not all(program.mentions(name) for name in _NEEDED):
        return program
    module = program.module()
    with module.context, ir.Location.unknown():
        if not any(map(_has_matrix, blocks_of(module.operation))):
            return program
        inline_calls(module)
        # What is written twice, and computed once: jnp.exp(x) / jnp.exp(x).sum().
        passmanager.PassManager.parse("builtin.module(symbol-dce,cse)").run(module.operation)
        blocks = list(blocks_of(functions(module)["main"]))
        if not any(_has_softmax(block) for block in blocks):
            return program
        for block in blocks:
            sink_masks(block)
        for block in blocks:
            recompute_residuals(block)
        found = [attention for block in blocks for attention in find_attention(block)]
        found = with_whole_rows(module, found)
        if not found:
            return program
        replaced: dict[Any, Any] = {}
        phases = [(attention, _phases(attention)) for attention in found]
        for attention, its_phases in phases:
            _log(attention, its_phases)
            for phase in its_phases:
                _replace(module, attention, phase, replaced)
        for old, new in replaced.items():
            old.replace_all_uses_with(new)
        members = {op for attention in found for op in attention.levels}
        for block in {attention.exponential.block for attention in found}:
            _erase_unused(block, members)
            sort_block(block)
        module.operation.verify()
    return Program(mlir.module_to_bytecode(module))


def _has_matrix(block: Any) -> bool:
    """Whether there is an exponential of something large; sought before anything is changed."""
    return any(
        isinstance(op, hlo.ExpOp) and math.prod(shape(op.result)) >= MIN_ELEMENTS
        for op in block.operations
    )


def _has_softmax(block: Any) -> bool:
    return any(
        op.operation.name == "stablehlo.exponential" and matrix_axes(op.operation) is not None
        for op in block.operations
    )


def _log(attention: Attention, phases: Sequence[Phase]) -> None:
    if _logger.isEnabledFor(logging.DEBUG):
        _logger.debug(
            "attention recognised at %s: %d queries x %d keys, in %d loop(s) over %d rows each",
            _line(attention.exponential),
            attention.rows,
            attention.columns,
            len(phases),
            BLOCK_ROWS,
        )


def _line(op: Any) -> str:
    """file:line of the program that an operation comes from."""
    places = re.findall(r'"([^"]+)":(\d+):', str(op.location))
    own = [place for place in places if "/jax/_src/" not in place[0]]
    return ":".join((own or places or [("unknown", "0")])[0])


def _phases(attention: Attention) -> list[Phase]:
    """The loops that an attention takes, in order."""
    phases: list[Phase] = []
    needed: set[Any] = set()  # by later loops
    for level in range(max(attention.levels.values()), -1, -1):
        phase = _phase(attention, level, needed)
        if phase.outputs:
            phases.insert(0, phase)
            needed.update(phase.inputs)
    return phases


def _phase(attention: Attention, level: int, needed: set[Any]) -> Phase:
    levels = attention.levels
    outputs = tuple(
        result
        for op, at in levels.items()
        if at == level and op not in attention.masks
        for result in op.results
        if result in needed or any(use.owner.operation not in levels for use in result.uses)
    )
    pending = [result.owner.operation for result in outputs]
    members: set[Any] = set()
    inputs: dict[Any, None] = {}
    while pending:
        op = pending.pop()
        if op in members:
            continue
        members.add(op)
        for operand in op.operands:
            source = producer(operand)
            if source in levels and (levels[source] == level or attention.is_matrix(operand)):
                pending.append(source)
            else:
                inputs |= dict.fromkeys(_arrays(operand))
    ordered = tuple(op for op in levels if op in members)
    return Phase(level, ordered, tuple(inputs), outputs)


def _arrays(value: Any) -> Sequence[Any]:
    """What a value is passed into a loop as; nothing if the loop can make it itself."""
    op = producer(value)
    if op is None or not tiles.is_generated(op):
        return [value]
    return [array for operand in op.operands for array in _arrays(operand)]


def _replace(module: Any, attention: Attention, phase: Phase, replaced: dict[Any, Any]) -> None:
    """Puts the composite operation of a phase beside what it replaces."""
    function = _decomposition(module, attention, phase)
    at = attention.exponential
    name = ir.StringAttr(function.attributes["sym_name"]).value
    i64 = ir.IntegerType.get_signless(64)
    attributes = {
        "queries": ir.IntegerAttr.get(i64, attention.rows),
        "keys": ir.IntegerAttr.get(i64, attention.columns),
        "pass": ir.StringAttr.get("backward" if phase.level else "forward"),
    }
    with ir.InsertionPoint(at), at.location:
        composite = hlo.CompositeOp(
            [output.type for output in phase.outputs],
            [replaced.get(value, value) for value in phase.inputs],
            name=NAME,
            composite_attributes=ir.DictAttr.get(attributes),
            decomposition=ir.FlatSymbolRefAttr.get(name),
            version=ir.IntegerAttr.get(ir.IntegerType.get_signless(32), 1),
        )
    replaced |= dict(zip(phase.outputs, composite.results))


def _decomposition(module: Any, attention: Attention, phase: Phase) -> Any:
    """The function that computes a phase in a loop over blocks of rows."""
    taken = functions(module)
    name = next(name for i in range(len(taken) + 1) if (name := f"{NAME}.{i}") not in taken)
    type = ir.FunctionType.get(
        [value.type for value in phase.inputs], [value.type for value in phase.outputs]
    )
    with ir.InsertionPoint(module.body), attention.exponential.location:
        function = func.FuncOp(name, type, visibility="private")
        body = function.add_entry_block()
        with ir.InsertionPoint(body):
            arguments = dict(zip(phase.inputs, body.arguments))
            zeros = [_zeros(attention, output) for output in phase.outputs]
            totals = _loop(attention, phase, arguments, zeros)
            results = [
                total if total.type == output.type else hlo.convert(output.type, total)
                for total, output in zip(totals, phase.outputs)
            ]
            func.ReturnOp(results)
    return function.operation


def _zeros(attention: Attention, output: Any) -> Any:
    """What an output is before the loop."""
    row, _ = attention.axes[output]
    type = output.type
    if row is None:
        type = tiles.resized(type, tiles.NONE, 0, 0, tiles.sum_type(type))
    zero = (
        ir.FloatAttr.get(type.element_type, 0.0)
        if isinstance(type.element_type, ir.FloatType)
        else ir.IntegerAttr.get(type.element_type, 0)
    )
    return hlo.constant(ir.DenseElementsAttr.get_splat(type, zero))


def _bands(attention: Attention) -> list[tuple[int, int, int]]:
    """(first row, end, columns) of the bands that are done one after the other.

    A causal mask leaves less than all columns to all but the last of them.
    """
    rows, columns = attention.rows, attention.columns
    offset = causal_offset(attention)
    count = 1 if offset is None else max(1, min(MAX_BANDS, rows // (4 * BLOCK_ROWS)))
    size = -(-rows // (count * BLOCK_ROWS)) * BLOCK_ROWS
    ends = [min(rows, start + size) for start in range(0, rows, size)]
    if offset is None:
        return [(0, rows, columns)]
    return [(end - 1 - (end - 1) % size, end, min(columns, max(1, end + offset))) for end in ends]


def _loop(
    attention: Attention, phase: Phase, arguments: dict[Any, Any], totals: Sequence[Any]
) -> Sequence[Any]:
    """Goes over all rows; the rest of a division by the block size comes after the loop."""
    for begin, end, columns in _bands(attention):
        rest = (end - begin) % BLOCK_ROWS
        limit = tiles.scalar(end - rest)
        if end - rest > begin:
            totals = _band(attention, phase, arguments, totals, (begin, limit, columns))
        if rest:
            tile = tiles.Tile(attention, arguments, limit, rest, columns)
            totals = _add_tile(tile, phase, totals)
    return totals


def _band(
    attention: Attention,
    phase: Phase,
    arguments: dict[Any, Any],
    totals: Sequence[Any],
    band: tuple[int, Any, int],
) -> Sequence[Any]:
    begin, limit, columns = band
    carried = [tiles.scalar(begin), *totals]
    types = [value.type for value in carried]
    loop = hlo.WhileOp(types, carried)
    locations = [ir.Location.unknown()] * len(types)
    condition = loop.regions[0].blocks.append(*types, arg_locs=locations)
    with ir.InsertionPoint(condition):
        less = hlo.ComparisonDirectionAttr.get("LT")
        signed = hlo.ComparisonTypeAttr.get("SIGNED")
        hlo.return_([hlo.compare(condition.arguments[0], limit, less, compare_type=signed)])
    body = loop.regions[1].blocks.append(*types, arg_locs=locations)
    with ir.InsertionPoint(body):
        start, *inner = body.arguments
        tile = tiles.Tile(attention, arguments, start, BLOCK_ROWS, columns)
        inner = _add_tile(tile, phase, inner)
        hlo.return_([hlo.add(start, tiles.scalar(BLOCK_ROWS)), *inner])
    return list(loop.results)[1:]


def _add_tile(tile: tiles.Tile, phase: Phase, totals: Sequence[Any]) -> list[Any]:
    """Computes a block of rows and puts it into the outputs."""
    for op in phase.operations:
        tiles.compute(tile, op)
    added = []
    for output, total in zip(phase.outputs, totals):
        axes = tile.attention.axes[output]
        value = tile.values[output, axes]
        added.append(_put(tile, axes, total, value))
    return added


def _put(tile: tiles.Tile, axes: Axes, total: Any, value: Any) -> Any:
    row, column = axes
    rank = len(shape(total))
    if row is not None:
        return hlo.dynamic_update_slice(total, value, tiles.starts(rank, row, tile.start))
    element = total.type.element_type
    if value.type.element_type != element:
        value = hlo.convert(tiles.resized(value.type, tiles.NONE, 0, 0, element), value)
    if shape(value) == shape(total):
        return hlo.add(total, value)
    assert column is not None  # of which there are fewer
    summed = hlo.add(tiles.first_columns(total, column, tile.columns), value)
    return hlo.dynamic_update_slice(total, summed, tiles.starts(rank, None, None))


def _erase_unused(block: Any, members: set[Any]) -> None:
    for op in reversed([op.operation for op in block.operations]):
        if op in members and not any(True for result in op.results for _ in result.uses):
            op.erase()
