"""Shardings of values as Shardy writes them, and the shapes that follow."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy

from .graph import Mesh

SHARDING = "sdy.sharding"

Axes = tuple[tuple[str, int], ...]
"""(name, devices along it); of a part of an axis the name is Shardy's, `data:(1)2`."""

Layout = tuple[Axes, ...]
"""The axes over which each dimension is split, the first one in the largest parts."""


@dataclass(frozen=True)
class Meshes:
    """The meshes of a module by name, and the one that has all devices."""

    named: Mapping[str, Mesh]
    layouts: dict[Any, Layout | None] = field(default_factory=dict)
    """Those asked for, by their attributes."""

    @classmethod
    def of(cls, module: Any) -> Meshes:
        return cls(
            {
                ir.StringAttr(op.operation.attributes["sym_name"]).value: _mesh(
                    op.operation.attributes["mesh"]
                )
                for op in module.body.operations
                if op.operation.name == "sdy.mesh"
            }
        )

    @property
    def main(self) -> Mesh:
        """**Raises:** `ValueError` if there are several that differ."""
        meshes = {mesh: name for name, mesh in self.named.items() if mesh.axes}
        if len(meshes) > 1:
            raise ValueError(
                f"the program is on several meshes, {', '.join(map(str, meshes))}; its time can be "
                "told for one: give all shardings on the same mesh"
            )
        return next(iter(meshes), Mesh())

    def layout(self, sharding: Any) -> Layout | None:
        """Of an `sdy.sharding`; None of one for a single device."""
        if sharding not in self.layouts:
            self.layouts[sharding] = self._layout(sdy.TensorShardingAttr(sharding))
        return self.layouts[sharding]

    def sizes(self, sharding: Any) -> dict[str, int]:
        """Devices along each axis of the mesh of an `sdy.sharding`."""
        where = sdy.TensorShardingAttr(sharding).mesh_or_ref
        is_name = isinstance(where, ir.FlatSymbolRefAttr)
        return dict((self.named[where.value] if is_name else _mesh(where)).axes)

    def _layout(self, sharding: Any) -> Layout | None:
        sizes = self.sizes(sharding)
        if not sizes:
            return None
        return tuple(
            tuple(_axis(axis, sizes) for axis in sdy.DimensionShardingAttr(dimension).axes)
            for dimension in sharding.dimension_shardings
        )

    def per_value(self, attribute: Any) -> list[Layout | None]:
        """Of an `sdy.sharding_per_value`."""
        return list(map(self.layout, sdy.TensorShardingPerValueAttr(attribute).shardings))

    def of_arguments(self, function: Any) -> list[Layout | None]:
        """Of a function's parameters; None of one that is not sharded."""
        (block,) = function.regions[0].blocks
        if "arg_attrs" not in function.attributes:
            return [None] * len(block.arguments)
        arguments = map(ir.DictAttr, ir.ArrayAttr(function.attributes["arg_attrs"]))
        return [
            self.layout(attributes[SHARDING]) if SHARDING in attributes else None
            for attributes in arguments
        ]

    def of_results(self, op: Any) -> list[Layout | None]:
        """Of an operation's results; None of one that is not sharded."""
        if "out_sharding" in op.attributes:
            return [self.layout(op.attributes["out_sharding"])]
        if SHARDING in op.attributes:
            return self.per_value(op.attributes[SHARDING])
        return [None] * len(op.results)

    def shard(
        self, function: Any, arguments: Sequence[Layout | None], results: Sequence[Layout | None]
    ) -> None:
        """Gives a function's parameters and results these layouts, and no other attributes."""
        for name, layouts in (("arg_attrs", arguments), ("res_attrs", results)):
            function.attributes[name] = ir.ArrayAttr.get(list(map(self._attributes, layouts)))

    def _attributes(self, layout: Layout | None) -> Any:
        names = [name for name, mesh in self.named.items() if mesh.axes]
        if not names or layout is None:
            return ir.DictAttr.get({})
        splits = (", ".join(map(_axis_text, split)) for split in layout)
        dims = ", ".join(f"{{{split}}}" for split in splits)
        text = f"#sdy.sharding<@{names[0]}, [{dims}]>"
        return ir.DictAttr.get({SHARDING: ir.Attribute.parse(text)})


def _axis_text(axis: tuple[str, int]) -> str:
    name, colon, part = axis[0].partition(":(")
    return f'"{name}"{colon}{part}'


def _mesh(attribute: Any) -> Mesh:
    mesh = sdy.MeshAttr(attribute)
    axes = tuple((sdy.MeshAxisAttr(axis).name, sdy.MeshAxisAttr(axis).size) for axis in mesh.axes)
    return Mesh(axes, tuple(mesh.device_ids) or None)


def _axis(attribute: Any, sizes: Mapping[str, int]) -> tuple[str, int]:
    axis = sdy.AxisRefAttr(attribute)
    if axis.sub_axis_info is None:
        return axis.name, sizes[axis.name]
    part = sdy.SubAxisInfoAttr(axis.sub_axis_info)
    return f"{axis.name}:({part.pre_size}){part.size}", part.size


def without(layout: Layout | None, axes: Collection[str]) -> Layout | None:
    """The layout within a shard_map over these axes."""
    if layout is None:
        return None
    return tuple(tuple(axis for axis in split if axis[0] not in axes) for split in layout)


def local_shape(kind: Any, layout: Layout | None) -> tuple[int, ...]:
    """Of the part of an array of that type that a device has; the largest, where sizes differ.

    **Raises:** `ValueError` for dynamic shapes.
    """
    if not kind.has_static_shape:
        raise ValueError(
            f"an array of the dynamic shape {kind}; time can be told of static shapes: lower the "
            "function for concrete ones (jax.ShapeDtypeStruct without symbolic dimensions)"
        )
    if layout is None:
        return tuple(kind.shape)
    parts = (math.prod(size for _, size in split) for split in layout)
    return tuple(-(-size // count) for size, count in zip(kind.shape, parts, strict=True))
