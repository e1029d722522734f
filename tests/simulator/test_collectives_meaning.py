"""The schedules mean what they say: executed on numbers, they gather, add and exchange."""

from collections.abc import Sequence

import numpy as np
import pytest

from jax_trn3.hardware import get_topology
from jax_trn3.simulator.collectives import Groups, along, listed, planned
from jax_trn3.simulator.collectives.network import Network
from jax_trn3.simulator.collectives.plan import Phase, phases_of_cut, steps_of, with_role
from jax_trn3.simulator.collectives.schedule import Step

PIECES = 4  # of a chunk: as many as a ring has channels, at most

INSTANCE = get_topology("trn2-instance")
GEN1 = get_topology("trn3-gen1")
CHIP = get_topology("trn3-chip")

AXES = {
    "chip": (CHIP, along((8,), (0,))),
    "half chips": (INSTANCE, along((32, 4), (1,))),
    "plane": (INSTANCE, along((16, 8), (0,))),
    "plane of pairs": (get_topology("trn2-instance", lnc=2), along((16, 4), (0, 1))),
    "row": (INSTANCE, along((4, 4, 8), (1,))),
    "column": (INSTANCE, along((4, 4, 8), (0,))),
    "torus": (get_topology("trn2-ultraserver", lnc=2), along((64, 4), (0,))),
    "strided": (GEN1, along((4, 16, 8), (0, 2))),
    "switches": (GEN1, along((64, 8), (0,))),
}


def execute(phases: Sequence[Phase], groups: Groups, network: Network, state: np.ndarray) -> None:
    """Runs phases on `state[device, rank of the chunk, piece]`."""
    rank = np.zeros(network.topology.num_devices, np.int64)
    table = groups.all_devices()
    rank[table] = np.arange(groups.size)
    for phase in phases:
        for step in steps_of(phase, network):
            for repetition in range(step.repeat):
                _execute(step, repetition, phase, rank, groups.size, state)


def _execute(
    step: Step, repetition: int, phase: Phase, rank: np.ndarray, size: int, state: np.ndarray
) -> None:
    before = state.copy()
    channel = np.broadcast_to(step.channel, step.src.shape)
    share = PIECES // step.channels
    volume = np.broadcast_to(step.size, step.src.shape)
    for row in phase.groups.all_devices():
        for index, chunks in enumerate(step.moves(repetition)):
            src, dst = row[step.src[index]], row[step.dst[index]]
            pieces = slice(channel[index] * share, (channel[index] + 1) * share)
            if phase.role != "reduce":
                assert volume[index] == len(chunks) * -(-phase.num_bytes // step.channels)
            for chunk in chunks:
                own = rank[row[chunk]] % phase.period
                carried = np.arange(own, size, phase.period)
                moved = before[src, carried, pieces]
                if step.reduce:
                    state[dst, carried, pieces] += moved
                else:
                    state[dst, carried, pieces] = moved


def drawn(groups: Groups, devices: int, seed: int = 0) -> np.ndarray:
    state = np.random.default_rng(seed).integers(1, 1000, (devices, groups.size, PIECES))
    return state.astype(np.int64)


def check_gather(phases: Sequence[Phase], groups: Groups, network: Network) -> None:
    table = groups.all_devices()
    data = drawn(groups, network.topology.num_devices)
    state = np.full_like(data, -1)
    for row in table:
        state[row, np.arange(groups.size)] = data[row, np.arange(groups.size)]
    execute(phases, groups, network, state)
    for row in table:
        expected = data[row, np.arange(groups.size)]
        for device in row:
            np.testing.assert_array_equal(state[device], expected)


def check_scatter(phases: Sequence[Phase], groups: Groups, network: Network) -> None:
    data = drawn(groups, network.topology.num_devices, 1)
    state = data.copy()
    execute(phases, groups, network, state)
    for row in groups.all_devices():
        total = data[row].sum(axis=0)
        np.testing.assert_array_equal(state[row, np.arange(groups.size)], total)


def check_reduce(phases: Sequence[Phase], groups: Groups, network: Network) -> None:
    data = drawn(groups, network.topology.num_devices, 2)
    state = data.copy()
    execute(phases, groups, network, state)
    for row in groups.all_devices():
        total = data[row].sum(axis=0)
        for device in row:
            np.testing.assert_array_equal(state[device], total)


CHECKS = {
    "all_gather": check_gather,
    "reduce_scatter": check_scatter,
    "all_reduce": check_reduce,
}


def try_plan(kind: str, topology, groups: Groups, algorithm: str | None) -> None:
    try:
        network, phases = planned(
            kind, 64 * groups.size, topology, groups=groups, algorithm=algorithm
        )
    except ValueError as error:
        refusal = str(error)
    else:
        CHECKS[kind](phases, groups, network)
        return
    assert algorithm is not None
    assert algorithm in refusal


@pytest.mark.parametrize("kind", CHECKS)
@pytest.mark.parametrize("name", AXES)
@pytest.mark.parametrize("algorithm", ["ring", "mesh", "rdh", "kangaring", "hierarchical", None])
def test_groups_of_a_mesh(kind: str, name: str, algorithm: str | None) -> None:
    try_plan(kind, *AXES[name], algorithm)


@pytest.mark.parametrize("kind", CHECKS)
@pytest.mark.parametrize("algorithm", ["ring", "mesh", "rdh", "kangaring"])
def test_every_size(kind: str, algorithm: str) -> None:
    for size in range(1, 17):
        try_plan(kind, get_topology("trn3-sled"), listed([list(range(size))]), algorithm)


def test_unordered_groups() -> None:
    order = np.random.default_rng(3).permutation(128)[:24].reshape(2, 12)
    for kind in CHECKS:
        for algorithm in ("ring", "mesh", None):
            try_plan(kind, INSTANCE, listed(order.tolist()), algorithm)


def test_single_step_mesh_adds_everything() -> None:
    for size in range(1, 9):
        try_plan("all_reduce", CHIP, listed([list(range(size))]), "single_step_mesh")


@pytest.mark.parametrize("cut", [(32,), (8,), (32, 8), (64, 32, 4), (4, 2)])
@pytest.mark.parametrize("role", ["gather", "scatter"])
def test_any_cut_of_a_hierarchy(cut: tuple[int, ...], role: str) -> None:
    topology = get_topology("trn3-gen1")
    groups = along((4, 128), (1,))
    network = planned("all_gather", 1, topology, groups=groups)[0]
    phases = [with_role(p, role, "mesh") for p in phases_of_cut(groups, cut, 64)]
    if role == "gather":
        check_gather(phases, groups, network)
    else:
        check_scatter(phases[::-1], groups, network)


def test_all_to_all_brings_each_what_is_meant_for_it() -> None:
    table = np.random.default_rng(4).integers(0, 100, (6, 6))
    groups = listed([[3, 1, 4, 15, 9, 2], [6, 5, 35, 8, 7, 30]])
    network, [phase] = planned("all_to_all", table, GEN1, groups=groups)
    received = np.diag(np.diag(table)).copy()
    for step in steps_of(phase, network):
        for src, dst, size in zip(step.src, step.dst, step.size):
            received[src, dst] += size
    np.testing.assert_array_equal(received, table)


def test_permute_moves_the_pairs() -> None:
    pairs = [(0, 1), (1, 0), (2, 2), (5, 3)]
    network, [phase] = planned("collective_permute", 64, CHIP, pairs=pairs)
    [step] = steps_of(phase, network)
    assert list(zip(step.src, step.dst)) == pairs
    assert (step.size == 64).all()


@pytest.mark.parametrize("name", AXES)
def test_broadcast_reaches_everybody(name: str) -> None:
    topology, groups = AXES[name]
    network, phases = planned("broadcast", 64, topology, groups=groups)
    has = np.zeros(topology.num_devices, bool)
    has[groups.all_devices()[:, 0]] = True
    for phase in phases:
        for step in steps_of(phase, network):
            for row in phase.groups.all_devices():
                assert has[row[step.src]].all()
                assert not has[row[step.dst]].any()
                has[row[step.dst]] = True
    assert has.sum() == groups.num_devices


def test_bytes_sent_are_the_least() -> None:
    """Every rank gets every other's chunk once: (N - 1) chunks each."""
    for algorithm in ("ring", "mesh", "rdh", "kangaring"):
        network, phases = planned("all_gather", 64 * 128, INSTANCE, algorithm=algorithm)
        received = np.zeros(128)
        for phase in phases:
            for step in steps_of(phase, network):
                volume = np.broadcast_to(step.size * step.repeat, step.dst.shape)
                received += np.bincount(step.dst, volume, 128)
        np.testing.assert_array_equal(received, 127 * 64)


def test_memory_touches_are_the_documented() -> None:
    """For a chunk to pass two ranks: ring 4 and 6, KangaRing 3 and 4 (intranode-collective-comm)."""
    touches = {}
    for kind in ("all_gather", "reduce_scatter"):
        for algorithm in ("ring", "kangaring"):
            network, phases = planned(kind, 64 * 128, INSTANCE, algorithm=algorithm)
            total = 0
            for phase in phases:
                for step in steps_of(phase, network):
                    each = (
                        step.size
                        * step.repeat
                        * (np.asarray(step.reads) + step.updates + step.writes)
                    )
                    total += np.broadcast_to(each, step.src.shape).sum()
            touches[kind, algorithm] = total / (127 * 128 * 64 / 2)
    assert touches["all_gather", "ring"] == 4
    assert touches["reduce_scatter", "ring"] == 6
    assert touches["all_gather", "kangaring"] == pytest.approx(3, rel=0.02)
    assert touches["reduce_scatter", "kangaring"] == pytest.approx(4, rel=0.02)
