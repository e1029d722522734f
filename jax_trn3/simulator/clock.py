"""The clock: when each instruction starts, and when its result is there.

The simulator is a timed event graph. Every server (an engine, a queue, a DMA engine, HBM) takes its
work in an order that the program alone decides; times only ever are the later of two times, or a
time plus a duration. So a faster machine is never slower, the same program always gives the same
timeline, and a loop can be extrapolated exactly (`repetition.py`).

- Engines run their instructions in program order, and wait for the cells they need (`cells.py`).
- DMA queues are in order, too, but behind them all share the DMA engines and HBM. A transfer gets
  its turn by *rank*: the place at which its operands are ready if every instruction takes one unit
  and every transfer sixteen, and nothing contends. A store that waits for a long computation so
  does not hold up loads that need not wait; no rank depends on how fast a machine is.
- The tensor engine loads weights behind the multiplication before, and after a pause runs at
  reduced speed until it has worked for a while (`Throttle`).
"""

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from .decode import Kind, Op, Transfer

UNWRITTEN = -(1 << 62)
"""Time of the last write of a cell that nobody has written."""

# Members of the enumeration as plain integers, which compare faster.
_PLAIN, _MATMUL, _DMA, _BESIDE = map(int, (Kind.PLAIN, Kind.MATMUL, Kind.DMA, Kind.BESIDE))

_TRANSFER_RANK = 16
"""Rank that a transfer takes; a DMA takes about 2 us, an instruction about 0.1 us."""

_PRIORITY_RANK = 64
"""Rank by which each lower traffic class stands back."""

_MOST_PENDING = 1024
"""Transfers that can wait for their turn. More, and the first of them is served."""


class Event(NamedTuple):
    """What happened to one instruction, in ps. (The clock writes plain tuples: they are faster.)"""

    issued: int
    """Its server was free for it; of a DMA: its descriptors went out."""

    start: int
    """It started; of a DMA: its first byte moved."""

    free: int
    """Its server was free again; of a DMA: its last byte had moved."""

    done: int
    """Its result can be used."""

    cause: int
    """Event that it waited for longest; -1 if it waited for its own server alone."""

    static: int
    """Instruction of the text."""


class Waiting(NamedTuple):
    """A transfer that has not had its turn."""

    rank: int
    event: int
    ready: int
    """Latest time known so far of what it waits for, ps."""

    cause: int
    after: tuple[int, ...]
    """Transfers that it waits for, and that had not had their turn either."""

    op: Op


class Throttle:
    """The tensor engine's speed: reduced when it was idle, full after `ramp` ps of work.

    Work w (ps at full speed) that becomes ready at time a is done at the latest of `a + c(w)` over
    everything up to it, c(w) = min(w / speed, w + lost). This is the service curve of a server that
    is slow for `ramp` after each start, in the sense of network calculus (J.-Y. Le Boudec,
    P. Thiran, "Network Calculus", 2001, section 1.3), which keeps the clock a timed event graph.
    """

    def __init__(self, speed: float, ramp: int) -> None:
        self.lost = int(ramp * (1 - speed))
        self._slow_until = int(ramp * speed)
        self.work = 0
        self.slow = 0
        self.steady = UNWRITTEN
        """Latest `a - work before` of what was ready long ago."""
        self.recent: deque[tuple[int, int, int]] = deque()
        """(a - slow work before, a - work before, work before) of the rest, the first falling."""

    def finish(self, ready: int, work: int, slow: int) -> int:
        """When `work` is done that is ready then; `slow` is its time at reduced speed."""
        recent = self.recent
        late = ready - self.slow
        while recent and recent[-1][0] <= late:
            recent.pop()
        recent.append((late, ready - self.work, self.work))
        self.work += work
        self.slow += slow
        while recent and self.work - recent[0][2] > self._slow_until:
            self.steady = max(self.steady, recent.popleft()[1])
        finish = self.steady + self.work + self.lost
        return max(finish, recent[0][0] + self.slow) if recent else finish

    def rebase(self) -> None:
        """Counts work from now on; no time changes."""
        self.recent = deque(
            (late + self.slow, steady + self.work, before - self.work)
            for late, steady, before in self.recent
        )
        if self.steady > UNWRITTEN:
            self.steady += self.work
        self.work = self.slow = 0


class Clock:
    """Runs decoded instructions, and keeps the time of everything they may wait for."""

    def __init__(self, cells: Iterable[bool], speed: float, ramp: int) -> None:
        """`cells`: for each, whether it holds a value from the start."""
        self.written = [0 if given else UNWRITTEN for given in cells]
        """When the last write of a cell can be read; `-1 - event` if by a waiting transfer."""
        count = len(self.written)
        self.writer = [-1] * count
        """Server of the last write."""
        self.write_event = [-1] * count
        self.read = [0] * count
        """When the last read of a cell is over, waiting transfers aside."""
        self.read_event = [-1] * count
        self.readers: dict[int, list[int]] = {}
        """Waiting transfers that read a cell."""
        self.write_rank = [0] * count
        self.read_rank = [0] * count
        self.free: list[int] = []
        """When each server can take the next instruction."""
        self.rank: list[int] = []
        self.load_free: dict[int, int] = defaultdict(int)
        """Tensor engines: when the next weights can be loaded."""
        self.throttles: dict[int, Throttle] = defaultdict(lambda: Throttle(speed, ramp))
        self.signals: dict[int, list[tuple[int, int, int, int]]] = {}
        """(count, time, event, rank) of what each semaphore holds."""
        self.waiting: list[Waiting] = []
        """A heap by rank."""
        self.served: list[int] = []
        """Texts' numbers of the transfers that had their turn, in order."""
        self.events: list[Any] = []
        """An `Event` for each instruction in program order; None while a transfer waits."""

    def run(self, ops: list[Op]) -> None:
        """Runs instructions one after another."""
        # This loop is most of the simulator's time: no calls on its usual path, everything local.
        written, writer, write_event = self.written, self.writer, self.write_event
        read, read_event, readers = self.read, self.read_event, self.readers
        write_rank, read_rank = self.write_rank, self.read_rank
        free, ranks, events = self.free, self.rank, self.events
        for op in ops:
            kind, server, occupancy, latency, reads, writes, static, extra, semaphores = op
            if kind == _DMA:
                self._transfer(op)
                continue
            event = len(events)
            issued = start = free[server]
            if kind == _MATMUL:
                start = 0
            rank = ranks[server]
            cause = -1
            for cell in reads:
                time = written[cell]
                if time > start:
                    start, cause = time, write_event[cell]
                elif time < 0:
                    time = self._resolve(cell, op)
                    if time > start:
                        start, cause = time, write_event[cell]
                if write_rank[cell] > rank:
                    rank = write_rank[cell]
            for cell in writes:
                time = read[cell]
                if time > start:
                    start, cause = time, read_event[cell]
                if readers and cell in readers:
                    time = self._readers_done(cell)
                    if time > start:
                        start, cause = time, read_event[cell]
                if writer[cell] != server:
                    time = written[cell]
                    if UNWRITTEN < time < 0:
                        time = self._resolve(cell, op)
                    if time > start:
                        start, cause = time, write_event[cell]
                if read_rank[cell] > rank:
                    rank = read_rank[cell]
                if write_rank[cell] > rank:
                    rank = write_rank[cell]
            if semaphores:
                for semaphore, count in semaphores[0]:
                    time, after, depth = self._take(semaphore, count, op)
                    rank = max(rank, depth)
                    if time > start:
                        start, cause = time, after
            if kind == _PLAIN:
                over = start + occupancy
            elif kind == _MATMUL:
                start, over = self._multiply(op, start)
                if start == issued:
                    cause = -1
            elif kind == _BESIDE:
                # In the order of the queue: not before the array has started on what is before it.
                start = max(start, self.load_free[extra])
                over = start + occupancy
            else:
                for port in extra:
                    start = max(start, free[port])
                over = start + occupancy
                for port in extra:
                    free[port] = over
            done = over + latency
            rank += 1
            free[server] = over
            ranks[server] = rank
            for cell in reads:
                if over >= read[cell]:
                    read[cell] = over
                    read_event[cell] = event
                if rank > read_rank[cell]:
                    read_rank[cell] = rank
            for cell in writes:
                written[cell] = done
                writer[cell] = server
                write_event[cell] = event
                write_rank[cell] = rank
            events.append((issued, start, over, done, cause, static))
            if semaphores:
                for semaphore, count in semaphores[1]:
                    self._give(semaphore, count, done, event, rank)

    def _multiply(self, op: Op, ready: int) -> tuple[int, int]:
        """Start and end of a multiplication that everything but its weights is ready for."""
        load, slow, weights = op.extra
        server = op.server
        arrived = max((self.written[cell] for cell in weights), default=0)
        loaded = max(self.load_free[server], arrived) + load
        ready = max(ready, arrived + load)
        over = self.throttles[server].finish(ready, op.occupancy, slow)
        start = max(ready, loaded, self.free[server])
        # The array takes the weights over when it starts on them; then the next can be loaded.
        self.load_free[server] = start
        return start, max(over, start + op.occupancy)

    def _transfer(self, op: Op) -> None:
        """Puts a transfer among those that wait for their turn."""
        event = len(self.events)
        self.events.append(None)
        # Of causes at the same time the last one counts, whenever they become known.
        rank, ready, cause, after = self.rank[op.server], 0, -1, []
        for cell in op.reads:
            time = self.written[cell]
            if time <= UNWRITTEN:
                raise self._unwritten(cell, op)
            if time < 0:
                after.append(-1 - time)
            else:
                ready, cause = max((ready, cause), (time, self.write_event[cell]))
            rank = max(rank, self.write_rank[cell])
        for cell in op.writes:
            after += self.readers.pop(cell, ())
            ready, cause = max((ready, cause), (self.read[cell], self.read_event[cell]))
            time = self.written[cell]
            if UNWRITTEN < time < 0:
                after.append(-1 - time)
            else:
                ready, cause = max((ready, cause), (time, self.write_event[cell]))
            rank = max(rank, self.read_rank[cell], self.write_rank[cell])
        waits, signals = op.semaphores or ((), ())
        for semaphore, count in waits:
            time, by, depth = self._take(semaphore, count, op)
            rank = max(rank, depth)
            ready, cause = max((ready, cause), (time, by))
        rank += _PRIORITY_RANK * op.extra.priority
        heapq.heappush(self.waiting, Waiting(rank, event, ready, cause, tuple(after), op))
        self.rank[op.server] = rank + 1
        rank += _TRANSFER_RANK
        for cell in op.reads:
            self.readers.setdefault(cell, []).append(event)
            self.read_rank[cell] = max(self.read_rank[cell], rank)
        for cell in op.writes:
            self.written[cell] = -1 - event
            self.writer[cell] = op.server
            self.write_event[cell] = event
            self.write_rank[cell] = rank
        for semaphore, count in signals:
            self._give(semaphore, count, -1 - event, event, rank)
        if len(self.waiting) > _MOST_PENDING:
            self._serve()

    def _serve(self) -> None:
        """Gives the first of the waiting transfers its turn."""
        _, event, ready, cause, after, op = heapq.heappop(self.waiting)
        free = self.free
        transfer: Transfer = op.extra
        for other in after:
            ready, cause = max((ready, cause), (self.done(other), other))
        issued = max(free[op.server], ready)
        if issued > ready:
            cause = -1
        free[op.server] = issued + op.occupancy
        start = max(issued + op.latency, free[transfer.memory])
        over = free[transfer.memory] = start + transfer.memory_ps
        over = max(over, issued + transfer.least)
        begins = []
        for engine, busy in transfer.engines:
            begins.append(begin := max(start, free[engine]))
            free[engine] = begin + busy
            over = max(over, begin + busy)
        first = min(begins, default=start)
        self.events[event] = (issued, first, over, over, cause, op.static)
        self.served.append(op.static)

    def done(self, event: int) -> int:
        """When an event's result can be used; serves transfers up to it."""
        while self.events[event] is None:
            self._serve()
        return self.events[event][3]

    def _resolve(self, cell: int, op: Op) -> int:
        """When the last write of a cell can be read, if that is not known yet."""
        time = self.written[cell]
        if time <= UNWRITTEN:
            raise self._unwritten(cell, op)
        time = self.written[cell] = self.done(-1 - time)
        return time

    def _readers_done(self, cell: int) -> int:
        """When the transfers that read a cell are over."""
        for event in self.readers.pop(cell):
            last = (self.read[cell], self.read_event[cell])
            self.read[cell], self.read_event[cell] = max(last, (self.done(event), event))
        return self.read[cell]

    def _take(self, semaphore: int, count: int, op: Op) -> tuple[int, int, int]:
        """Takes `count` from a semaphore: when it had that, who gave it last, and at which rank."""
        held = self.signals.get(semaphore, [])
        time, by, depth = 0, -1, 0
        missing = count
        while missing:
            if not held:
                raise Deadlock(op.static, semaphore, count, count - missing)
            given, when, event, rank = held[0]
            if when < 0:
                when = self.done(event)
            if when > time:
                time, by = when, event
            depth = max(depth, rank)
            taken = min(given, missing)
            missing -= taken
            if taken == given:
                held.pop(0)
            else:
                held[0] = (given - taken, when, event, rank)
        return time, by, depth

    def _give(self, semaphore: int, count: int, time: int, event: int, rank: int) -> None:
        self.signals.setdefault(semaphore, []).append((count, time, event, rank))

    def _unwritten(self, cell: int, op: Op) -> "UnwrittenRead":
        return UnwrittenRead(op.static, cell)

    def finish(self) -> None:
        """Serves all transfers that still wait."""
        while self.waiting:
            self._serve()


class UnwrittenRead(Exception):
    """(number of the instruction, cell): it reads what nobody wrote."""


class Deadlock(Exception):
    """(number of the instruction, semaphore, count it waits for, count that was signalled)."""
