"""Every constant of the three chips and of their servers, typed a second time from its source.

A change of a constant fails here: change the table, too, and say in the commit where the new
number stands.
"""

import pytest

from jax_trn3.hardware import TRAINIUM1, TRAINIUM2, TRAINIUM3, get_topology
from jax_trn3.hardware.datasheet import Row, rows

CHIPS = (TRAINIUM1, TRAINIUM2, TRAINIUM3)
KIB, GIB = 1024, 1024**3
G, T = 10**9, 10**12

# Path in the chip, unit, values of Trainium 1, 2 and 3, their confidence ([p]ublished, [r]ounded,
# [i]nferred, [e]xtrapolated, - for what that generation has not), and what every source contains.
ARCH = "arch.rst"  # trainium_inferentia2_arch.rst, trainium2_arch.rst, trainium3_arch.rst
COSTS = "isa/__init__.py, SDK 2.26"
CONSTANTS = [
    # The guides' block diagrams and memory sections.
    ("core.generation", "generation", (2, 3, 4), "ppp", ARCH),
    ("core.partitions", "partitions", (128, 128, 128), "ppi", ARCH),
    ("core.sbuf_partition_bytes", "bytes", (192 * KIB, 224 * KIB, 256 * KIB), "ppp", ".rst"),
    ("core.sbuf_reserved_partition_bytes", "bytes", (16 * KIB,) * 3, "pre", ""),
    ("core.psum_banks", "banks", (8, 8, 8), "ppp", ARCH),
    ("core.psum_bank_bytes", "bytes", (2 * KIB,) * 3, "ppp", ARCH),
    ("core.quadrant_partitions", "partitions", (32, 32, 32), "ppp", ARCH),
    ("core.max_free_elements[sbuf]", "elements", (65536, 65536, 65536), "ppp", ARCH),
    ("core.max_free_elements[psum]", "elements", (4096, 4096, 4096), "ppp", ARCH),
    ("core.max_free_dims", "dimensions", (4, 4, 4), "ppp", "nki-aps.rst"),
    ("core.slow_stride_bytes", "bytes", (16, 16, 16), "ppp", ARCH),
    ("core.shared_sbuf_port", "flag", (True, False, False), "ppp", ARCH),
    ("core.shared_psum_port", "flag", (True, False, False), "ppp", ARCH),
    ("core.shared_mode_bus", "flag", (False, True, True), "ipp", "trainium2_arch.rst"),
    ("core.shared_psum_banks", "flag", (True, True, True), "ipp", ""),
    ("core.registers", "registers", (64, 64, 64), "ppp", "register_alloc"),
    ("core.start_stop_ns", "ns", (12_800, 12_800, 12_800), "eie", "profiles"),
    ("core.setup_ns", "ns", (2_000, 2_000, 2_000), "eie", "63-69 set-up instructions"),
    # TensorE.
    ("core.tensor.clock_hz", "Hz", (2.8 * G, 2.4 * G, 2.4 * G), "ppp", "Specifications"),
    ("core.tensor.rows", "rows", (128, 128, 128), "ppp", ARCH),
    ("core.tensor.columns", "columns", (128, 128, 128), "ppp", ARCH),
    ("core.tensor.stationary_fmax", "elements", (128, 128, 128), "ppp", ARCH),
    ("core.tensor.moving_fmax", "elements", (512, 512, 512), "ppp", ARCH),
    ("core.tensor.max_moving_fmax_float32", "elements", (512, 512, 4096), "ppp", ""),
    ("core.tensor.max_moving_fmax_bfloat16", "elements", (512, 512, 8192), "iip", ""),
    ("core.tensor.min_moving_cycles", "cycles", (64, 64, 64), "pee", "MM_INIT_LATENCY"),
    ("core.tensor.load_columns_per_cycle", "columns/cycle", (4, 4, 4), "pee", "fast Load"),
    ("core.tensor.latency_cycles", "cycles", (128, 128, 128), "eee", "128 cells"),
    ("core.tensor.passes[bfloat16]", "cycles/row", (1, 1, 1), "ppp", ""),
    ("core.tensor.passes[float16]", "cycles/row", (1, 1, 1), "ppp", ""),
    ("core.tensor.passes[tfloat32]", "cycles/row", (1, 1, 1), "ppp", ""),
    ("core.tensor.passes[float8]", "cycles/row", (1, 1, 1), "ppp", ""),
    ("core.tensor.passes[transpose]", "cycles/row", (1, 1, 1), "ppp", ""),
    ("core.tensor.passes[float32]", "cycles/row", (4, 4, 4), "ppp", ""),
    ("core.tensor.passes[float32_onezero]", "cycles/row", (2, 2, 2), "pee", COSTS),
    ("core.tensor.passes[transpose_float32]", "cycles/row", (4, 2, 2), "ipp", ""),
    ("core.tensor.passes[float8_double_row]", "cycles/row", (None, 1, 1), "-pp", ""),
    ("core.tensor.passes[sparse]", "cycles/row", (None, 1, 1), "-pp", "neuron-core-v"),
    ("core.tensor.passes[mx]", "cycles/row", (None, None, 1), "--p", "trainium3_arch.rst"),
    ("core.tensor.depth[bfloat16]", "values/cell", (1, 1, 1), "ppp", ARCH),
    ("core.tensor.depth[float16]", "values/cell", (1, 1, 1), "ppp", ARCH),
    ("core.tensor.depth[tfloat32]", "values/cell", (1, 1, 1), "ppp", ARCH),
    ("core.tensor.depth[float8]", "values/cell", (1, 1, 1), "ppp", ARCH),
    ("core.tensor.depth[transpose]", "values/cell", (1, 1, 1), "ppp", ARCH),
    ("core.tensor.depth[float32]", "values/cell", (1, 1, 1), "ppp", ARCH),
    ("core.tensor.depth[float32_onezero]", "values/cell", (1, 1, 1), "ppp", ARCH),
    ("core.tensor.depth[transpose_float32]", "values/cell", (1, 1, 1), "ppp", ARCH),
    ("core.tensor.depth[float8_double_row]", "values/cell", (None, 2, 2), "-pp", ARCH),
    ("core.tensor.depth[sparse]", "values/cell", (None, 4, 4), "-pp", ARCH),
    ("core.tensor.depth[mx]", "values/cell", (None, None, 4), "--p", "trainium3_arch.rst"),
    ("core.tensor.sustained_speed", "fraction", (0.875, 1.0, 1.0), "iie", "profile"),
    ("core.tensor.throttle_speed", "fraction", (1.0, 0.5, 0.5), "irr", "overview-summary-page"),
    ("core.tensor.throttle_ramp_ns", "ns", (0, 3000, 3000), "irr", "overview-summary-page"),
    ("core.tensor.throttle_threshold", "fraction", (0.0, 0.5, 0.5), "irr", "overview-summary-page"),
    ("core.tensor.background_transpose", "flag", (False, False, True), "iip", "trainium3_arch"),
    # VectorE.
    ("core.vector.clock_hz", "Hz", (1.12 * G, 0.96 * G, 1.2 * G), "ppp", "Specifications"),
    ("core.vector.lanes", "partitions", (128, 128, 128), "ppp", ARCH),
    ("core.vector.processors", "processors", (1, 1, 1), "iii", ""),
    ("core.vector.min_issue_cycles", "cycles", (64, 64, 64), "ree", f"{COSTS} (Trainium1), MIN_II"),
    ("core.vector.start_cycles", "cycles", (0, 0, 0), "iii", COSTS),
    ("core.vector.latency_cycles", "cycles", (100, 144, 144), "rie", ""),
    ("core.vector.reduce_cycles", "cycles", (64, 64, 64), "ree", "tensor_scalar_reduce"),
    ("core.vector.elements_per_cycle[0.5x]", "elements/cycle", (0.5, None, None), "p--", COSTS),
    ("core.vector.elements_per_cycle[1x]", "elements/cycle", (1, 1, 1), "ppp", ""),
    ("core.vector.elements_per_cycle[2x]", "elements/cycle", (2, 2, 2), "ppp", ""),
    ("core.vector.elements_per_cycle[4x]", "elements/cycle", (None, 4, 4), "-pp", "performance"),
    (
        "core.vector.elements_per_cycle[reciprocal]",
        "elements/cycle",
        (0.4, 1 / 8, 1 / 8),
        "ipp",
        "shared",
    ),
    ("core.vector.elements_per_cycle[exponential]", "elements/cycle", (None, None, 4), "--p", ARCH),
    ("core.vector.elements_per_cycle[quantize_mx]", "elements/cycle", (None, None, 4), "--p", ARCH),
    ("core.vector.elements_per_cycle[random]", "elements/cycle", (None, None, 4), "--p", ARCH),
    ("core.vector.psum_access", "flag", (True, True, True), "ppp", ARCH),
    # ScalarE.
    ("core.scalar.clock_hz", "Hz", (1.4 * G, 1.2 * G, 1.2 * G), "ppp", "Specifications"),
    ("core.scalar.lanes", "partitions", (128, 128, 128), "ppp", ARCH),
    ("core.scalar.processors", "processors", (1, 1, 1), "iii", ""),
    ("core.scalar.min_issue_cycles", "cycles", (64, 64, 64), "ree", f"{COSTS} (Trainium1), MIN_II"),
    ("core.scalar.start_cycles", "cycles", (0, 0, 0), "iii", COSTS),
    ("core.scalar.latency_cycles", "cycles", (264 - 64, 265 - 128, 137), "iie", ""),
    ("core.scalar.reduce_cycles", "cycles", (64, 64, 64), "ree", "ActReadAccumulator"),
    ("core.scalar.elements_per_cycle[1x]", "elements/cycle", (1, 1, 1), "ppp", ""),
    ("core.scalar.elements_per_cycle[2x]", "elements/cycle", (None, None, 2), "--p", ARCH),
    ("core.scalar.psum_access", "flag", (True, True, True), "ppp", ARCH),
    # GpSimdE.
    ("core.gpsimd.clock_hz", "Hz", (1.4 * G, 1.2 * G, 1.2 * G), "ppp", "Specifications"),
    ("core.gpsimd.lanes", "partitions", (128, 128, 128), "ppp", ARCH),
    ("core.gpsimd.processors", "processors", (8, 8, 8), "ppp", ARCH),
    ("core.gpsimd.min_issue_cycles", "cycles", (64, 64, 64), "ree", f"{COSTS} (Trainium1), MIN_II"),
    ("core.gpsimd.start_cycles", "cycles", (150, 150, 150), "ree", "iota"),
    ("core.gpsimd.latency_cycles", "cycles", (60, 60, 60), "eee", ARCH),
    ("core.gpsimd.reduce_cycles", "cycles", (64, 64, 64), "eee", COSTS),
    ("core.gpsimd.elements_per_cycle[1x]", "elements/cycle", (1, 1, 1), "ppp", COSTS),
    ("core.gpsimd.psum_access", "flag", (False, False, False), "ppp", "cannot access PSUM"),
    # SyncE.
    ("core.sync.clock_hz", "Hz", (1.4 * G, 1.2 * G, 1.2 * G), "ppi", ""),
    ("core.sync.min_issue_cycles", "cycles", (36, 36, 36), "eie", "63-69 set-up instructions"),
    # DMA.
    ("core.dma.count", "engines", (16, 16, 16), "ppp", "nki-dma-overview.rst"),
    ("core.dma.queues_per_engine", "queues/engine", (16, 16, 16), "ppp", "nki-dma-overview.rst"),
    ("core.dma.partitions_per_engine", "partitions/engine", (8, 8, 8), "ppp", "nki-dma-overview"),
    ("core.dma.engine_bytes_per_s", "bytes/s", (27.2 * G, 27.2 * G, 38.4 * G), "ppp", "overview"),
    ("core.dma.packet_bytes", "bytes", (4 * KIB,) * 3, "ppp", "DMA_PACKETIZATION_SIZE"),
    ("core.dma.collective_packet_bytes", "bytes", (64 * KIB,) * 3, "ppp", "CC_DMA_PACKET_SIZE"),
    ("core.dma.packet_overhead_ns", "ns", (90.353, 27.4987, 17.4545), "iii", "4096 B / "),
    ("core.dma.latency_ns", "ns", (1300, 1300, 1300), "rrr", "nki-dma-bandwidth-guide.rst"),
    ("core.dma.issue_ns[none]", "ns", (340, 550, 550), "iie", "vector additions"),
    ("core.dma.issue_ns[swdge]", "ns", (1000, 1000, 1000), "eee", "nki-dge.rst"),
    ("core.dma.issue_ns[hwdge]", "ns", (None, 600, 600), "-rr", "nki-dge.rst"),
    ("core.dma.hwdge_instances", "instances", (0, 2, 2), "ppp", "nki-dge.rst"),
    ("core.dma.accumulate_factor", "factor", (0.5, 0.5, 1.0), "iip", "trainium3_arch.rst"),
    ("core.dma.transpose_factors[hbm_to_sbuf]", "factor", (0.9,) * 3, "ere", "trainium2_arch.rst"),
    ("core.dma.transpose_factors[sbuf_to_sbuf]", "factor", (0.5,) * 3, "ere", "trainium2_arch.rst"),
    ("core.dma.traffic_classes", "classes", (1, 1, 4), "iip", "trainium3_arch.rst"),
    ("core.dma.max_compute_sources", "sources", (16, 16, 16), "ppp", "dma_compute"),
    ("core.dma.gpsimd_bytes_per_s", "bytes/s", (0, 307 * G, 307 * G), "ipe", "trainium2_arch.rst"),
    # Chips.
    ("num_cores", "cores", (2, 8, 8), "ppp", ARCH),
    ("supported_lnc[0]", "cores", (1, 1, 1), "ppp", ".rst"),
    ("supported_lnc[1]", "cores", (None, 2, 2), "-pp", "logical-neuroncore-config.rst"),
    ("hbm_bytes", "bytes", (32 * GIB, 96 * GIB, 144 * GIB), "ppp", ARCH),
    ("hbm_stacks", "stacks", (2, 4, 4), "ppp", ARCH),
    ("hbm_bandwidth_bytes_per_s", "bytes/s", (0.82 * T, 2.9 * T, 4.9 * T), "ppp", ARCH),
    ("published_dma_bytes_per_s", "bytes/s", (1 * T, 3.5 * T, 4.9 * T), "ppp", "neuron-hardware"),
    ("published_peak_flops[mx]", "FLOP/s", (None, None, 2517 * T), "--p", "trainium3.rst"),
    ("published_peak_flops[bfloat16]", "FLOP/s", (190 * T, 667 * T, 671 * T), "ppp", "trainium"),
    ("published_peak_flops[float32]", "FLOP/s", (47.5 * T, 181 * T, 183 * T), "ppp", "trainium"),
    ("published_peak_flops[float8]", "FLOP/s", (190 * T, None, None), "p--", "trainium.rst"),
    ("published_peak_flops[float8_double_row]", "FLOP/s", (None, 1299 * T, None), "-p-", "um2.rst"),
    ("published_peak_flops[sparse]", "FLOP/s", (None, 2563 * T, 2517 * T), "-pp", "trainium"),
    ("power_w", "W", (None, 500, 500), "-rr", "500 W"),
]

CONFIDENCE = {"p": "published", "r": "rounded", "i": "inferred", "e": "extrapolated"}
FIGURES = [{row.path: row for row in rows(chip)} for chip in CHIPS]


@pytest.mark.parametrize(
    ("path", "unit", "values", "confidence", "source"), CONSTANTS, ids=[c[0] for c in CONSTANTS]
)
def test_constant(
    path: str, unit: str, values: tuple[float | None, ...], confidence: str, source: str
) -> None:
    for figures, value, letter in zip(FIGURES, values, confidence, strict=True):
        row = figures.get(path)
        if value is None:
            assert row is None
            assert letter == "-"
            continue
        assert row is not None
        assert row.value == pytest.approx(value, rel=2e-5)
        assert row.unit == unit
        assert row.confidence == CONFIDENCE[letter]
        assert source in row.source


def test_every_number_of_a_core_and_a_chip_is_in_the_table() -> None:
    typed = {path for path, *_ in CONSTANTS}
    for figures in FIGURES:
        assert {path for path in figures if not path.startswith("fabric.")} <= typed


def test_every_number_of_a_chip_has_a_source() -> None:
    assert all(row.source and row.unit for figures in FIGURES for row in figures.values())


def test_an_extrapolated_number_has_a_band_around_it() -> None:
    for figures in FIGURES:
        for row in figures.values():
            assert row.low <= row.value <= row.high
            if row.confidence == "extrapolated":
                assert row.low < row.high, row.path


# Name, chips, vCPUs, GiB, Gbps of one server; confidence of the last three. trn1-arch.rst,
# trn2-arch.rst; trn3-arch.rst gives UltraServers of 4 and of 36 servers.
SERVERS = [
    ("trn1-chip", 1, 8, 32, 25, "published"),
    ("trn2-ultraserver", 16, 192, 2_048, 3_200, "published"),
    ("trn3-gen1", 16, 768 / 4, 8_192 / 4, 12_800 / 4, "inferred"),
    ("trn3-gen2", 4, 2_304 / 36, 27_648 / 36, 28_800 / 36, "inferred"),
]


@pytest.mark.parametrize(("name", "chips", "vcpus", "gib", "gbps", "confidence"), SERVERS)
def test_server(
    name: str, chips: int, vcpus: float, gib: float, gbps: float, confidence: str
) -> None:
    figures: dict[str, Row] = {row.path: row for row in rows(get_topology(name).server)}
    assert figures.keys() == {"num_chips", "host_vcpus", "host_memory_bytes", "efa_bytes_per_s"}
    assert figures.pop("num_chips").value == chips
    assert figures["host_vcpus"].value == vcpus
    assert figures["host_memory_bytes"].value == gib * GIB
    assert figures["efa_bytes_per_s"].value == gbps * G / 8
    for row in figures.values():
        assert row.confidence == confidence
        assert f"{name[:4]}-arch.rst" in row.source
