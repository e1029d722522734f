"""Which devices a collective is between: mesh axes, where its groups follow them.

`axes` are names, the last one changing fastest from rank to rank; `sizes` the devices along each.
Of a part of an axis the name is as Shardy writes it, `data:(1)2`. `dims` says what each axis does:

- all_gather, all_slice, reduce_scatter: the dimension that it gathers or cuts;
- all_to_all: (the dimension that it gathers, the dimension that it cuts);
- all_reduce, collective_permute: nothing, ().

Groups that follow no axes are `groups`, an array of ranks, one row a group; the pairs of a
permutation along one axis are `pairs`, of places on it, and otherwise `groups` of (from, to).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from ..inline import blocks_of
from .attributes import python_value
from .graph import Mesh
from .shardings import Layout, Meshes

ATTRIBUTES = (
    "gathering_axes",
    "slicing_axes",
    "reduce_scatter_axes",
    "reduction_axes",
    "params",
    "reduction_op",  # which newer Shardy says, a sum or a maximum: the same in time
    "replica_groups",
    "source_target_pairs",
    "trn3.along",
)
"""What is read here, of the attributes of collectives."""

_LISTS = ("replica_groups", "source_target_pairs")
_ALONG = "trn3.along"  # what `described` says of a collective whose list of devices is gone
_AXIS = re.compile(r'"([^"]+)"(:\(\d+\)(\d+))?')
_LIST = re.compile(r"\{([^}]*)\}")
_TO_FROM = re.compile(r"\{([^}]*)\}: (\d+)->(\d+)")


def described(op: Any, meshes: Meshes, before: Layout | None) -> dict[str, Any]:
    """The attributes `axes`, `sizes`, `dims` (or `groups`, `pairs`) of a collective; {} of others.

    before: the layout of its first operand.
    """
    attributes = op.attributes
    if op.name == "sdy.collective_permute":
        return _permuted(before or (), meshes.layout(attributes["out_sharding"]) or ())
    if op.name == "sdy.all_to_all":
        lists = _TO_FROM.findall(str(attributes["params"]))
        return _along(op, meshes, ((axes, (int(a), int(b))) for axes, a, b in lists))
    for name in ("gathering_axes", "slicing_axes", "reduce_scatter_axes"):
        if name in attributes:
            lists = _LIST.findall(str(attributes[name]))
            return _along(op, meshes, ((axes, dim) for dim, axes in enumerate(lists)))
    if "reduction_axes" in attributes:
        return _along(op, meshes, [(str(attributes["reduction_axes"]), None)]) | {"dims": ()}
    if _ALONG in attributes:
        return dict(python_value(attributes[_ALONG]))
    return _listed(op, meshes.main) if any(name in attributes for name in _LISTS) else {}


def _listed(op: Any, mesh: Mesh) -> dict[str, Any]:
    """Of a collective of StableHLO, which lists its devices."""
    for name, read in (("replica_groups", replica_groups), ("source_target_pairs", permutation)):
        if name in op.attributes:
            return read(op.attributes[name], mesh)
    return {}


def forget_lists(module: Any) -> None:
    """Replaces lists of devices that follow mesh axes by the axes: of a million devices, every pass
    would go through them."""
    mesh = Meshes.of(module).main
    known: dict[Any, dict[str, Any]] = {}
    for block in blocks_of(module.operation):
        for op in (op.operation for op in block.operations):
            lists = [op.attributes[name] for name in _LISTS if name in op.attributes]
            if not lists:
                continue
            if lists[0] not in known:
                known[lists[0]] = _listed(op, mesh)
            along = known[lists[0]]
            if "axes" not in along:
                continue
            op.attributes[_ALONG] = ir.DictAttr.get({k: _attribute(v) for k, v in along.items()})
            # As few devices as the verifier takes.
            if "source_target_pairs" in op.attributes:
                op.attributes["source_target_pairs"] = _integers([[0, 0]])
            elif isinstance(op.attributes["replica_groups"], ir.DenseElementsAttr):
                count = math.prod(along["sizes"]) if op.name == "stablehlo.all_to_all" else 1
                op.attributes["replica_groups"] = _integers([list(range(count))])


def _attribute(values: Sequence[Any]) -> Any:
    """Of names, numbers or pairs of numbers."""
    return ir.ArrayAttr.get([
        ir.StringAttr.get(value) if isinstance(value, str)
        else ir.DenseI64ArrayAttr.get(value) if isinstance(value, tuple)
        else ir.IntegerAttr.get(ir.IntegerType.get_signless(64), value)
        for value in values
    ])  # fmt: skip


def _integers(rows: list[list[int]]) -> Any:
    return ir.DenseIntElementsAttr.get(np.array(rows, np.int64))


def _along(op: Any, meshes: Meshes, lists: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Of (text of a list of axes, what they do)."""
    found = [(axis, what) for axes, what in lists for axis in _AXIS.findall(axes)]
    sizes = meshes.sizes(op.attributes["out_sharding"])
    return {
        "axes": tuple(name + part for (name, part, _), _ in found),
        "sizes": tuple(int(size) if part else sizes[name] for (name, part, size), _ in found),
        "dims": tuple(what for _, what in found),
    }


def _permuted(before: Layout, after: Layout) -> dict[str, Any]:
    """Axes that split another dimension than before, or in another order."""
    pairs = itertools.zip_longest(before[: len(after)], after, fillvalue=())
    moved = [axis for old, new in pairs if old != new for axis in new]
    names, sizes = zip(*moved) if moved else ((), ())
    return {"axes": tuple(names), "sizes": tuple(sizes), "dims": ()}


def replica_groups(attribute: Any, mesh: Mesh) -> dict[str, Any]:
    """Of the groups of a StableHLO collective."""
    sizes = dict(mesh.axes)
    if stablehlo.ReplicaGroupMeshAxesAttr.isinstance(attribute):
        found = [_axis(axis, sizes) for axis in stablehlo.ReplicaGroupMeshAxesAttr(attribute).axes]
        axes = tuple(name for name, _ in found)
        return {"axes": axes, "sizes": tuple(size for _, size in found), "dims": ()}
    groups = np.array(attribute)
    names = axes_of_groups(groups, mesh)
    if names is None:
        return {"groups": groups}
    return {"axes": names, "sizes": tuple(sizes[name] for name in names), "dims": ()}


def _axis(attribute: Any, sizes: Mapping[str, int]) -> tuple[str, int]:
    axis = stablehlo.AxisRefAttr(attribute)
    if axis.sub_axis_info is None:
        return axis.name, sizes[axis.name]
    part = stablehlo.SubAxisInfoAttr(axis.sub_axis_info)
    return f"{axis.name}:({part.pre_size}){part.size}", part.size


def axes_of_groups(groups: Any, mesh: Mesh) -> tuple[str, ...] | None:
    """The mesh axes along which the groups are all the groups; None if they follow none."""
    names = [name for name, _ in mesh.axes]
    shape = [size for _, size in mesh.axes]
    if groups.size != math.prod(shape) or groups.size == 0:
        return None
    places = np.unravel_index(groups[0], shape) if shape else ()
    varying = [at for at, place in enumerate(places) if len(np.unique(place)) > 1]
    if math.prod(shape[at] for at in varying) != groups.shape[1]:
        return None
    # The axis that changes last is the first: what its place is over the ranks, by first change.
    first_change = {at: int(np.argmax(places[at] != places[at][0])) for at in varying}
    order = sorted(varying, key=lambda at: -first_change[at])
    rest = [at for at in range(len(shape)) if at not in varying]
    ranks = np.arange(groups.size).reshape(shape or [1])
    expected = ranks.transpose(rest + order).reshape(-1, groups.shape[1]) if shape else ranks
    if expected.shape != groups.shape or not _same_rows(expected, groups):
        return None
    return tuple(names[at] for at in order)


def _same_rows(expected: Any, groups: Any) -> bool:
    """Whether the groups are the same, in whatever order."""
    if np.array_equal(expected, groups):
        return True
    return bool(
        np.array_equal(expected[np.argsort(expected[:, 0])], groups[np.argsort(groups[:, 0])])
    )


def permutation(attribute: Any, mesh: Mesh) -> dict[str, Any]:
    """Of the pairs (from, to) of a StableHLO collective."""
    pairs = np.array(attribute).reshape(-1, 2)
    return along_axis(pairs, mesh) or {"groups": pairs}


def along_axis(pairs: Any, mesh: Mesh) -> dict[str, Any] | None:
    """`axes`, `sizes` and `pairs` of a permutation along one axis, the same everywhere."""
    shape = [size for _, size in mesh.axes]
    if not shape or not len(pairs) or pairs.max() >= math.prod(shape):
        return None
    source, target = (np.stack(np.unravel_index(pairs[:, at], shape)) for at in (0, 1))
    differing = np.flatnonzero((source != target).any(axis=1))
    if len(differing) != 1:
        return None
    axis = int(differing[0])
    name, size = mesh.axes[axis]
    codes = np.unique(source[axis] * size + target[axis])
    if len(codes) * (math.prod(shape) // size) != len(pairs):
        return None
    return {
        "axes": (name,),
        "sizes": (size,),
        "dims": (),
        "pairs": tuple(divmod(int(code), size) for code in codes),
    }
