"""What AWS says of cores, chips and servers follows from the data."""

import dataclasses

import pytest

from jax_trn3.hardware import (
    NEURON_CORE_V2,
    NEURON_CORE_V3,
    NEURON_CORE_V4,
    TRAINIUM1,
    TRAINIUM2,
    TRAINIUM3,
    Chip,
    NeuronCore,
    get_topology,
)
from jax_trn3.hardware.datasheet import with_figure

KIB, GIB = 1024, 1024**3
TERA, PETA = 10**12, 10**15


# neuron-core-v2.rst ("over 90"; 92 and 23 in trainium_inferentia2_arch.rst), neuron-core-v3.rst,
# neuron-core-v4.rst. AWS multiplies rounded numbers: 158 is twice 79 (78.64).
@pytest.mark.parametrize(
    ("core", "kind", "teraflops"),
    [
        (NEURON_CORE_V2, "bfloat16", 92),
        (NEURON_CORE_V2, "float8", 92),
        (NEURON_CORE_V2, "float32", 23),
        (NEURON_CORE_V3, "float8_double_row", 158),
        (NEURON_CORE_V3, "bfloat16", 79),
        (NEURON_CORE_V3, "float16", 79),
        (NEURON_CORE_V3, "tfloat32", 79),
        (NEURON_CORE_V3, "float32", 20),
        (NEURON_CORE_V3, "sparse", 316),
        (NEURON_CORE_V4, "mx", 315),
        (NEURON_CORE_V4, "bfloat16", 79),
        (NEURON_CORE_V4, "float16", 79),
        (NEURON_CORE_V4, "tfloat32", 79),
        (NEURON_CORE_V4, "float32", 20),
        (NEURON_CORE_V4, "sparse", 315),
    ],
)
def test_peak_of_a_core(core: NeuronCore, kind: str, teraflops: float) -> None:
    peak = core.peak_flops(kind) / TERA
    assert round(peak) == teraflops or peak == pytest.approx(teraflops, rel=0.005)


def test_peak_of_a_kind_the_core_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^NeuronCore-v3 has no 'mx' matmul; its kinds: bfloat16"):
        NEURON_CORE_V3.peak_flops("mx")


def test_mx_is_four_times_bfloat16_and_float8_on_trainium2_twice() -> None:
    assert NEURON_CORE_V4.peak_flops("mx") == 4 * NEURON_CORE_V4.peak_flops("bfloat16")
    double = NEURON_CORE_V3.peak_flops("float8_double_row")
    assert double == 2 * NEURON_CORE_V3.peak_flops("bfloat16")


def test_trainium3_chip() -> None:
    # trainium3.rst: 2,517 TFLOPS, 144 GiB, 4.9 TB/s, 256 MiB of SBUF.
    assert TRAINIUM3.peak_flops("mx") / PETA == pytest.approx(2.52, abs=0.005)
    assert TRAINIUM3.hbm_bytes == 144 * GIB
    assert TRAINIUM3.hbm_bandwidth_bytes_per_s == 4.9 * TERA
    assert TRAINIUM3.hbm_stack_bandwidth_bytes_per_s == 1.225 * TERA
    assert TRAINIUM3.cores_per_stack == 2
    assert TRAINIUM3.sbuf_bytes == 256 * KIB**2
    assert TRAINIUM3.power_w == 500
    assert TRAINIUM3.num_cores * TRAINIUM3.core.dma.count == 128
    assert TRAINIUM3.num_cores * TRAINIUM3.core.dma.peak_bytes_per_s == pytest.approx(
        TRAINIUM3.published_dma_bytes_per_s, rel=0.005
    )


def test_dma_of_a_trainium2_chip() -> None:
    assert TRAINIUM2.num_cores * TRAINIUM2.core.dma.peak_bytes_per_s == pytest.approx(
        TRAINIUM2.published_dma_bytes_per_s, rel=0.006
    )


# Published peak of the chip beside that of its cores. Nobody has explained the difference.
@pytest.mark.parametrize(
    ("chip", "kind", "ratio"),
    [
        (TRAINIUM1, "bfloat16", 1.035),
        (TRAINIUM2, "float8_double_row", 1.032),
        (TRAINIUM2, "bfloat16", 1.060),
        (TRAINIUM2, "float32", 1.151),
        (TRAINIUM2, "sparse", 1.018),
        (TRAINIUM3, "mx", 1.000),
        (TRAINIUM3, "bfloat16", 1.067),
        (TRAINIUM3, "float32", 1.163),
        (TRAINIUM3, "sparse", 1.000),
    ],
)
def test_published_peak_of_a_chip_is_not_that_of_its_cores(
    chip: Chip, kind: str, ratio: float
) -> None:
    assert chip.published_peak_flops[kind] / chip.peak_flops(kind) == pytest.approx(ratio, abs=1e-3)


# trn3-arch.rst and trn2-arch.rst: chips, TFLOPS, GiB, TB/s, host vCPUs, host GiB.
@pytest.mark.parametrize(
    ("name", "peaks", "gib", "tb_per_s", "vcpus", "host_gib"),
    [
        ("trn3-gen1", {"mx": 161_088, "bfloat16": 42_944, "float32": 11_712}, 9_216, 313.6, 768, 8_192),
        ("trn3-gen2", {"mx": 362_448, "bfloat16": 96_624, "float32": 26_352}, 20_736, 705.6, 2_304, 27_648),
        ("trn2-instance", {"float8_double_row": 20_784, "bfloat16": 10_672}, 1_536, 46.4, 192, 2_048),
        ("trn2-ultraserver", {"float8_double_row": 83_136, "bfloat16": 42_688}, 6_144, 185.6, 768, 8_192),
    ],
)  # fmt: skip
def test_server_totals(
    name: str, peaks: dict[str, int], gib: int, tb_per_s: float, vcpus: int, host_gib: int
) -> None:
    topology = get_topology(name)
    for kind, teraflops in peaks.items():
        assert topology.published_peak_flops(kind) == teraflops * TERA
    assert topology.hbm_bytes == gib * GIB
    assert topology.hbm_bandwidth_bytes_per_s == pytest.approx(tb_per_s * TERA)
    assert topology.num_servers * topology.server.host_vcpus == vcpus
    assert topology.num_servers * topology.server.host_memory_bytes == host_gib * GIB


@pytest.mark.parametrize(
    ("name", "petaflops", "tb"), [("trn3-gen1", 161, 9.2), ("trn3-gen2", 362, 20.7)]
)
def test_mx_and_memory_of_an_ultraserver_follow_from_its_cores(
    name: str, petaflops: int, tb: float
) -> None:
    topology = get_topology(name)
    assert round(topology.peak_flops("mx") / PETA) == petaflops
    # AWS calls 1,000 GiB a TB here: 20,736 GiB are "20.7 TB".
    assert round(topology.hbm_bytes / GIB / 1000, 1) == tb


def test_trn3_gen2_against_the_trn2_ultraserver() -> None:
    """AWS at the launch: 4.4x compute, 3.4x memory, 3.9x bandwidth."""
    old, new = get_topology("trn2-ultraserver"), get_topology("trn3-gen2")
    compute = new.published_peak_flops("mx") / old.published_peak_flops("float8_double_row")
    assert round(compute, 1) == 4.4
    assert round(new.hbm_bytes / old.hbm_bytes, 1) == 3.4
    # 705.6 / 185.6 is 3.80: of AWS's own tables, too, only 2.6 % less make 3.9.
    bandwidth = new.hbm_bandwidth_bytes_per_s / old.hbm_bandwidth_bytes_per_s
    assert bandwidth == pytest.approx(3.9, rel=0.03)


# nki-dma-overview.rst: 17, 23 and 33 B/ns an engine; 272, 368 and 528 GB/s a core.
@pytest.mark.parametrize(
    ("core", "engine", "total"),
    [(NEURON_CORE_V2, 17, 272), (NEURON_CORE_V3, 23, 368), (NEURON_CORE_V4, 33, 528)],
)
def test_practical_dma_bandwidth(core: NeuronCore, engine: float, total: float) -> None:
    assert core.dma.packet_bytes / core.dma.packet_ns(4096) == pytest.approx(engine)
    assert core.dma.practical_bytes_per_s / 1e9 == pytest.approx(total)


def test_short_rows_on_trainium2_reach_what_a_profile_shows() -> None:
    # 128 x 8192 bf16 in rows of 1 KiB: 259 GB/s; of 4 KiB: 354 (dma_efficiency.md).
    dma = NEURON_CORE_V3.dma
    assert dma.count * 1024 / dma.packet_ns(1024) == pytest.approx(259, rel=0.04)
    assert dma.count * 4096 / dma.packet_ns(4096) == pytest.approx(354, rel=0.04)


# trainium_inferentia2_arch.rst: which partitions an access may start at.
@pytest.mark.parametrize("core", [NEURON_CORE_V2, NEURON_CORE_V3, NEURON_CORE_V4])
def test_partition_starts(core: NeuronCore) -> None:
    for partitions in range(1, 129):
        starts = [0, 32, 64, 96] if partitions <= 32 else [0, 64] if partitions <= 64 else [0]
        assert list(core.partition_starts(partitions)) == starts
    for partitions in (0, 129):
        with pytest.raises(ValueError, match=f"covers 1 to 128 partitions .*, not {partitions}$"):
            core.partition_starts(partitions)


def test_usable_sbuf() -> None:
    assert NEURON_CORE_V2.sbuf_usable_partition_bytes == (192 - 16) * KIB
    assert NEURON_CORE_V4.sbuf_usable_partition_bytes == (256 - 16) * KIB


def test_v4_alone_accumulates_in_bfloat16() -> None:
    assert NEURON_CORE_V2.psum_accumulate_dtypes == NEURON_CORE_V3.psum_accumulate_dtypes
    assert NEURON_CORE_V3.psum_accumulate_dtypes == ("float32",)
    assert NEURON_CORE_V4.psum_accumulate_dtypes == ("float32", "bfloat16")


def test_exponential_is_four_times_scalar_e() -> None:
    vector, scalar = NEURON_CORE_V4.vector, NEURON_CORE_V4.scalar
    rate = vector.clock_hz * vector.elements_per_cycle["exponential"]
    assert rate == 4 * scalar.clock_hz * scalar.elements_per_cycle["1x"]


def test_power_of_what_nobody_published_is_none() -> None:
    assert get_topology("trn1-chip").power_w is None
    assert get_topology("trn3-gen2").power_w == 144 * 500


def test_what_is_derived_follows_a_hypothetical_chip() -> None:
    topology = get_topology("trn3-gen1")
    doubled = with_figure(topology, "chip.core.tensor.clock_hz", 4_800_000_000)
    assert doubled.peak_flops("mx") == 2 * topology.peak_flops("mx")
    assert doubled.chip.published_peak_flops == topology.chip.published_peak_flops
    wide = dataclasses.replace(NEURON_CORE_V4, sbuf_partition_bytes=512 * KIB)
    chip = dataclasses.replace(TRAINIUM3, core=wide, hbm_stacks=8)
    assert chip.sbuf_bytes == 2 * TRAINIUM3.sbuf_bytes
    assert chip.core.sbuf_usable_partition_bytes == (512 - 16) * KIB
    assert chip.cores_per_stack == 1


def test_half_the_links() -> None:
    chip = TRAINIUM3
    for axis, tier in TRAINIUM3.fabric.tiers.items():
        path = f"fabric.tiers[{axis}].bandwidth_bytes_per_s"
        chip = with_figure(chip, path, tier.bandwidth_bytes_per_s / 2)
    for axis, tier in chip.fabric.tiers.items():
        assert 2 * tier.bandwidth_bytes_per_s == TRAINIUM3.fabric.tiers[axis].bandwidth_bytes_per_s
    assert dataclasses.replace(get_topology("trn3-gen2"), chip=chip).chip.fabric == chip.fabric


def test_neuronlink() -> None:
    # trainium2.rst 1.28 TB/s, trainium3.rst 2.56 TB/s; "2 TB/s" is trn3-arch.rst's 2,048 GiB/s.
    assert TRAINIUM2.fabric.chip_bandwidth_bytes_per_s == 1.28 * TERA
    assert TRAINIUM3.fabric.chip_bandwidth_bytes_per_s == 2.56 * TERA
    assert TRAINIUM3.fabric.chip_bandwidth_bytes_per_s > 2_048 * GIB


@pytest.mark.parametrize("name", ["trn2-ultraserver", "trn3-gen2", "trn3-gen1"])
def test_efa_of_a_server_is_that_of_its_chips(name: str) -> None:
    topology = get_topology(name)
    efa = topology.chip.fabric.tiers["ultraserver"].bandwidth_bytes_per_s
    assert efa * topology.server.num_chips == topology.server.efa_bytes_per_s
