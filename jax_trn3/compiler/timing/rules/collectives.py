"""Collectives of a program: which devices take part, how much they move, how long that takes."""

from jax_trn3.hardware import Topology
from jax_trn3.simulator.collectives import CollectiveTime, Groups, along, collective, listed, whole

from ..cost import Cost
from ..graph import Mesh, Operation

# What each operation is to the simulator, and whether its bytes are counted of the result.
_KINDS = {
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
    time = collective(kind, size, topology, groups=groups, pairs=pairs)  # type: ignore[arg-type]
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
    """Who takes part: whole axes of the mesh, groups that the program lists, or everybody."""
    axes, names = operation.attributes.get("axes"), [name for name, _ in mesh.axes]
    if axes is not None and set(axes) <= set(names):
        if not axes:
            return along((1,), (0,))
        groups = along(tuple(size for _, size in mesh.axes), tuple(names.index(a) for a in axes))
        return groups if mesh.device_ids is None else _renamed(groups, mesh.device_ids)
    listing = operation.attributes.get("replica_groups")
    if listing:
        return listed([list(group) for group in listing])
    if axes is None:
        return whole(topology)
    raise NotImplementedError(
        f"{operation.kind} at {operation.source} runs over {axes!r} of the mesh {mesh.axes}, not "
        "over whole axes; such groups are not timed yet: give the mesh an axis for each of them"
    )


def _renamed(groups: Groups, device_ids: tuple[int, ...]) -> Groups:
    """Groups over a mesh whose devices are not in order."""
    return listed([[device_ids[place] for place in group] for group in groups.all_devices()])


def _pairs(operation: Operation, groups: Groups) -> tuple[tuple[int, int], ...]:
    """Sources and targets; by default each hands on to the next."""
    pairs = operation.attributes.get("source_target_pairs")
    if pairs is None:
        return tuple((k, (k + 1) % groups.size) for k in range(groups.size))
    return tuple((int(a), int(b)) for a, b in pairs)
