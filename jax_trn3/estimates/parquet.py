"""An estimate as Parquet tables in Neuron Explorer's own schema: a directory, a file a table.

"HloInstruction" and "FrameworkInstruction" have a row for each operation of the program, of all its
runs together; "CcOp" one for each run of a collective. "Instruction" and the tables of transfers
hold a window of the run, of a loop one iteration (`placed.py`); "raw_hlo_id" leads from them to the
operation. "Summary" is of one device and the whole run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_trn3.profiler import MAX_RUNS, figures
from jax_trn3.profiler.parquet import metadata, total_rows, warnings, write_tables
from jax_trn3.profiler.parquet_rows import Named, Rows, run_tables

from .json_view import neuron_summary
from .placed import Placed, instructions, placed
from .result import Estimate

_MAX_INTERVALS = 1000
"""Runs of an operation that its row lists one by one. Of more, it has the whole as one interval."""


def write(estimate: Estimate, path: str | Path, window_ps: tuple[int, int] | None = None) -> None:
    """Writes an estimate as Parquet tables into the directory `path`.

    **Arguments:**

    - `window_ps`: Part of the run whose engine instructions to show; None is from the start on, as
      many as `profiler.MAX_RUNS`.

    **Raises:** `ValueError` for a window that is empty or has more, and for a `path` that holds
    something else than tables.
    """
    shown, left_out = instructions(estimate, window_ps)
    tops = placed(estimate.schedule)
    places = [place for top in tops for place in top.walk() if place.step.inner is None]
    numbers = {id(place.step): number for number, place in enumerate(places)}
    tables = run_tables([(part.runs, _named(part.place, numbers)) for part in shown])
    stacks = {name: k for k, name in enumerate(dict.fromkeys(p.step.source.name for p in places))}
    operations = [_operation(place, k, stacks) for k, place in enumerate(places)]
    tables["HloInstruction"] = operations
    tables["FrameworkInstruction"] = [
        {**row, "framework_name": place.step.source.name or None}
        for row, place in zip(operations, places)
    ]
    tables["CcOp"] = _collectives(places)
    tables["Summary"] = [{**neuron_summary(estimate), "total_row_count": total_rows(tables)}]
    chip, end = estimate.topology.chip, estimate.schedule.time_ps
    tables["Metadata"] = [metadata(estimate.name, chip, int(estimate.topology.lnc), 0, end)]
    tables["Warning"] = warnings(tables, left_out, estimate.cost.instructions) + _warnings(estimate)
    write_tables(tables, path)


def _named(place: Placed, numbers: Mapping[int, int]) -> Named:
    source = place.step.source
    timed = place.step.timed
    kernel = timed is not None and timed.plan.authored
    return Named(_name(place), numbers[id(place.step)], source.name, str(source), kernel)


def _name(place: Placed) -> str:
    return place.step.source.name.rpartition("/")[2] or place.step.name


def _operation(place: Placed, number: int, stacks: Mapping[str, int]) -> dict[str, Any]:
    """The row of an operation, all its runs together."""
    cost, times = place.step.cost, place.times
    spans = _intervals(place, _MAX_INTERVALS)
    moved = cost.hbm_bytes * times
    row: dict[str, Any] = {
        "id": number,
        "raw_hlo_id": number,
        "raw_framework_id": stacks[place.step.source.name],
        "hlo_name": _name(place),
        "start_ts": spans[0][0],
        "end_ts": spans[-1][1],
        "time_intervals": str([list(span) for span in spans]),
        "hbm_transfer_size_per_interval": [moved // len(spans)] * len(spans),
        "hbm_read_bytes": cost.hbm_read_bytes * times,
        "hbm_write_bytes": cost.hbm_write_bytes * times,
    }
    timed = place.step.timed
    if timed is not None:
        runs = times * timed.plan.repeat
        accessed = figures.access_bytes(timed.timeline)
        for name in ("sbuf_read_bytes", "sbuf_write_bytes"):
            row[name] = accessed[name] * runs
        for lane, spent in timed.timeline.engines.items():
            name = f"{lane.partition('/')[2]}_engine_instruction_count"
            row[name] = row.get(name, 0) + spent.instructions * runs
    return row


def _intervals(place: Placed, most: int) -> list[tuple[int, int]]:
    """(start, end) of every run of an operation, ns; where there are more than `most`, from the
    first to the last."""
    time = place.step.time_ps
    if place.times > most:
        last = place.start_ps + sum((count - 1) * pace for count, pace in place.around)
        return [(place.start_ps // 1000, (last + time) // 1000)]
    starts = [place.start_ps]
    for count, pace in reversed(place.around):
        starts = [start + k * pace for k in range(count) for start in starts]
    return [(start // 1000, (start + time) // 1000) for start in starts]


def _collectives(places: Sequence[Placed]) -> Rows:
    """A row for each run of a collective; for all its runs, where they are too many."""
    found: Rows = []
    for number, place in enumerate(places):
        if place.step.kind != "collective":
            continue
        name = "".join(word.capitalize() for word in place.step.name.split("_"))
        row = {
            "operation": name,
            "algorithm": place.step.algorithm,
            "op_id": number,
            "stream_id": 0,
            "stream_index": 0,
        }
        for start, end in _intervals(place, MAX_RUNS):
            found.append({**row, "start_ts": start, "end_ts": end, "duration_ns": end - start})
    return sorted(found, key=lambda row: int(row["start_ts"]))


def _warnings(estimate: Estimate) -> Rows:
    """What the estimate has to say."""
    found = [("Assumption", text) for text in estimate.assumptions]
    found += [("Unsupported", f"{what} ({source})") for what, source in estimate.lacks]
    if not estimate.fits:
        needed, there = estimate.peak_hbm_bytes, estimate.hbm_capacity_bytes
        found.append(("Memory", f"needs {needed:,} bytes of HBM; a device has {there:,}"))
    return [{"category": category, "message": message} for category, message in found]
