"""Attributes that hold sizes, on the shapes that one device has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..operations import shape
from .graph import Tensor


def local_attributes(
    op: Any, attributes: Mapping[str, Any], operands: Sequence[Tensor], results: Sequence[Tensor]
) -> dict[str, Any]:
    """Those of an operation's attributes that are others on a device's part of its arrays."""
    if op.name == "stablehlo.slice":
        return _slice(attributes, results[0])
    if op.name == "stablehlo.dynamic_slice":
        return {"slice_sizes": results[0].shape}
    if op.name in ("stablehlo.gather", "stablehlo.dynamic_gather"):
        return _gather(op, attributes, operands[0])
    return {}


def _slice(attributes: Mapping[str, Any], result: Tensor) -> dict[str, Any]:
    """A sharded dimension is whole, or begins where it did: Shardy moves the data otherwise."""
    starts, strides = attributes["start_indices"], attributes["strides"]
    limits = tuple(
        min(limit, start + size * stride)
        for start, limit, stride, size in zip(
            starts, attributes["limit_indices"], strides, result.shape, strict=True
        )
    )
    return {"limit_indices": limits}


def _gather(op: Any, attributes: Mapping[str, Any], operand: Tensor) -> dict[str, Any]:
    if "slice_sizes" not in attributes:
        return {}
    sizes = zip(attributes["slice_sizes"], shape(op.operands[0]), operand.shape, strict=True)
    return {
        "slice_sizes": tuple(
            here if size == full else min(size, here) for size, full, here in sizes
        )
    }
