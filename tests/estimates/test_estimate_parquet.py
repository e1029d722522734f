"""An estimate in Neuron Explorer's tables."""

import itertools
import json
from pathlib import Path

import pyarrow.parquet
from hand_made import body, collective, compute, estimate_of

from jax_trn3.estimates import save
from jax_trn3.estimates.json_view import neuron_summary
from jax_trn3.profiler.parquet_schema import TABLES

LAYER = [compute("copies", 30, 3, 11, "mul"), collective(3 * 10**6, line=13)]
STEP = body(
    compute(),
    collective(),
    compute("products", 30, 2, 8),
    (80, [*LAYER, (5, [compute("products", 4, 1, 12, lacks="no sort")])]),
)


def tables_of(estimate, directory: Path, window=None) -> dict[str, list[dict]]:
    path = directory / "step.parquet"
    save(estimate, path, window)
    for file in path.iterdir():
        assert pyarrow.parquet.read_schema(file).names == [c.name for c in TABLES[file.stem]]
    return {file.stem: pyarrow.parquet.read_table(file).to_pylist() for file in path.iterdir()}


def test_numbers_are_the_estimates(tmp_path: Path) -> None:
    estimate = estimate_of(STEP)
    found = tables_of(estimate, tmp_path)
    (summary,) = found["Summary"]
    assert {k: summary[k] for k in neuron_summary(estimate)} == neuron_summary(estimate)
    rows = found["HloInstruction"]
    for key in ("hbm_read_bytes", "hbm_write_bytes"):
        assert sum(row[key] for row in rows) == summary[key]
    assert len(found["CcOp"]) == summary["cc_op_count"] == 81
    names = {row["operation"]: row["algorithm"] for row in found["CcOp"]}
    assert names == {"AllGather": "ring"}
    assert found["FrameworkInstruction"][0]["framework_name"] == "jit(step)/layer/dot_general"
    count = sum(
        row["tensor_engine_instruction_count"] or 0 for row in found["FrameworkInstruction"]
    )
    assert count == 2 * 30 + 80 * 5 * 4


def test_operations_in_loops_have_every_run(tmp_path: Path) -> None:
    found = tables_of(estimate_of(STEP), tmp_path)
    rows = {row["hlo_name"]: row for row in found["HloInstruction"]}
    spans = json.loads(rows["mul"]["time_intervals"])
    assert len(spans) == len(rows["mul"]["hbm_transfer_size_per_interval"]) == 80
    loop = STEP.steps[-1]
    assert spans[1][0] - spans[0][0] in (loop.inner.pace_ps // 1000, loop.inner.pace_ps // 1000 + 1)
    assert spans[0][0] == loop.start_ps // 1000
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert rows["mul"]["end_ts"] == spans[-1][1]


def test_instructions_lead_to_their_operation_and_line(tmp_path: Path) -> None:
    found = tables_of(estimate_of(STEP), tmp_path)
    names = {row["raw_hlo_id"]: row["hlo_name"] for row in found["HloInstruction"]}
    locations = set()
    for row in found["Instruction"]:
        assert names[row["raw_hlo_id"]] == row["hlo_name"]
        locations.add((row["hlo_name"], row["bir_debug_info_source_location"]))
    assert ("mul", "/somewhere/model.py:11") in locations
    ids = [row["id"] for t in ("Instruction", "DmaPacketAggregated") for row in found[t]]
    assert len(set(ids)) == len(ids)
    flows = {(row["in_id"], row["out_id"]) for row in found["Flow"]}
    assert flows
    assert {number for flow in flows for number in flow} <= set(ids)


def test_warnings_say_what_was_assumed(tmp_path: Path) -> None:
    found = tables_of(estimate_of(STEP, peak=2**40), tmp_path)
    messages = {row["category"]: row["message"] for row in found["Warning"]}
    assert messages["Unsupported"] == "no sort (/somewhere/model.py:12)"
    assert messages["Assumption"] == "products assumed"
    assert messages["Memory"].startswith("needs 1,099,511,627,776 bytes of HBM; a device has ")
    assert any("are not in the tables" in row["message"] for row in found["Warning"])


def test_window(tmp_path: Path) -> None:
    loop = STEP.steps[-1]
    start = loop.start_ps + 37 * loop.inner.pace_ps
    found = tables_of(estimate_of(STEP), tmp_path, (start, start + 10**7))
    assert {row["hlo_name"] for row in found["Instruction"]} == {"mul"}
    assert min(row["end_ts"] for row in found["Instruction"]) >= start // 1000


def test_empty_program(tmp_path: Path) -> None:
    assert set(tables_of(estimate_of(body()), tmp_path)) == {"Summary", "Metadata", "Warning"}
