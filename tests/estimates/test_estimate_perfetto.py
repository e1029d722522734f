"""A trace of an estimate, read back with Perfetto's own protos."""

import sys
from pathlib import Path

import pytest
from hand_made import body, collective, compute, estimate_of, while_

from jax_trn3.estimates import save

sys.path.append(str(Path(__file__).parents[1] / "profiler"))
from trace_reader import Read, read

US = 10**6
LAYER = [compute("copies", 30, 3, 11, "mul"), collective(3 * US, line=13)]
INNER = (5, [compute("products", 4, 1, 12)])
STEP = body(compute(), collective(), compute("products", 30, 2, 8), (80, [*LAYER, INNER]))


def trace_of(schedule, directory: Path, window=None, lnc: int = 1) -> Read:
    path = directory / "step.pftrace"
    save(estimate_of(schedule, lnc=lnc, mesh=(("data", 4),)), path, window)
    return read(path.read_bytes(), nested="operations")


def test_operations_lie_in_their_loops(tmp_path: Path) -> None:
    trace = trace_of(STEP, tmp_path)
    found = {s.name: s for s in trace.of("operations")}
    loop = found["while x 80"]
    assert loop.inside is None
    assert loop.args["iterations"] == 80
    first = found["iteration 0 of 80"]
    assert first.inside is loop
    assert found["79 more"].inside is loop
    assert found["mul"].inside is first
    assert found["while x 5"].inside is first
    assert found["mul"].args["origin"] == "/somewhere/model.py:11"
    assert found["mul"].args["jax_name"] == "jit(step)/layer/mul"
    assert found["mul"].args["runs"] == 80
    names = [s.name for s in trace.of("operations") if s.inside is None]
    assert names == ["dot_general", "dot_general", "while x 80"]


def test_top_operations_add_up_to_the_whole(tmp_path: Path) -> None:
    trace = trace_of(STEP, tmp_path)
    top = [s for s in trace.of("operations") if s.inside is None]
    assert sum(s.args["exposed_ps"] for s in top) == STEP.time_ps
    assert sum(s.args["instructions"] for s in top) == STEP.cost.instructions
    assert trace.of("program")[0].args["instructions"] == STEP.cost.instructions


def test_collectives_have_a_track(tmp_path: Path) -> None:
    trace = trace_of(STEP, tmp_path)
    names = [s.name for s in trace.of("collectives")]
    assert names == ["all_gather", "all_gather x 80"]
    first = trace.of("collectives")[0]
    assert first.args["algorithm"] == "ring"
    assert first.args["exposed_ps"] == STEP.steps[1].exposed_ps


def test_instructions_lie_under_their_operation(tmp_path: Path) -> None:
    trace = trace_of(STEP, tmp_path)
    (mul,) = [s for s in trace.of("operations") if s.name == "mul"]
    under = [s for s in trace.of("vector") if mul.begin <= s.begin and s.end <= mul.end]
    assert len(under) == 3 * 30
    assert len(trace.of("tensor")) == 2 * 30 + 4
    runs = [s.args["run"] for name in ("vector", "tensor") for s in trace.of(name)]
    assert len(set(runs)) == len(runs)
    whole = trace.of("program")[0].args
    queues = [trace.name(uuid) for uuid in trace.tracks if "dma:" in trace.name(uuid)]
    drawn = len(runs) + sum(len(trace.of(name)) for name in set(queues))
    assert drawn == whole["instructions_shown"]
    assert trace.flow_ends


def test_window_shows_the_iteration_it_begins_in(tmp_path: Path) -> None:
    loop = STEP.steps[-1]
    pace = loop.inner.pace_ps
    start = loop.start_ps + 37 * pace + 5
    trace = trace_of(STEP, tmp_path, (start, start + pace // 2))
    found = {s.name: s for s in trace.of("operations")}
    iteration = found["iteration 37 of 80"]
    assert iteration.begin == (loop.start_ps + 37 * pace) // 1000
    assert found["37 before"].end == iteration.begin
    assert found["42 more"].begin == iteration.end
    assert found["42 more"].end == found["while x 80"].end
    assert not trace.of("tensor") or min(s.end for s in trace.of("tensor")) >= iteration.begin
    issued = [s.args["start_ps"] - s.args["wait_ps"] for s in trace.of("vector")]
    assert issued
    assert max(issued) < start + pace // 2


def test_two_cores_of_a_device_share_the_work(tmp_path: Path) -> None:
    one = compute("products", 30, 4)
    half = body(
        type(one)(
            "compute", one.name, one.source, 0, type(one.cost)(one.time_ps // 2), 0, one.timed
        ),
        compute("products", 4),
    )
    trace = trace_of(half, tmp_path, lnc=2)
    assert 2 * 30 <= len(trace.of("tensor")) <= 2 * 30 + 4
    top = trace.of("operations")[0]
    assert max(s.end for s in trace.of("tensor")[: 2 * 30]) <= top.end


def test_bandwidth_is_of_operations(tmp_path: Path) -> None:
    step = compute("copies", 30)
    trace = trace_of(body(step), tmp_path)
    (_, speed), (_, after) = trace.counter("HBM read bandwidth")
    assert speed == pytest.approx(step.cost.hbm_read_bytes / (step.time_ps / 1e12))
    assert after == 0


@pytest.mark.parametrize("window", [(5, 5), (-1, 5)])
def test_windows_that_are_none_are_refused(tmp_path: Path, window) -> None:
    with pytest.raises(ValueError, match="needs 0 <= start < end"):
        trace_of(STEP, tmp_path, window)


def test_limit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("jax_trn3.estimates.placed.instructions.__defaults__", (None, 50))
    trace = trace_of(STEP, tmp_path)
    assert 0 < trace.of("program")[0].args["instructions_shown"] <= 50
    with pytest.raises(ValueError, match="has more than 50 instructions"):
        trace_of(STEP, tmp_path, (0, STEP.time_ps))


def test_loop_that_never_runs_and_empty_program(tmp_path: Path) -> None:
    trace = trace_of(body(while_(0, body(compute()), condition_ps=1000)), tmp_path)
    assert [s.name for s in trace.of("operations")] == ["while x 0"]
    assert trace_of(body(), tmp_path).of("operations") == []
