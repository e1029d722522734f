"""A timeline as Parquet tables in Neuron Explorer's own schema: a directory, a file for each table.

Names, columns and their meaning: `parquet_schema.py`; rows: `parquet_rows.py`. Timestamps are
nanoseconds from the start of the first instruction, cut from the simulator's picoseconds; "percent"
is a fraction of 1.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from jax_trn3.hardware import Chip
from jax_trn3.simulator import Timeline

from . import figures
from .neuron_explorer import neuron_summary
from .parquet_rows import MAX_PACKETS, Columns, Rows, Tables, run_tables
from .parquet_schema import TABLES, VERSION
from .runs import Runs, runs

try:
    import pyarrow
    import pyarrow.parquet
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Parquet tables need the package pyarrow: pip install 'jax-trn3[parquet]'", name=error.name
    ) from error


def write(timeline: Timeline, path: str | Path, shown: Runs | None = None) -> None:
    """Writes a timeline as Parquet tables into the directory `path`.

    **Arguments:**

    - `shown`: Which runs to show one by one; None is all, or as many as `runs` gives.

    **Raises:** `ValueError` for a `path` that holds something else than tables.
    """
    shown = runs(timeline) if shown is None else shown
    tables = run_tables([(shown, None)])
    tables["Summary"] = [{**neuron_summary(timeline), "total_row_count": total_rows(tables)}]
    tables["Metadata"] = [
        metadata(
            timeline.program.name,
            timeline.chip,
            len(figures.cores(timeline)),
            shown.start_ps,
            shown.end_ps,
        )
    ]
    tables["Warning"] = warnings(tables, shown.left_out, timeline.num_instructions)
    write_tables(tables, path)


def write_tables(tables: Tables, path: str | Path) -> None:
    """Writes tables, those that have rows, into a directory; an older one is replaced.

    **Raises:** `ValueError` for a path that holds something else than tables.
    """
    directory = Path(path)
    if directory.exists():
        if not directory.is_dir() or any(p.suffix != ".parquet" for p in directory.iterdir()):
            raise ValueError(f"{path} is there already, and is no directory of Parquet tables")
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    for name, rows in tables.items():
        if _length(rows):
            pyarrow.parquet.write_table(_table(name, rows), directory / f"{name}.parquet")


def total_rows(tables: Tables) -> int:
    """Rows of all tables."""
    return sum(_length(rows) for rows in tables.values())


def _length(rows: Rows | Columns) -> int:
    return len(next(iter(rows.values()), ())) if isinstance(rows, dict) else len(rows)


def metadata(name: str, chip: Chip, cores: int, start_ps: int, end_ps: int) -> dict[str, Any]:
    """The row of "Metadata" of a program on so many cores of a chip."""
    core = chip.core
    row: dict[str, Any] = {
        "profile_schema_version": VERSION,
        "is_simulation": True,
        "num_physical_cores": cores,
        "vnc_enabled": cores > 1,
        "first_hw_timestamp": start_ps // 1000,
        "last_hw_timestamp": end_ps // 1000,
        "first_ts": str(np.datetime64(start_ps // 1000, "ns")),
        "last_ts": str(np.datetime64(end_ps // 1000, "ns")),
        "dma_ddr_bandwidth": float(core.dma.peak_bytes_per_s),
        "num_dma_engines_per_neuroncore": int(core.dma.count),
        "hbm_ddr_bandwidth": float(chip.hbm_stack_bandwidth_bytes_per_s),
        "tensor_engine_num_rows": int(core.tensor.rows),
        "tensor_engine_num_cols": int(core.tensor.columns),
        "tensor_engine_clock_freq": core.tensor.clock_hz / 1e9,
        "neuroncore_clock_freq": core.tensor.clock_hz / 1e9,
        "ticks_per_nanosec": 1000,
        "profile_name": name,
    }
    for name in ("vector", "scalar", "gpsimd"):
        row[f"{name}_engine_clock_freq"] = getattr(core, name).clock_hz / 1e9
        row[f"{name}_engine_num_channels"] = int(core.partitions)
    return row


def warnings(tables: Tables, left_out: int, of: int) -> Rows:
    """What a reader of the tables has to know."""
    found = ["simulated, not measured; columns that a simulation has no value for are null"]
    if left_out:
        found.append(f"{left_out:,} of {of:,} instructions and transfers are not in the tables")
    transfers = tables["DmaPacketAggregated"]
    packets = sum(row["packets"] for row in transfers if isinstance(row, dict))
    if packets > MAX_PACKETS:
        found.append(f"{packets:,} packets: a row is all packets of a transfer on one engine")
    return [{"message": message, "category": "Missing Data"} for message in found]


def _table(name: str, rows: Rows | Columns) -> "pyarrow.Table":
    """Rows as an Arrow table with the columns that the schema gives it."""
    fields, arrays, length = [], [], _length(rows)
    filled = set(rows) if isinstance(rows, dict) else {key for row in rows for key in row}
    for column in TABLES[name]:
        kind = pyarrow.list_(pyarrow.int64()) if column.type == "list" else column.type
        kind = {"double": pyarrow.float64(), "int64": pyarrow.int64(), "int32": pyarrow.int32(),
                "string": pyarrow.string(), "bool": pyarrow.bool_()}.get(kind, kind)  # fmt: skip
        fields.append(pyarrow.field(column.name, kind, nullable=not column.required))
        if column.name not in filled:
            arrays.append(pyarrow.nulls(length, kind))
        elif isinstance(rows, dict):
            arrays.append(pyarrow.array(rows[column.name], kind))
        else:
            arrays.append(pyarrow.array([_plain(row.get(column.name)) for row in rows], kind))
    return pyarrow.Table.from_arrays(arrays, schema=pyarrow.schema(fields))


def _plain(value: Any) -> Any:
    """Without the memory that a figure of the machine has."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return int(value) if isinstance(value, int) else float(value)
