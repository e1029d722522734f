"""A StableHLO module as plain data, on the shapes that one device has.

Attributes have StableHLO's names and become Python values (attributes.py): integers, strings,
tuples, mappings for dimension numbers. Sizes among them (`slice_sizes`, `start_indices`,
`limit_indices`) are local, too. Beside them:

- collectives: `axes`, the mesh axes they run over, with `sizes` (devices along each) and `dims`
  (collectives.py);
- constants: `splat`, the number that it is everywhere, if it is one;
- operations under `compute_on`: `mhlo.frontend_attributes`, {"_xla_compute_type": "host"};
- operations kept whole: the composite's own attributes, and `global_shapes`, of the operands.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy

from ..inline import functions
from . import collectives
from .attributes import array, python_value, splat
from .exchange import Exchange, exchange
from .graph import Body, DeviceProgram, Operation, Tensor
from .local import local_attributes
from .partition import ATTRIBUTES, DECOMPOSITION, alone, copied, partition
from .rewrites import in_cheapest_form
from .sharding_rules import summed_axes
from .shardings import Axes, Layout, Meshes, local_shape, without
from .sources import source_of
from .trip_counts import trip_counts

_SMALL = 64  # elements of constants whose numbers are kept

# Operations that say something of their operand, and do nothing to it.
_ALIASES = ("sdy.sharding_constraint", "sdy.propagation_barrier", "sdy.data_flow_edge")
_PERMUTE = "sdy.collective_permute"
_ENDS = ("func.return", "stablehlo.return", "sdy.return", "chlo.return")
# Attributes that are read otherwise, or are another compiler's.
_OTHERS = ("sdy.sharding", "sdy.sharding_rule", "out_sharding", "mhlo.sharding", "value")


def device_program(module: Any) -> DeviceProgram:
    """What each device runs of a lowered program.

    - `module`: a StableHLO module in any context (`lowered.compiler_ir("stablehlo")`); it is left
      as it is.

    **Raises:** `ValueError` for dynamic shapes, for GSPMD's annotations, and for a program on
    several meshes.
    """
    module = copied(module)
    library = partition(module)
    with module.context, ir.Location.unknown():
        meshes = Meshes.of(module)
        reader = _Reader(meshes, library)
        main = functions(module)["main"]
        body = in_cheapest_form(reader.function(main), reader.ids)
        return DeviceProgram(
            name=ir.StringAttr(module.operation.attributes["sym_name"]).value
            if "sym_name" in module.operation.attributes
            else "main",
            body=body,
            mesh=meshes.main,
            donated=_donated(main),
            constants=reader.constants,
            trip_counts=trip_counts(body, reader.constants),
        )


def _donated(main: Any) -> tuple[int, ...]:
    if "arg_attrs" not in main.attributes:
        return ()
    marks = {"tf.aliasing_output", "jax.buffer_donor"}
    arguments = ir.ArrayAttr(main.attributes["arg_attrs"])
    return tuple(
        at
        for at, attributes in enumerate(arguments)
        if marks & {named.name for named in ir.DictAttr(attributes)}
    )


@dataclass
class _Reader:
    """Reads operations one after another."""

    meshes: Meshes
    library: Any
    tensors: dict[Any, Tensor] = field(default_factory=dict)
    layouts: dict[Any, Layout | None] = field(default_factory=dict)
    constants: dict[int, Any] = field(default_factory=dict)
    decompositions: dict[Any, Body] = field(default_factory=dict)
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def within(self, library: Any) -> _Reader:
        """A reader of another module of the same program."""
        return _Reader(self.meshes, library, constants=self.constants, ids=self.ids)

    def function(self, function: Any) -> Body:
        return self.block(function.regions[0].blocks[0], self.meshes.of_arguments(function))

    def block(self, block: Any, layouts: Sequence[Layout | None]) -> Body:
        """A block, its arguments in these layouts; what else it uses has been read."""
        parameters = tuple(map(self.new, block.arguments, layouts))
        operations: list[Operation] = []
        for op in block.operations:
            if op.operation.name in _ENDS:
                return Body(parameters, tuple(operations), self.known(op.operation.operands))
            operations += self.read(op.operation)
        raise ValueError(f"a block ends without returning: {block}")

    def new(self, value: Any, layout: Layout | None) -> Tensor:
        """A value, seen for the first time."""
        kind = value.type
        if isinstance(kind, ir.RankedTensorType):
            dtype = str(kind.element_type)
            shape = local_shape(kind, layout)
        elif "token" in str(kind):
            dtype, shape = "token", ()
        else:
            raise ValueError(f"a value of type {kind}; a program's values must be arrays or tokens")
        self.layouts[value] = layout
        self.tensors[value] = tensor = Tensor(next(self.ids), shape, dtype)
        return tensor

    def known(self, values: Iterable[Any]) -> tuple[Tensor, ...]:
        return tuple(self.tensors[value] for value in values)

    def read(self, op: Any) -> list[Operation]:
        if op.name == "sdy.manual_computation":
            return self.opened(op)
        if op.name in _ALIASES:
            self.tensors[op.results[0]] = self.tensors[op.operands[0]]
            self.layouts[op.results[0]] = self.layouts[op.operands[0]]
            return []
        layouts = self.meshes.of_results(op)
        operands = self.known(op.operands)
        # Arguments of a loop's regions have the layouts of its results.
        regions = tuple(
            self.block(
                block, layouts if op.name == "stablehlo.while" else [None] * len(block.arguments)
            )
            for region in op.regions
            for block in region.blocks
        )
        results = tuple(map(self.new, op.results, layouts))
        kind, attributes = self.described(op, operands, results)
        source = source_of(op.location)
        if DECOMPOSITION in op.attributes:
            regions = (self.decomposition(op),)
            layouts = [self.layouts[operand] for operand in op.operands]
            operation = Operation(kind, operands, results, attributes, regions, source)
            return self.summed(operation, summed_axes(op, layouts))
        operation = Operation(kind, operands, results, attributes, regions, source)
        layout = self.layouts[op.operands[0]] if len(op.operands) else None
        needed = exchange(kind, attributes, operands, results, layout)
        return [operation] if needed is None else self.exchanged(operation, needed)

    def summed(self, op: Operation, axes: Sequence[Axes]) -> list[Operation]:
        """An operation with the sums over devices that complete its results."""
        results, sums = [], []
        for result, over in zip(op.results, axes, strict=True):
            if not over:
                results.append(result)
                continue
            results.append(addend := Tensor(next(self.ids), result.shape, result.dtype))
            names, sizes = zip(*over, strict=True)
            along = {"axes": names, "sizes": sizes, "dims": ()}
            sums.append(Operation("sdy.all_reduce", (addend,), (result,), along, source=op.source))
        return [replace(op, results=tuple(results)), *sums]

    def exchanged(self, op: Operation, needed: Exchange) -> list[Operation]:
        """An operation with the collectives that bring what it needs of other devices."""
        names, sizes = zip(*(axis for _, axes in needed.dims for axis in axes), strict=True)
        along = {"axes": names, "sizes": sizes, "dims": ()}
        if needed.what == "result":
            (result,) = op.results
            here = Tensor(next(self.ids), result.shape, result.dtype)
            move = Operation(_PERMUTE, (here,), (result,), along, source=op.source)
            return [replace(op, results=(here,)), move]
        kind = _PERMUTE
        if needed.what == "gathered":
            kind = "sdy.all_gather"
            along["dims"] = tuple(dim for dim, axes in needed.dims for _ in axes)
        # The other operands of these are scalars and, of a convolution, the kernel.
        read = op.operands if op.kind == "stablehlo.concatenate" else op.operands[:1]
        moves = [
            Operation(kind, (operand,), (self.gathered(operand, along),), along, source=op.source)
            for operand in read
        ]
        there = {move.operands[0].id: move.results[0] for move in moves}
        return [*moves, replace(op, operands=tuple(there.get(t.id, t) for t in op.operands))]

    def gathered(self, tensor: Tensor, along: Mapping[str, Any]) -> Tensor:
        """A new tensor: of its shape, or longer in the dimensions that are gathered."""
        shape = list(tensor.shape)
        for dim, size in zip(along["dims"], along["sizes"]):
            shape[dim] *= size
        return Tensor(next(self.ids), tuple(shape), tensor.dtype)

    def opened(self, op: Any) -> list[Operation]:
        """The operations of a shard_map, which are of local shapes already."""
        (block,) = op.regions[0].blocks
        manual = set(sdy.ManualAxesAttr(op.attributes["manual_axes"]))
        inside = self.meshes.per_value(op.attributes["in_shardings"])
        for argument, operand, layout in zip(block.arguments, op.operands, inside, strict=True):
            self.tensors[argument] = self.tensors[operand]
            self.layouts[argument] = without(layout, manual)
        *operations, end = [inner.operation for inner in block.operations]
        read = [operation for inner in operations for operation in self.read(inner)]
        outside = self.meshes.per_value(op.attributes["out_shardings"])
        for result, value, layout in zip(op.results, end.operands, outside, strict=True):
            self.tensors[result] = self.tensors[value]
            self.layouts[result] = layout
        return read

    def described(
        self, op: Any, operands: Sequence[Tensor], results: Sequence[Tensor]
    ) -> tuple[str, dict[str, Any]]:
        """Kind and attributes."""
        if op.name in ("sdy.constant", "stablehlo.constant"):
            return "stablehlo.constant", self.constant(op, results[0])
        if DECOMPOSITION in op.attributes:
            attributes = python_value(op.attributes[ATTRIBUTES])
            shapes = tuple(tuple(operand.type.shape) for operand in op.operands)
            name = ir.StringAttr(op.attributes["call_target_name"]).value
            return name, attributes | {"global_shapes": shapes}
        attributes = {
            name: python_value(op.attributes[name])
            for name in op.attributes
            if name not in _OTHERS and name not in collectives.ATTRIBUTES
        }
        attributes |= collectives.described(
            op, self.meshes, self.layouts[op.operands[0]] if len(op.operands) else None
        )
        attributes |= local_attributes(op, attributes, operands, results)
        if op.name == "stablehlo.custom_call":
            return f"custom_call:{attributes['call_target_name']}", attributes
        return op.name, attributes

    def constant(self, op: Any, result: Tensor) -> dict[str, Any]:
        try:
            value = op.attributes["value"]
        except TypeError:  # complex numbers, which jaxlib's bindings have no attribute for
            return {}
        number = splat(value)
        if result.size <= _SMALL:
            numbers = array(value)
            if numbers is not None and number is not None:
                self.constants[result.id] = (
                    numbers.ravel()[:1].repeat(result.size).reshape(result.shape)
                )
            elif numbers is not None and numbers.shape == result.shape:
                self.constants[result.id] = numbers
        return {} if number is None else {"splat": number}

    def decomposition(self, op: Any) -> Body:
        """What an operation kept whole does, on the shapes that it has here.

        Two that are the same in name and layouts have the same body.
        """
        name = ir.StringAttr(op.attributes[DECOMPOSITION]).value
        layouts = tuple(self.layouts[value] for value in (*op.operands, *op.results))
        key = name, layouts
        if key not in self.decompositions:
            module = alone(self.library, name)
            main = functions(module)["main"]
            self.meshes.shard(main, layouts[: len(op.operands)], layouts[len(op.operands) :])
            inner = partition(module)
            self.decompositions[key] = self.within(inner).function(functions(module)["main"])
        return self.decompositions[key]
