"""From instructions to what the clock needs of them: servers, picoseconds and cells.

An instruction whose tiles rotate is decoded once for each place of the rotation, so that the clock
never computes an index.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from jax_trn3.hardware import Chip, NeuronCore
from jax_trn3.isa import Access, Index, Instruction, Semaphore, Work

from .allocation import pitch
from .cells import Cells
from .program import Loop, Node


class Kind(IntEnum):
    """How the clock treats an instruction."""

    PLAIN = 0
    """One engine, nothing else."""

    PORTED = 1
    """One engine and ports that it shares with another."""

    MATMUL = 2
    """The tensor engine: weights are loaded behind the multiplication before."""

    DMA = 3
    """A queue, then the DMA engines."""

    BESIDE = 4
    """The tensor engine, beside the multiplication before (background transposes)."""


class Op(NamedTuple):
    """One instruction at one place of its tiles' rotation."""

    kind: Kind
    server: int
    """The engine, or the queue."""

    occupancy: int
    """Time for which the server takes nothing else, ps."""

    latency: int
    """Time from then on until the result can be used, ps. Of a DMA: before its first byte."""

    reads: tuple[int, ...]
    writes: tuple[int, ...]
    static: int
    """Which instruction of the text it is."""

    extra: Any = None
    """MATMUL: (ps to load, occupancy at throttled speed, cells of the stationary operand).
    BESIDE: the engine it runs beside. PORTED: the ports. DMA: `Transfer`."""

    semaphores: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]] | None = None
    """(semaphore, count) that it waits for, and that it signals."""


class Transfer(NamedTuple):
    """What a DMA asks of the engines behind its queue."""

    engines: tuple[tuple[int, int], ...]
    """(server, ps) of each DMA engine that has a share of it."""

    memory: int
    """Server that stands for the core's share of HBM."""

    memory_ps: int
    """Time that its bytes take there."""

    priority: int
    """Traffic class; lower goes first."""

    least: int
    """Time from its start to its end, at least, ps."""


@dataclass(frozen=True)
class Segment:
    """Instructions of a loop body between two inner loops."""

    instructions: tuple[tuple[int, Instruction], ...]
    """With their numbers in the text."""

    periods: tuple[tuple[int, int], ...]
    """(loop, iterations after which its slots repeat) for each loop that slots depend on."""


@dataclass(frozen=True)
class Body:
    """A loop body, or a program's."""

    parts: tuple["Segment | DecodedLoop", ...]


@dataclass(frozen=True)
class DecodedLoop:
    """A loop, cut into segments."""

    id: int
    count: Index
    body: Body
    period: int
    """Iterations after which every slot in the body is the same again."""

    regular: bool
    """Whether every iteration has the same instructions: no count inside depends on the loop."""


def picoseconds(cycles: float, hz: int) -> int:
    """Whole picoseconds that hold these cycles."""
    return -(-math.ceil(cycles) * 10**12 // int(hz))


class Decoder:
    """Decodes the instructions of one program for one chip."""

    def __init__(self, chip: Chip, hbm_bytes_per_s: float, cells: Cells) -> None:
        self.chip = chip
        self.core: NeuronCore = chip.core
        self.hbm_bytes_per_s = hbm_bytes_per_s
        self.cells = cells
        self.servers: dict[str, int] = {}
        """Number of each server by name, in the order of first use."""
        self.semaphores: dict[Semaphore, int] = {}
        self.instructions: list[Instruction] = []
        """The text: an instruction's place is its number."""
        self.work: list[Work] = []
        self.beside: set[int] = set()
        """Instructions that run beside the one before them on the tensor engine."""
        self.transfers: dict[int, tuple[tuple[tuple[int, int], ...], int, int]] = {}
        """By instruction: ((DMA engine, ps), ...), HBM's server, ps of it."""
        self._ops: dict[tuple[int, tuple[int, ...]], list[Op]] = {}

    def lane(self, number: int) -> str:
        """The engine or queue on which an instruction runs, by name."""
        instruction = self.instructions[number]
        beside = " background" if number in self.beside else ""
        return f"core{instruction.core}/{instruction.engine}{beside}"

    def server(self, name: str) -> int:
        """The number of a server."""
        return self.servers.setdefault(name, len(self.servers))

    def body(self, nodes: Iterable[Node]) -> Body:
        """Cuts a body at its inner loops."""
        parts: list[Segment | DecodedLoop] = []
        straight: list[tuple[int, Instruction]] = []

        def flush() -> None:
            if straight:
                parts.append(Segment(tuple(straight), _periods(i for _, i in straight)))
                straight.clear()

        for node in nodes:
            if isinstance(node, Loop):
                flush()
                parts.append(self._loop(node))
            else:
                number = len(self.instructions)
                self.instructions.append(node)
                self.work.append(node.spec.cost(node, self.core))
                self._pair(straight, number)
                straight.append((number, node))
        flush()
        return Body(tuple(parts))

    def _pair(self, before: list[tuple[int, Instruction]], number: int) -> None:
        """Lets a background transpose run beside the tensor engine's instruction before it, unless
        that one runs beside another itself (trainium3_arch.rst, "background transpose")."""
        if self.work[number].background:
            lane = self.lane(number)
            last = next((n for n, _ in reversed(before) if self.lane(n).startswith(lane)), None)
            if last is not None and last not in self.beside:
                self.beside.add(number)

    def _loop(self, loop: Loop) -> DecodedLoop:
        body = self.body(loop.body)
        periods = [dict(s.periods).get(loop.id, 1) for s in _segments(body)]
        counts = [inner.count for inner in _loops(body)]
        regular = all(loop.id != k for count in counts for k, _ in count.terms)
        return DecodedLoop(loop.id, loop.count, body, math.lcm(*periods), regular)

    def ops(self, segment: Segment, indices: dict[int, int]) -> list[Op]:
        """The segment where the loops around it are in these iterations."""
        phase = tuple(indices[loop] % period for loop, period in segment.periods)
        key = (segment.instructions[0][0], phase)
        if key not in self._ops:
            place = dict(zip((loop for loop, _ in segment.periods), phase))
            self._ops[key] = [self._op(n, i, place) for n, i in segment.instructions]
        return self._ops[key]

    def _op(self, number: int, instruction: Instruction, place: dict[int, int]) -> Op:
        reads: list[int] = []
        writes: list[int] = []
        for name, access in instruction.operands:
            found = self.cells.of(access, _slot(access, place))
            role = next(o.role for o in instruction.spec.operands if o.name == name)
            (reads if role == "read" else writes).extend(found)
        semaphores = None
        if instruction.wait or instruction.signal:
            numbered = self.semaphores
            for semaphore, _ in (*instruction.wait, *instruction.signal):
                numbered.setdefault(semaphore, len(numbered))
            semaphores = (
                tuple((numbered[s], n) for s, n in instruction.wait),
                tuple((numbered[s], n) for s, n in instruction.signal),
            )
        engine = instruction.engine.partition(":")[0]
        build = {"tensor": self._matmul, "dma": self._dma, "collective": self._dma}.get(
            engine, self._plain
        )
        op = build(number, instruction, place)
        return op._replace(
            reads=tuple(dict.fromkeys(reads)),
            writes=tuple(dict.fromkeys(writes)),
            semaphores=semaphores,
        )

    def _engine(self, instruction: Instruction) -> int:
        return self.server(f"core{instruction.core}/{instruction.engine}")

    def _plain(self, number: int, instruction: Instruction, place: dict[int, int]) -> Op:
        engine = getattr(self.core, instruction.engine)
        occupancy = picoseconds(self.work[number].cycles, engine.clock_hz)
        latency = picoseconds(getattr(engine, "latency_cycles", 0), engine.clock_hz)
        ports = tuple(self._ports(number, instruction, place))
        kind = Kind.PORTED if ports else Kind.PLAIN
        return Op(kind, self._engine(instruction), occupancy, latency, (), (), number, ports)

    def _ports(self, number: int, instruction: Instruction, place: dict[int, int]) -> Iterator[int]:
        """Ports to SBUF and PSUM that two engines share (trainium2_arch.rst says which)."""
        core, prefix = self.core, f"core{instruction.core}/"
        accesses = [access for _, access in instruction.operands]
        if instruction.engine in ("vector", "gpsimd") and any(a.memory == "sbuf" for a in accesses):
            wide = instruction.engine == "gpsimd" or self.work[number].mode in ("2x", "4x")
            if core.shared_sbuf_port or (core.shared_mode_bus and wide):
                yield self.server(prefix + "sbuf port")
        if instruction.engine in ("vector", "scalar"):
            in_psum = [access for access in accesses if access.memory == "psum"]
            if core.shared_psum_port and in_psum:
                yield self.server(prefix + "psum port")
            elif core.shared_psum_banks:
                banks = {bank for access in in_psum for bank in _banks(access, place, core)}
                yield from (self.server(f"{prefix}psum bank {bank}") for bank in sorted(banks))

    def _matmul(self, number: int, instruction: Instruction, place: dict[int, int]) -> Op:
        tensor, work = self.core.tensor, self.work[number]
        occupancy = picoseconds(work.cycles / tensor.sustained_speed, tensor.clock_hz)
        if number in self.beside:
            latency = picoseconds(tensor.latency_cycles, tensor.clock_hz)
            array = self._engine(instruction)
            beside = self.server(f"core{instruction.core}/tensor background")
            return Op(Kind.BESIDE, beside, occupancy, latency, (), (), number, array)
        slow = max(occupancy, math.ceil(occupancy / tensor.throttle_speed))
        weights = instruction.get("stationary")
        if isinstance(weights, Access):
            cells = self.cells.of(weights, _slot(weights, place))
        else:
            cells = ()
        extra = (picoseconds(work.load_cycles, tensor.clock_hz), slow, cells)
        latency = picoseconds(tensor.latency_cycles, tensor.clock_hz)
        server = self._engine(instruction)
        return Op(Kind.MATMUL, server, occupancy, latency, (), (), number, extra)

    def _dma(self, number: int, instruction: Instruction, place: dict[int, int]) -> Op:
        dma = self.work[number].dma
        if dma is None:
            raise TypeError(f"{instruction.name} runs on {instruction.engine}, but is no transfer")
        prefix = f"core{instruction.core}/"
        engines = tuple(
            (self.server(f"{prefix}dma engine {k}"), busy)
            for k, busy in enumerate(dma.engine_ps)
            if busy
        )
        hbm = dma.bytes_read_hbm + dma.bytes_written_hbm
        transfer = Transfer(
            engines,
            self.server(f"{prefix}hbm"),
            math.ceil(hbm * 1e12 / self.hbm_bytes_per_s),
            int(instruction.get("priority") or 0),
            dma.least_ps,
        )
        self.transfers[number] = (engines, transfer.memory, transfer.memory_ps)
        issue = max(math.ceil(dma.issue_ns * 1000), dma.least_ps)
        latency = math.ceil(dma.latency_ns * 1000)
        return Op(Kind.DMA, self._engine(instruction), issue, latency, (), (), number, transfer)


def _banks(access: Access, place: dict[int, int], core: NeuronCore) -> set[int]:
    """The PSUM banks in which an access lies."""
    tile = access.tile
    first = tile.address[1] if tile.address else 0
    slots = [(_slot(access, place) + k) % tile.slots for k in range(access.slot_count)]
    starts = [first + slot * pitch(tile, core) for slot in slots]
    bank = core.psum_bank_bytes
    return {
        number
        for start in starts
        for number in range(start // bank, (start + tile.partition_bytes - 1) // bank + 1)
    }


def _slot(access: Access, place: dict[int, int]) -> int:
    return access.slot.at(place) if access.tile.slots > 1 else 0


def _periods(instructions: Iterable[Instruction]) -> tuple[tuple[int, int], ...]:
    """After how many iterations of each loop the slots of these instructions repeat."""
    periods: dict[int, int] = {}
    for instruction in instructions:
        for _, access in instruction.operands:
            slots = access.tile.slots
            for loop, coefficient in access.slot.terms if slots > 1 else ():
                period = slots // math.gcd(slots, coefficient)
                periods[loop] = math.lcm(periods.get(loop, 1), period)
    return tuple(sorted(periods.items()))


def _segments(body: Body) -> Iterator[Segment]:
    for part in body.parts:
        if isinstance(part, Segment):
            yield part
        else:
            yield from _segments(part.body)


def _loops(body: Body) -> Iterator[DecodedLoop]:
    for part in body.parts:
        if isinstance(part, DecodedLoop):
            yield part
            yield from _loops(part.body)
