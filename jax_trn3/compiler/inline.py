"""Calls of private functions, replaced by what the functions do.

JAX makes a function of what is jitted within a program (jnp.where, jax.nn.softmax). jaxlib's MLIR
has an inlining pass but not the part of it that knows func.call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from jaxlib.mlir import ir

_Located = Callable[[Any, Any], Any]


def functions(module: Any) -> dict[str, Any]:
    """name: operation of the functions of a module."""
    return {
        ir.StringAttr(op.operation.attributes["sym_name"]).value: op.operation
        for op in module.body.operations
        if op.operation.name == "func.func"
    }


def blocks_of(op: Any) -> Iterator[Any]:
    """The blocks in an operation, those of operations in them included."""
    for region in op.regions:
        for block in region:
            yield block
            for inner in block.operations:
                yield from blocks_of(inner.operation)


def inline_calls(module: Any, located: _Located | None = None) -> None:
    """Inlines into `main` what it calls, and what that calls.

    located: gives an inlined operation its location, from the one it had and the call's.
    """
    known = functions(module)
    pending = _calls(known["main"])
    while pending:
        pending += _inline(pending.pop(), known, located)


def _calls(op: Any) -> list[Any]:
    inside = (inner.operation for block in blocks_of(op) for inner in block.operations)
    return [inner for inner in inside if inner.name == "func.call"]


def _inline(call: Any, known: dict[str, Any], located: _Located | None) -> list[Any]:
    """Replaces a call by the operations of the callee. The calls among them."""
    name = ir.FlatSymbolRefAttr(call.attributes["callee"]).value
    # With attributes of its own (compute_on's, say) a call is more than what it calls.
    if len(call.attributes) > 1 or name not in known or len(known[name].regions[0].blocks) != 1:
        return []
    (body,) = known[name].regions[0].blocks
    values = dict(zip(body.arguments, call.operands))
    calls = []
    *operations, end = [op.operation for op in body.operations]
    for op in operations:
        copy = clone(op, values, ir.InsertionPoint(call))
        if located:
            _relocate(copy, call.location, located)
        calls += [copy] if copy.name == "func.call" else _calls(copy)
    for old, result in zip(call.results, end.operands):
        old.replace_all_uses_with(values[result])
    call.erase()
    return calls


def _relocate(op: Any, call: Any, located: _Located) -> None:
    op.location = located(op.location, call)
    for block in blocks_of(op):
        for inner in block.operations:
            inner.operation.location = located(inner.operation.location, call)


def clone(op: Any, values: dict[Any, Any], at: Any) -> Any:
    """Copies an operation with other operands, also inside; its results are added to `values`."""
    results = list(op.results)
    copy = op.clone(at).operation
    replace_operands(copy, values)
    for old, new in zip(results, copy.results):
        values[old] = new
    return copy


def replace_operands(op: Any, values: dict[Any, Any]) -> None:
    """Replaces operands of an operation, and of operations in it."""
    for i, operand in enumerate(op.operands):
        if operand in values:
            op.operands[i] = values[operand]
    for region in op.regions:
        for block in region:
            for inner in block.operations:
                replace_operands(inner.operation, values)
