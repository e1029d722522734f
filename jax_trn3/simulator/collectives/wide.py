"""Closed form of phases whose groups are too large to write their steps down: from one UltraServer
to the next in a cluster, and from every rank to every other.

Only transfers that start in the first two and the last UltraServers are looked at. Of many equal
ones that leave an UltraServer one stands for all: EFA loads nothing but the ports at its ends.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .closed_form import PhaseTime, step_time, windows
from .groups import Ints
from .network import Load, Network
from .plan import Phase
from .result import LocalTraffic

_ELSEWHERE = -1
_TO_EACH = "to each"


@dataclass(frozen=True, eq=False)
class _Transfers:
    """Transfers of one step: group and members, bytes of each, and how many each stands for."""

    name: str
    group: Ints
    src: Ints
    dst: Ints
    size: int
    copies: Ints
    repeat: int = 1


def wide_time(phase: Phase, network: Network) -> PhaseTime:
    """How long such a phase takes."""
    steps = []
    for transfers in _transfers(phase, network):
        load = _load(phase, network, transfers)
        name = f"{phase.algorithm}: {transfers.name}"
        steps.append(step_time(name, transfers.repeat, load, network, _local(phase, transfers)))
    if phase.role == "scatter":
        steps.reverse()
    return PhaseTime(tuple(steps))


def _transfers(phase: Phase, network: Network) -> Iterator[_Transfers]:
    size = phase.groups.size
    group, member = _members(phase, network)
    ones = np.ones_like(group)
    if phase.algorithm == "ring":
        dst = (member + 1) % size
        yield _Transfers("ring", group, member, dst, phase.num_bytes, ones, size - 1)
    elif phase.algorithm == "rdh":
        for bit in (1 << place for place in range(size.bit_length() - 1)):
            volume = phase.num_bytes * bit
            yield _Transfers(f"exchange {bit}", group, member, member ^ bit, volume, ones)
    elif phase.algorithm == "binomial":
        for bit in (1 << place for place in reversed(range((size - 1).bit_length()))):
            active = (member % (2 * bit) == 0) & (member + bit < size)
            some, src = group[active], member[active]
            if len(some):
                name = f"distance {bit}"
                yield _Transfers(name, some, src, src + bit, phase.num_bytes, ones[active])
    else:
        yield _to_all(phase, network)


def _members(phase: Phase, network: Network) -> tuple[Ints, Ints]:
    found = windows(phase.groups, network)
    return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])


def _to_all(phase: Phase, network: Network) -> _Transfers:
    """From each rank one transfer for every chip of its UltraServer; and one to elsewhere and one
    from there, standing for all other ranks: each sends as much to a rank as it gets from it."""
    groups, size = phase.groups, phase.groups.size
    group, member = _members(phase, network)
    device = groups.devices(group, member)
    domain = device // network.devices_per_domain
    chip = device // network.topology.devices_per_chip
    parts: list[tuple[Ints, Ints, Ints, Ints]] = []
    _, place = np.unique(np.stack([group, domain]), axis=1, return_inverse=True)
    order = np.argsort(place, kind="stable")
    for rows in np.split(order, np.nonzero(np.diff(place[order]))[0] + 1):
        rows = rows[np.argsort(chip[rows], kind="stable")]
        own = member[rows]
        chips, which, peers = np.unique(chip[rows], return_inverse=True, return_counts=True)
        local = np.arange(len(rows)) - np.searchsorted(which, which)
        first = np.cumsum(peers) - peers
        # To chip c, as many transfers as it has ranks, standing in for all: the sender's own place.
        target = first[None, :] + local[:, None] % peers[None, :]
        copies = peers[None, :] - (which[:, None] == np.arange(len(chips)))
        # A rank sends nothing to itself: its copies for its own chip go to a neighbour.
        neighbour = first[which] + (local + 1) % peers[which]
        target[np.arange(len(rows)), which] = neighbour
        src = np.repeat(own, len(chips))
        parts.append((np.full_like(src, group[rows[0]]), src, own[target].ravel(), copies.ravel()))
        far = np.full(len(rows), size - len(rows))
        parts.append((group[rows], own, np.full(len(rows), _ELSEWHERE), far))
        parts.append((group[rows], np.full(len(rows), _ELSEWHERE), own, far))
    columns = [np.concatenate(column) for column in zip(*parts)]
    some = columns[3] > 0
    group, src, dst, copies = (column[some] for column in columns)
    return _Transfers(_TO_EACH, group, src, dst, phase.num_bytes, copies)


def _load(phase: Phase, network: Network, transfers: _Transfers) -> Load:
    src = phase.groups.devices(transfers.group, np.maximum(transfers.src, 0))
    dst = phase.groups.devices(transfers.group, np.maximum(transfers.dst, 0))
    # Elsewhere is the same place in an UltraServer beyond the last, one for each there is.
    beyond = network.devices_per_domain * int(network.topology.chip_shape[0])
    src = np.where(transfers.src == _ELSEWHERE, dst + beyond, src)
    dst = np.where(transfers.dst == _ELSEWHERE, src + beyond, dst)
    if phase.role == "scatter":
        src, dst = dst, src
    ones = np.ones(len(src))
    copies = transfers.copies.astype(np.float64)
    updates = ones if phase.role == "scatter" else 0 * ones
    return network.load_of((src, dst, src), transfers.size * copies, copies, ones, updates, ones)


def _local(phase: Phase, transfers: _Transfers) -> LocalTraffic:
    """Every rank sends and gets the same; of a broadcast, at most one copy."""
    peers = phase.groups.size - 1 if transfers.name == _TO_EACH else 1
    volume = transfers.size * peers
    reads = 2 if phase.role == "scatter" else 1
    return LocalTraffic(volume * reads, volume, volume * reads)
