"""The datasheet of a machine: every number in it as a row, and the machine with one changed.

A path names a number from the machine down: `tensor.clock_hz` of a core,
`chip.core.vector.elements_per_cycle[4x]` of a topology.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from .core import NeuronCore
from .figure import Figure, Table, unit_of_name
from .topology import Topology

_Machine = TypeVar("_Machine")
_SEGMENT = re.compile(r"\.?(\w+)|\[([^\[\]]+)\]")


@dataclass(frozen=True)
class Row:
    """One number of a machine."""

    path: str
    """Where it is in the machine."""

    value: float
    """What it is: an `int`, a `float`, or a `bool` where the unit is "flag"."""

    unit: str
    """What it counts; of a plain number, what the name of its field promises, or nothing."""

    confidence: str
    """As of a `Figure`; "own" for a plain number, which the user put there or asked for; "derived"
    for what follows from others."""

    source: str
    """As of a `Figure`; how it follows for a derived number; empty for an own one."""

    low: float
    """Lowest plausible value."""

    high: float
    """Highest plausible value."""


def rows(machine: object) -> Iterator[Row]:
    """Every number in a topology, a chip, a core, or any other frozen dataclass, in the order of
    the fields. Names and what is None are left out.

    >>> from jax_trn3.hardware import NEURON_CORE_V4
    >>> row = next(row for row in rows(NEURON_CORE_V4) if row.path == "tensor.clock_hz")
    >>> row.value, row.unit, row.confidence
    (2400000000, 'Hz', 'published')
    """
    return _rows(machine, "")


def _rows(value: object, path: str) -> Iterator[Row]:
    for segment, child in _children(value):
        yield from _rows(child, path + segment if path else segment.removeprefix("."))
    if isinstance(value, Figure):
        yield _figure_row(value, path)
    elif isinstance(value, int | float):
        unit = "flag" if isinstance(value, bool) else unit_of_name(_field(path)) or ""
        yield Row(path, value, unit, "own", "", value, value)


def _children(value: object) -> Iterator[tuple[str, object]]:
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield f".{field.name}", getattr(value, field.name)
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield f"[{key}]", child
    elif isinstance(value, tuple):
        for index, child in enumerate(value):
            yield f"[{index}]", child


def _figure_row(figure: Any, path: str) -> Row:
    plain = float(figure) if isinstance(figure, float) else int(figure)
    value = bool(plain) if figure.unit == "flag" else plain
    return Row(path, value, figure.unit, figure.confidence, figure.source, figure.low, figure.high)


def _field(path: str) -> str:
    """The last field in a path: what its name says of units holds for keys and indices, too."""
    return re.sub(r"\[[^\[\]]*\]", "", path).rpartition(".")[2]


def extrapolated_figures(machine: object) -> tuple[Row, ...]:
    """The numbers nobody published for this generation, each with its band: what a sensitivity
    report varies."""
    return tuple(row for row in rows(machine) if row.confidence == "extrapolated")


def with_figure(machine: _Machine, path: str, value: float) -> _Machine:
    """The machine with another number at a path; what is derived from it follows.

    **Arguments:**

    - `machine`: A topology, a chip, a core, or any other frozen dataclass.
    - `path`: As in a `Row`.
    - `value`: The number. Where an `int` stands it must be a whole one.

    **Raises:** `ValueError` for a path that leads to no number, naming the nearest ones, and for
    a fraction where a whole number stands.

    >>> from jax_trn3.hardware import NEURON_CORE_V4
    >>> with_figure(NEURON_CORE_V4, "sbuf_partition_bytes", 512 * 1024).sbuf_bytes // 1024**2
    64
    """
    known = {row.path: row for row in rows(machine)}
    if path not in known:
        near = difflib.get_close_matches(path, known, n=3, cutoff=0.0)
        raise ValueError(f"no number at {path!r}; the nearest: {', '.join(near)}")
    if isinstance(known[path].value, int):
        if value != int(value):
            raise ValueError(f"{path} is a whole number ({known[path].value}), not {value!r}")
        value = int(value)
    if known[path].unit == "flag":
        value = bool(value)
    segments = [name or key for name, key in _SEGMENT.findall(path)]
    return _replace(machine, segments, value)


def _replace(value: Any, segments: list[str], new: float) -> Any:
    if not segments:
        return new
    first, *rest = segments
    if isinstance(value, Mapping):
        return Table({**value, first: _replace(value[first], rest, new)})
    if isinstance(value, tuple):
        index = int(first)
        return (*value[:index], _replace(value[index], rest, new), *value[index + 1 :])
    return dataclasses.replace(value, **{first: _replace(getattr(value, first), rest, new)})


def derived(topology: Topology) -> Iterator[Row]:
    """What follows from the numbers of a topology: sizes, peaks and totals, with how."""
    chip, core = topology.chip, topology.chip.core
    yield _derived("chip.core.sbuf_bytes", core.sbuf_bytes, "bytes", "all partitions")
    yield _derived("chip.core.psum_bytes", core.psum_bytes, "bytes", "all partitions")
    for kind in _matmul_kinds(core):
        path = f"chip.core.tensor.peak_flops[{kind}]"
        how = "2 x rows x columns x clock x depth / passes"
        yield _derived(path, core.peak_flops(kind), "FLOP/s", how)
    dma = core.dma
    yield _derived("chip.core.dma.peak_bytes_per_s", dma.peak_bytes_per_s, "bytes/s", "all engines")
    practical = dma.practical_bytes_per_s
    how = "all engines with full packets"
    yield _derived("chip.core.dma.practical_bytes_per_s", practical, "bytes/s", how)
    stack = chip.hbm_stack_bandwidth_bytes_per_s
    how = "even share of a stack"
    yield _derived("chip.hbm_stack_bandwidth_bytes_per_s", stack, "bytes/s", how)
    yield _derived("chip.hbm_bytes_per_core", chip.hbm_bytes_per_core, "bytes", "even share")
    yield _derived("chip.sbuf_bytes", chip.sbuf_bytes, "bytes", "all cores")
    yield from _totals(topology)


def _totals(topology: Topology) -> Iterator[Row]:
    server, servers = topology.server, topology.num_servers
    bandwidth = topology.hbm_bandwidth_bytes_per_s
    yield _derived("num_servers", servers, "servers", "chips / chips a server")
    yield _derived("num_devices", topology.num_devices, "devices", "cores / LNC")
    yield _derived("hbm_bytes", topology.hbm_bytes, "bytes", "all devices")
    yield _derived("hbm_bandwidth_bytes_per_s", bandwidth, "bytes/s", "all chips")
    for kind in _matmul_kinds(topology.chip.core):
        yield _derived(f"peak_flops[{kind}]", topology.peak_flops(kind), "FLOP/s", "all cores")
    for kind in topology.chip.published_peak_flops:
        peak, how = topology.published_peak_flops(kind), "all chips as AWS gives them"
        yield _derived(f"published_peak_flops[{kind}]", peak, "FLOP/s", how)
    if topology.power_w is not None:
        yield _derived("power_w", topology.power_w, "W", "all chips, without hosts and network")
    yield _derived("host_vcpus", servers * server.host_vcpus, "vCPUs", "all servers")
    memory, efa = servers * server.host_memory_bytes, servers * server.efa_bytes_per_s
    yield _derived("host_memory_bytes", memory, "bytes", "all servers")
    yield _derived("efa_bytes_per_s", efa, "bytes/s", "all servers")


def _matmul_kinds(core: NeuronCore) -> list[str]:
    return [kind for kind in core.tensor.passes if not kind.startswith("transpose")]


def _derived(path: str, value: float, unit: str, how: str) -> Row:
    return Row(path, value, unit, "derived", how, value, value)
