"""What comes before what: vector clocks of a kernel, its engines and its copies.

An agent is whoever works through a list of its own: the kernel, the copies that it starts (one line
and one semaphore are one agent), and under explicit synchronization each engine and queue. Only
signals and waits order agents. An access is forgotten when everybody who may come knows of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .storage import Keys, Storage

KERNEL = "the kernel"
COPY = "copy "
"""What the names of copies begin with."""

Clock = dict[str, int]
Box = tuple[range, ...]


@dataclass(frozen=True)
class Access:
    """Elements that an agent has touched."""

    agent: str
    time: int
    box: Box
    write: bool
    equation: Any


class Order:
    """The agents' clocks: of whose past each one knows how much."""

    def __init__(self) -> None:
        self.clocks: dict[str, Clock] = {KERNEL: {}}

    def step(self, agent: str) -> None:
        """An agent begins something new, behind all that the kernel waited for."""
        clock = self.clocks.setdefault(agent, {})
        if agent != KERNEL:
            join(clock, self.clocks[KERNEL])
        clock[agent] = clock.get(agent, 0) + 1

    def meet(self, engines: Sequence[str]) -> None:
        """The kernel waits for engines."""
        kernel = self.clocks[KERNEL]
        for engine in engines:
            join(kernel, self.clocks[engine])

    def conflict(
        self, ref: Storage, keys: Keys, write: bool, agent: str, equation: Any
    ) -> Access | None:
        """Notes an access; an earlier one that touches the same and is not known to be over."""
        past = ref.order
        if past is None:
            if agent == KERNEL:  # whoever comes later knows what the kernel did
                return None
            past = ref.order = Past(len(ref.shape))
        clock, known = self.clocks[agent], self.clocks[KERNEL]
        here = box(ref, keys)
        for place in past.touching(here):
            there, accesses = past.boxes[place], past.accesses[place]
            for key, access in list(accesses.items()):
                ordered = clock.get(access.agent, 0) >= access.time
                if not ordered and (write or access.write) and _overlap(there, here):
                    return access
                # What the kernel has waited for is known to all that begin later; what comes
                # behind this write need not look for what came before it.
                if known.get(access.agent, 0) >= access.time or (
                    ordered and write and _inside(there, here)
                ):
                    del accesses[key]
        if agent != KERNEL:
            past.note(Access(agent, clock[agent], here, write, equation))
        return None


class Past:
    """Accesses to one tile, the last one of each agent to the same elements."""

    def __init__(self, rank: int):
        self.boxes: list[Box] = []
        self.places: dict[Box, int] = {}
        self.accesses: list[dict[tuple[str, bool], Access]] = []
        self.ends = np.zeros((8, rank, 2), np.int64)
        """First and last element of each box in each dimension."""

    def touching(self, here: Box) -> Sequence[int]:
        """Places of boxes that this one may touch."""
        count = len(self.boxes)
        if count <= 2 or not all(here):
            return range(count)
        ends = self.ends[:count]
        low, high = np.array([(r[0], r[-1]) for r in here], np.int64).reshape(-1, 2).T
        touched = ((ends[..., 0] <= high) & (ends[..., 1] >= low)).all(axis=1)
        return [int(k) for k in np.flatnonzero(touched)]

    def note(self, access: Access) -> None:
        """Remembers one."""
        place = self.places.get(access.box)
        if place is None:
            place = self.places[access.box] = len(self.boxes)
            self.boxes.append(access.box)
            self.accesses.append({})
            if place == len(self.ends):
                self.ends = np.concatenate([self.ends, np.zeros_like(self.ends)])
            self.ends[place] = [(r[0], r[-1]) if r else (0, -1) for r in access.box]
        self.accesses[place][access.agent, access.write] = access


def join(clock: Clock, other: Clock) -> None:
    """What the other knows, this one knows, too."""
    for agent, time in other.items():
        if clock.get(agent, 0) < time:
            clock[agent] = time


def box(ref: Storage, keys: Keys) -> Box:
    """The elements of a part, a range in each dimension of the whole (at least those)."""
    ranges = [range(n) for n in ref.shape]
    axes = list(range(len(ranges)))
    for key in keys:
        left = []
        for axis, part in zip(axes, key):
            if isinstance(part, slice):
                ranges[axis] = ranges[axis][part]
                left.append(axis)
            elif np.ndim(part) == 0:
                ranges[axis] = ranges[axis][int(part) : int(part) + 1]
            elif np.size(part):
                low, high = int(np.min(part)), int(np.max(part))
                ranges[axis] = ranges[axis][low : high + 1]
        axes = left
    return tuple(ranges)


def _overlap(a: Box, b: Box) -> bool:
    return all(map(_meet, a, b))


def _meet(a: range, b: range) -> bool:
    if not a or not b or a[0] > b[-1] or b[0] > a[-1]:
        return False
    if a.step == b.step == 1:
        return True
    return not set(a).isdisjoint(b)


def _inside(a: Box, b: Box) -> bool:
    return all(
        not x or (y and y.step == 1 and y[0] <= x[0] and x[-1] <= y[-1]) for x, y in zip(a, b)
    )


@dataclass
class Signal:
    """What a semaphore was given."""

    agent: str
    count: int
    clock: Clock
    equation: Any


class Semaphore:
    """One semaphore's past: who signalled it, and how much of that was waited for."""

    def __init__(self, ref: Storage, keys: Keys, name: str):
        self.ref, self.keys, self.name = ref, keys, name
        self.signals: list[Signal] = []
        self.taken = 0

    @property
    def value(self) -> int:
        """What it holds now."""
        return sum(s.count for s in self.signals) - self.taken

    def take(self, count: int, clock: Clock, keep: bool) -> None:
        """A wait: who waits knows what every signal knew without which the count would not have
        been reached."""
        total, wanted = sum(s.count for s in self.signals), self.taken + count
        later: dict[str, int] = {}
        for signal in reversed(self.signals):
            without = signal.count
            if not signal.agent.startswith(COPY):  # copies end in any order
                without = later[signal.agent] = later.get(signal.agent, 0) + signal.count
            if total - without < wanted:
                join(clock, signal.clock)
        if keep:
            return
        self.taken = wanted
        if self.taken == total:
            self.signals, self.taken = [], 0
        elif len({s.agent for s in self.signals}) == 1:
            self._forget()

    def _forget(self) -> None:
        """Signals of one agent that were waited for in full."""
        while self.signals and not self.signals[0].agent.startswith(COPY):
            if self.signals[0].count > self.taken:
                return
            self.taken -= self.signals.pop(0).count
