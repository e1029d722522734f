"""Cores, chips and topologies against published figures."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_trn3.hardware import (
    DEFAULT_TOPOLOGY,
    NEURON_CORE_V2,
    NEURON_CORE_V3,
    NEURON_CORE_V4,
    TRAINIUM1,
    TRAINIUM2,
    TRAINIUM3,
    Chip,
    CoreLocation,
    NeuronCore,
    Topology,
    get_topology,
)

KIB, MIB, GIB = 1024, 1024**2, 1024**3
TB = 10**12

# name: (chip, servers, chips, devices at lnc=1, GiB of HBM)
PUBLISHED = {
    "trn3-core": (TRAINIUM3, 1, 1, 1, 18),
    "trn3-chip": (TRAINIUM3, 1, 1, 8, 144),
    "trn3-sled": (TRAINIUM3, 1, 4, 32, 576),
    "trn3-gen1": (TRAINIUM3, 4, 64, 512, 9_216),
    "trn3-gen2": (TRAINIUM3, 36, 144, 1152, 20_736),
    "trn3-ultracluster:288": (TRAINIUM3, 72, 288, 2304, 41_472),
    "trn2-chip": (TRAINIUM2, 1, 1, 8, 96),
    "trn2-instance": (TRAINIUM2, 1, 16, 128, 1_536),
    "trn2-ultraserver": (TRAINIUM2, 4, 64, 512, 6_144),
    "trn1-chip": (TRAINIUM1, 1, 1, 2, 32),
}
FUSIBLE = sorted(PUBLISHED.keys() - {"trn3-core", "trn1-chip"})

any_topology = st.one_of(
    st.builds(get_topology, st.sampled_from(sorted(PUBLISHED))),
    st.builds(get_topology, st.sampled_from(FUSIBLE), st.just(2)),
    st.builds(
        lambda chips, lnc: get_topology(f"trn3-ultracluster:{chips}", lnc),
        st.integers(1, 400),
        st.sampled_from([1, 2]),
    ),
)


@pytest.mark.parametrize(
    ("core", "name", "sbuf_mib", "sbuf_partition_kib"),
    [
        (NEURON_CORE_V2, "NeuronCore-v2", 24, 192),
        (NEURON_CORE_V3, "NeuronCore-v3", 28, 224),
        (NEURON_CORE_V4, "NeuronCore-v4", 32, 256),
    ],
)
def test_core_memories(core: NeuronCore, name: str, sbuf_mib: int, sbuf_partition_kib: int) -> None:
    assert core.name == name
    assert core.partitions == 128
    assert core.sbuf_partition_bytes == sbuf_partition_kib * KIB
    assert core.sbuf_bytes == sbuf_mib * MIB
    assert core.psum_banks == 8
    assert core.psum_bank_bytes == 512 * 4  # 512 float32
    assert core.psum_partition_bytes == 16 * KIB
    assert core.psum_bytes == 2 * MIB


@pytest.mark.parametrize(
    ("chip", "core", "cores", "hbm_gib", "stacks", "sbuf_mib"),
    [
        (TRAINIUM1, NEURON_CORE_V2, 2, 32, 2, 48),
        (TRAINIUM2, NEURON_CORE_V3, 8, 96, 4, 224),
        (TRAINIUM3, NEURON_CORE_V4, 8, 144, 4, 256),
    ],
)
def test_chip(
    chip: Chip, core: NeuronCore, cores: int, hbm_gib: int, stacks: int, sbuf_mib: int
) -> None:
    assert chip.core is core
    assert chip.num_cores == cores
    assert chip.hbm_bytes == hbm_gib * GIB
    assert chip.hbm_stacks == stacks
    assert chip.hbm_bytes_per_core * cores == chip.hbm_bytes
    assert chip.num_cores * chip.core.sbuf_bytes == sbuf_mib * MIB


def test_trainium3_core_has_18_gib() -> None:
    assert TRAINIUM3.hbm_bytes_per_core == 18 * GIB


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name: str) -> None:
    chip, servers, chips, devices, hbm_gib = PUBLISHED[name]
    topology = get_topology(name)
    assert topology.name == name
    assert topology.chip is chip
    assert topology.num_servers == servers
    assert topology.num_chips == chips
    assert topology.num_devices == devices == len(topology.devices())
    assert topology.hbm_bytes == hbm_gib * GIB


@pytest.mark.parametrize(
    ("name", "tenths_of_tb_per_s"),
    [
        ("trn3-gen1", 3_136),
        ("trn3-gen2", 7_056),
        ("trn2-instance", 464),
        ("trn2-ultraserver", 1_856),
    ],
)
def test_total_hbm_bandwidth(name: str, tenths_of_tb_per_s: int) -> None:
    topology = get_topology(name)
    total = topology.num_chips * topology.chip.hbm_bandwidth_bytes_per_s
    assert total == tenths_of_tb_per_s * TB // 10


def test_default_is_one_trainium3_with_eight_devices() -> None:
    topology = get_topology(DEFAULT_TOPOLOGY)
    assert DEFAULT_TOPOLOGY == "trn3-chip"
    assert topology.lnc == 1
    assert topology.num_devices == 8


@pytest.mark.parametrize("name", FUSIBLE)
def test_lnc2_halves_devices_and_doubles_their_hbm(name: str) -> None:
    single, fused = get_topology(name, lnc=1), get_topology(name, lnc=2)
    assert fused.num_devices * 2 == single.num_devices == len(fused.devices()) * 2
    assert fused.hbm_bytes_per_device == 2 * single.hbm_bytes_per_device
    assert fused.hbm_bytes == single.hbm_bytes
    assert {d.core for d in fused.devices()} == set(range(4))


def test_lnc2_trn2_instance_presents_64_cores_of_24_gib() -> None:
    topology = get_topology("trn2-instance", lnc=2)
    assert topology.num_devices == 64
    assert topology.hbm_bytes_per_device == 24 * GIB


@pytest.mark.parametrize("lnc", [-1, 0, 3, 4, 8])
def test_lnc_of_other_values_is_refused(lnc: int) -> None:
    with pytest.raises(ValueError, match=rf"^trn3-chip: lnc={lnc} .*Trainium3 takes 1 or 2$"):
        get_topology("trn3-chip", lnc=lnc)
    with pytest.raises(ValueError, match=rf"lnc={lnc} is not supported"):
        get_topology("trn3-ultracluster:4", lnc=lnc)


def test_lnc2_is_refused_on_trn1() -> None:
    with pytest.raises(ValueError, match=r"^trn1-chip: lnc=2 .*Trainium1 takes 1$"):
        get_topology("trn1-chip", lnc=2)


def test_lnc2_is_refused_on_a_single_core() -> None:
    with pytest.raises(ValueError, match=r"^trn3-core: lnc=2 cannot fuse 1 core\(s\) a chip$"):
        get_topology("trn3-core", lnc=2)


WRONG_NAMES = ["", "trn3", "TRN3-CHIP", "trn3-chip ", "trn3-chip\n", "trn3-gen2:4", "trn3-gen3"]
WRONG_NAMES += ["trn1-ultraserver", "trn2-ultracluster:64", "trn3-ultracluster"]
WRONG_COUNTS = ["", "0", "-4", "+4", "04", "4.0", "1_000", " 4", "4\n", "\u0664", "four"]


@pytest.mark.parametrize(
    "name", WRONG_NAMES + [f"trn3-ultracluster:{count}" for count in WRONG_COUNTS]
)
def test_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match="unknown topology") as error:
        get_topology(name)
    message = str(error.value)
    assert repr(name) in message
    listed = set(message.rpartition("known: ")[2].split(", "))
    assert listed == PUBLISHED.keys() - {"trn3-ultracluster:288"} | {"trn3-ultracluster:<chips>"}


def test_gen2_location() -> None:
    # Figure trn3-ultraserver-gen2.png: servers 18-35 hang on the other switch.
    topology = get_topology("trn3-gen2")
    assert topology.axes == ("rack", "server", "chip", "core")
    first, *_, last = topology.devices()
    assert first == CoreLocation(id=0, chip=0, core=0, server=0, coords=(0, 0, 0, 0))
    assert last == CoreLocation(id=1151, chip=143, core=7, server=35, coords=(1, 17, 3, 7))
    assert {d.coords[0] for d in topology.devices() if d.server < 18} == {0}
    assert {d.coords[0] for d in topology.devices() if d.server >= 18} == {1}


def test_gen1_location() -> None:
    device = get_topology("trn3-gen1").devices()[8 * (3 * 16 + 5) + 2]
    assert device == CoreLocation(id=426, chip=53, core=2, server=3, coords=(1, 1, 5, 2))


def test_trn2_ultraserver_location() -> None:
    topology = get_topology("trn2-ultraserver", lnc=2)
    assert topology.axes == ("instance", "row", "column", "core")
    device = topology.devices()[4 * (2 * 16 + 1 * 4 + 3) + 1]
    assert device == CoreLocation(id=157, chip=39, core=1, server=2, coords=(2, 1, 3, 1))


def test_partly_filled_ultracluster() -> None:
    topology = get_topology("trn3-ultracluster:145")
    assert topology.axes == ("ultraserver", "rack", "server", "chip", "core")
    assert topology.num_servers == 37
    assert topology.devices()[-1] == CoreLocation(
        id=1159, chip=144, core=7, server=36, coords=(1, 0, 0, 0, 7)
    )


@given(st.integers(1, 10**15), st.sampled_from([1, 2]))
def test_ultracluster_of_any_size_is_made_at_once(chips: int, lnc: int) -> None:
    topology = get_topology(f"trn3-ultracluster:{chips}", lnc)
    assert topology.num_chips == chips
    assert topology.num_devices == chips * 8 // lnc
    assert topology.num_servers == math.ceil(chips / 4)
    assert topology.hbm_bytes == chips * 144 * GIB


@given(any_topology)
def test_devices_are_dense_unique_and_inside(topology: Topology) -> None:
    devices = topology.devices()
    assert [d.id for d in devices] == list(range(topology.num_devices))
    assert len({d.coords for d in devices}) == len(devices)
    assert [d.coords for d in devices] == sorted(d.coords for d in devices)
    extents = (*topology.chip_shape, topology.devices_per_chip)
    assert len(extents) == len(topology.axes)
    for device in devices:
        assert len(device.coords) == len(extents)
        assert all(0 <= at < extent for at, extent in zip(device.coords, extents, strict=True))
        assert device.coords[-1] == device.core
        assert device.id == device.chip * topology.devices_per_chip + device.core


@given(any_topology)
def test_servers_hold_whole_runs_of_chips(topology: Topology) -> None:
    chips: dict[int, set[int]] = {}
    for device in topology.devices():
        chips.setdefault(device.server, set()).add(device.chip)
    assert sorted(chips) == list(range(topology.num_servers))
    sizes = [len(chips[server]) for server in range(topology.num_servers)]
    assert all(size == topology.chips_per_server for size in sizes[:-1])
    assert 1 <= sizes[-1] <= topology.chips_per_server
    assert sum(sizes) == topology.num_chips


def test_a_hypothetical_chip_is_a_replaced_one() -> None:
    chip = dataclasses.replace(TRAINIUM3, name="Trainium3x", hbm_bytes=288 * GIB)
    topology = dataclasses.replace(get_topology("trn3-gen2"), name="mine", chip=chip)
    assert topology.hbm_bytes == 144 * 288 * GIB
    assert topology.num_devices == 1152


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_chips": 0}, "num_chips=0 must be 1 to 4"),
        ({"num_chips": 5}, "num_chips=5 must be 1 to 4"),
        ({"chips_per_server": 0}, "chips_per_server=0"),
        ({"cores_used_per_chip": 0}, "cores_used_per_chip=0 must be 1 to 8"),
        ({"cores_used_per_chip": 9}, "cores_used_per_chip=9 must be 1 to 8"),
        ({"chip_shape": (4,)}, "do not match"),
    ],
)
def test_contradictory_topology_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^trn3-sled: .*{message}"):
        dataclasses.replace(get_topology("trn3-sled"), **change)  # type: ignore[arg-type]
