"""Collectives as instructions: what they leave behind, what they ask of the core, what is refused."""

import numpy as np
import pytest
from isa_cases import problems

from jax_trn3.hardware import NEURON_CORE_V3, NEURON_CORE_V4
from jax_trn3.isa import Tile, execute
from jax_trn3.isa.collective import collective

RANKS = 4
RNG = np.random.default_rng(0)


def made(kind: str, shape=(8, 3), **params):
    src = Tile("src", "hbm", shape, "float32", given=True)
    dst = Tile("dst", "hbm", shape, "float32")
    return collective(dst, src, kind=kind, time_ps=params.pop("time_ps", 10), **params)


def result(kind: str, x: np.ndarray, **params) -> np.ndarray:
    return np.asarray(collective.meaning(x, kind=kind, time_ps=1, **params))


@pytest.mark.parametrize("op", ["add", "max", "min"])
def test_reductions(op):
    x = RNG.integers(-9, 9, (RANKS, 8, 3)).astype(np.float32)
    whole = {"add": np.sum, "max": np.max, "min": np.min}[op](x, axis=0)
    assert np.array_equal(result("all_reduce", x, op=op), np.stack([whole] * RANKS))
    scattered = result("reduce_scatter", x, op=op)
    assert all(np.array_equal(scattered[r], whole[2 * r : 2 * r + 2]) for r in range(RANKS))


def test_movements():
    x = RNG.integers(-9, 9, (RANKS, 8, 3)).astype(np.float32)
    gathered = result("all_gather", x)
    assert all(np.array_equal(mine, np.concatenate(list(x))) for mine in gathered)
    exchanged = result("all_to_all", x)
    for to in range(RANKS):
        expected = np.concatenate([x[source][2 * to : 2 * to + 2] for source in range(RANKS)])
        assert np.array_equal(exchanged[to], expected)
    assert np.array_equal(result("broadcast", x), np.stack([x[0]] * RANKS))
    permuted = result("collective_permute", x, pairs=((0, 2), (3, 1)))
    assert np.array_equal(permuted, np.stack([0 * x[0], x[3], x[0], 0 * x[0]]))


def test_a_part_has_no_value():
    with pytest.raises(ValueError, match="part 0 of 3 of a all_reduce has no value of its own"):
        result("all_reduce", np.zeros((2, 8, 3), np.float32), parts=3)


def test_one_core_alone_cannot_execute_it():
    with pytest.raises(ValueError, match=r"needs the operands of all ranks.*collective\.meaning"):
        execute(made("all_reduce"), {"src": np.zeros((8, 3), np.float32)})


def test_what_it_asks_of_the_core():
    work = made("all_reduce", dma_bytes=16 << 20, hbm_read_bytes=3, hbm_write_bytes=5, time_ps=7)
    dma = work.spec.cost(work, NEURON_CORE_V4).dma
    assert dma.least_ps == 7
    assert (dma.bytes, dma.bytes_read_hbm, dma.bytes_written_hbm) == (16 << 20, 3, 5)
    assert dma.packets == 16 * 16  # 1 MiB a DMA engine in packets of 64 KiB
    engine = NEURON_CORE_V4.dma
    expected = 2**20 / engine.engine_bytes_per_s * 1e12 + 16 * engine.packet_overhead_ns * 1e3
    assert dma.engine_ps[0] == pytest.approx(expected, abs=1)


def test_refusals():
    assert "kind" in problems(made("all_scatter"), NEURON_CORE_V3)
    assert "time_ps is -1; at least 0" in problems(made("all_reduce", time_ps=-1), NEURON_CORE_V4)
    assert "part is 2; 0 to 1" in problems(made("all_reduce", part=2, parts=2), NEURON_CORE_V4)
