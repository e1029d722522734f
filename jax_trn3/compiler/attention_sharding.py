"""Whether a partitioned program keeps the rows and columns of an attention on one device."""

from __future__ import annotations

from typing import Any

from jaxlib.mlir import ir, passmanager
from jaxlib.mlir.dialects import sdy

from .attention_pattern import Attention
from .inline import blocks_of

_MARK = "trn3.attention"
_SHARDING = "sdy.sharding"


def with_whole_rows(module: Any, found: list[Attention]) -> list[Attention]:
    """Those of the attentions whose queries and keys are not sharded (batch and heads may be).

    A block of rows of an array that is sharded by rows is on a few of the devices: to go over such
    blocks would be to gather each of them. Where Shardy will put the exponentials is asked of its
    propagation, in a copy of the module. Without Shardy (GSPMD's annotations) nobody can tell.
    """
    partitions = module.operation.attributes.get("mhlo.num_partitions")
    if not found or partitions is None or ir.IntegerAttr(partitions).value == 1:
        return found
    if not any(op.operation.name == "sdy.mesh" for op in module.body.operations):
        return []
    marked = _propagated(module, found)
    return [attention for at, attention in enumerate(found) if _is_whole(attention, marked[at])]


def _propagated(module: Any, found: list[Attention]) -> dict[int, Any]:
    """number: the exponential of each attention, in a module with shardings everywhere."""
    for at, attention in enumerate(found):
        number = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), at)
        attention.exponential.attributes[_MARK] = number
    copy = module.operation.clone()
    for attention in found:
        del attention.exponential.attributes[_MARK]
    passmanager.PassManager.parse("builtin.module(sdy-propagation-pipeline)").run(copy)
    return {
        ir.IntegerAttr(op.operation.attributes[_MARK]).value: op.operation
        for block in blocks_of(copy)
        for op in block.operations
        if _MARK in op.operation.attributes
    }


def _is_whole(attention: Attention, exponential: Any) -> bool:
    if _SHARDING not in exponential.attributes:
        return True
    (sharding,) = sdy.TensorShardingPerValueAttr(exponential.attributes[_SHARDING]).shardings
    dimensions = sdy.TensorShardingAttr(sharding).dimension_shardings
    axes = attention.axes[attention.exponential.results[0]]
    return not any(
        len(sdy.DimensionShardingAttr(dimensions[axis]).axes) for axis in axes if axis is not None
    )
