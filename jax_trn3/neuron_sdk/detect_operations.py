"""What the rules look for in operations of the lowered program: each says what it found, or None.

The rules that use them are in `table.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from jax_trn3.compiler.loops import condition, end
from jax_trn3.compiler.operations import direction, producer

from .constant import unknown_in
from .operations import Operation, element, text, texts

OperationDetector = Callable[[Operation], str | None]


# Control flow.


def conditional(operation: Operation) -> str | None:
    """A branch that is taken at run time; lax.platform_dependent's is not."""
    count = len(operation.op.regions)
    if operation.name not in ("stablehlo.case", "stablehlo.if") or count == 1:
        return None
    if unknown_in(operation.op.operands[0], operation) is None:
        return None
    return f"{count} branches that make {texts(operation.outputs) or 'nothing'}"


def dynamic_loop(operation: Operation) -> str | None:
    if operation.name != "stablehlo.while":
        return None
    unknown = unknown_in(end(condition(operation.op)).operands[0], operation)
    return unknown and f"a loop over {texts(operation.outputs)} whose end depends on {unknown}"


# Reductions and sorting.


def variadic_reduction(operation: Operation) -> str | None:
    return _variadic(operation, "stablehlo.reduce")


def variadic_window(operation: Operation) -> str | None:
    return _variadic(operation, "stablehlo.reduce_window")


def _variadic(operation: Operation, name: str) -> str | None:
    arrays = operation.inputs[: len(operation.inputs) // 2]  # then their initial values
    if operation.name != name or len(arrays) < 2:
        return None
    return f"one reduction of {len(arrays)} arrays, {texts(arrays)}"


def base_dilation(operation: Operation) -> str | None:
    return _window(operation, "base_dilations")


def window_dilation(operation: Operation) -> str | None:
    return _window(operation, "window_dilations")


def _window(operation: Operation, attribute: str) -> str | None:
    if operation.name != "stablehlo.reduce_window":
        return None
    numbers = operation.integers(attribute)
    if all(number == 1 for number in numbers):
        return None
    return f"a window over {text(operation.inputs[0])} with {attribute} {numbers}"


def sort_by_several(operation: Operation) -> str | None:
    """An order by one array and, where that is equal, by the next."""
    if operation.name != "stablehlo.sort" or len(_orders(operation.op)) < 2:
        return None
    return f"a sort of {texts(operation.inputs)} by {len(_orders(operation.op))} of them"


def sort_of_floats(operation: Operation) -> str | None:
    """JAX makes -0 equal to 0, and NaN to NaN, in the comparator."""
    if operation.name != "stablehlo.sort" or sort_by_several(operation):
        return None
    asked = {direction(op) for op in _comparisons(operation.op)}
    if not asked & {"EQ", "NE"}:
        return None
    return f"a sort of {texts(operation.inputs)} whose comparator asks {', '.join(sorted(asked))}"


def _comparisons(sort: Any) -> Iterator[Any]:
    ops = (op.operation for op in sort.regions[0].blocks[0].operations)
    return (op for op in ops if op.name == "stablehlo.compare")


def _orders(sort: Any) -> list[str]:
    return [asked for op in _comparisons(sort) if (asked := direction(op)) not in ("EQ", "NE")]


# Numbers.


def reduced_precision(operation: Operation) -> str | None:
    if operation.name != "stablehlo.reduce_precision":
        return None
    bits = [operation.op.attributes[name] for name in ("exponent_bits", "mantissa_bits")]
    exponent, mantissa = (ir.IntegerAttr(each).value for each in bits)
    return f"{text(operation.inputs[0])} to {exponent} bits of exponent and {mantissa} of mantissa"


def integer_all_reduce(operation: Operation) -> str | None:
    return _integer_collective(operation, "stablehlo.all_reduce")


def integer_reduce_scatter(operation: Operation) -> str | None:
    return _integer_collective(operation, "stablehlo.reduce_scatter")


def _integer_collective(operation: Operation, name: str) -> str | None:
    if operation.name != name or element(operation.inputs[0]).lstrip("u") not in ("i32", "i64"):
        return None
    return f"over {texts(operation.inputs)}"


# Shapes and indices.


def dynamic_shape(operation: Operation) -> str | None:
    sizes = [kind for kind in operation.outputs if _is_dynamic(kind)]
    if not sizes and operation.name != "stablehlo.set_dimension_size":
        return None
    return f"{operation.name} makes {texts(operation.outputs)}"


def _is_dynamic(kind: Any) -> bool:
    return isinstance(kind, ir.RankedTensorType) and not kind.has_static_shape


def iota_past_the_end(operation: Operation) -> str | None:
    """Indices that count further than the array is long."""
    if operation.name not in ("stablehlo.gather", "stablehlo.scatter"):
        return None
    count = _counts_to(operation.op.operands[1])
    sizes = _indexed_sizes(operation.op)
    if count is None or len(sizes) != 1 or count <= sizes[0]:
        return None
    array = text(operation.inputs[0])
    return f"{operation.name} counts to {count} in a dimension of {sizes[0]}, of {array}"


def _counts_to(indices: Any) -> int | None:
    """The length of an iota that is used as it is; None of other indices."""
    op = producer(indices)
    if op is None:
        return None
    if op.name == "stablehlo.iota":
        at = ir.IntegerAttr(op.attributes["iota_dimension"]).value
        return int(ir.RankedTensorType(op.results[0].type).get_dim_size(at))
    through = ("stablehlo.reshape", "stablehlo.broadcast_in_dim", "stablehlo.convert")
    return _counts_to(op.operands[0]) if op.name in through else None


def _indexed_sizes(op: Any) -> list[int]:
    kind = ir.RankedTensorType(op.operands[0].type)
    if op.name == "stablehlo.gather":
        numbers = stablehlo.GatherDimensionNumbers(op.attributes["dimension_numbers"])
        dims = numbers.start_index_map
    else:
        scatter = stablehlo.ScatterDimensionNumbers(op.attributes["scatter_dimension_numbers"])
        dims = scatter.scattered_dims_to_operand_dims
    return [kind.get_dim_size(dim) for dim in dims]


# What is this simulator's own.


def own_operation(operation: Operation) -> str | None:
    if operation.name != "stablehlo.composite":
        return None
    name = ir.StringAttr(operation.op.attributes["name"]).value
    if not name.startswith("trn3."):
        return None
    return f"`{name}` of {texts(operation.inputs)}"
