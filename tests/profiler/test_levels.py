"""Steps over time: levels, rates, and memory in use."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_programs import copies, gemm

from jax_trn3.isa import TABLE, Tile
from jax_trn3.profiler import figures, runs
from jax_trn3.profiler.levels import level, rate
from jax_trn3.profiler.memory import in_use
from jax_trn3.simulator import loop, program, simulate

SPANS = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 20), st.integers(0, 9)), min_size=1, max_size=20
)


def columns(spans):
    begin, length, amount = np.array(spans, np.int64).T
    return begin, begin + length, amount


@given(SPANS)
def test_level_is_the_sum_of_what_is_there(spans) -> None:
    begin, end, amount = columns(spans)
    found = level(begin, end, amount)
    for t in range(-1, 75):
        step = np.searchsorted(found.times, t, side="right") - 1
        value = found.values[step] if step >= 0 else 0
        assert value == amount[(begin <= t) & (t < end)].sum()
    assert found.integral == (amount * (end - begin)).sum()


@given(SPANS)
def test_rate_moves_every_byte(spans) -> None:
    begin, end, amount = columns(spans)
    found = rate(begin, end, amount)
    assert found.integral / 1e12 == pytest.approx(amount.sum(), rel=1e-9)
    assert (found.values >= -1e-3).all()
    if len(found.values):
        assert found.values[-1] == 0


def test_memory_of_copies_by_hand() -> None:
    timeline = simulate(copies(3))
    tile = 128 * 256 * 4
    used = in_use(runs(timeline))["sbuf", 0]
    rows = timeline.expand()
    loads, engine, stores = (rows[k::3] for k in range(3))
    # Slot 0 of "here" holds values from the first load until the engine has read it, and so on.
    begin = np.concatenate([loads[:, 1], engine[:, 1]])
    end = np.concatenate([engine[:, 2], stores[:, 3]])
    expected = level(begin, end, np.full(6, tile))
    np.testing.assert_array_equal(used.times, expected.times)
    np.testing.assert_array_equal(used.values, expected.values)
    assert used.values[-1] == 0


def test_a_slot_written_in_parts_is_one_and_is_free_between() -> None:
    memset, tensor_copy = TABLE["memset"], TABLE["tensor_copy"]
    parts = Tile("parts", "sbuf", (128, 64), "float32")
    whole = Tile("whole", "sbuf", (128, 64), "float32")

    def body(_):
        yield memset(dst=parts[:, 0:32], value=0.0, engine="vector")
        yield memset(dst=parts[:, 32:64], value=0.0, engine="vector")
        yield tensor_copy(dst=whole[:, :], src=parts[:, :], engine="vector")

    timeline = simulate(program("parts", [loop(3, body)]))
    rows = timeline.expand()
    used = in_use(runs(timeline))["sbuf", 0]
    first, copied = rows[0::3], rows[2::3]
    # "parts" is in use from its first half's write until it is read, three times; "whole", which
    # nobody reads, until it is written for the last time.
    begin = np.append(first[:, 1], copied[0, 1])
    end = np.append(copied[:, 2], copied[-1, 3])
    expected = level(begin, end, np.full(4, 128 * 64 * 4))
    np.testing.assert_array_equal(used.times, expected.times)
    np.testing.assert_array_equal(used.values, expected.values)


def test_sums_in_psum_are_in_use_until_read() -> None:
    timeline = simulate(gemm())
    used = in_use(runs(timeline))["psum", 0]
    size = 128 * 512 * 4
    assert used.peak == 4 * size
    assert used.values.min() == used.values[-1] == 0
    names = [timeline.instructions[k].name for k in timeline.expand()[:, 5]]
    evacuated = names.count("tensor_copy")
    falls = -np.diff(used.values, prepend=0)
    assert falls[falls > 0].sum() == evacuated * size


@pytest.mark.parametrize("made", [copies(), gemm(2048)], ids=lambda p: p.name)
def test_no_more_in_use_than_allocated(made) -> None:
    timeline = simulate(made)
    for (memory, core), used in in_use(runs(timeline)).items():
        allocated = figures.allocated(timeline, memory)[core]
        assert 0 < used.peak <= allocated * timeline.chip.core.partitions
        assert allocated <= figures.limit(timeline, memory)


def test_values_there_from_the_start_count_from_it() -> None:
    weights = Tile("weights", "sbuf", (128, 64), "float32", given=True)
    copy = Tile("copy", "sbuf", (128, 64), "float32")
    made = program(
        "given", [TABLE["tensor_copy"](dst=copy[:, :], src=weights[:, :], engine="vector")]
    )
    used = in_use(runs(simulate(made)))["sbuf", 0]
    assert used.times[0] == 0
    assert used.values[0] >= 128 * 64 * 4
