"""From a collective to phases: which groups run which algorithm, one phase after another."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Literal, get_args

import numpy as np

from . import algorithms
from .algorithms import ALL_GATHER, refusal
from .groups import Groups, Ints
from .layout import shape_of
from .network import Network
from .schedule import Step, reverse

Kind = Literal[
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "collective_permute",
    "broadcast",
]
KINDS: tuple[str, ...] = get_args(Kind)
Role = Literal["gather", "scatter", "reduce", "exchange", "permute", "broadcast"]

ALGORITHMS: dict[str, tuple[str, ...]] = {
    "all_reduce": (*ALL_GATHER, "single_step_mesh", "hierarchical"),
    "all_gather": (*ALL_GATHER, "hierarchical"),
    "reduce_scatter": (*ALL_GATHER, "hierarchical"),
    "all_to_all": ("direct",),
    "collective_permute": ("direct",),
    "broadcast": ("binomial",),
}
"""What may be named, by kind."""

_MIB = 1 << 20

TORUS_LIMITS = {"single_step_mesh": _MIB, "mesh": _MIB, "rdh": 56 * _MIB}
"""Largest sizes on a torus: intranode-collective-comm.rst, "Algorithm Summary". Of its sweet ranges
only the upper ends bind. Below them, what the table gives to larger sizes may be used where the
simulator finds it faster; so more bytes never take less time."""

MOST_BROADCASTERS = 128
"""Largest group for which single-step mesh is considered: it sends N (N - 1) whole buffers."""


@dataclass(frozen=True, eq=False)
class Phase:
    """Groups that run one algorithm at the same time."""

    groups: Groups
    role: Role
    algorithm: str
    num_bytes: int
    """Bytes of what the role is about: the chunk of a rank ("gather", "scatter"), the buffer
    ("reduce", "broadcast"), what each rank has for each other ("exchange", "permute")."""

    period: int
    """A rank's chunk stands for those of all ranks of the whole group whose number is the same
    modulo this."""

    pairs: Ints | None = None
    """For "permute", the pairs; for "exchange", the bytes of each pair if they differ."""


def steps_of(phase: Phase, network: Network) -> list[Step]:
    """The steps of a phase, transfer by transfer."""
    size = phase.groups.size
    if phase.role == "exchange":
        even = np.full((size, size), phase.num_bytes)
        return algorithms.direct(size, even if phase.pairs is None else phase.pairs)
    if phase.role == "permute":
        assert phase.pairs is not None
        return algorithms.permute(phase.pairs, phase.num_bytes)
    shape = shape_of(phase.groups, network)
    if phase.role == "broadcast":
        return algorithms.binomial(shape, phase.num_bytes)
    if phase.role == "reduce":
        return algorithms.single_step_mesh(shape, phase.num_bytes)
    steps = ALL_GATHER[phase.algorithm](shape, phase.num_bytes)
    return steps if phase.role == "gather" else reverse(steps)


def spans_servers(groups: Groups, network: Network) -> bool:
    """Whether a group reaches beyond what NeuronLink joins."""
    return groups.block(network.devices_per_domain) != groups.size


def levels_of(groups: Groups, network: Network) -> list[int]:
    """Sizes of the blocks of consecutive members into which tiers cut a group, largest first: each
    divides the one before, and the first is smaller than the group."""
    levels: list[int] = []
    size = groups.size
    for span in network.spans:
        block = groups.block(span)
        if 1 < block < size and size % block == 0:
            levels.append(block)
            size = block
    return levels


def cuts(groups: Groups, network: Network) -> list[tuple[int, ...]]:
    """The ways to cut a group that are worth trying, uncut included. The documented hierarchical
    algorithm cuts between servers that EFA joins; across these, nothing else is run
    (internode-collective-comm.rst: a flat ring only on trn1)."""
    levels = levels_of(groups, network)
    block = groups.block(network.devices_per_domain)
    needed = {block} if 1 < block < groups.size else set()
    every = chain.from_iterable(combinations(levels, n) for n in range(len(levels) + 1))
    return [cut for cut in every if needed <= set(cut)]


def candidates(groups: Groups, network: Network, num_bytes: int) -> list[str]:
    """Algorithms by which groups may all-gather `num_bytes` (the result), or reduce-scatter them.

    On a torus those that AWS documents for the size; on switches, of which nothing is published,
    and between servers, all of them.
    """
    if spans_servers(groups, network) and groups.size & (groups.size - 1):
        fitting = ["mesh", "ring"]
    elif spans_servers(groups, network):
        fitting = ["mesh", "rdh", "ring"]
    else:
        shape = shape_of(groups, network)
        fitting = [name for name in ALL_GATHER if refusal(name, shape) is None]
    if not network.is_torus or spans_servers(groups, network):
        return fitting
    return [name for name in fitting if num_bytes <= TORUS_LIMITS.get(name, num_bytes)]


def phases_of_cut(groups: Groups, cut: tuple[int, ...], chunk: int) -> Iterator[Phase]:
    """An all-gather between the blocks of a cut, outermost first, then within them; the algorithms
    are still to be chosen. The outer phases carry less, the inner tiers more
    (internode-collective-comm.rst, "Hierarchical Algorithm")."""
    for block in cut:
        outer, inner = groups.split(block)
        yield Phase(outer, "gather", "", chunk, groups.size)
        chunk *= outer.size
        groups = inner
    yield Phase(groups, "gather", "", chunk, groups.size)


def with_role(phase: Phase, role: Role, algorithm: str) -> Phase:
    """The phase with its algorithm."""
    return replace(phase, role=role, algorithm=algorithm)
