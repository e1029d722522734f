"""A timeline as JSON, for programs.

The document's schema is the `TypedDict` classes here: their fields are its keys, whose ends say the
unit. `version` counts changes that break a reader; keys may be added without. Times are integer
picoseconds from the start of the first instruction.
"""

import json
from pathlib import Path
from typing import TypedDict

import numpy as np

from jax_trn3.simulator import Timeline
from jax_trn3.simulator.timeline import COLUMNS

from . import figures
from .memory import in_use
from .neuron_explorer import neuron_summary
from .runs import Runs

SCHEMA = "jax-trn3 timeline"
VERSION = 1


class Time(TypedDict):
    """How long it all took."""

    total_ps: int
    """Start and stop included."""

    active_ps: int
    """From the first instruction to the last result."""

    start_and_stop_ps: int


class EngineRow(TypedDict):
    """How an engine spent the total time: busy, waiting and idle add up to it."""

    name: str
    """ "core0/vector"."""

    busy_ps: int
    waiting_ps: int
    idle_ps: int
    instructions: int
    utilization_fraction: float


class ServerRow(TypedDict):
    """A DMA engine, or HBM as the core sees it."""

    name: str
    busy_ps: int
    idle_ps: int
    utilization_fraction: float


class QueueRow(TypedDict):
    """What went through a DMA queue."""

    name: str
    transfers: int
    moved_bytes: int
    in_flight_ps: int
    """From descriptors to last byte, summed over transfers, which overlap."""


class WaitRow(TypedDict):
    """What an engine waited for; the rows of an engine add up to its `waiting_ps`."""

    engine: str
    on: str
    """Engine or queue of what it waited for; its own for weights and shared ports."""

    instruction: str
    """Name of what it waited for; empty for weights and shared ports."""

    waiting_ps: int


class MemoryRow(TypedDict):
    """SBUF or PSUM of a core."""

    memory: str
    core: int
    allocated_partition_bytes: int
    limit_partition_bytes: int
    peak_bytes: int | None
    """Most bytes in use at once, all partitions; null without "runs", or with a part of them."""


class InstructionRow(TypedDict):
    """An instruction of the text, and what its runs add up to. Its number is its place."""

    name: str
    engine: str
    operands: dict[str, str]
    origin: str
    runs: int
    busy_ps: int
    """Of a transfer: from its first byte to its last, summed over runs."""

    waiting_ps: int
    """Of a transfer: from its descriptors to its first byte."""

    flops: int
    """Of one run."""

    dma_bytes: int
    """Of one run."""


class RunColumns(TypedDict):
    """Runs in program order: lists of one length, an entry for each."""

    window_ps: tuple[int, int]
    """Runs issued before its end and done after its start are here."""

    left_out: int
    """Runs that are not here."""

    run: list[int]
    """Its number, counted through the whole program."""

    issued_ps: list[int]
    """Its engine was free for it; of a transfer: its descriptors went out."""

    start_ps: list[int]
    """It started; of a transfer: its first byte moved."""

    free_ps: list[int]
    """Its engine was free again; of a transfer: its last byte had moved."""

    done_ps: list[int]
    """Its result can be used."""

    cause: list[int]
    """Number of the run that it waited for longest; -1 if it waited for none."""

    instruction: list[int]
    """Place in `instructions`."""


class Document(TypedDict):
    """The whole."""

    schema: str
    version: int
    program: str
    chip: str
    core: str
    time: Time
    summary: dict[str, float]
    """Neuron Explorer's summary metrics, by its names and in its units (seconds; "percent" is a
    fraction of 1)."""

    bounds_ps: dict[str, int]
    """What each server has to do, the busiest first: no schedule of the work takes less."""

    engines: list[EngineRow]
    waits: list[WaitRow]
    dma: list[ServerRow]
    queues: list[QueueRow]
    memory: list[MemoryRow]
    throttled_ps: int
    """Time that the tensor engine lost by running at reduced speed."""

    instructions: list[InstructionRow]
    runs: RunColumns | None


def write(timeline: Timeline, path: str | Path, shown: Runs | None = None) -> None:
    """Writes a timeline as JSON, with those runs."""
    indent = 1 if shown is None else None  # columns of runs are long
    Path(path).write_text(json.dumps(document(timeline, shown), indent=indent) + "\n")


def document(timeline: Timeline, shown: Runs | None = None) -> Document:
    """A timeline as what `json.dumps` takes; `shown`: the runs to include one by one."""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "program": timeline.program.name,
        "chip": timeline.chip.name,
        "core": timeline.chip.core.name,
        "time": {
            "total_ps": timeline.time_ps,
            "active_ps": timeline.active_ps,
            "start_and_stop_ps": timeline.overhead_ps,
        },
        "summary": {name: _plain(x) for name, x in neuron_summary(timeline).items()},
        "bounds_ps": {bound.name: bound.busy_ps for bound in figures.bounds(timeline)},
        "engines": [
            {
                "name": spent.name,
                "busy_ps": spent.busy,
                "waiting_ps": spent.waiting,
                "idle_ps": spent.idle,
                "instructions": spent.instructions,
                "utilization_fraction": spent.utilization,
            }
            for spent in timeline.engines.values()
        ],
        "waits": [
            {
                "engine": wait.engine,
                "on": wait.on,
                "instruction": wait.instruction,
                "waiting_ps": wait.time_ps,
            }
            for wait in figures.waits(timeline)
        ],
        "dma": [
            {
                "name": spent.name,
                "busy_ps": spent.busy,
                "idle_ps": spent.idle,
                "utilization_fraction": spent.utilization,
            }
            for spent in timeline.dma.values()
        ],
        "queues": [
            {
                "name": queue.name,
                "transfers": queue.transfers,
                "moved_bytes": queue.bytes,
                "in_flight_ps": queue.in_flight_ps,
            }
            for queue in figures.queues(timeline)
        ],
        "memory": _memory(timeline, shown),
        "throttled_ps": figures.compute(timeline).throttled_ps,
        "instructions": _instructions(timeline),
        "runs": None if shown is None else _runs(shown),
    }


def events_of(found: Document) -> np.ndarray:
    """int64[runs, 6]: the runs of a document as rows of `Timeline.expand`.

    **Raises:** `ValueError` for a document without them, or of another schema or version.
    """
    if (found["schema"], found["version"]) != (SCHEMA, VERSION):
        raise ValueError(
            f"a {found['schema']!r} of version {found['version']}; this reads version {VERSION} of "
            f"{SCHEMA!r}"
        )
    runs = found["runs"]
    if runs is None:
        raise ValueError(f"the document of {found['program']!r} has no runs: write it with them")
    times = (runs["issued_ps"], runs["start_ps"], runs["free_ps"], runs["done_ps"])
    columns = np.array([*times, runs["cause"], runs["instruction"]], np.int64)
    return columns.T.reshape(-1, len(COLUMNS))


def _runs(shown: Runs) -> RunColumns:
    issued, start, free, done, cause, instruction = shown.events.T.tolist()
    return {
        "window_ps": (shown.start_ps, shown.end_ps),
        "left_out": shown.left_out,
        "run": shown.numbers.tolist(),
        "issued_ps": issued,
        "start_ps": start,
        "free_ps": free,
        "done_ps": done,
        "cause": cause,
        "instruction": instruction,
    }


def _memory(timeline: Timeline, shown: Runs | None) -> list[MemoryRow]:
    whole = shown is not None and not shown.left_out
    used = in_use(shown) if whole and shown is not None else {}
    found: list[MemoryRow] = []
    for memory in ("sbuf", "psum"):
        for core, size in figures.allocated(timeline, memory).items():
            level = used.get((memory, core))
            found.append(
                {
                    "memory": memory,
                    "core": core,
                    "allocated_partition_bytes": size,
                    "limit_partition_bytes": figures.limit(timeline, memory),
                    "peak_bytes": None if not whole else int(level.peak) if level else 0,
                }
            )
    return found


def _instructions(timeline: Timeline) -> list[InstructionRow]:
    busy, waiting = timeline.total("start", "free"), timeline.total("issued", "start")
    found: list[InstructionRow] = []
    for number, instruction in enumerate(timeline.instructions):
        dma = timeline.work[number].dma
        found.append(
            {
                "name": instruction.name,
                "engine": timeline.lanes[number],
                "operands": {name: str(access) for name, access in instruction.operands},
                "origin": str(instruction.origin),
                "runs": int(timeline.executions[number]),
                "busy_ps": int(busy[number]),
                "waiting_ps": int(waiting[number]),
                "flops": int(timeline.work[number].flops),
                "dma_bytes": 0 if dma is None else int(dma.bytes),
            }
        )
    return found


def _plain(value: float) -> float:
    """Without the memory that a figure of the machine has."""
    return int(value) if isinstance(value, int) else float(value)
