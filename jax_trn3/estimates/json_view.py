"""An estimate as JSON, for programs, and for the other views of a saved one.

The document's schema is the `TypedDict` classes here: their fields are its keys, whose ends say the
unit. `version` counts changes that break a reader; keys may be added without. Everything is of one
device and one run unless it says otherwise.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from jax_trn3.compiler.timing.graph import Source
from jax_trn3.compiler.timing.residency import Resident
from jax_trn3.hardware.datasheet import Row

from .result import Estimate, Line

SCHEMA = "jax-trn3 estimate"
VERSION = 1


class MeshAxis(TypedDict):
    """An axis of the device mesh; the last one changes fastest."""

    name: str
    size: int


class Time(TypedDict):
    """How long it all takes."""

    total_ps: int
    """Start and stop included."""

    program_ps: int
    """Without them: what the operations' `time_ps` add up to."""

    start_and_stop_ps: int


class EngineRow(TypedDict):
    """How long an engine works: "tensor", "vector", "scalar", "gpsimd", "sync"; "dma" is the
    busiest of the DMA engines and HBM, "links" the collectives."""

    name: str
    busy_ps: int
    utilization_fraction: float
    """Of the total time."""


class Place(TypedDict):
    """Where a person wrote it."""

    origin: str
    """ "file:line", or what else is known of it."""

    file: str
    line: int
    function: str
    jax_name: str
    """JAX's name stack."""


class OperationRow(TypedDict):
    """What all runs of the operations of one kind that come from one source line do."""

    kind: str
    """ "compute", "collective", or "loop": a loop's condition."""

    name: str
    """The compiler's rule; of a collective with its algorithm."""

    place: Place
    runs: int
    time_ps: int
    """What it adds to the program's time; what overlaps counts nothing."""

    busy_ps: int
    """How long it runs, overlapped or not."""

    bound: str
    """The engine that works longest in it."""

    engines_ps: dict[str, int]
    model_flops: int
    hardware_flops: int
    hbm_read_bytes: int
    hbm_write_bytes: int
    dma_bytes: int
    instructions: int
    link_bytes: dict[str, int]
    """Over the busiest link of each kind."""


class ResidentRow(TypedDict):
    """A value in HBM when most is there."""

    value_bytes: int
    shape: list[int]
    dtype: str
    what: str
    place: Place


class Memory(TypedDict):
    """HBM of a device."""

    peak_bytes: int
    capacity_bytes: int
    fits: bool
    largest: list[ResidentRow]


class Machine(TypedDict):
    """All chips that the program's devices lie on."""

    chips: int
    energy_j: float | None
    """Of one run; null where no power is published."""

    tokens: int | None
    """That one run handles, if somebody said so; else what follows is null, too."""

    tokens_per_s: float | None
    tokens_per_s_per_mw: float | None


class Lack(TypedDict):
    """Something that the hardware has no instruction for."""

    what: str
    place: Place


class Constant(TypedDict):
    """A number of the machine that nobody published for this generation."""

    path: str
    value: float
    unit: str
    low: float
    high: float


class Document(TypedDict):
    """The whole."""

    schema: str
    version: int
    program: str
    topology: str
    chip: str
    core: str
    lnc: int
    devices: int
    mesh: list[MeshAxis]
    time: Time
    summary: dict[str, float]
    """Neuron Explorer's summary metrics, by its names and in its units (seconds; "percent" is a
    fraction of 1). The peak of MFU and HFU is that of each product's own precision; MBU is of the
    device's share of HBM."""

    bound: str
    """What it is nearest to being bound by, a key of `bounds_s`."""

    slack: float
    """Time over that bound: 1 is as fast as it could be."""

    bounds_s: dict[str, float]
    """What each part of the machine needs by itself, the longest first."""

    engines: list[EngineRow]
    operations: list[OperationRow]
    """The longest first. Their counts and bytes add up to the program's."""

    instructions: int
    dma_bytes: int
    link_bytes: dict[str, int]
    memory: Memory
    machine: Machine
    assumptions: list[str]
    lacks: list[Lack]
    extrapolated: list[Constant]
    """Of the parts of the machine that the program keeps busy."""


def write(estimate: Estimate, path: str | Path, window_ps: tuple[int, int] | None = None) -> None:
    """Writes an estimate as JSON.

    **Raises:** `ValueError` for a window: JSON shows no instructions.
    """
    if window_ps is not None:
        raise ValueError(f"{path}: JSON shows no instructions, so it has no window of them")
    save_document(document(estimate), path)


def save_document(found: Document, path: str | Path) -> None:
    """Writes a document."""
    Path(path).write_text(json.dumps(found, indent=1) + "\n")


def read(path: str | Path) -> Document:
    """A document that was written.

    **Raises:** `ValueError` for a file that holds something else, or another version of it.
    """
    try:
        found = json.loads(Path(path).read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    name = (found.get("schema"), found.get("version")) if isinstance(found, dict) else None
    if name != (SCHEMA, VERSION):
        what = f"is a {name[0]!r} of version {name[1]}" if name and name[0] else "is something else"
        raise ValueError(f"{path} {what}; this reads version {VERSION} of {SCHEMA!r}")
    return found


def document(estimate: Estimate, tokens: int | None = None) -> Document:
    """An estimate as what `json.dumps` takes.

    **Arguments:**

    - `tokens`: That one run handles, on all devices together.

    **Raises:** `ValueError` for a number of tokens below 1.
    """
    if tokens is not None and tokens < 1:
        raise ValueError(f"a run of {tokens} tokens: at least 1")
    topology, cost = estimate.topology, estimate.cost
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "program": estimate.name,
        "topology": topology.name,
        "chip": topology.chip.name,
        "core": topology.chip.core.name,
        "lnc": int(topology.lnc),
        "devices": estimate.num_devices,
        "mesh": [{"name": name, "size": size} for name, size in estimate.mesh.axes],
        "time": {
            "total_ps": estimate.time_ps,
            "program_ps": estimate.schedule.time_ps,
            "start_and_stop_ps": estimate.time_ps - estimate.schedule.time_ps,
        },
        "summary": neuron_summary(estimate),
        "bound": estimate.bound,
        "slack": float(estimate.slack),
        "bounds_s": {name: float(seconds) for name, seconds in estimate.bounds.items()},
        "engines": [
            {"name": name, "busy_ps": int(busy), "utilization_fraction": busy / estimate.time_ps}
            for name, busy in cost.engines.items()
        ],
        "operations": [_operation(line) for line in estimate.by_operation()],
        "instructions": int(cost.instructions),
        "dma_bytes": int(cost.dma_bytes),
        "link_bytes": _plain(cost.link_bytes),
        "memory": {
            "peak_bytes": int(estimate.peak_hbm_bytes),
            "capacity_bytes": int(estimate.hbm_capacity_bytes),
            "fits": bool(estimate.fits),
            "largest": [_resident(value) for value in estimate.residency.largest],
        },
        "machine": _machine(estimate, tokens),
        "assumptions": list(estimate.assumptions),
        "lacks": [{"what": what, "place": _place(source)} for what, source in estimate.lacks],
        "extrapolated": [_constant(row) for row in estimate.extrapolated],
    }


def neuron_summary(estimate: Estimate) -> dict[str, float]:
    """The metrics of Neuron Explorer's summary that an estimate has, by its names and in its units
    (tools/neuron-explorer/profile-schema-reference.rst, schema 7.4.0)."""
    cost, seconds = estimate.cost, estimate.time_s
    collectives = [line for line in estimate.lines if line.kind == "collective"]
    communicating = sum(line.busy_ps for line in collectives) / 1e12
    summary: dict[str, float] = {
        "total_time": seconds,
        "total_exec_time": estimate.schedule.time_ps / 1e12,
        "neuroncore_cycle_count": round(seconds * estimate.topology.chip.core.tensor.clock_hz),
        "model_flops": int(cost.flops),
        "hardware_flops": int(cost.hardware_flops),
        "mfu_estimated_percent": float(estimate.mfu),
        "hfu_estimated_percent": float(estimate.hfu),
        "mbu_estimated_percent": float(estimate.mbu),
        "hbm_read_bytes": int(cost.hbm_read_bytes),
        "hbm_write_bytes": int(cost.hbm_write_bytes),
        "dma_transfer_total_bytes": int(cost.dma_bytes),
        "cc_op_count": sum(line.count for line in collectives),
        "cc_op_time": communicating,
        "cc_op_active_time": communicating,  # one after another
        "cc_op_active_time_percent": communicating / seconds,
    }
    for name in ("tensor", "vector", "scalar", "gpsimd", "sync"):
        busy = cost.engines.get(name, 0) / 1e12
        summary[f"{name}_engine_active_time"] = busy
        summary[f"{name}_engine_active_time_percent"] = busy / seconds
    return summary


def _operation(line: Line) -> OperationRow:
    cost = line.cost
    return {
        "kind": line.kind,
        "name": line.name,
        "place": _place(line.source),
        "runs": int(line.count),
        "time_ps": int(line.time_ps),
        "busy_ps": int(line.busy_ps),
        "bound": line.bound,
        "engines_ps": _plain(cost.engines),
        "model_flops": int(cost.flops),
        "hardware_flops": int(cost.hardware_flops),
        "hbm_read_bytes": int(cost.hbm_read_bytes),
        "hbm_write_bytes": int(cost.hbm_write_bytes),
        "dma_bytes": int(cost.dma_bytes),
        "instructions": int(cost.instructions),
        "link_bytes": _plain(cost.link_bytes),
    }


def _machine(estimate: Estimate, tokens: int | None) -> Machine:
    energy = estimate.energy_j
    per_mw = None if tokens is None else estimate.tokens_per_s_per_mw(tokens)
    return {
        "chips": int(estimate.num_chips),
        "energy_j": None if energy is None else float(energy),
        "tokens": tokens,
        "tokens_per_s": None if tokens is None else float(estimate.tokens_per_s(tokens)),
        "tokens_per_s_per_mw": None if per_mw is None else float(per_mw),
    }


def _resident(value: Resident) -> ResidentRow:
    return {
        "value_bytes": int(value.bytes),
        "shape": [int(size) for size in value.shape],
        "dtype": value.dtype,
        "what": value.what,
        "place": _place(value.source),
    }


def _place(source: Source) -> Place:
    return {
        "origin": str(source),
        "file": source.file,
        "line": int(source.line),
        "function": source.function,
        "jax_name": source.name,
    }


def _constant(row: Row) -> Constant:
    return {
        "path": row.path,
        "value": row.value,
        "unit": row.unit,
        "low": float(row.low),
        "high": float(row.high),
    }


def _plain(numbers: Mapping[str, int]) -> dict[str, int]:
    """Without the memory that figures of the machine have."""
    return {name: int(number) for name, number in numbers.items()}
