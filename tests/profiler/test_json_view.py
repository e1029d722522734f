"""JSON: its schema, the round trip, and that it says what the timeline says."""

import json
import types
import typing

import numpy as np
import pytest
from small_programs import copies, gemm

from jax_trn3.profiler import figures, json_view, runs, save
from jax_trn3.profiler.memory import in_use
from jax_trn3.simulator import simulate


def check(value, expected, where="document") -> None:
    """Asserts that a value read from JSON is of a type of the schema."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if typing.is_typeddict(expected):
        fields = typing.get_type_hints(expected)
        assert value.keys() == fields.keys(), where
        for key, kind in fields.items():
            check(value[key], kind, f"{where}.{key}")
    elif origin in (list, tuple):
        assert type(value) is list, where
        for element in value:
            check(element, arguments[0], where)
    elif origin is dict:
        for key, element in value.items():
            assert type(key) is str, where
            check(element, arguments[1], f"{where}.{key}")
    elif origin is types.UnionType:
        if value is not None:
            check(value, arguments[0], where)
    elif expected is float:
        assert type(value) in (int, float), where
    else:
        assert type(value) is expected, where


@pytest.mark.parametrize("with_runs", [False, True])
def test_round_trip_keeps_the_schema(with_runs: bool, tmp_path) -> None:
    timeline = simulate(gemm(2048))
    shown = runs(timeline) if with_runs else None
    save(timeline, tmp_path / "x.json", shown)
    found = json.loads((tmp_path / "x.json").read_text())
    check(found, json_view.Document)
    assert found == json.loads(json.dumps(json_view.document(timeline, shown)))
    assert (found["schema"], found["version"]) == ("jax-trn3 timeline", 1)
    assert (found["runs"] is None) is (shown is None)


def test_runs_come_back_as_rows_of_expand() -> None:
    timeline = simulate(gemm(2048))
    found = json.loads(json.dumps(json_view.document(timeline, runs(timeline))))
    np.testing.assert_array_equal(json_view.events_of(found), timeline.expand())
    window = runs(timeline, (10**8, 2 * 10**8))
    found = json.loads(json.dumps(json_view.document(timeline, window)))
    rows = json_view.events_of(found)
    np.testing.assert_array_equal(rows, timeline.expand()[found["runs"]["run"]])
    assert found["runs"]["left_out"] == timeline.num_instructions - len(rows) > 0
    assert found["runs"]["window_ps"] == [10**8, 2 * 10**8]


def test_documents_without_runs_or_of_another_version_are_refused() -> None:
    found = json_view.document(simulate(copies()))
    with pytest.raises(ValueError, match="the document of 'copies' has no runs"):
        json_view.events_of(found)
    with pytest.raises(ValueError, match="version 2; this reads version 1"):
        json_view.events_of({**found, "version": 2})


@pytest.mark.parametrize("made", [copies(30), gemm(2048)], ids=lambda p: p.name)
def test_numbers_are_the_timelines(made) -> None:
    timeline = simulate(made)
    shown = runs(timeline)
    found = json_view.document(timeline, shown)
    assert found["time"]["total_ps"] == timeline.time_ps
    assert found["time"]["active_ps"] + found["time"]["start_and_stop_ps"] == timeline.time_ps
    for row in found["engines"]:
        assert row["busy_ps"] + row["waiting_ps"] + row["idle_ps"] == timeline.time_ps
        assert row["busy_ps"] == timeline.engines[row["name"]].busy
        waits = [w["waiting_ps"] for w in found["waits"] if w["engine"] == row["name"]]
        assert sum(waits) == row["waiting_ps"]
        own = [i for i in found["instructions"] if i["engine"] == row["name"]]
        assert sum(i["busy_ps"] for i in own) == row["busy_ps"]
        assert sum(i["waiting_ps"] for i in own) == row["waiting_ps"]
        assert sum(i["runs"] for i in own) == row["instructions"]
    assert {row["name"]: row["busy_ps"] for row in found["dma"]} == {
        name: spent.busy for name, spent in timeline.dma.items()
    }
    assert sum(row["moved_bytes"] for row in found["queues"]) == timeline.dma_bytes
    assert sum(i["runs"] * i["dma_bytes"] for i in found["instructions"]) == timeline.dma_bytes
    assert sum(i["runs"] * i["flops"] for i in found["instructions"]) == timeline.flops
    assert sum(i["runs"] for i in found["instructions"]) == timeline.num_instructions
    for row in found["memory"]:
        used = in_use(shown).get((row["memory"], row["core"]))
        assert row["peak_bytes"] == (used.peak if used else 0)
        expected = figures.allocated(timeline, row["memory"])[row["core"]]
        assert row["allocated_partition_bytes"] == expected <= row["limit_partition_bytes"]


def test_peaks_of_a_part_are_not_said() -> None:
    timeline = simulate(copies(30))
    part = runs(timeline, (0, timeline.active_ps // 2))
    for shown in (None, part):
        rows = json_view.document(timeline, shown)["memory"]
        assert {row["peak_bytes"] for row in rows} == {None}


def test_extrapolation_does_not_show() -> None:
    made = gemm(2048)
    short, long = (json_view.document(simulate(made, extrapolate=e)) for e in (True, False))
    assert short == long
