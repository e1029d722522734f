"""The laws that the simulator obeys, over drawn programs and machines."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from drawn_programs import programs
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_clock import reference

from jax_trn3.hardware import TRAINIUM1, TRAINIUM2, TRAINIUM3, Chip
from jax_trn3.isa.vector_move import tensor_copy
from jax_trn3.simulator import Loop, Program, simulate

CHIPS = {chip.name: chip for chip in (TRAINIUM1, TRAINIUM2, TRAINIUM3)}
chips = st.sampled_from(list(CHIPS))


def instances(nodes: Any, indices: dict[int, int]) -> list[int]:
    """How often each instruction of the text runs, counted one by one."""
    counts: list[int] = []
    for node in nodes:
        if isinstance(node, Loop):
            inner = [
                instances(node.body, {**indices, node.id: k}) for k in range(node.count.at(indices))
            ]
            counts += np.sum(inner, axis=0).astype(int).tolist()
        else:
            counts.append(1)
    return counts


@settings(max_examples=60)
@given(programs(most_iterations=8), st.sampled_from(["Trainium2", "Trainium3"]))
def test_clock_agrees_with_a_slow_and_obvious_one(program: Program, name: str) -> None:
    chip = CHIPS[name]
    times = simulate(program, chip, extrapolate=False).expand()[:, :4]
    assert times.tolist() == [list(step) for step in reference(program, chip)]


@settings(max_examples=60)
@given(programs(), chips)
def test_no_program_is_faster_than_its_bounds(program: Program, name: str) -> None:
    chip = CHIPS[name]
    timeline = simulate(program, chip)
    active = timeline.active_ps
    assert all(engine.busy <= active for engine in timeline.engines.values())
    assert all(engine.busy <= active for engine in timeline.dma.values())
    hbm_share = chip.hbm_bandwidth_bytes_per_s / chip.hbm_stacks
    hbm_bytes = timeline.hbm_read_bytes + timeline.hbm_write_bytes
    assert active >= hbm_bytes / hbm_share * 1e12
    assert active >= timeline.dma_bytes / chip.core.dma.peak_bytes_per_s * 1e12
    assert active >= timeline.flops / max(map(chip.core.peak_flops, chip.core.tensor.passes)) * 1e12


def faster(chip: Chip, what: str, factor: int) -> Chip:
    """The chip with one thing better."""
    core = chip.core
    match what:
        case "hbm":
            better = chip.hbm_bandwidth_bytes_per_s * factor
            return dataclasses.replace(chip, hbm_bandwidth_bytes_per_s=better)
        case "dma bandwidth":
            rate = core.dma.engine_bytes_per_s * factor
            new: dict[str, Any] = {"dma": dataclasses.replace(core.dma, engine_bytes_per_s=rate)}
        case "dma latency":
            latency = core.dma.latency_ns // factor
            new = {"dma": dataclasses.replace(core.dma, latency_ns=latency)}
        case "throttle":
            new = {"tensor": dataclasses.replace(core.tensor, throttle_ramp_ns=0)}
        case "latency":
            new = {"vector": dataclasses.replace(core.vector, latency_cycles=0)}
        case engine:
            old = getattr(core, engine)
            new = {engine: dataclasses.replace(old, clock_hz=old.clock_hz * factor)}
    return dataclasses.replace(chip, core=dataclasses.replace(core, **new))


BETTER = (
    "hbm", "dma bandwidth", "dma latency", "throttle", "latency",
    "tensor", "vector", "scalar", "gpsimd",
)  # fmt: skip


@settings(max_examples=80)
@given(programs(), chips, st.lists(st.sampled_from(BETTER), min_size=1), st.integers(2, 5))
def test_a_better_machine_is_never_slower(
    program: Program, name: str, better: list[str], factor: int
) -> None:
    chip = CHIPS[name]
    new = chip
    for what in dict.fromkeys(better):
        new = faster(new, what, factor)
    before, after = simulate(program, chip), simulate(program, new)
    assert after.time_ps <= before.time_ps
    assert np.all(after.executions == before.executions)


def longer(nodes: tuple[Any, ...]) -> tuple[Any, ...]:
    """The last loop runs once more; without a loop, the last instruction does."""
    for place in reversed(range(len(nodes))):
        if isinstance(nodes[place], Loop):
            grown = dataclasses.replace(nodes[place], count=nodes[place].count + 1)
            return (*nodes[:place], grown, *nodes[place + 1 :])
    return (*nodes, nodes[-1])


@settings(max_examples=60)
@given(programs(), chips)
def test_more_work_is_never_faster(program: Program, name: str) -> None:
    chip = CHIPS[name]
    before = simulate(program, chip).time_ps
    extra = dataclasses.replace(program, body=(*program.body, program.body[-1]))
    assert simulate(extra, chip).time_ps >= before
    more = dataclasses.replace(program, body=longer(program.body))
    assert simulate(more, chip).time_ps >= before


@settings(max_examples=60)
@given(programs(), chips)
def test_what_happened_is_conserved(program: Program, name: str) -> None:
    chip = CHIPS[name]
    timeline = simulate(program, chip)
    assert timeline.executions.tolist() == instances(program.body, {})
    rows = timeline.expand()
    assert len(rows) == timeline.num_instructions
    for first, last in (("issued", "start"), ("start", "free"), ("free", "done")):
        columns = {"issued": 0, "start": 1, "free": 2, "done": 3}
        sums = np.zeros(len(timeline.instructions), np.int64)
        np.add.at(sums, rows[:, 5], rows[:, columns[last]] - rows[:, columns[first]])
        assert timeline.total(first, last).tolist() == sums.tolist()
    assert timeline.active_ps == rows[:, 3].max()
    for engine in timeline.engines.values():
        assert engine.busy + engine.waiting + engine.idle == timeline.time_ps
        assert min(engine.busy, engine.waiting, engine.idle) >= 0
        assert engine.utilization <= 1
    for share in timeline.dma.values():
        assert share.busy + share.idle == timeline.time_ps
        assert share.idle >= 0


@settings(max_examples=60)
@given(programs(), chips)
def test_nothing_runs_before_its_engine_is_free_or_its_cause_is_done(
    program: Program, name: str
) -> None:
    chip = CHIPS[name]
    timeline = simulate(program, chip)
    rows = timeline.expand()
    assert np.all(rows[:, 0] <= rows[:, 1])
    assert np.all(rows[:, 1] <= rows[:, 2])
    assert np.all(rows[:, 2] <= rows[:, 3])
    for lane in set(timeline.lanes):
        if "/dma:" in lane:
            continue
        own = rows[np.array(timeline.lanes)[rows[:, 5]] == lane]
        assert np.all(own[1:, 1] >= own[:-1, 2])
    caused = rows[rows[:, 4] >= 0]
    assert np.all(rows[caused[:, 4], 2] <= caused[:, 1])


@settings(max_examples=60)
@given(programs(), chips)
def test_the_same_program_gives_the_same_timeline(program: Program, name: str) -> None:
    chip = CHIPS[name]
    one, other = simulate(program, chip), simulate(program, chip)
    assert np.array_equal(one.events, other.events)
    assert [(r.begin, r.end, r.count) for r in one.repeats] == [
        (r.begin, r.end, r.count) for r in other.repeats
    ]


@settings(max_examples=150)
@given(programs(most_iterations=200), chips)
def test_extrapolation_equals_full_simulation(program: Program, name: str) -> None:
    chip = CHIPS[name]
    quick, full = simulate(program, chip), simulate(program, chip, extrapolate=False)
    assert quick.time_ps == full.time_ps
    assert np.array_equal(quick.expand(), full.expand())
    assert quick.engines == full.engines
    assert quick.dma == full.dma


@pytest.mark.parametrize("chip", [TRAINIUM1, TRAINIUM2, TRAINIUM3], ids=lambda c: c.name)
def test_an_engine_is_a_queue(chip: Chip) -> None:
    from jax_trn3.isa import Tile
    from jax_trn3.simulator import program

    tile = Tile("x", "sbuf", (128, 256), "bfloat16", given=True)
    out = Tile("y", "sbuf", (128, 256), "bfloat16", slots=3)
    timeline = simulate(
        program("three copies", [tensor_copy(out[k], tile) for k in range(3)]), chip
    )
    rows = timeline.expand()
    assert rows[1:, 1].tolist() == rows[:-1, 2].tolist()
