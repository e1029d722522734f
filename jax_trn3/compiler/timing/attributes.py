"""MLIR attributes as Python values."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

# Attributes with fields, which become mappings of them.
_FIELDS: tuple[tuple[Any, tuple[str, ...]], ...] = tuple(
    (kind, tuple(name for name in fields.split()))
    for kind, fields in (
        (
            stablehlo.DotDimensionNumbers,
            "lhs_batching_dimensions rhs_batching_dimensions lhs_contracting_dimensions "
            "rhs_contracting_dimensions",
        ),
        (
            stablehlo.ConvDimensionNumbers,
            "input_batch_dimension input_feature_dimension input_spatial_dimensions "
            "kernel_input_feature_dimension kernel_output_feature_dimension "
            "kernel_spatial_dimensions output_batch_dimension output_feature_dimension "
            "output_spatial_dimensions",
        ),
        (
            stablehlo.GatherDimensionNumbers,
            "offset_dims collapsed_slice_dims operand_batching_dims start_indices_batching_dims "
            "start_index_map index_vector_dim",
        ),
        (
            stablehlo.ScatterDimensionNumbers,
            "update_window_dims inserted_window_dims input_batching_dims "
            "scatter_indices_batching_dims scattered_dims_to_operand_dims index_vector_dim",
        ),
        (stablehlo.ChannelHandle, "handle channel_type"),
        (
            stablehlo.DotAlgorithm,
            "lhs_precision_type rhs_precision_type accumulation_type lhs_component_count "
            "rhs_component_count num_primitive_operations allow_imprecise_accumulation",
        ),
    )
)
_SHORT = 256  # numbers of an attribute that become tuples: the paddings of a window
_ENUM = re.compile(r"#\w+<\w+ (\w+)>")  # #stablehlo<precision DEFAULT>, #chlo<...>


def python_value(attribute: Any) -> Any:
    """Integers, floats, strings, booleans, tuples and mappings; long arrays of numbers are numpy's.

    What has no such form (an attribute of another dialect) is its text.
    """
    if isinstance(attribute, (ir.BoolAttr, ir.IntegerAttr, ir.FloatAttr, ir.StringAttr)):
        return attribute.value
    if isinstance(attribute, ir.FlatSymbolRefAttr):
        return attribute.value
    if isinstance(attribute, ir.UnitAttr):
        return True
    if isinstance(attribute, ir.TypeAttr):
        return str(attribute.value)
    if isinstance(attribute, ir.DictAttr):
        return {named.name: python_value(named.attr) for named in attribute}
    if isinstance(attribute, ir.ArrayAttr):
        return tuple(map(python_value, attribute))
    if isinstance(attribute, (ir.DenseI64ArrayAttr, ir.DenseI32ArrayAttr, ir.DenseBoolArrayAttr)):
        return tuple(attribute)
    if isinstance(attribute, ir.DenseElementsAttr):
        numbers = array(attribute)
        return numbers if numbers is None or numbers.size > _SHORT else _tuples(numbers.tolist())
    for kind, fields in _FIELDS:
        if kind.isinstance(attribute):
            value = kind(attribute)
            return {name: _field(getattr(value, name)) for name in fields}
    enum = _ENUM.fullmatch(str(attribute))
    return enum.group(1) if enum else str(attribute)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _field(value: Any) -> Any:
    if isinstance(value, (bool, int)):
        return value
    return str(value) if isinstance(value, ir.Type) else tuple(value)


def array(attribute: Any) -> Any:
    """The numbers of a constant; None of types that numpy's buffers don't have (float8, int4)."""
    if attribute.is_splat:
        number = splat(attribute)
        shape = tuple(ir.RankedTensorType(attribute.type).shape)
        return None if number is None else np.full(shape, number)
    try:
        return np.array(attribute)
    except Exception:  # nanobind's and numpy's errors differ by version and by type
        return None


def splat(attribute: Any) -> Any:
    """The number that a constant is everywhere; None of anything else, and of complex numbers."""
    if not isinstance(attribute, ir.DenseElementsAttr) or not attribute.is_splat:
        return None
    value = attribute.get_splat_value()
    return getattr(value, "value", None)
