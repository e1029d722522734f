"""Rows of Neuron Explorer's tables: the instructions, transfers and packets of runs one by one,
what waited for what, and how full SBUF and PSUM are.

An "Instruction" is what a compute engine ran, a "DmaPacketAggregated" a transfer, its "id" the
run's number in the program; both are ends of a "Flow". The simulator knows how long a DMA engine
works for a transfer, not each packet's time: its packets on an engine lie one after another.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jax_trn3.isa import Access, Tile
from jax_trn3.simulator import Timeline
from jax_trn3.simulator.allocation import pitch
from jax_trn3.simulator.timeline import is_queue

from . import figures
from .levels import level
from .memory import Life, lives
from .runs import Runs

Rows = list[dict[str, Any]]
"""A table's rows, by column; what is left out is null."""

Columns = dict[str, np.ndarray]
"""The same by column, for tables that are long."""

Tables = dict[str, Rows | Columns]

MAX_PACKETS = 200_000
"""Packets that are shown one by one. Of more, a row is all of a transfer's on one engine."""

_QUEUE_TYPES = {"hwdge": "hardware_dynamic", "swdge": "software_dynamic"}
_OPCODES = {"nc_matmul": "MATMUL", "nc_matmul_mx": "MATMUL", "activation": "ACTIVATE"}


@dataclass(frozen=True)
class Named:
    """The operation of a program that instructions belong to."""

    hlo_name: str
    hlo_id: int
    layer: str
    location: str

    kernel: bool = False
    """Whether its instructions are lines of a kernel's own."""


def run_tables(parts: Sequence[tuple[Runs, Named | None]]) -> Tables:
    """The tables of runs one by one. Several parts are one after another, each number once."""
    tables: dict[str, Rows] = {name: [] for name in _OF_RUNS}
    packets = []
    together = sum(_num_packets(shown) for shown, _ in parts) > MAX_PACKETS
    for shown, named in parts:
        tables["Instruction"] += _instructions(shown, named)
        tables["DmaPacketAggregated"] += _transfers(shown)
        packets.append(_packets(shown, together))
        tables["Flow"] += _flows(shown)
        found = lives(shown)
        tables["SbufUsage"] += _sbuf(shown, found)
        tables["PsumUsage"] += _psum(shown, found)
    _count(tables["Instruction"], "pc", ("pcore_idx", "engine"))
    moved = joined([part for part in packets if part])
    if moved:
        moved["id"] = np.arange(len(moved["start_ts"]))
    return {**tables, "DmaPacket": moved}


_OF_RUNS = ("Instruction", "DmaPacketAggregated", "Flow", "SbufUsage", "PsumUsage")


def _rows(shown: Runs) -> Iterator[tuple[int, int, list[int], int]]:
    """(place, run, row of its times in ns, instruction) of each run."""
    times = (shown.events[:, :4] // 1000).tolist()
    numbers, instructions = shown.numbers.tolist(), shown.events[:, 5].tolist()
    yield from zip(range(len(numbers)), numbers, times, instructions)


def _span(begin: int, end: int) -> dict[str, int]:
    return {"start_ts": begin, "end_ts": end, "duration_ns": end - begin}


def _instructions(shown: Runs, named: Named | None) -> Iterator[dict[str, Any]]:
    timeline = shown.timeline
    texts = [
        None if is_queue(lane) else _text(timeline, number, named)
        for number, lane in enumerate(timeline.lanes)
    ]
    for _, run, (issued, start, free, _), number in _rows(shown):
        text = texts[number]
        if text is not None:
            wait = {"id": run, "evt_wait_time_ns": start - issued}
            yield {**text, **_span(start, free), **wait}


def _text(timeline: Timeline, number: int, named: Named | None) -> dict[str, Any]:
    """What all runs of an instruction of the text have in common."""
    instruction, work = timeline.instructions[number], timeline.work[number]
    origin = instruction.origin
    row: dict[str, Any] = {
        "engine": instruction.engine,
        "timeline_track": timeline.lanes[number],
        "pcore_idx": instruction.core,
        "opcode": _OPCODES.get(instruction.name, instruction.name.upper()),
        "operands": " ".join(f"{name}={access}" for name, access in instruction.operands),
        "compiler_pc": number,
        "bir_id": f"sg0000:{number}",
        "bir_instruction_name": instruction.name,
        "hlo_name": origin.operation or None,
        "bir_debug_info_source_location": f"{origin.file}:{origin.line}" if origin.file else None,
        "hbm_read_bytes": 0,
        "hbm_write_bytes": 0,
        "performance_mode": work.mode if work.mode in ("2x", "4x") else None,
        **figures.accessed_bytes(instruction),
    }
    if instruction.engine == "tensor":
        transposes = not work.flops
        row["tensor_instruction_type"] = "TRANSPOSE" if transposes else "REGULAR"
        row["raw_flops"] = work.hardware_flops
        row["flops_transpose"] = work.hardware_flops if transposes else 0
    if named is not None:
        row["hlo_name"], row["raw_hlo_id"] = named.hlo_name, named.hlo_id
        row["layer"] = named.layer or None
        if named.kernel:
            row["nki_source_location"] = row["bir_debug_info_source_location"]
            row["kernel_instruction_name"] = instruction.name
        row["bir_debug_info_source_location"] = named.location
    return row


def _transfers(shown: Runs) -> Iterator[dict[str, Any]]:
    timeline = shown.timeline
    texts = {
        number: _transfer(timeline, number)
        for number, work in enumerate(timeline.work)
        if work.dma is not None
    }
    for _, run, (issued, start, free, _), number in _rows(shown):
        if number in texts:
            speed = _throughput(texts[number]["transfer_bytes"], free - start)
            yield {
                **texts[number], **_span(start, free), "id": run, "trigger": issued,
                "throughput": speed,
            }  # fmt: skip


def _transfer(timeline: Timeline, number: int) -> dict[str, Any]:
    """What all runs of a transfer have in common."""
    instruction, dma = timeline.instructions[number], timeline.work[number].dma
    assert dma is not None
    queues = sorted({lane for lane in timeline.lanes if is_queue(lane)})
    dst = instruction["dst"]
    sources = [
        access
        for name, access in instruction.operands
        if name.startswith("src") and not name.endswith("_index")
    ]
    read = dma.bytes_read_hbm + sum(s.bytes for s in sources if s.memory != "hbm")
    outside = [s for s in sources if s.memory == "hbm"] or [dst]
    direction = "input" if dma.bytes_read_hbm else "output" if dma.bytes_written_hbm else "data"
    return {
        "pcore_idx": instruction.core,
        "block_id": number,
        "queue_idx": queues.index(timeline.lanes[number]),
        "queue_name": timeline.lanes[number],
        "queue_type": _QUEUE_TYPES.get(dma.mode, direction),
        "op": "write" if dma.bytes_written_hbm and not dma.bytes_read_hbm else "read",
        "variable": outside[0].tile.name,
        "read_bytes": read,
        "write_bytes": dma.bytes_written_hbm or dst.bytes,
        "transfer_bytes": dma.bytes,
        "source": f"[{', '.join(_memory(s.tile) for s in sources)}]",
        "dest": f"[{_memory(dst.tile)}]",
        "read_sbuf_partitions": _partitions(sources),
        "read_num_sbuf_partitions": _num_partitions(sources),
        "read_shape": str([list(s.shape) for s in sources]),
        "write_sbuf_partitions": _partitions([dst]),
        "write_num_sbuf_partitions": _num_partitions([dst]),
        "write_shape": str([list(dst.shape)]),
        "packets": dma.packets,
    }


def _memory(tile: Tile) -> str:
    return {"sbuf": "SB", "psum": "PSUM"}.get(tile.memory, tile.name)


def _partitions(accesses: Sequence[Access]) -> str:
    found = (range(a.start[0], a.start[0] + a.size[0]) for a in accesses if a.memory == "sbuf")
    return figures.ranges({number for numbers in found for number in numbers})


def _num_partitions(accesses: Sequence[Access]) -> int:
    return sum(a.size[0] for a in accesses if a.memory == "sbuf")


def _num_packets(shown: Runs) -> int:
    counts = [0 if work.dma is None else work.dma.packets for work in shown.timeline.work]
    return int(np.array(counts, np.int64)[shown.events[:, 5]].sum())


def _packets(shown: Runs, together: bool) -> Columns:
    """The packets of all transfers, transfer by transfer."""
    parts = []
    for number, shares in shown.timeline.transfers:
        places = np.flatnonzero(shown.events[:, 5] == number)
        if len(places):
            once = _cut_up(shown.timeline, number, shares, together)
            parts.append(_repeated(shown, places, once, _transfer(shown.timeline, number)))
    found = joined(parts)
    order = np.argsort(found.get("packet_aggregation_id", np.empty(0)), kind="stable")
    return {name: column[order] for name, column in found.items()}


def _repeated(shown: Runs, places: np.ndarray, once: Columns, whole: Mapping[str, Any]) -> Columns:
    """The packets of all runs of a transfer, from those of one."""
    many, each = len(places), len(once["begin"])
    starts = shown.events[places, 1][:, None]
    begin, end = (((starts + once[name]) // 1000).ravel() for name in ("begin", "end"))
    found = {name: np.tile(once[name], many) for name in (*_SIZES, "engine_idx")}
    found |= {name: np.full(many * each, whole[name], object) for name in _TEXTS}
    found |= {name: np.full(many * each, whole[name]) for name in ("pcore_idx", "queue_idx")}
    speed = found["transfer_bytes"] / np.maximum(1, end - begin) * 1e9
    return found | {
        "start_ts": begin,
        "end_ts": end,
        "duration_ns": end - begin,
        "packet_idx": np.tile(np.arange(each), many),
        "packet_aggregation_id": np.repeat(shown.numbers[places], each),
        "throughput": speed,
    }


def joined(parts: Sequence[Columns]) -> Columns:
    """The rows of several tables, one after another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts or [{}])[0]}


def _cut_up(
    timeline: Timeline, number: int, shares: Iterable[tuple[str, int]], together: bool
) -> Columns:
    """The packets of a transfer, "begin" and "end" in ps from its first byte. How many an engine
    carries follows from how long it works."""
    whole = _transfer(timeline, number)
    engines = [(int(s.rpartition(" ")[2]), busy) for s, busy in shares if " engine " in s and busy]
    total = max(1, len(engines)) if together else max(1, whole["packets"])
    engines = engines or [(-1, 0)]
    counts = np.diff(_cuts(total, [1 if together else busy for _, busy in engines]))
    ends = [_cuts(busy, [1] * count) for (_, busy), count in zip(engines, counts.tolist())]
    numbers = np.repeat([engine for engine, _ in engines], counts)
    return {
        "begin": np.array([time for times in ends for time in times[:-1]], np.int64),
        "end": np.array([time for times in ends for time in times[1:]], np.int64),
        "engine_idx": numbers if numbers[0] >= 0 else np.full(total, None, object),
        **{key: np.diff(_cuts(whole[key], [1] * total)) for key in _SIZES},
    }


_SIZES = ("read_bytes", "write_bytes", "transfer_bytes")
_TEXTS = ("variable", "queue_name", "queue_type")


def _cuts(whole: int, weights: Sequence[int]) -> list[int]:
    """Where to cut `whole` into pieces of these weights: whole numbers, from 0 to all of it."""
    total, seen, cuts = sum(weights), 0, [0]
    for weight in weights:
        seen += weight
        cuts.append(whole * seen // total if total else 0)
    if weights:
        cuts[-1] = whole
    return cuts


def _throughput(count: int, ns: int) -> float:
    """Bytes a second; of what takes less than a nanosecond as if it took one."""
    return count / max(1, ns) * 1e9


def _flows(shown: Runs) -> Iterator[dict[str, Any]]:
    """From what each run waited for to it."""
    place = {number: k for k, number in enumerate(shown.numbers.tolist())}
    lanes, events = shown.timeline.lanes, shown.events.tolist()
    tables = ["dma_packet_aggregated" if is_queue(lane) else "instruction" for lane in lanes]
    for k, run in enumerate(shown.numbers.tolist()):
        cause = place.get(events[k][4])
        if events[k][4] >= 0 and cause is not None:
            yield {
                "in_id": events[k][4],
                "out_id": run,
                "in_table": tables[events[cause][5]],
                "out_table": tables[events[k][5]],
                "dependency_type": "FLOW_DEPENDENCE",
                "gap_time": events[k][1] // 1000 - events[cause][2] // 1000,
            }


def _sbuf(shown: Runs, found: Sequence[Life]) -> Iterator[dict[str, Any]]:
    """Usage of SBUF: the average, and of four partitions."""
    core = shown.timeline.chip.core
    size = int(core.sbuf_partition_bytes)
    wanted = (0, 32, 64, 96)

    def amounts(life: Life) -> list[float]:
        tile = life.tile
        first = tile.address[0] if tile.address else 0
        covers = range(first, first + tile.partitions)
        share = tile.partition_bytes / size
        average = share * tile.partitions / core.partitions
        return [average, *(share if p in covers else 0.0 for p in wanted)]

    names = ["avg_util_percent", *(f"partition_{p}_util_percent" for p in wanted)]
    return _usage("sbuf", found, names, amounts)


def _psum(shown: Runs, found: Sequence[Life]) -> Iterator[dict[str, Any]]:
    """Usage of PSUM: the average, and of the banks."""
    core = shown.timeline.chip.core
    bank = int(core.psum_bank_bytes)
    banks = int(core.psum_partition_bytes) // bank

    def amounts(life: Life) -> list[float]:
        tile = life.tile
        begin = (tile.address[1] if tile.address else 0) + life.slot * pitch(tile, core)
        end, part = begin + tile.partition_bytes, tile.partitions / core.partitions
        shares = [
            max(0, min(end, (k + 1) * bank) - max(begin, k * bank)) / bank * part
            for k in range(banks)
        ]
        return [sum(shares) / banks, *shares]

    names = ["avg_util_percent", *(f"bank_{k}_util_percent" for k in range(banks))]
    return _usage("psum", found, names, amounts)


def _usage(
    memory: str,
    found: Sequence[Life],
    names: Sequence[str],
    amounts: Callable[[Life], list[float]],
) -> Iterator[dict[str, Any]]:
    """A row for each time that something changes, by core."""
    for core in sorted({life.tile.core for life in found}):
        own = [life for life in found if (life.tile.memory, life.tile.core) == (memory, core)]
        if not own:
            continue
        begins, ends = (np.array([getattr(x, t) for x in own]) for t in ("begin_ps", "end_ps"))
        columns = np.array([amounts(life) for life in own], np.float64).T
        levels = [level(begins, ends, amount) for amount in columns]
        for k, time in enumerate(levels[0].times.tolist()):
            values = {n: max(0.0, float(use.values[k])) for n, use in zip(names, levels)}
            yield {"timestamp": time // 1000, "pcore_idx": core, **values}


def _count(rows: Rows, name: str, by: Sequence[str]) -> None:
    """Numbers the rows that have the same values of some columns."""
    counts: dict[tuple[Any, ...], int] = {}
    for row in rows:
        key = tuple(row[column] for column in by)
        row[name] = counts[key] = counts.get(key, -1) + 1
