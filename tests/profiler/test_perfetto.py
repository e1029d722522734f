"""Perfetto traces, read back with Perfetto's protos: everything equals the timeline."""

import itertools
import sys
from collections import Counter

import pytest
from small_programs import copies, gemm, multiply_mx
from trace_reader import read
from trace_reader import trace_bytes as perfetto_trace

from jax_trn3.hardware import TRAINIUM1, TRAINIUM2, TRAINIUM3
from jax_trn3.isa import TABLE, Tile
from jax_trn3.profiler import runs, save
from jax_trn3.simulator import program, simulate

CASES = [
    (copies(), TRAINIUM1),
    (copies(30), TRAINIUM3),
    (gemm(), TRAINIUM2),
    (gemm(2048), TRAINIUM3),
    (multiply_mx(50), TRAINIUM3),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].name} on {case[1].name}")
def pair(request):
    timeline = simulate(*request.param)
    return timeline, read(perfetto_trace(timeline))


def test_engines_equal_the_timelines(pair) -> None:
    timeline, trace = pair
    threads = {trace.name(u): u for u, t in trace.tracks.items() if t.HasField("thread")}
    assert {f"core0/{name}" for name in threads} == set(timeline.engines)
    for name, uuid in threads.items():
        spent, slices = timeline.engines[f"core0/{name}"], trace.slices[uuid]
        assert len(slices) == spent.instructions
        assert sum(s.args["busy_ps"] for s in slices) == spent.busy
        assert sum(s.args["wait_ps"] for s in slices) == spent.waiting
        for s in slices:
            assert s.begin == s.args["start_ps"] // 1000
            assert s.end == (s.args["start_ps"] + s.args["busy_ps"]) // 1000


def test_totals_equal_the_timelines(pair) -> None:
    timeline, trace = pair
    whole, ends = trace.of("program")
    assert whole.name == timeline.program.name
    assert whole.args["time_ps"] == timeline.time_ps
    assert whole.args["instructions"] == timeline.num_instructions
    assert (whole.begin, ends.end) == (0, timeline.time_ps // 1000)
    assert ends.args["busy_ps"] == timeline.overhead_ps
    queues = {lane.partition("/")[2] for lane in timeline.lanes if "/dma:" in lane}
    transfers = [s for queue in queues for s in trace.of(queue)]
    assert sum(s.args["bytes"] for s in transfers) == timeline.dma_bytes
    assert sum(s.args["hbm_read_bytes"] for s in transfers) == timeline.hbm_read_bytes
    assert sum(s.args["hbm_write_bytes"] for s in transfers) == timeline.hbm_write_bytes
    engines = [
        s for u in trace.tracks if trace.tracks[u].HasField("thread") for s in trace.slices[u]
    ]
    assert len(transfers) + len(engines) == timeline.num_instructions
    assert sum(s.args["flops"] for s in engines) == timeline.flops
    assert sum(s.args["hardware_flops"] for s in engines) == timeline.hardware_flops


def test_dma_engines_equal_the_timelines(pair) -> None:
    timeline, trace = pair
    busy: Counter[str] = Counter()
    for uuid in trace.tracks:
        for s in trace.slices[uuid] if trace.name(uuid).startswith("DMA engines") else ():
            for key, time in s.args.items():
                if key.startswith("busy_ps."):
                    busy["core0/" + key.removeprefix("busy_ps.")] += time
    assert busy == {name: spent.busy for name, spent in timeline.dma.items()}


def test_flows_are_pairs_from_causes_to_effects(pair) -> None:
    timeline, trace = pair
    rows = timeline.expand()
    assert set(trace.flow_begins) == set(trace.flow_ends)
    expected = {run: cause for run, cause in enumerate(rows[:, 4].tolist()) if cause >= 0}
    found = {s.args["run"]: trace.flow_begins[f].args["run"] for f, s in trace.flow_ends.items()}
    assert found == expected
    for run, s in ((s.args["run"], s) for s in trace.flow_ends.values()):
        cause = timeline.instructions[rows[rows[run, 4], 5]]
        assert s.args["waited_for"].startswith(f"{cause.name} on ")


def test_counters_move_every_byte(pair) -> None:
    timeline, trace = pair
    for name, total in (
        ("HBM read bandwidth", timeline.hbm_read_bytes),
        ("HBM write bandwidth", timeline.hbm_write_bytes),
        ("DMA throughput", timeline.dma_bytes),
    ):
        steps = trace.counter(name)
        moved = sum(v * (t2 - t1) for (t1, v), (t2, _) in itertools.pairwise(steps)) / 1e9
        # A step may be half a nanosecond off.
        slack = sum(abs(v) for _, v in steps) * 2 / 1e9
        assert moved == pytest.approx(total, abs=slack + 1e-6 * total)
    pending = [v for _, v in trace.counter("pending DMAs")]
    assert not pending or (max(pending) >= 1 and pending[-1] == 0)
    for memory in ("SBUF", "PSUM"):
        tiles = {t for t in timeline.program.tiles() if t.memory == memory.lower()}
        if tiles:
            steps = trace.counter(f"{memory} in use")
            assert 0 < max(v for _, v in steps) <= sum(t.bytes * t.slots for t in tiles)


def test_throttle_is_seen() -> None:
    timeline = simulate(multiply_mx(200))
    speeds = [v for _, v in read(perfetto_trace(timeline)).counter("tensor engine's speed")]
    assert speeds[0] == pytest.approx(100 * timeline.chip.core.tensor.throttle_speed, rel=0.01)
    assert speeds[-1] == 100


def test_arguments_say_what_where_and_why() -> None:
    timeline = simulate(copies())
    trace = read(perfetto_trace(timeline))
    last = trace.of("vector")[-1]
    here, there = (
        next(t for t in timeline.program.tiles() if t.name == name) for name in ("here", "there")
    )
    assert last.args["operands.src"] == (
        f"here[0:128, 0:256] (sbuf, float32), slot 0 of 2, at partition 0 byte {here.address[1]}"
    )
    assert last.args["operands.dst"].endswith(f"byte {there.address[1]}")
    assert last.args["loops.0"] == 2
    assert "small_programs.py:" in last.args["origin"]
    assert last.args["waited_for"] == "dma_copy on core0/dma:sync (run 6)"
    assert trace.of("vector")[1].args["operands.src"].endswith(f"byte {here.address[1] + 1024}")
    process, *_ = [t for t in trace.tracks.values() if t.HasField("process")]
    assert process.process.process_name == "core 0 (NeuronCore-v4)"


def test_window_says_what_is_left_out() -> None:
    timeline = simulate(gemm(4096))
    middle = timeline.active_ps // 2
    shown = runs(timeline, (middle, middle + 10**7))
    trace = read(perfetto_trace(timeline, shown))
    before, after = trace.of("not shown")
    assert (before.args["begin_ps"], before.args["end_ps"]) == (0, middle)
    assert (after.args["begin_ps"], after.args["end_ps"]) == (middle + 10**7, timeline.active_ps)
    left = timeline.num_instructions - len(shown)
    assert before.name == f"not shown: {left:,} of {timeline.num_instructions:,} instructions"
    assert trace.of("program")[0].args["instructions_shown"] == len(shown)
    assert set(trace.flow_begins) == set(trace.flow_ends)
    rows = timeline.expand()
    names = [n for n in map(trace.name, trace.tracks) if n in ("tensor", "vector", "scalar")]
    assert "tensor" in names
    for name in names:
        for s in trace.of(name):
            assert s.args["start_ps"] == rows[s.args["run"], 1]


def test_long_timelines_are_cut_not_silently() -> None:
    timeline = simulate(multiply_mx(1_000_000))
    shown = runs(timeline, limit=2000)
    assert 500 < len(shown) <= 2000
    trace = read(perfetto_trace(timeline, shown))
    (rest,) = trace.of("not shown")
    assert rest.args["end_ps"] == timeline.active_ps
    assert len(trace.of("tensor")) == len(shown)


def test_each_core_is_a_process() -> None:
    tiles = [Tile(f"tile{k}", "sbuf", (128, 512), "float32", core=k) for k in range(2)]
    clear = [TABLE["memset"](dst=t[:, :], value=0.0, engine="vector", core=t.core) for t in tiles]
    trace = read(perfetto_trace(simulate(program("two cores", clear))))
    processes = [t.process for t in trace.tracks.values() if t.HasField("process")]
    assert [(p.pid, p.process_name) for p in processes] == [
        (1, "core 0 (NeuronCore-v4)"),
        (2, "core 1 (NeuronCore-v4)"),
    ]
    threads = [t.thread for t in trace.tracks.values() if t.HasField("thread")]
    assert [(t.pid, t.thread_name) for t in threads] == [(1, "vector"), (2, "vector")]
    assert len({t.tid for t in threads}) == 2


def test_same_timeline_same_bytes() -> None:
    first, second = (perfetto_trace(simulate(gemm(), TRAINIUM2)) for _ in range(2))
    assert first == second


def test_empty_program() -> None:
    timeline = simulate(program("nothing", []))
    whole, _ = read(perfetto_trace(timeline)).of("program")
    assert whole.args["instructions"] == 0


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name in list(sys.modules):
        if name.startswith(("perfetto", "jax_trn3.profiler.perfetto", "jax_trn3.profiler.trace")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "perfetto", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jax-trn3\[trace\]'"):
        save(simulate(copies()), tmp_path / "x.pftrace")
