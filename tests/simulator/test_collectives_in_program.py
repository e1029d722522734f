"""Collectives beside compute: overlapped where data allows, sharing the DMA engines."""

import pytest

from jax_trn3.hardware import TRAINIUM3, get_topology
from jax_trn3.isa import Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.vector_move import tensor_copy
from jax_trn3.profiler import figures
from jax_trn3.simulator import loop, program, simulate
from jax_trn3.simulator.collectives import along, collective, collective_in_program

SLED = get_topology("trn3-sled")
MIB = 2**20


def operands(size: int) -> tuple[Tile, Tile]:
    shape = (size // 4 // 1024, 1024)
    return Tile("dst", "hbm", shape, "float32"), Tile("src", "hbm", shape, "float32", given=True)


def all_reduce(size: int, **options):
    dst, src = operands(size)
    return collective_in_program("all_reduce", dst[0], src[0], SLED, **options)


def compute(count: int):
    x = Tile("x", "sbuf", (128, 2048), "float32", given=True)
    y = Tile("y", "sbuf", (128, 2048), "float32", slots=2)
    return loop(count, lambda i: [tensor_copy(y[i], x[0], engine="vector")])


def loads(count: int):
    x = Tile("weights", "hbm", (128, 8192), "float32", given=True)
    y = Tile("in sbuf", "sbuf", (128, 8192), "float32", slots=2)
    return loop(count, lambda i: [dma_copy(y[i], x[0])])


@pytest.mark.parametrize("size", [MIB // 4, 16 * MIB, 256 * MIB])
def test_alone_it_takes_its_time(size: int) -> None:
    alone = collective("all_reduce", size, SLED).time_ps
    timeline = simulate(program("alone", all_reduce(size)), TRAINIUM3)
    assert alone <= timeline.active_ps <= alone * 1.15


def test_it_overlaps_with_compute() -> None:
    one = simulate(program("collective", all_reduce(16 * MIB))).active_ps
    other = simulate(program("compute", [compute(300)])).active_ps
    both = simulate(program("both", [*all_reduce(16 * MIB), compute(300)])).active_ps
    assert max(one, other) <= both <= max(one, other) * 1.02


def test_it_shares_dma_engines_with_loads() -> None:
    one = simulate(program("collective", all_reduce(64 * MIB))).active_ps
    other = simulate(program("loads", [loads(60)])).active_ps
    timeline = simulate(program("both", [*all_reduce(64 * MIB), loads(60)]))
    assert max(one, other) < timeline.active_ps <= (one + other) * 1.02
    busy = max(share.busy for name, share in timeline.dma.items() if "engine" in name)
    assert timeline.active_ps >= busy


def test_priority_decides_who_waits() -> None:
    def last_load(priority: int) -> int:
        text = program("both", [*all_reduce(64 * MIB, priority=priority), loads(4)])
        timeline = simulate(text)
        rows = timeline.expand()
        own = [k for k, i in enumerate(timeline.instructions) if i.name == "dma_copy"]
        return int(rows[rows[:, 5] == own[0], 3].max())

    assert last_load(3) < last_load(0)


def test_what_needs_its_result_waits() -> None:
    dst, src = operands(MIB)
    chunk = Tile("chunk", "sbuf", (128, 1024), "float32")
    lines = [
        *collective_in_program("all_reduce", dst[0], src[0], SLED),
        dma_copy(chunk, dst[0:128]),
    ]
    rows = simulate(program("p", lines)).expand()
    assert rows[-1, 0] >= rows[-2, 3]


def test_bytes_are_conserved() -> None:
    size = 64 * MIB
    time = collective("all_reduce", size, SLED)
    timeline = simulate(program("p", all_reduce(size)))
    local = time.local
    assert local.dma_bytes <= timeline.dma_bytes <= local.dma_bytes * 1.01
    assert local.hbm_read_bytes <= timeline.hbm_read_bytes <= local.hbm_read_bytes * 1.01


def test_groups_and_algorithms_are_passed_on() -> None:
    groups = along((4, 8), (1,))
    named = all_reduce(MIB, groups=groups, algorithm="ring")
    expected = collective("all_reduce", MIB, SLED, groups=groups, algorithm="ring")
    assert simulate(program("p", named)).active_ps == pytest.approx(expected.time_ps, rel=0.15)
    with pytest.raises(ValueError, match="algorithm"):
        all_reduce(MIB, algorithm="star")


def test_waits_add_up_beside_a_collective() -> None:
    dst = Tile("dst", "hbm", (256, 1024), "float32")
    src = Tile("src", "hbm", (256, 1024), "float32", given=True)
    chain = collective_in_program("all_reduce", dst[0], src[0], get_topology("trn3-sled"))
    near = Tile("near", "sbuf", (128, 1024), "float32")
    out = Tile("out", "sbuf", (128, 1024), "float32")
    lines = [*chain, dma_copy(near, dst[0:128]), tensor_copy(out, near)]
    timeline = simulate(program("p", lines))
    waited = sum(engine.waiting for engine in timeline.engines.values())
    assert sum(wait.time_ps for wait in figures.waits(timeline)) == waited
