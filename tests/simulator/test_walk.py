"""The runs of a program one by one, held to `Timeline.expand`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_trn3.isa import TABLE, Tile
from jax_trn3.simulator import loop, program, simulate
from jax_trn3.simulator.walk import TooManyRuns, between, instances, slots, touched

dma_copy, tensor_copy, memset = TABLE["dma_copy"], TABLE["tensor_copy"], TABLE["memset"]
SOURCE = Tile("source", "hbm", (128, 64), "float32", given=True)
HERE = Tile("here", "sbuf", (128, 64), "float32", slots=3)
THERE = Tile("there", "sbuf", (128, 64), "float32", slots=2)

# A body is a list of instructions (by number) and loops (count, whether the count grows with the
# index of the loop around it, body).
BODIES = st.recursive(
    st.lists(st.integers(0, 2), min_size=1, max_size=3),
    lambda inner: st.lists(
        st.integers(0, 2) | st.tuples(st.integers(0, 9), st.booleans(), inner),
        min_size=1,
        max_size=3,
    ),
    max_leaves=5,
)


def nodes(body, index):
    for part in body:
        if part == 0:
            yield dma_copy(dst=HERE[index], src=SOURCE[:, :])
        elif part == 1:
            yield tensor_copy(dst=THERE[index + 1], src=HERE[index], engine="vector")
        elif part == 2:
            yield memset(dst=HERE[index], value=0.0, engine="gpsimd")
        else:
            count, grows, inner = part
            yield loop(count + index if grows else count, lambda i, inner=inner: nodes(inner, i))


def program_of(body):
    start = [memset(dst=HERE[k], value=0.0, engine="gpsimd") for k in range(3)]
    return program("drawn", [*start, loop(7, lambda i: nodes(body, i))])


@settings(max_examples=40)
@given(BODIES, st.data())
def test_instances_and_windows_are_rows_of_expand(body, data) -> None:
    timeline = simulate(program_of(body))
    rows = timeline.expand()
    every = list(instances(timeline.program))
    assert [number for number, _ in every] == rows[:, 5].tolist()

    numbers = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), max_size=9)))
    assert list(instances(timeline.program, numbers)) == [every[k] for k in numbers]

    start = data.draw(st.integers(-1, timeline.active_ps))
    end = data.draw(st.integers(start, timeline.active_ps + 1))
    found, events = between(timeline, start, end)
    expected = np.flatnonzero((rows[:, 0] < end) & (rows[:, 3] > start))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(events, rows[expected])


def test_window_of_a_long_timeline_costs_what_it_shows() -> None:
    million = program("long", [loop(10**6, lambda i: [memset(dst=HERE[i], value=0.0)])])
    timeline = simulate(million)
    middle = timeline.active_ps // 2
    numbers, events = between(timeline, middle, middle + 10**6, limit=100)
    assert 1 < len(numbers) < 100
    every = list(instances(timeline.program, numbers.tolist()))
    assert [indices for _, indices in every] == [
        {timeline.program.body[0].id: number} for number in numbers
    ]
    assert (events[:, 0] < middle + 10**6).all()
    assert (events[:, 3] > middle).all()


def test_more_runs_than_the_limit_are_refused() -> None:
    timeline = simulate(program_of([0, 1]))
    with pytest.raises(TooManyRuns, match="more than 10 instructions ran from 0 to"):
        between(timeline, 0, timeline.time_ps, limit=10)


def test_slots_rotate() -> None:
    outer = loop(2, lambda i: [loop(3, lambda j: [memset(dst=HERE[2 * i + j], value=0.0)])])
    (number, first), *_, (_, last) = instances(program("rotation", [outer]))
    access = outer.body[0].body[0]["dst"]
    assert number == 0
    assert slots(access, first) == (0,)
    assert slots(access, last) == ((2 * 1 + 2) % 3,)
    assert slots(HERE.run(2, 2), {}) == (2, 0)
    ((name, found, where),) = touched(outer.body[0].body[0], last)
    assert (name, found, where) == ("dst", access, (1,))


def test_loops_without_instructions() -> None:
    x = Tile("x", "sbuf", (128, 64), "bfloat16", given=True)
    y = Tile("y", "sbuf", (128, 64), "bfloat16")
    copy = tensor_copy(y, x)
    text = program("p", [loop(20, lambda i: [loop(0, lambda j: [copy])]), copy])
    timeline = simulate(text)
    assert timeline.repeats == ()
    assert timeline.num_instructions == 1
    assert [number for number, _ in instances(text)] == [1]
