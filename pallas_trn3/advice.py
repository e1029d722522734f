"""What to change in a kernel, by rules on the figures of its timeline.

Each rule looks at one thing that costs time, and speaks where it costs a share worth mentioning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jax_trn3.isa import Instruction, Tile
from jax_trn3.profiler import figures
from jax_trn3.profiler.units import duration, percent, size
from jax_trn3.simulator import Timeline

_WORTH = 0.1
"""Share of the time from which on something is mentioned."""

_NEAR = 0.9
"""Share of the time that a bound takes where nothing but less work helps."""


@dataclass(frozen=True)
class Advice:
    """Something to change."""

    what: str
    why: str
    """With the figures that it follows from."""

    share: float
    """Of the time that it is about."""


def advice(timeline: Timeline) -> tuple[Advice, ...]:
    """What to change, what matters most first."""
    found = [said for rule in _RULES for said in rule(timeline)]
    return tuple(sorted(found, key=lambda said: -said.share))


def _whole(timeline: Timeline) -> int:
    return max(1, timeline.active_ps)


def _bound_by_one(timeline: Timeline) -> Iterator[Advice]:
    """An engine that has work all the time: only less work, or others' help, makes it faster."""
    helps = {
        "tensor": "use a faster precision (float8 double-row, MX), or leave products out",
        "vector": "give work to scalar and gpsimd, use bfloat16 where VectorE has a 2x or 4x mode, "
        "or fuse operations into one instruction",
        "scalar": "give copies and sums to vector, take exponentials with pltrn.exponential",
        "gpsimd": "give work to vector; GpSimdE takes a cycle or more for each element",
        "dma": "move less: keep in SBUF what is used again, or narrower types",
        "hbm": "move less: keep in SBUF what is used again, or narrower types",
    }
    for bound in figures.bounds(timeline)[:1]:
        name = bound.name.partition("/")[2]
        kind = "dma" if name.startswith("dma engine") else name
        share = bound.busy_ps / _whole(timeline)
        if share >= _NEAR and kind in helps:
            yield Advice(
                f"{kind} is at its limit: {helps[kind]}",
                f"{kind} works {duration(bound.busy_ps)}, {percent(share)} of the time",
                share,
            )


def _small_transfers(timeline: Timeline) -> Iterator[Advice]:
    """Transfers that are more overhead than bytes."""
    dma = timeline.chip.core.dma
    costs: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for number, (instruction, work) in enumerate(zip(timeline.instructions, timeline.work)):
        if work.dma is None or instruction.name not in ("dma_copy", "dma_transpose"):
            continue
        runs = int(timeline.executions[number])
        sums = costs[_place(instruction)]
        sums[0] += runs
        sums[1] += runs * max(work.dma.engine_ps, default=0)
        sums[2] += runs * work.dma.packets
        sums[3] += runs * work.dma.bytes
    for place, (runs, busy, packets, moved) in costs.items():
        share = busy / _whole(timeline)
        each = moved / max(1, packets)
        if share >= _WORTH and each < dma.packet_bytes / 4:
            yield Advice(
                f"larger transfers at {place}: let rows that are moved be long and lie next to "
                "each other in HBM",
                f"{runs:,} transfers of {size(each)} a packet ({size(dma.packet_bytes)} fit) keep "
                f"the DMA engines busy for {percent(share)} of the time",
                share,
            )


def _not_ahead(timeline: Timeline) -> Iterator[Advice]:
    """Engines that wait for transfers although DMA and HBM have time to spare."""
    spare = max((d.busy for d in timeline.dma.values()), default=0) / _whole(timeline)
    waited: dict[str, int] = defaultdict(int)
    for wait in figures.waits(timeline):
        if wait.on.partition("/")[2].startswith("dma:"):
            waited[wait.on.partition("/")[2]] += wait.time_ps
    for queue, time in waited.items():
        share = time / _whole(timeline)
        if share < _WORTH or spare >= _NEAR:
            continue
        tiles = _targets(timeline, queue)
        few = [f"{tile.name} ({tile.slots})" for tile in tiles if tile.slots <= 4]
        yield Advice(
            f"load earlier on {queue}: more buffers in rotation"
            + (f" for {', '.join(few)}" if few else "")
            + ", or larger blocks",
            f"engines wait {duration(time)} for its transfers, {percent(share)} of the time, while "
            f"the DMA engines are busy for {percent(spare)}",
            share,
        )


def _targets(timeline: Timeline, queue: str) -> list[Tile]:
    found: dict[str, Tile] = {}
    for instruction in timeline.instructions:
        if instruction.engine == queue and instruction.get("dst") is not None:
            tile = instruction["dst"].tile
            if tile.memory != "hbm":
                found[tile.name] = tile
    return list(found.values())


def _one_sided_evacuation(timeline: Timeline) -> Iterator[Advice]:
    """PSUM emptied by one engine while the other one that could is idle."""
    busy = _by_engine(timeline, _leaves_psum)
    total = sum(busy.values())
    share = total / _whole(timeline)
    for engine, other in (("vector", "scalar"), ("scalar", "vector")):
        own = busy.get(engine, 0)
        spent = timeline.engines.get(f"core0/{other}")
        idle = 1 - (spent.busy / _whole(timeline) if spent else 0)
        if share >= _WORTH and own > 0.8 * total and idle > 0.5:
            yield Advice(
                f"let {other} copy out of PSUM, too",
                f"{engine} does {percent(own / total)} of the copies, {duration(own)}; {other} has "
                f"nothing to do for {percent(idle)} of the time",
                share,
            )


def _leaves_psum(instruction: Instruction) -> bool:
    if instruction.name not in ("tensor_copy", "activation"):
        return False
    source = instruction.get("src") or instruction.get("data")
    plain = instruction.name == "tensor_copy" or instruction.get("op") == "copy"
    return plain and source is not None and source.memory == "psum"


def _transposes(timeline: Timeline) -> Iterator[Advice]:
    """Transposes on the tensor engine."""
    busy = _by_engine(timeline, _is_transpose).get("tensor", 0)
    share = busy / _whole(timeline)
    if share >= _WORTH:
        yield Advice(
            "transpose on the way to SBUF (dma_transpose), or lay operands out with the contracted "
            "dimension first",
            f"transposes keep the tensor engine busy for {duration(busy)}, {percent(share)} of the "
            "time",
            share,
        )


def _is_transpose(instruction: Instruction) -> bool:
    return instruction.name == "nc_transpose" or bool(instruction.get("is_transpose"))


def _short_instructions(timeline: Timeline) -> Iterator[Advice]:
    """Instructions on few elements: what an engine needs for each of them counts."""
    for engine in ("vector", "scalar", "gpsimd"):
        core = getattr(timeline.chip.core, engine)
        least = core.start_cycles + core.min_issue_cycles
        few, busy, runs = 0, 0, 0
        for number, (instruction, work) in enumerate(zip(timeline.instructions, timeline.work)):
            if instruction.engine != engine:
                continue
            count = int(timeline.executions[number])
            busy += int(count * work.cycles)
            if work.cycles <= 1.25 * least:
                few += int(count * work.cycles)
                runs += count
        share = few / core.clock_hz * 1e12 / _whole(timeline)
        if share >= _WORTH:
            yield Advice(
                f"fewer, longer instructions on {engine}: treat several tiles in one",
                f"{runs:,} instructions on {engine} take no longer than the least there is; they "
                f"make up {percent(few / max(1, busy))} of its work, {percent(share)} of the time",
                share,
            )


def _narrow_products(timeline: Timeline) -> Iterator[Advice]:
    """Products that leave most of the array without work."""
    tensor = timeline.chip.core.tensor
    cells = float(tensor.rows * tensor.columns)
    busy = narrow = 0
    place = ""
    for number, (instruction, work) in enumerate(zip(timeline.instructions, timeline.work)):
        if instruction.name not in ("nc_matmul", "nc_matmul_mx") or _is_transpose(instruction):
            continue
        time = int(timeline.executions[number] * work.cycles)
        stationary = instruction["stationary"]
        used = min(1.0, stationary.partitions * min(stationary.free_size, tensor.columns) / cells)
        busy += time
        if used <= 0.5:
            narrow += time
            place = _place(instruction)
    share = narrow / tensor.clock_hz * 1e12 / _whole(timeline)
    if share >= _WORTH:
        yield Advice(
            f"fill the array: 128 of the contracted dimension and 128 columns (at {place})",
            f"{percent(narrow / max(1, busy))} of the products' time is spent with at most half of "
            "the array at work",
            share,
        )


def _in_turn(timeline: Timeline) -> Iterator[Advice]:
    """Nothing is near its limit: engines work one after another."""
    top = max((b.busy_ps for b in figures.bounds(timeline)), default=0) / _whole(timeline)
    if top >= 0.6 or not timeline.num_instructions:
        return
    waits = figures.waits(timeline)
    if waits:
        longest = waits[0]
        on = longest.on.partition("/")[2]
        if on.startswith("dma:"):
            return
        yield Advice(
            "let engines work at the same time: start the next tile before this one is done (tiles "
            "in rotation, a step of the next iteration before the last of this one)",
            f"nothing is busy for more than {percent(top)}; {longest.engine.partition('/')[2]} "
            f"waits {duration(longest.time_ps)} for {longest.instruction or 'itself'} on {on}",
            1 - top,
        )


def _by_engine(timeline: Timeline, wanted: Callable[[Instruction], bool]) -> dict[str, int]:
    """Busy time of some instructions, by engine."""
    busy = timeline.total("start", "free")
    found: dict[str, int] = defaultdict(int)
    for number, instruction in enumerate(timeline.instructions):
        if wanted(instruction):
            found[instruction.engine] += int(busy[number])
    return dict(found)


def _place(instruction: Instruction) -> str:
    origin = instruction.origin
    where = f"{Path(origin.file).name}:{origin.line}" if origin.file else instruction.name
    return f"{origin.operation} ({where})" if origin.operation else where


_RULES: tuple[Callable[[Timeline], Iterator[Advice]], ...] = (
    _bound_by_one, _small_transfers, _not_ahead, _one_sided_evacuation, _transposes,
    _short_instructions, _narrow_products, _in_turn,
)  # fmt: skip
