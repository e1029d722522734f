"""The numbers behind every view, held to hand counts, formulas and the timeline itself."""

import re

import pytest
from small_programs import copies, gemm, multiply_mx

from jax_trn3.hardware import TRAINIUM3
from jax_trn3.hardware.datasheet import with_figure
from jax_trn3.isa import TABLE, Tile
from jax_trn3.profiler import figures, summary
from jax_trn3.profiler.neuron_explorer import neuron_summary
from jax_trn3.simulator import program, simulate, spill


@pytest.mark.parametrize("made", [copies(40), gemm(), gemm(2048)], ids=lambda p: p.name)
def test_waits_add_up_to_waiting_and_do_not_depend_on_extrapolation(made) -> None:
    short, long = simulate(made), simulate(made, extrapolate=False)
    assert len(short.events) < len(long.events) or made.name == "gemm of 1024"
    for timeline in (short, long):
        for name, spent in timeline.engines.items():
            waited = [w.time_ps for w in figures.waits(timeline) if w.engine == name]
            assert sum(waited) == spent.waiting
            assert spent.busy + spent.waiting + spent.idle == timeline.time_ps
    assert figures.waits(short) == figures.waits(long)
    assert figures.lines(short) == figures.lines(long)
    assert figures.queues(short) == figures.queues(long)


def test_hand_count() -> None:
    timeline = simulate(copies(3))
    tile = 128 * 256 * 4
    moved = figures.traffic(timeline)
    assert (moved.transfers, moved.bytes) == (6, 6 * tile)
    assert (moved.hbm_read_bytes, moved.hbm_write_bytes) == (3 * tile, 3 * tile)
    assert {q.name: (q.transfers, q.bytes) for q in figures.queues(timeline)} == {
        "core0/dma:scalar": (3, 3 * tile),
        "core0/dma:sync": (3, 3 * tile),
    }
    assert figures.access_bytes(timeline) == {
        "sbuf_read_bytes": 6 * tile,
        "sbuf_write_bytes": 6 * tile,
        "psum_read_bytes": 0,
        "psum_write_bytes": 0,
    }
    assert figures.allocated(timeline, "sbuf") == {0: 4 * 1024}
    assert figures.limit(timeline, "sbuf") == (256 - 16) * 1024
    assert {line.instruction: line.runs for line in figures.lines(timeline)} == {
        "dma_copy": 3,
        "tensor_copy": 3,
    }
    assert [line.origin.file.rpartition("/")[2] for line in figures.lines(timeline)] == [
        "small_programs.py"
    ] * 3


def test_formulas_of_neuron_explorer() -> None:
    """facts: MFU = 2 MACs / (2 PE clock time), MBU = bytes / time / one stack's bandwidth."""
    n = 2048
    timeline = simulate(gemm(n))
    found = neuron_summary(timeline)
    seconds = timeline.time_ps / 1e12
    assert found["total_time"] == pytest.approx(seconds, rel=1e-15)
    assert found["model_flops"] == found["hardware_flops"] == 2 * n**3
    assert found["transpose_flops"] == 0
    mfu = 2 * n**3 / (2 * 128 * 128 * 2.4e9 * seconds)
    assert found["mfu_estimated_percent"] == pytest.approx(mfu, rel=1e-12)
    moved = (n // 512) ** 3 * 2 * 512 * 512 * 2 + n * n * 2
    assert found["hbm_read_bytes"] + found["hbm_write_bytes"] == moved
    assert found["mbu_estimated_percent"] == pytest.approx(
        moved / seconds / (4.9e12 / 4), rel=1e-12
    )
    assert found["mm_arithmetic_intensity"] == pytest.approx(2 * n**3 / moved, rel=1e-12)
    assert found["matmul_instruction_count"] == (n // 128) ** 2 * (n // 512)
    assert found["tensor_engine_active_time"] == timeline.engines["core0/tensor"].busy / 1e12


def test_no_share_above_one_even_for_mx() -> None:
    timeline = simulate(multiply_mx(2000))
    found = neuron_summary(timeline)
    for name, value in found.items():
        if name.endswith("_percent"):
            assert 0 <= value <= 1, name
    assert found["mfu_estimated_percent"] > 0.5
    assert figures.compute(timeline).peak_flops_per_s == TRAINIUM3.core.peak_flops("mx")


def test_throttled_time_is_what_a_machine_without_throttle_saves() -> None:
    made = multiply_mx(2000)
    lost = figures.compute(simulate(made)).throttled_ps
    chip = with_figure(TRAINIUM3, "core.tensor.throttle_speed", 1)
    assert figures.compute(simulate(made, chip)).throttled_ps == 0
    tensor = TRAINIUM3.core.tensor
    assert 0 < lost <= tensor.throttle_ramp_ns * 1000 * (1 - tensor.throttle_speed) * 1.01


def test_groups_of_dma_engines() -> None:
    timeline = simulate(copies())
    groups = figures.dma_groups(timeline)
    assert list(groups) == ["core0/dma engines 0-15", "core0/hbm"]
    assert groups["core0/dma engines 0-15"] == timeline.dma["core0/dma engine 7"].busy
    assert figures.ranges([7, 0, 2, 1]) == "0-2, 7"


def test_bounds_are_lower_than_the_time() -> None:
    timeline = simulate(gemm())
    first, *rest = figures.bounds(timeline)
    assert first.name == "core0/tensor"
    assert timeline.active_ps >= first.busy_ps >= max(b.busy_ps for b in rest)


def test_spilled_bytes() -> None:
    held = [Tile(f"held{k}", "sbuf", (128, 20_000), "float32") for k in range(3)]
    copy = Tile("copy", "sbuf", (128, 20_000), "float32")
    memset, tensor_copy = TABLE["memset"], TABLE["tensor_copy"]
    made = [memset(dst=tile[:, :], value=0.0) for tile in held]
    made += [tensor_copy(dst=copy[:, :], src=tile[:, :]) for tile in (*held[1:], held[0])]
    timeline = simulate(spill(program("spilling", [*made, made[-1]]), TRAINIUM3.core))
    found = neuron_summary(timeline)
    assert found["spill_save_bytes"] == found["spill_reload_bytes"] > 0
    assert found["spill_save_bytes"] % held[0].bytes == 0
    assert found["spill_reload_bytes"] == found["hbm_read_bytes"]
    assert re.search(r"spill +[\d.]+ MiB saved, [\d.]+ MiB reloaded", summary(timeline))
    assert "spill save at unknown line" in summary(timeline)


def test_two_cores() -> None:
    one, two = (Tile(f"tile{core}", "sbuf", (128, 512), "float32", core=core) for core in range(2))
    memset = TABLE["memset"]
    made = [memset(dst=one[:, :], value=0.0, engine="vector")]
    made += [memset(dst=two[:, :], value=0.0, engine="vector", core=1)] * 2
    timeline = simulate(program("two cores", made))
    assert figures.cores(timeline) == (0, 1)
    assert {name: t.instructions for name, t in timeline.engines.items()} == {
        "core0/vector": 1,
        "core1/vector": 2,
    }
    assert figures.allocated(timeline, "sbuf") == {0: 2048, 1: 2048}
    assert "core1/vector" in summary(timeline)
    busy = sum(t.busy for t in timeline.engines.values())
    share = neuron_summary(timeline)["vector_engine_active_time_percent"]
    assert share == pytest.approx(busy / timeline.time_ps / 2)
