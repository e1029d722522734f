"""Whatever the schedule, every view says the same: total time, counts, bytes."""

import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import pyarrow.parquet
from hand_made import SCHEDULES, estimate_of
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from jax_trn3.estimates import VIEWS, compare, estimate, save, summary
from jax_trn3.estimates.json_view import document, read
from jax_trn3.profiler.units import duration

sys.path.append(str(Path(__file__).parents[1] / "profiler"))
import trace_reader

PLACES = st.sampled_from([("trn3-chip", 1), ("trn3-chip", 2), ("trn3-gen2", 1), ("trn2-chip", 1)])
SUMS = ("hbm_read_bytes", "hbm_write_bytes")


@settings(max_examples=25)
@given(SCHEDULES, PLACES)
def test_all_views_agree(schedule, where) -> None:
    topology, lnc = where
    agree(estimate_of(schedule, topology, lnc=lnc, mesh=(("data", 4),)))


def test_all_views_of_a_program_agree() -> None:
    mesh = AbstractMesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def shape(*dimensions, spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(dimensions, jnp.bfloat16, sharding=sharding)

    def step(x, ups, downs):
        def layer(x, weights):
            up, down = weights
            return jnp.tanh(x @ up) @ down, None

        return jax.lax.scan(layer, x, (ups, downs))[0].sum()

    agree(
        estimate(
            step,
            shape(512, 256, spec=("data",)),
            shape(6, 256, 1024, spec=(None, None, "model")),
            shape(6, 1024, 256, spec=(None, "model")),
        )
    )


def agree(estimate) -> None:
    """Asserts that all views of an estimate say the same."""
    schedule, lnc = estimate.schedule, estimate.topology.lnc
    found = document(estimate)
    neuron, rows = found["summary"], found["operations"]
    assert found["time"]["total_ps"] == estimate.time_ps
    with tempfile.TemporaryDirectory() as directory:
        paths = {suffix: Path(directory) / f"view{suffix}" for suffix in VIEWS}
        for path in paths.values():
            save(estimate, path)
        assert read(paths[".json"]) == found
        trace = trace_reader.read(paths[".pftrace"].read_bytes(), nested="operations")
        tables = {
            file.stem: pyarrow.parquet.read_table(file).to_pylist()
            for file in paths[".parquet"].iterdir()
        }
    # What the lines add up to is the whole.
    assert sum(line.time_ps for line in estimate.lines) == found["time"]["program_ps"]
    assert sum(row["time_ps"] for row in rows) == schedule.time_ps
    for name in (*SUMS, "model_flops", "hardware_flops"):
        assert sum(row[name] for row in rows) == neuron[name], name
    for name in ("dma_bytes", "instructions"):
        assert sum(row[name] for row in rows) == found[name], name
    assert all(row["time_ps"] <= row["busy_ps"] or row["kind"] != "collective" for row in rows)
    # The trace.
    whole = trace.of("program")[0].args
    assert whole["time_ps"] == estimate.time_ps
    assert {k: whole[k] for k in neuron} == neuron
    top = [s for s in trace.of("operations") if s.inside is None]
    top += [s for s in trace.of("collectives") if s.args["runs"] == 1]
    assert sum(s.args["exposed_ps"] for s in top) == schedule.time_ps
    for name in (*SUMS, "dma_bytes", "instructions"):
        total = found[name] if name in found else neuron[name]
        assert sum(s.args[name] for s in top) == total, name
    # The tables.
    (written,) = tables["Summary"]
    assert {k: written[k] for k in neuron} == neuron
    operations = tables["HloInstruction"]
    assert len(tables.get("CcOp", [])) == neuron["cc_op_count"]
    for name in SUMS:
        assert sum(row[name] for row in operations) == neuron[name]
    assert max(row["end_ts"] for row in operations) <= schedule.time_ps // 1000
    assert len({row["hlo_name"] for row in operations}) > 0
    shown = [row for t in ("Instruction", "DmaPacketAggregated") for row in tables.get(t, [])]
    assert len(shown) == whole["instructions_shown"] <= found["instructions"]
    if lnc == 1 and not any(step.inner for step in schedule.steps):
        assert len(shown) == found["instructions"]
    # The text.
    text = summary(estimate)
    assert f"\n{duration(estimate.time_ps)} a run, " in text
    assert f"; {estimate.cost.instructions:,} instructions a device" in text
    for row in compare(estimate, estimate).rows:
        assert row.values[0] == row.values[1]
        assert row.ratios[1] in (1, None)
