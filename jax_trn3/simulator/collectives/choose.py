"""The face of the room: `collective` and `simulate`, and how an algorithm is chosen."""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ...hardware import Topology
from .check import checked
from .closed_form import PhaseTime, narrow_time
from .events import simulate_phases
from .groups import SMALL, Groups
from .network import Memory, Network
from .plan import (
    MOST_BROADCASTERS,
    TORUS_LIMITS,
    Kind,
    Phase,
    Role,
    candidates,
    cuts,
    levels_of,
    phases_of_cut,
    spans_servers,
    with_role,
)
from .result import CollectiveTime
from .wide import wide_time

MOST_PAIRWISE = 64
"""Largest group whose all-to-all is written down rank by rank in the closed form."""


def collective(
    kind: Kind,
    num_bytes: int | ArrayLike,
    topology: Topology,
    *,
    groups: Groups | None = None,
    algorithm: str | None = None,
    memory: Memory = "hbm",
    pairs: Sequence[tuple[int, int]] | None = None,
) -> CollectiveTime:
    """How long a collective takes, in closed form: milliseconds, up to a million chips.

    **Arguments:**

    - `kind`: `all_reduce`, `all_gather`, `reduce_scatter`, `all_to_all`, `collective_permute` or
      `broadcast` (from member 0).
    - `num_bytes`: as nccom-test counts them: of a rank's whole buffer, which for an all-gather is
      the result and for a reduce-scatter the operand. An uneven all-to-all takes an array: entry
      `[i, j]` is what member i of a group has for member j.
    - `topology`: the machine. Its links are those of its chip's `fabric`.
    - `groups`: who takes part, see `whole`, `along` and `listed`. Several groups run at the same
      time and share the links. All devices in one group if None.
    - `algorithm`: one of `ALGORITHMS[kind]`. If None, on a torus among those that AWS documents for
      the size, on switches (of which nothing is published) among all, the fastest.
    - `memory`: where operands and results lie, `hbm` or `sbuf`.
    - `pairs`: of a `collective_permute`, the members (source, target).

    **Returns:** A `CollectiveTime`. Chunks are rounded up to whole bytes.

    **Raises:** `ValueError` for what does not fit: groups the topology, operands SBUF, the
    algorithm the group.
    """
    if isinstance(num_bytes, int):
        fixed = None if pairs is None else tuple((source, target) for source, target in pairs)
        return _remembered(kind, num_bytes, topology, groups, algorithm, memory, fixed)
    network, groups = checked(kind, num_bytes, topology, groups, algorithm, memory, pairs)
    phases, times = _chosen(kind, num_bytes, groups, network, algorithm, pairs)
    return _result(kind, num_bytes, groups, network, phases, times, None)


@functools.lru_cache(maxsize=4_096)
def _remembered(
    kind: Kind,
    num_bytes: int,
    topology: Topology,
    groups: Groups | None,
    algorithm: str | None,
    memory: Memory,
    pairs: tuple[tuple[int, int], ...] | None,
) -> CollectiveTime:
    """The layers of a model run the same collectives again and again."""
    network, groups = checked(kind, num_bytes, topology, groups, algorithm, memory, pairs)
    phases, times = _chosen(kind, num_bytes, groups, network, algorithm, pairs)
    return _result(kind, num_bytes, groups, network, phases, times, None)


def simulate(
    kind: Kind,
    num_bytes: int | ArrayLike,
    topology: Topology,
    *,
    groups: Groups | None = None,
    algorithm: str | None = None,
    memory: Memory = "hbm",
    pairs: Sequence[tuple[int, int]] | None = None,
) -> CollectiveTime:
    """`collective`, but with the time of an event simulation of every rank and link. The steps of
    the answer are still those of the closed form.

    **Raises:** `ValueError` as `collective`, and for more than 4,096 devices.
    """
    network, groups = checked(kind, num_bytes, topology, groups, algorithm, memory, pairs)
    phases, times = _chosen(kind, num_bytes, groups, network, algorithm, pairs)
    simulated = simulate_phases(phases, network)
    return _result(kind, num_bytes, groups, network, phases, times, simulated)


def planned(
    kind: Kind,
    num_bytes: int | ArrayLike,
    topology: Topology,
    *,
    groups: Groups | None = None,
    algorithm: str | None = None,
    memory: Memory = "hbm",
    pairs: Sequence[tuple[int, int]] | None = None,
) -> tuple[Network, list[Phase]]:
    """The phases that `collective` would run, and the network they run on."""
    network, groups = checked(kind, num_bytes, topology, groups, algorithm, memory, pairs)
    return network, _chosen(kind, num_bytes, groups, network, algorithm, pairs)[0]


Plan = tuple[list[Phase], list[PhaseTime]]


def phase_time(phase: Phase, network: Network) -> PhaseTime:
    """How long a phase takes, in closed form."""
    groups = phase.groups
    if phase.role == "exchange" and phase.pairs is None:
        listed = groups.table is not None and groups.num_devices <= SMALL
        if groups.size > MOST_PAIRWISE and not listed:
            return wide_time(phase, network)
    chained = phase.role in ("gather", "scatter", "broadcast")
    if chained and groups.num_devices > SMALL and spans_servers(groups, network):
        return wide_time(phase, network)
    return narrow_time(phase, network)


def _chosen(
    kind: Kind,
    num_bytes: int | ArrayLike,
    groups: Groups,
    network: Network,
    algorithm: str | None,
    pairs: Sequence[tuple[int, int]] | None,
) -> Plan:
    """The phases of a collective, and their times."""
    if kind in ("all_to_all", "collective_permute"):
        phase = _exchange(kind, num_bytes, groups, pairs)
        return [phase], [phase_time(phase, network)]
    total = int(np.asarray(num_bytes))
    if kind == "broadcast":
        phases = _broadcast(groups, network, total)
        return phases, [phase_time(phase, network) for phase in phases]
    chunk = -(-total // groups.size)
    options = []
    if algorithm != "single_step_mesh":
        ways = cuts(groups, network)
        if algorithm == "hierarchical":
            ways = [cut for cut in ways if cut]
        elif algorithm is not None:
            ways = [()]
        named = None if algorithm == "hierarchical" else algorithm
        for cut in ways:
            phases = list(phases_of_cut(groups, cut, chunk))
            options += _options(kind, phases, network, named)
    elif kind == "all_reduce":
        phase = Phase(groups, "reduce", algorithm, total, groups.size)
        options.append(([phase], [phase_time(phase, network)]))
    return min(options, key=lambda option: sum(time.time_ps for time in option[1]))


def _options(
    kind: Kind, phases: list[Phase], network: Network, algorithm: str | None
) -> list[Plan]:
    """An all-gather's phases turned into the collective, with the fastest algorithms."""
    gather: Plan = ([], [])
    scatter: Plan = ([], [])
    if kind != "reduce_scatter":
        gather = _fastest(phases, "gather", network, algorithm)
    if kind != "all_gather":
        scatter = _fastest(phases[::-1], "scatter", network, algorithm)
    options = [(scatter[0] + gather[0], scatter[1] + gather[1])]
    outer = phases[0].groups
    small = outer.size <= MOST_BROADCASTERS
    # Instead of the outermost reduce-scatter and all-gather: one step.
    buffer = phases[0].num_bytes * outer.size
    if network.is_torus and not spans_servers(outer, network):
        small = small and buffer <= TORUS_LIMITS["single_step_mesh"]
    if kind == "all_reduce" and algorithm is None and small and outer.size > 1:
        one = Phase(outer, "reduce", "single_step_mesh", buffer, phases[0].period)
        time = phase_time(one, network)
        options.append(
            (
                [*scatter[0][:-1], one, *gather[0][1:]],
                [*scatter[1][:-1], time, *gather[1][1:]],
            )
        )
    return options


def _fastest(phases: list[Phase], role: Role, network: Network, algorithm: str | None) -> Plan:
    """Each phase in that role, with the fastest algorithm, or the named one."""
    chosen: Plan = ([], [])
    for phase in phases:
        result = phase.num_bytes * phase.groups.size
        names = [algorithm] if algorithm else candidates(phase.groups, network, result)
        options = [with_role(phase, role, name) for name in names]
        timed = [(phase_time(option, network), option) for option in options]
        time, option = min(timed, key=lambda pair: pair[0].time_ps)
        chosen[0].append(option)
        chosen[1].append(time)
    return chosen


def _exchange(
    kind: Kind,
    num_bytes: int | ArrayLike,
    groups: Groups,
    pairs: Sequence[tuple[int, int]] | None,
) -> Phase:
    if kind == "collective_permute":
        table = np.asarray(list(pairs or ()), np.int64).reshape(-1, 2)
        return Phase(groups, "permute", "direct", int(np.asarray(num_bytes)), groups.size, table)
    uneven = np.asarray(num_bytes)
    if uneven.ndim:
        return Phase(groups, "exchange", "direct", 0, groups.size, uneven.astype(np.int64))
    return Phase(groups, "exchange", "direct", -(-int(uneven) // groups.size), groups.size)


def _broadcast(groups: Groups, network: Network, total: int) -> list[Phase]:
    """From the first rank of each block to the next, outermost first, then within blocks."""
    phases = []
    for block in levels_of(groups, network):
        phases.append(Phase(groups.heads(block), "broadcast", "binomial", total, groups.size))
        groups = groups.split(block)[1]
    phases.append(Phase(groups, "broadcast", "binomial", total, groups.size))
    return phases


def _result(
    kind: Kind,
    num_bytes: int | ArrayLike,
    groups: Groups,
    network: Network,
    phases: list[Phase],
    times: list[PhaseTime],
    simulated: int | None,
) -> CollectiveTime:
    steps = tuple(step for time in times for step in time.steps)
    running = sum(time.time_ps for time in times) if simulated is None else simulated
    trigger = 2 * int(network.fabric.trigger_latency_ns) * 1_000 if steps else 0
    return CollectiveTime(
        kind=kind,
        algorithm=_title(phases, groups.size),
        num_bytes=_counted(num_bytes),
        size=groups.size,
        time_ps=running + trigger,
        trigger_ps=trigger,
        steps=steps,
    )


def _title(phases: list[Phase], size: int) -> str:
    """E.g. "kangaring", "mesh + rdh" or "hierarchical(kangaring + rdh + kangaring)"."""
    names = [phase.algorithm for phase in phases]
    if any(phase.groups.size < size for phase in phases):
        return f"hierarchical({' + '.join(names)})"
    return names[0] if len(set(names)) == 1 else " + ".join(names)


def _counted(num_bytes: int | ArrayLike) -> int:
    """Bytes of a rank's buffer: of an uneven all-to-all, of the rank that sends most."""
    array = np.asarray(num_bytes)
    return int(array.sum(axis=1).max()) if array.ndim else int(array)
