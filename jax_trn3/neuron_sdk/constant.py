"""Whether a number is known before a program runs: how often a loop goes round, say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jaxlib.mlir import ir

from jax_trn3.compiler.loops import condition, end
from jax_trn3.compiler.operations import producer

from .operations import Call, Operation, callee_name, text

# A number and the call of the function in which it is.
_Node = tuple[Any, Call | None]

_NEVER_CONSTANT = ("stablehlo.custom_call", "stablehlo.rng", "stablehlo.partition_id",
                   "stablehlo.replica_id", "stablehlo.infeed", "stablehlo.recv")  # fmt: skip


def unknown_in(value: Any, operation: Operation) -> str | None:
    """What keeps an integer from being known at compile time; None if it is known.

    value: of the block of `operation`, or inside of it. Known is what follows from constants alone,
    through scalar integers, calls and the counters of loops.
    """
    seen: set[_Node] = set()
    pending: list[_Node] = [(value, operation.call)]
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        sources = _sources(*node, operation.functions)
        if isinstance(sources, str):
            return sources
        pending += sources
    return None


def _sources(value: Any, call: Call | None, functions: dict[str, Any]) -> list[_Node] | str:
    """What a number follows from; or, in words, what it is that is known only at run time."""
    if not _is_scalar_integer(value):
        return f"a value {text(value.type)}"
    op = producer(value)
    if op is None:
        return _sources_of_argument(ir.BlockArgument(value), call)
    if op.name.startswith(_NEVER_CONSTANT):
        return f"the result of {op.name}"
    if op.name == "func.call":
        callee = functions[callee_name(op)]
        result = end(callee.regions[0].blocks[0]).operands[ir.OpResult(value).result_number]
        return [(result, Call(op, callee, call))]
    if op.name == "stablehlo.while":
        carried = list(_carried(op, ir.OpResult(value).result_number))
        return [(each, call) for each in (*carried, end(condition(op)).operands[0])]
    if len(op.regions):
        return f"the result of {op.name}"
    return [(operand, call) for operand in op.operands]


def _sources_of_argument(value: Any, call: Call | None) -> list[_Node] | str:
    owner = value.owner.owner.operation
    if owner.name == "func.func":
        if call is None:
            return f"argument {value.arg_number} of the program, {text(value.type)}"
        return [(call.op.operands[value.arg_number], call.caller)]
    if owner.name == "stablehlo.while":
        return [(each, call) for each in _carried(owner, value.arg_number)]
    if owner.name == "sdy.manual_computation":
        return [(owner.operands[value.arg_number], call)]
    return f"an argument of {owner.name}"


def _carried(loop: Any, at: int) -> Iterator[Any]:
    """What a loop's variable is at first, and after each step."""
    yield loop.operands[at]
    yield end(loop.regions[1].blocks[0]).operands[at]


def _is_scalar_integer(value: Any) -> bool:
    kind = value.type
    if not isinstance(kind, ir.RankedTensorType) or not isinstance(
        kind.element_type, ir.IntegerType
    ):
        return False
    return all(
        not kind.is_dynamic_dim(at) and kind.get_dim_size(at) == 1 for at in range(kind.rank)
    )
