"""Parquet tables: Neuron Explorer's columns, and the same numbers as everywhere."""

from pathlib import Path

import pyarrow.parquet
import pytest
from small_programs import copies, gemm, multiply_mx

from jax_trn3.profiler import parquet_rows, runs, save
from jax_trn3.profiler.neuron_explorer import neuron_summary
from jax_trn3.profiler.parquet_schema import TABLES
from jax_trn3.simulator import simulate


def read(path: Path) -> dict[str, list[dict]]:
    """By name the rows of the tables in a directory."""
    files = sorted(path.iterdir())
    return {file.stem: pyarrow.parquet.read_table(file).to_pylist() for file in files}


@pytest.mark.parametrize("made", [copies(3), gemm(1024), multiply_mx(30)], ids=lambda p: p.name)
def test_numbers_are_the_timelines(made, tmp_path: Path) -> None:
    timeline = simulate(made)
    save(timeline, tmp_path / "run.parquet")
    found = read(tmp_path / "run.parquet")
    (summary,) = found["Summary"]
    assert {k: summary[k] for k in neuron_summary(timeline)} == neuron_summary(timeline)
    moved = found.get("DmaPacketAggregated", [])
    for table in (moved, found.get("DmaPacket", [])):
        assert sum(row["transfer_bytes"] for row in table) == timeline.dma_bytes
        for key in ("read_bytes", "write_bytes"):
            assert sum(row[key] for row in table) == timeline.dma_bytes
    assert len(found["Instruction"]) + len(moved) == timeline.num_instructions
    assert sum(row["raw_flops"] or 0 for row in found["Instruction"]) == timeline.hardware_flops
    for name, spent in timeline.engines.items():
        rows = [row for row in found["Instruction"] if row["engine"] == name.partition("/")[2]]
        assert len(rows) == spent.instructions
        assert sum(r["duration_ns"] for r in rows) == pytest.approx(
            spent.busy / 1000, abs=len(rows)
        )
        waited = sum(r["evt_wait_time_ns"] for r in rows)
        assert waited == pytest.approx(spent.waiting / 1000, abs=len(rows))
        assert [row["pc"] for row in rows] == list(range(len(rows)))
    for memory in ("sbuf", "psum"):
        written = sum(row[f"{memory}_write_bytes"] for row in found["Instruction"])
        if memory == "psum":
            assert written == summary["psum_write_bytes"]
    (metadata,) = found["Metadata"]
    assert metadata["is_simulation"] is True


def test_columns_are_neuron_explorers(tmp_path: Path) -> None:
    save(simulate(copies()), tmp_path / "run.parquet")
    for file in (tmp_path / "run.parquet").iterdir():
        schema = pyarrow.parquet.read_schema(file)
        assert schema.names == [column.name for column in TABLES[file.stem]]
        types = {"string": "string", "double": "double", "int64": "int64", "bool": "bool"}
        for column in TABLES[file.stem]:
            if column.type in types:
                assert str(schema.field(column.name).type) == types[column.type]
            if column.required:
                values = pyarrow.parquet.read_table(file, columns=[column.name])
                assert values[column.name].null_count == 0, (file.stem, column.name)


def test_flows_join_what_waited_to_what_it_waited_for(tmp_path: Path) -> None:
    save(simulate(copies()), tmp_path / "run.parquet")
    found = read(tmp_path / "run.parquet")
    tables = {
        "instruction": {row["id"]: row for row in found["Instruction"]},
        "dma_packet_aggregated": {row["id"]: row for row in found["DmaPacketAggregated"]},
    }
    assert found["Flow"]
    for flow in found["Flow"]:
        before = tables[flow["in_table"]][flow["in_id"]]
        after = tables[flow["out_table"]][flow["out_id"]]
        assert flow["gap_time"] == after["start_ts"] - before["end_ts"]
    copied = found["Instruction"][0]
    assert "small_programs.py:" in copied["bir_debug_info_source_location"]
    assert copied["opcode"] == "TENSOR_COPY"


def test_packets_lie_within_their_transfer_and_one_after_another(tmp_path: Path) -> None:
    timeline = simulate(gemm(1024))
    save(timeline, tmp_path / "run.parquet")
    found = read(tmp_path / "run.parquet")
    transfers = {row["id"]: row for row in found["DmaPacketAggregated"]}
    assert len(found["DmaPacket"]) == sum(
        int(n) * work.packets
        for n, work in zip(timeline.executions, (w.dma for w in timeline.work))
        if work
    )
    last: dict[tuple[int, int], int] = {}
    for row in found["DmaPacket"]:
        key = row["packet_aggregation_id"], row["engine_idx"]
        assert row["start_ts"] >= last.get(key, 0)
        last[key] = row["end_ts"]
        assert transfers[key[0]]["start_ts"] <= row["start_ts"]
        assert row["end_ts"] <= transfers[key[0]]["end_ts"] + 1


def test_too_many_packets_are_shown_by_engine(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(parquet_rows, "MAX_PACKETS", 100)
    monkeypatch.setattr("jax_trn3.profiler.parquet.MAX_PACKETS", 100)
    timeline = simulate(gemm(1024))
    save(timeline, tmp_path / "run.parquet")
    found = read(tmp_path / "run.parquet")
    assert len(found["DmaPacket"]) == 16 * len(found["DmaPacketAggregated"])
    assert sum(row["transfer_bytes"] for row in found["DmaPacket"]) == timeline.dma_bytes
    assert any("a row is all packets" in row["message"] for row in found["Warning"])


def test_usage_of_memories(tmp_path: Path) -> None:
    save(simulate(gemm(1024)), tmp_path / "run.parquet")
    found = read(tmp_path / "run.parquet")
    for table in ("SbufUsage", "PsumUsage"):
        for row in found[table]:
            assert all(0 <= v <= 1 for k, v in row.items() if k.endswith("percent"))
    # Four sums of 128 x 512 float32 fill four banks of eight.
    assert max(row["avg_util_percent"] for row in found["PsumUsage"]) == 0.5


def test_a_window_says_what_is_missing(tmp_path: Path) -> None:
    timeline = simulate(copies(20))
    save(timeline, tmp_path / "run.parquet", runs(timeline, (0, 5_000_000)))
    found = read(tmp_path / "run.parquet")
    assert len(found["Instruction"]) < 20
    assert any("are not in the tables" in row["message"] for row in found["Warning"])


def test_replaces_tables_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    for _ in range(2):
        save(simulate(copies()), path)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no directory of Parquet tables"):
        save(simulate(copies()), path)
    assert (path / "notes.txt").exists()
