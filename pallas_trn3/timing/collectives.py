"""Collectives in kernels: parts on the collective queue, as long as an algorithm takes.

A kernel knows the size of its axis, not where the mesh lies: devices are taken to be neighbours on
the smallest machine of the chip's generation that has as many.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax

from jax_trn3 import isa
from jax_trn3.hardware import TRAINIUM3, Chip, Topology, get_topology, topology_names
from jax_trn3.simulator.collectives.groups import along
from jax_trn3.simulator.collectives.in_program import collective_in_program

from . import values
from .equations import rule
from .walk import Scope, Walker


@rule("trn3_collective")
def _collective(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> Sequence[Any]:
    params = equation.params
    (target, into), (source, out_of) = jax.tree.unflatten(params["tree"], args)
    values.overwritten(walker, target)
    dst, src = walker.access(target, into), walker.access(source, out_of)
    own = dict(params["params"])
    if params["kind"] == "sendrecv":
        made = isa.TABLE["sendrecv"](
            src, dst, send_to_rank=1, recv_from_rank=1, pipe_id=0, dma_engine=own["dma_engine"],
            origin=walker.origin,
        )  # fmt: skip
        walker.emit(made)
        return []
    size = params["size"]
    if size == 1:
        values.transfer(walker, dst, src, "dma:sync.collective")
        return []
    topology = _machine(walker.chip, size)
    walker.assume(f"{params['kind']} over {size} neighbouring devices of {topology.name}")
    nodes = collective_in_program(
        params["kind"],
        dst,
        src,
        topology,
        groups=along((size,), (0,)),
        pairs=own.get("pairs"),
        op=own.get("op", "add"),
        priority=own.get("priority"),
        origin=isa.Origin(walker.origin.file, walker.origin.line, params["kind"]),
    )
    walker.nodes += nodes
    return []


@functools.lru_cache(maxsize=64)
def _machine(chip: Chip, devices: int) -> Topology:
    """The smallest machine of such chips that has as many devices."""
    machines = [get_topology(name) for name in topology_names() if "<" not in name]
    own = [m for m in machines if m.chip.name == chip.name and m.num_devices >= devices]
    if own:
        return min(own, key=lambda machine: machine.num_devices)
    if chip.name == TRAINIUM3.name:
        return get_topology(f"trn3-ultracluster:{-(-devices // chip.num_cores)}")
    raise ValueError(
        f"a collective over {devices} devices; no machine of {chip.name} has as many "
        f"({', '.join(topology_names())})"
    )
