"""Law 3: whatever the program, every view says the same."""

from hypothesis import given, settings
from hypothesis import strategies as st
from small_programs import copies, gemm, multiply_mx
from trace_reader import read, trace_bytes

from jax_trn3.hardware import TRAINIUM3
from jax_trn3.hardware.datasheet import with_figure
from jax_trn3.profiler import runs, summary
from jax_trn3.profiler.json_view import document
from jax_trn3.profiler.units import duration
from jax_trn3.simulator import loop, program, simulate

PARTS = st.sampled_from([copies(1), copies(4), copies(25), gemm(512), gemm(1024), multiply_mx(3)])
PROGRAMS = st.lists(st.tuples(st.integers(1, 12), PARTS), min_size=1, max_size=3).map(
    lambda parts: program("drawn", [loop(n, lambda _, p=part: p.body) for n, part in parts])
)
CHIPS = st.sampled_from(
    [
        TRAINIUM3,
        with_figure(TRAINIUM3, "core.dma.count", 5),
        with_figure(TRAINIUM3, "hbm_bandwidth_bytes_per_s", 10**11),
        with_figure(TRAINIUM3, "core.vector.clock_hz", 10**8),
    ]
)


@settings(max_examples=15)
@given(PROGRAMS, CHIPS, st.booleans())
def test_all_views_agree(made, chip, extrapolate: bool) -> None:
    timeline = simulate(made, chip, extrapolate=extrapolate)
    shown = runs(timeline)
    found, trace = document(timeline, shown), read(trace_bytes(timeline, shown))
    whole = trace.of("program")[0].args
    assert found["time"]["total_ps"] == whole["time_ps"] == timeline.time_ps
    assert {k: whole[k] for k in found["summary"]} == found["summary"]
    ran = sum(i["runs"] for i in found["instructions"])
    assert ran == len(shown) == whole["instructions"] == timeline.num_instructions
    moved = 0
    for uuid in trace.tracks:
        name = trace.name(uuid)
        row = next((row for row in found["engines"] if row["name"] == f"core0/{name}"), None)
        if row is not None:
            slices = trace.slices[uuid]
            assert sum(s.args["busy_ps"] for s in slices) == row["busy_ps"]
            assert sum(s.args["wait_ps"] for s in slices) == row["waiting_ps"]
            assert len(slices) == row["instructions"]
        elif name.startswith("dma:"):
            moved += sum(s.args["bytes"] for s in trace.slices[uuid])
    assert moved == sum(row["moved_bytes"] for row in found["queues"]) == timeline.dma_bytes
    text = summary(timeline)
    assert f"{duration(timeline.time_ps)}, " in text
    assert f"; {ran:,} instructions" in text
    for row in found["engines"]:
        shares = row["busy_ps"] + row["waiting_ps"] + row["idle_ps"]
        assert shares == timeline.time_ps
        assert 0 <= row["utilization_fraction"] <= 1
    for name, value in found["summary"].items():
        assert value >= 0
        assert not name.endswith("_percent") or value <= 1, name
