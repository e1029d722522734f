"""Groups: what they say, and what a collective refuses."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_trn3.hardware import get_topology
from jax_trn3.simulator.collectives import Groups, along, collective, listed, simulate, whole
from jax_trn3.simulator.collectives import groups as groups_module

SLED = get_topology("trn3-sled")


@st.composite
def meshes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    axes = draw(st.permutations(range(len(shape))))
    count = draw(st.integers(0, len(shape)))
    return shape, tuple(axes[:count]), draw(st.integers(0, 9))


@given(meshes())
def test_groups_are_those_of_numpy(mesh: tuple[tuple[int, ...], tuple[int, ...], int]) -> None:
    shape, axes, start = mesh
    devices = start + np.arange(np.prod(shape)).reshape(shape)
    others = [axis for axis in range(len(shape)) if axis not in axes]
    size = int(np.prod([shape[axis] for axis in axes]))
    expected = devices.transpose([*others, *axes]).reshape(-1, size)
    groups = along(shape, axes, start)
    np.testing.assert_array_equal(groups.all_devices(), expected)
    assert (groups.size, groups.count) == expected.shape[::-1]
    assert groups.extent == (devices.min(), devices.max())


@given(meshes(), st.integers(0, 40), st.integers(0, 40))
def test_within_finds_the_devices(
    mesh: tuple[tuple[int, ...], tuple[int, ...], int], first: int, count: int
) -> None:
    groups = along(*mesh)
    group, member = groups.within(first, first + count)
    expected = [d for d in groups.all_devices().ravel() if first <= d < first + count]
    assert sorted(groups.devices(group, member)) == sorted(expected)


@given(meshes(), st.sampled_from([1, 2, 3, 4, 6, 8, 12]))
def test_blocks_lie_in_one_span(
    mesh: tuple[tuple[int, ...], tuple[int, ...], int], span: int
) -> None:
    """Looked up device by device, and by arithmetic, which may find smaller blocks."""
    groups = along(*mesh)
    exact = groups.block(span)
    small, groups_module.SMALL = groups_module.SMALL, 0
    try:
        computed = groups.block(span)
    finally:
        groups_module.SMALL = small
    assert exact % computed == 0
    for block in (exact, computed):
        spans = (groups.all_devices() // span).reshape(-1, block)
        assert (spans == spans[:, :1]).all()


@given(meshes())
def test_split_keeps_every_device_in_its_place(
    mesh: tuple[tuple[int, ...], tuple[int, ...], int],
) -> None:
    groups = along(*mesh)
    table = groups.all_devices()
    for block in (b for b in range(1, groups.size + 1) if groups.size % b == 0):
        for given_groups in (groups, listed(table.tolist())):
            outer, inner = given_groups.split(block)
            blocks = {tuple(row) for row in table.reshape(-1, block)}
            assert {tuple(row) for row in inner.all_devices()} == blocks
            across = table.reshape(groups.count, -1, block).transpose(0, 2, 1)
            assert {tuple(row) for row in outer.all_devices()} == {
                tuple(row) for row in across.reshape(-1, groups.size // block)
            }
            heads = table[:, ::block]
            np.testing.assert_array_equal(given_groups.heads(block).all_devices(), heads)


def test_a_mesh_of_millions_costs_nothing() -> None:
    began = time.perf_counter()
    groups = along((1_000_000, 2, 4), (0, 2))
    assert (groups.size, groups.count) == (4_000_000, 2)
    assert groups.block(1152) >= 4
    assert time.perf_counter() - began < 1


def refused(match: str, *args: Any, **kwargs: Any) -> None:
    for run in (collective, simulate):
        with pytest.raises(ValueError, match=match):
            run(*args, **kwargs)


def test_devices_beyond_the_topology() -> None:
    refused(
        r"1 group\(s\) of 64 reach from device 0 to 63, but trn3-sled has devices 0 to 31",
        "all_gather", 8, SLED, groups=along((64,), (0,)),
    )  # fmt: skip


def test_listed_groups_must_be_equal_and_disjoint() -> None:
    with pytest.raises(ValueError, match=r"same number of members.*got sizes \[2, 3\]"):
        listed([[0, 1], [2, 3, 4]])
    with pytest.raises(ValueError, match="device 1 is in the groups 2 times"):
        listed([[0, 1], [1, 2]])
    with pytest.raises(ValueError, match=r"sizes \[\]"):
        listed([])


def test_axes_must_be_those_of_the_mesh() -> None:
    with pytest.raises(ValueError, match=r"axes \(0, 3\) must be different axes of a mesh of 2"):
        along((2, 3), (0, 3))
    with pytest.raises(ValueError, match="positive extents"):
        along((0, 3), (0,))


def test_algorithms_that_cannot_serve_the_group() -> None:
    twelve = listed([list(range(12))])
    refused("rdh .* needs a group of 2, 4, 8, ... ranks, not 12; use", "all_reduce", 8, SLED,
            groups=twelve, algorithm="rdh")  # fmt: skip
    refused("kangaring pairs the ranks of a chip.*not 1", "all_reduce", 8, SLED,
            groups=along((4, 8), (0,)), algorithm="kangaring")  # fmt: skip
    refused("hierarchical needs groups", "all_reduce", 8, SLED, algorithm="hierarchical")
    refused("algorithm='tree': all_gather has mesh, rdh, kangaring, ring, hierarchical, or None",
            "all_gather", 8, SLED, algorithm="tree")  # fmt: skip
    cluster = get_topology("trn3-ultracluster:288")
    refused("ring: the groups have 1152 ranks in each of several UltraServers of 1152 devices; .*"
            "'hierarchical'", "all_reduce", 8, cluster, algorithm="ring")  # fmt: skip


def test_sbuf_has_limits() -> None:
    refused(r"needs 67108864 bytes of SBUF on each rank .* have \d+ to allocate. Split it",
            "all_reduce", 32 << 20, SLED, memory="sbuf")  # fmt: skip
    refused("all_to_all runs between HBM only", "all_to_all", 8, SLED, memory="sbuf")
    refused("EFA goes from HBM to HBM", "all_gather", 8, get_topology("trn3-ultracluster:288"),
            memory="sbuf")  # fmt: skip
    refused("memory='psum' must be", "all_gather", 8, SLED, memory="psum")


def test_what_makes_no_sense() -> None:
    refused("unknown collective 'gather'; known: all_reduce", "gather", 8, SLED)
    refused("num_bytes=-1 must be a whole number", "all_gather", -1, SLED)
    refused("num_bytes=1.5 must be a whole number", "all_gather", 1.5, SLED)
    refused(r"shape \(2, 2\).*\(32, 32\) here", "all_to_all", np.ones((2, 2), int), SLED)
    refused("collective_permute got pairs=None", "collective_permute", 8, SLED)
    refused("all_gather got pairs", "all_gather", 8, SLED, pairs=[(0, 1)])
    refused("member 1 is the target of 2 pairs", "collective_permute", 8, SLED,
            pairs=[(0, 1), (2, 1)])  # fmt: skip
    refused(r"targets \(32,\) must be members 0 to 31", "collective_permute", 8, SLED,
            pairs=[(0, 32)])  # fmt: skip


def test_too_many_to_simulate_one_by_one() -> None:
    with pytest.raises(ValueError, match=r"8000 devices are too many .*at most 4096"):
        simulate("all_to_all", 8, get_topology("trn3-ultracluster:1000"))


def test_a_group_of_one_does_nothing() -> None:
    for groups in (Groups(()), along((32,), ()), listed([[5]])):
        assert collective("all_reduce", 1 << 20, SLED, groups=groups).time_ps == 0
    assert whole(SLED).size == 32
