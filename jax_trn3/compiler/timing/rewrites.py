"""Collectives in the form in which a compiler would run them.

- An `all_reduce` of which each device keeps a part is a `reduce_scatter`. Shardy's own rewriting
  wants the same axes on both; over more axes (gradients over replica and fsdp, kept along fsdp) it
  is a `reduce_scatter` and then an `all_reduce` of the parts over the other axes.
- What is the same number everywhere, or counts (`iota`), is made where it is wanted, and not sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from .graph import Body, Operation, Tensor

_RESHARDING = frozenset(
    f"sdy.{name}" for name in ("all_gather", "all_slice", "all_to_all", "collective_permute")
)


@dataclass(frozen=True)
class _Program:
    """definitions: by a value's id the operation that makes it. uses: how often a value is used."""

    definitions: Mapping[int, Operation]
    uses: Mapping[int, int]


def in_cheapest_form(body: Body, ids: Iterator[int]) -> Body:
    """A program's body with its collectives rewritten. `ids`: numbers for new values."""
    operations = list(body.walk())
    uses = Counter(tensor.id for op in operations for tensor in op.operands)
    uses.update(
        tensor.id for op in operations for region in op.regions for tensor in region.results
    )
    uses.update(tensor.id for tensor in body.results)
    definitions = {tensor.id: op for op in operations for tensor in op.results}
    return _rewritten(body, _Program(definitions, uses), ids)


def _rewritten(body: Body, program: _Program, ids: Iterator[int]) -> Body:
    slices = {
        op.operands[0].id: op for op in body.operations if _is_slice_of_sum(op, program)
    }  # by the id of the sum
    dropped = {op.results[0].id for op in slices.values()}
    operations: list[Operation] = []
    for op in body.operations:
        if op.results and op.results[0].id in dropped:
            continue
        if op.results and op.results[0].id in slices:
            operations += _scattered(op, slices[op.results[0].id], ids)
        elif op.regions:
            regions = tuple(_rewritten(region, program, ids) for region in op.regions)
            operations.append(replace(op, regions=regions))
        else:
            operations.append(_made_in_place(op, program))
    return replace(body, operations=tuple(operations))


def _is_slice_of_sum(op: Operation, program: _Program) -> bool:
    if op.kind != "sdy.all_slice":
        return False
    source = program.definitions.get(op.operands[0].id)
    return (
        source is not None
        and source.kind == "sdy.all_reduce"
        and program.uses[op.operands[0].id] == 1
        and set(op.attributes["axes"]) <= set(source.attributes["axes"])
    )


def _scattered(total: Operation, kept: Operation, ids: Iterator[int]) -> list[Operation]:
    """Of an all_reduce and the all_slice of its result."""
    axes = kept.attributes["axes"]
    rest = [
        (name, size)
        for name, size in zip(total.attributes["axes"], total.attributes["sizes"], strict=True)
        if name not in axes
    ]
    result = kept.results[0]
    part = Tensor(next(ids), result.shape, result.dtype) if rest else result
    scatter = replace(
        kept,
        kind="sdy.reduce_scatter",
        operands=total.operands,
        results=(part,),
        source=total.source,
    )
    if not rest:
        return [scatter]
    names, sizes = zip(*rest, strict=True)
    along = {"axes": names, "sizes": sizes, "dims": ()}
    return [scatter, replace(total, operands=(part,), results=(result,), attributes=along)]


def _made_in_place(op: Operation, program: _Program) -> Operation:
    """A collective of a number everywhere, or of an iota, as that of the other shape."""
    source = op
    while source.kind in _RESHARDING and source.operands[0].id in program.definitions:
        source = program.definitions[source.operands[0].id]
    if source is op or not _is_made(source):
        return op
    return replace(source, results=op.results)


def _is_made(op: Operation) -> bool:
    if op.kind == "stablehlo.broadcast_in_dim":
        return not op.operands[0].shape
    return op.kind == "stablehlo.iota" or (
        op.kind == "stablehlo.constant" and "splat" in op.attributes
    )
