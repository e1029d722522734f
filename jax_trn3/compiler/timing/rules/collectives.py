"""Collectives of a program: which devices take part, how much they move, how long that takes."""

import itertools
import re
from collections.abc import Sequence

from jax_trn3.hardware import Topology
from jax_trn3.simulator.collectives import CollectiveTime, Groups, along, collective, listed, whole
from jax_trn3.simulator.collectives.plan import Kind

from ..cost import Cost
from ..graph import Mesh, Operation

# What each operation is to the simulator, and whether its bytes are counted of the result.
_KINDS: dict[str, tuple[Kind, bool]] = {
    "sdy.all_gather": ("all_gather", True),
    "sdy.all_reduce": ("all_reduce", False),
    "sdy.reduce_scatter": ("reduce_scatter", False),
    "sdy.all_to_all": ("all_to_all", False),
    "sdy.collective_permute": ("collective_permute", False),
    "stablehlo.all_gather": ("all_gather", True),
    "stablehlo.all_reduce": ("all_reduce", False),
    "stablehlo.reduce_scatter": ("reduce_scatter", False),
    "stablehlo.all_to_all": ("all_to_all", False),
    "stablehlo.collective_permute": ("collective_permute", False),
    "stablehlo.collective_broadcast": ("broadcast", False),
    "custom_call:ragged_all_to_all": ("all_to_all", False),
}


def is_collective(operation: Operation) -> bool:
    """Whether devices exchange data in it."""
    return operation.kind in _KINDS


def time_collective(
    operation: Operation, mesh: Mesh, topology: Topology
) -> tuple[Cost, CollectiveTime | None]:
    """What a collective takes; nothing where every device is alone."""
    kind, of_result = _KINDS[operation.kind]
    tensors = operation.results if of_result else operation.operands
    size = sum(tensor.bytes for tensor in tensors)
    groups = _groups(operation, mesh, topology)
    pairs = _pairs(operation, groups) if kind == "collective_permute" else None
    if groups.size == 1 or not size or pairs == ():
        return Cost(), None
    time = collective(kind, size, topology, groups=groups, pairs=pairs)
    local = time.local
    cost = Cost(
        time_ps=time.time_ps,
        engines={"links": time.time_ps},
        hbm_read_bytes=local.hbm_read_bytes,
        hbm_write_bytes=local.hbm_write_bytes,
        dma_bytes=local.dma_bytes,
        link_bytes=time.tier_bytes,
    )
    return cost, time


def _groups(operation: Operation, mesh: Mesh, topology: Topology) -> Groups:
    """Who takes part: axes of the mesh, groups that the program lists, or everybody."""
    attributes = operation.attributes
    if "groups" in attributes and "pairs" not in attributes:
        ranks = [[int(rank) for rank in group] for group in attributes["groups"]]
        if operation.kind.endswith("collective_permute"):
            return whole(topology)  # its groups are pairs
        return listed(ranks)
    if "axes" not in attributes:
        return whole(topology)
    sizes, chosen = _refined(mesh, attributes["axes"])
    groups = along(sizes, chosen) if chosen else along((1,), (0,))
    return groups if mesh.device_ids is None else _renamed(groups, mesh.device_ids)


_PART = re.compile(r"(.*):\((\d+)\)(\d+)")


def _refined(mesh: Mesh, axes: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The mesh with axes cut where `axes` name parts of them ("data:(2)4" is the part of size 4
    that changes after a part of size 2), and the places of `axes` in it."""
    parts: list[tuple[str, int, int]] = []  # axis, slower devices along it, devices of the part
    whole_sizes = dict(mesh.axes)
    for name in axes:
        match = _PART.fullmatch(name)
        if match:
            parts.append((match[1], int(match[2]), int(match[3])))
        else:
            parts.append((name, 1, whole_sizes[name]))
    sizes: list[int] = []
    places: dict[tuple[str, int], int] = {}
    for name, size in mesh.axes:
        cuts = {1, size}
        for axis, before, count in parts:
            cuts |= {before, before * count} if axis == name else set()
        for first, last in itertools.pairwise(sorted(cuts)):
            places[name, first] = len(sizes)
            sizes.append(last // first)
        if size == 1:
            places[name, 1] = len(sizes)
            sizes.append(1)
    chosen = [
        place
        for name, before, count in parts
        for (axis, first), place in places.items()
        if axis == name and (before <= first < before * count or (count == 1 and first == before))
    ]
    return tuple(sizes), tuple(chosen)


def _renamed(groups: Groups, device_ids: tuple[int, ...]) -> Groups:
    """Groups over a mesh whose devices are not in order."""
    return listed([[device_ids[place] for place in group] for group in groups.all_devices()])


def _pairs(operation: Operation, groups: Groups) -> tuple[tuple[int, int], ...]:
    """Sources and targets; by default each hands on to the next."""
    attributes = operation.attributes
    pairs = attributes.get("pairs", attributes.get("groups"))
    if pairs is None:
        return tuple((k, (k + 1) % groups.size) for k in range(groups.size))
    return tuple((int(a), int(b)) for a, b in pairs)
