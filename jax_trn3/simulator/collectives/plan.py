"""From a collective to phases: which groups run which steps, one after another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
ALGORITHMS = ("single_step_mesh", *ALL_GATHER, "hierarchical")

_MIB = 1 << 20

# intranode-collective-comm.rst, "Algorithm Summary": sweet ranges, found empirically on a torus.
# Only their upper ends bind: what the table gives to a larger size may be used below it where the
# simulator finds it faster, so that more bytes never take less time.
TORUS_LIMITS = {"single_step_mesh": _MIB, "mesh": _MIB, "rdh": 56 * _MIB}


@dataclass(frozen=True, eq=False)
class Phase:
    """Steps that some groups run at the same time."""

    groups: Groups
    steps: Sequence[Step]
    algorithm: str
    parts: Callable[[int, int], Ints]
    """The chunks of the whole collective that stand for the chunk of a member of a group."""


def levels_of(groups: Groups, network: Network) -> tuple[int, ...]:
    """Sizes of the blocks of consecutive members into which tiers cut a group, largest first: each
    divides the one before, and the first is smaller than the group."""
    levels = []
    size = groups.size
    for span in network.spans:
        block = groups.block(span)
        if 1 < block < size and size % block == 0:
            levels.append(block)
            size = block
    return tuple(levels)


def all_gather(groups: Groups, network: Network, algorithm: str, chunk: int) -> Phase:
    """One phase of an all-gather; `chunk` is what each rank gives, in bytes."""
    shape = shape_of(groups, network)
    steps = ALL_GATHER[algorithm](shape, chunk)
    return Phase(groups, steps, algorithm, lambda group, member: np.array([member]))


def backwards(phase: Phase) -> Phase:
    """The reduce-scatter to an all-gather."""
    return replace(phase, steps=reverse(phase.steps))


def one_step(groups: Groups, network: Network, num_bytes: int) -> Phase:
    """An all-reduce by single-step mesh."""
    steps = algorithms.single_step_mesh(shape_of(groups, network), num_bytes)
    return Phase(groups, steps, "single_step_mesh", lambda group, member: np.array([member]))


def candidates(groups: Groups, network: Network, num_bytes: int) -> list[str]:
    """Algorithms that may all-gather `num_bytes` (the result) within groups, the preferred first.

    On a torus those that AWS documents for the size; on a switch, of which nothing is published,
    all of them.
    """
    shape = shape_of(groups, network)
    fitting = [name for name in ALL_GATHER if refusal(name, shape) is None]
    if not on_torus(network):
        return fitting
    return [name for name in fitting if num_bytes <= TORUS_LIMITS.get(name, num_bytes)]


def on_torus(network: Network) -> bool:
    """Whether the chips are joined in rings (trn2) and not by switches (trn3)."""
    return any(
        tier.wiring == "ring" for tier in network.fabric.tiers.values()
    )
