"""The clock once more, slow and obvious: every instruction is compared with every one before it.

Shares nothing with `jax_trn3.simulator` but the cost of an instruction. What it repeats are the
rules that `clock.py` states, not its bookkeeping: no cells, no rotation, no extrapolation.
"""

import math
from dataclasses import dataclass
from typing import Any

from jax_trn3.hardware import Chip
from jax_trn3.isa import Access, Instruction
from jax_trn3.simulator import Loop, Program


@dataclass
class Step:
    """One run of one instruction."""

    instruction: Instruction
    reads: list[tuple[Any, ...]]
    writes: list[tuple[Any, ...]]
    before: list["Step"]
    rank: int = 0
    ready_rank: int = 0
    times: tuple[int, int, int, int] | None = None


def reference(program: Program, chip: Chip) -> list[tuple[int, int, int, int]]:
    """(issued, start, free, done) of every run, ps, in program order."""
    steps: list[Step] = []
    clock = _Reference(chip)
    for instruction, indices in _instances(program.body, {}):
        step = Step(instruction, *_boxes(instruction, indices), before=[])
        step.before = [s for s in steps if _must_wait(step, s)]
        steps.append(step)
        clock.add(step)
    while clock.pending:
        clock.serve()
    return [step.times for step in steps]  # type: ignore[misc]


def _instances(nodes: Any, indices: dict[int, int]) -> Any:
    for node in nodes:
        if isinstance(node, Loop):
            for k in range(node.count.at(indices)):
                yield from _instances(node.body, {**indices, node.id: k})
        else:
            yield node, dict(indices)


def _boxes(instruction: Instruction, indices: dict[int, int]) -> tuple[list[Any], list[Any]]:
    reads: list[Any] = []
    writes: list[Any] = []
    for name, access in instruction.operands:
        role = next(o.role for o in instruction.spec.operands if o.name == name)
        slots = {
            (access.slot.at(indices) + k) % access.tile.slots for k in range(access.slot_count)
        }
        (reads if role == "read" else writes).append((access.tile, slots, _span(access)))
    return reads, writes


def _span(access: Access) -> list[tuple[int, int]]:
    return [
        (first, first + (size - 1) * step + 1)
        for first, size, step in zip(access.start, access.size, access.step)
    ]


def _meet(one: Any, other: Any) -> bool:
    return (
        one[0] == other[0]
        and bool(one[1] & other[1])
        and all(a < d and c < b for (a, b), (c, d) in zip(one[2], other[2]))
    )


def _ports(step: Step, mode: str) -> Any:
    """What Trainium2 and 3 have once for two engines; the program has one tile in PSUM, at byte 0."""
    engine, accesses = step.instruction.engine, step.reads + step.writes
    wide = engine == "gpsimd" or (engine == "vector" and mode in ("2x", "4x"))
    if wide and any(tile.memory == "sbuf" for tile, _, _ in accesses):
        yield "bus"
    for tile, slots, _ in accesses:
        if tile.memory == "psum" and engine in ("vector", "scalar"):
            yield from {f"bank {slot * tile.shape[1] * 4 // 2048}" for slot in slots}


def _is_transfer(step: Step) -> bool:
    return step.instruction.engine.startswith("dma")


def _any(some: list[Any], others: list[Any]) -> bool:
    return any(_meet(a, b) for a in some for b in others)


def _must_wait(step: Step, earlier: Step) -> bool:
    return (
        _any(step.reads, earlier.writes)
        or _any(step.writes, earlier.reads)
        or _any(step.writes, earlier.writes)
    )


class _Reference:
    def __init__(self, chip: Chip) -> None:
        self.chip, self.core = chip, chip.core
        self.free: dict[Any, int] = {}
        self.rank: dict[str, int] = {}
        self.pending: list[tuple[int, int, Step]] = []
        self.count = 0
        self.load_free = 0
        self.multiplied: list[tuple[int, int, int]] = []
        """(ready, work, slow work) of each matmul."""

    def add(self, step: Step) -> None:
        engine = step.instruction.engine
        ready = max([self.rank.get(engine, 0), *(s.rank for s in step.before)])
        if engine.startswith("dma"):
            self.rank[engine] = ready + 1
            step.ready_rank, step.rank = ready, ready + 16
            self.pending.append((ready, self.count, step))
            if len(self.pending) > 1024:
                self.serve()
        else:
            step.rank = self.rank[engine] = ready + 1
            self._compute(step)
        self.count += 1

    def serve(self) -> None:
        first = min(self.pending, key=lambda p: p[:2])
        self.pending.remove(first)
        self._transfer(first[2])

    def _ready(self, step: Step) -> int:
        """When everything that an instruction waits for is over."""
        ready = 0
        for other in step.before:
            while other.times is None:
                self.serve()
            _, _, free, done = other.times
            if _any(step.reads, other.writes):
                ready = max(ready, done)
            if _any(step.writes, other.reads):
                ready = max(ready, free)
            # An engine writes in order; a queue's transfers go through several DMA engines.
            own = other.instruction.engine == step.instruction.engine
            in_order = own and not _is_transfer(step)
            if _any(step.writes, other.writes) and not in_order:
                ready = max(ready, done)
        return ready

    def _compute(self, step: Step) -> None:
        instruction = step.instruction
        work = instruction.spec.cost(instruction, self.core)
        engine = getattr(self.core, instruction.engine)
        issued = self.free.get(instruction.engine, 0)

        def ps(cycles: float) -> int:
            return -(-math.ceil(cycles) * 10**12 // int(engine.clock_hz))

        busy, latency = ps(work.cycles), ps(engine.latency_cycles)
        ready = self._ready(step)
        if instruction.engine == "tensor":
            start, over = self._multiply(step, ready, busy, ps(work.load_cycles))
        else:
            ports = list(_ports(step, work.mode))
            start = max([issued, ready, *(self.free.get(port, 0) for port in ports)])
            over = start + busy
            self.free.update(dict.fromkeys(ports, over))
        self.free[instruction.engine] = over
        step.times = (issued, start, over, over + latency)

    def _multiply(self, step: Step, ready: int, busy: int, load: int) -> tuple[int, int]:
        weights = [step.reads[0]]
        arrived = max(
            [s.times[3] for s in step.before if s.times and _any(weights, s.writes)], default=0
        )
        loaded = max(self.load_free, arrived) + load
        ready = max(ready, arrived + load)
        start = max(ready, loaded, self.free.get("tensor", 0))
        self.load_free = start
        tensor = self.core.tensor
        slow = max(busy, math.ceil(busy / tensor.throttle_speed))
        self.multiplied.append((ready, busy, slow))
        lost = int(tensor.throttle_ramp_ns * 1000 * (1 - tensor.throttle_speed))
        until = int(tensor.throttle_ramp_ns * 1000 * tensor.throttle_speed)
        over = start + busy
        fast = crawl = 0
        for when, work, slowly in reversed(self.multiplied):
            fast, crawl = fast + work, crawl + slowly
            over = max(over, when + (crawl if fast <= until else fast + lost))
        return start, over

    def _transfer(self, step: Step) -> None:
        instruction, free = step.instruction, self.free
        dma = instruction.spec.cost(instruction, self.core).dma
        assert dma is not None
        issued = max(free.get(instruction.engine, 0), self._ready(step))
        free[instruction.engine] = issued + math.ceil(dma.issue_ns * 1000)
        ready = issued + math.ceil(dma.latency_ns * 1000)
        share = self.chip.hbm_bandwidth_bytes_per_s / self.chip.hbm_stacks
        start = max(ready, free.get("hbm", 0))
        hbm_bytes = dma.bytes_read_hbm + dma.bytes_written_hbm
        over = free["hbm"] = start + math.ceil(hbm_bytes * 1e12 / share)
        begins = []
        for k, busy in enumerate(dma.engine_ps):
            if busy:
                begin = max(start, free.get(k, 0))
                free[k] = begin + busy
                begins.append(begin)
                over = max(over, free[k])
        first = min(begins, default=start)
        step.times = (issued, first, over, over)
