"""What a collective cannot be: every refusal says what was given, the limit, and what to do."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ...hardware import Topology
from .algorithms import refusal
from .groups import Groups, check_devices, whole
from .layout import shape_of
from .network import Memory, Network
from .plan import ALGORITHMS, KINDS, cuts, spans_servers


def checked(
    kind: str,
    num_bytes: int | ArrayLike,
    topology: Topology,
    groups: Groups | None,
    algorithm: str | None,
    memory: Memory,
    pairs: Sequence[tuple[int, int]] | None,
) -> tuple[Network, Groups]:
    """The network and the groups of a collective that makes sense; raises `ValueError` if not."""
    if kind not in KINDS:
        raise ValueError(f"unknown collective {kind!r}; known: {', '.join(KINDS)}")
    if memory not in ("hbm", "sbuf"):
        raise ValueError(f"memory={memory!r} must be 'hbm' or 'sbuf'")
    groups = whole(topology) if groups is None else groups
    check_devices(groups, topology)
    network = Network(topology, memory)
    _check_bytes(kind, num_bytes, groups)
    _check_pairs(kind, pairs, groups)
    if algorithm is not None:
        _check_algorithm(kind, algorithm, groups, network)
    if memory == "sbuf":
        _check_sbuf(kind, num_bytes, groups, network)
    return network, groups


def _check_bytes(kind: str, num_bytes: int | ArrayLike, groups: Groups) -> None:
    sizes = np.asarray(num_bytes)
    if sizes.dtype.kind not in "iu" or (sizes < 0).any():
        raise ValueError(f"num_bytes={num_bytes!r} must be a whole number of bytes, 0 or more")
    if sizes.ndim == 0:
        return
    if kind != "all_to_all" or sizes.shape != (groups.size, groups.size):
        raise ValueError(
            f"num_bytes of shape {sizes.shape}: an array is for all_to_all, with the bytes from "
            f"member to member: ({groups.size}, {groups.size}) here"
        )


def _check_pairs(kind: str, pairs: Sequence[tuple[int, int]] | None, groups: Groups) -> None:
    if (pairs is not None) != (kind == "collective_permute"):
        raise ValueError(
            f"{kind} got pairs={pairs!r}: a collective_permute needs the members (source, target), "
            "the other collectives have none"
        )
    for name, members in zip(("source", "target"), zip(*(pairs or ()))):
        if len(set(members)) < len(members):
            twice = next(m for m in members if members.count(m) > 1)
            raise ValueError(
                f"member {twice} is the {name} of {members.count(twice)} pairs; it may be of one"
            )
        if not all(0 <= member < groups.size for member in members):
            raise ValueError(f"the pairs' {name}s {members} must be members 0 to {groups.size - 1}")


def _check_algorithm(kind: str, algorithm: str, groups: Groups, network: Network) -> None:
    if algorithm not in ALGORITHMS[kind]:
        raise ValueError(
            f"algorithm={algorithm!r}: {kind} has {', '.join(ALGORITHMS[kind])}, or None"
        )
    if algorithm in ("direct", "binomial"):
        return
    if algorithm == "hierarchical":
        if not any(cuts(groups, network)):
            raise ValueError(
                f"hierarchical needs groups with the same number of ranks, two or more, in each of "
                f"several servers; these of {groups.size} have none. Use algorithm=None"
            )
        return
    domain = network.devices_per_domain
    if spans_servers(groups, network):
        block = groups.block(domain)
        if block > 1:
            raise ValueError(
                f"{algorithm}: the groups have {block} ranks in each of several UltraServers of "
                f"{domain} devices; between these only 'hierarchical' (or None) is run"
            )
        if algorithm == "kangaring":
            raise ValueError("kangaring pairs the ranks of a chip; these groups have one on each")
        if algorithm == "rdh" and groups.size & (groups.size - 1):
            raise ValueError(
                f"rdh needs a group of 2, 4, 8, ... ranks, not {groups.size}; use mesh or ring"
            )
        return
    reason = refusal(algorithm, shape_of(groups, network))
    if reason:
        raise ValueError(reason)


def _check_sbuf(kind: str, num_bytes: int | ArrayLike, groups: Groups, network: Network) -> None:
    """nki.collectives.rst: all-to-all and permute are for HBM only; EFA ends in HBM."""
    if kind not in ("all_reduce", "all_gather", "reduce_scatter"):
        raise ValueError(
            f"{kind} runs between HBM only; memory='sbuf' is for all_reduce, all_gather and "
            "reduce_scatter"
        )
    if spans_servers(groups, network):
        raise ValueError(
            f"memory='sbuf' is for groups within one UltraServer ({network.devices_per_domain} "
            "devices): EFA goes from HBM to HBM. Use smaller groups or memory='hbm'"
        )
    total = int(np.asarray(num_bytes))
    need = total * 2 if kind == "all_reduce" else total + -(-total // groups.size)
    core = network.topology.chip.core
    limit = core.partitions * core.sbuf_usable_partition_bytes * network.topology.lnc
    if need > limit:
        raise ValueError(
            f"SBUF-to-SBUF {kind} of {total} bytes needs {need} bytes of SBUF on each rank for "
            f"operand and result; {network.topology.lnc} core(s) of {core.name} have {limit} to "
            "allocate. Split it, or use memory='hbm'"
        )
