"""How much of SBUF and PSUM holds something that is still needed, over time."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jax_trn3.isa import Access, Instruction, Operand, Tile
from jax_trn3.simulator.walk import slots

from .levels import Level, level
from .runs import Runs

_Use = Literal["read", "write", "continue"]


def in_use(runs: Runs) -> dict[tuple[str, int], Level]:
    """Bytes in use by memory ("sbuf", "psum") and core.

    A slot of a tile is in use from the first write of what it holds to the last access to that. It
    holds something else once writes after the last read have replaced all of it. Of a window: what
    is read in it without having been written in it counts from its start on.
    """
    spans: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
    for life in lives(runs):
        spans.setdefault((life.tile.memory, life.tile.core), []).append(
            (life.begin_ps, life.end_ps, life.tile.bytes)
        )
    return {key: level(*np.array(spans[key], np.int64).T) for key in sorted(spans)}


@dataclass(frozen=True)
class Life:
    """A time in which a slot of a tile held something."""

    tile: Tile
    slot: int
    begin_ps: int
    end_ps: int


def lives(runs: Runs) -> list[Life]:
    """What `in_use` counts, one by one."""
    tiles: dict[Tile, dict[int, _Slot]] = {}
    text = [
        [(use, access, tiles.setdefault(access.tile, {})) for use, access in _accesses(instruction)]
        for instruction in runs.timeline.instructions
    ]
    for event, indices in zip(runs.events.tolist(), runs.indices):
        _, start, free, done, _, number = event
        for use, access, found in text[number]:
            for slot in slots(access, indices):
                state = found.get(slot)
                if state is None:
                    state = found[slot] = _Slot(access.tile, runs.start_ps)
                if use == "read":
                    state.read(free)
                elif use == "continue":
                    state.read(done)
                else:
                    state.write(access, start, done)
    return [
        Life(tile, slot, begin, end)
        for tile, found in tiles.items()
        for slot, state in found.items()
        for begin, end in state.finish()
    ]


def _accesses(instruction: Instruction) -> list[tuple[_Use, Access]]:
    """Its operands in SBUF and PSUM, and what it does to them; reads are first."""
    found: list[tuple[_Use, Access]] = []
    for operand in sorted(instruction.spec.operands, key=lambda o: o.role != "read"):
        access = instruction.get(operand.name)
        if isinstance(access, Access) and access.memory != "hbm":
            found.append((_use(instruction, operand), access))
    return found


def _use(instruction: Instruction, operand: Operand) -> _Use:
    if operand.role == "read":
        return "read"
    # Without being told, a sum continues if one is there: whether that was read shows it.
    told = operand.role != "accumulate" or instruction.get("accumulate") is not None
    return "continue" if told and instruction.updates(operand) else "write"


class _Slot:
    """One slot of a tile: when it held something."""

    def __init__(self, tile: Tile, window_start: int) -> None:
        self.elements = math.prod(tile.shape)
        self.window_start = window_start
        self.begin: int | None = window_start if tile.given else None
        self.last = window_start
        self.fresh: dict[object, int] = {}
        """Elements of each part that was written after the last read."""
        self.fresh_begin = self.fresh_last = 0
        self.lives: list[tuple[int, int]] = []

    def write(self, access: Access, start: int, done: int) -> None:
        if not self.fresh:
            self.fresh_begin, self.fresh_last = start, done
        self.fresh_begin = min(self.fresh_begin, start)
        self.fresh_last = max(self.fresh_last, done)
        self.fresh[access.start, access.size, access.step] = math.prod(access.size)

    def read(self, end: int) -> None:
        self._settle()
        if self.begin is None:
            self.begin = self.window_start
        self.last = max(self.last, end)

    def finish(self) -> list[tuple[int, int]]:
        """(begin, end) of each time that it held something."""
        self._settle()
        if self.begin is not None:
            self.lives.append((self.begin, self.last))
        return self.lives

    def _settle(self) -> None:
        """What was written either replaces what was there, or is more of it."""
        if not self.fresh:
            return
        if self.begin is not None and sum(self.fresh.values()) >= self.elements:
            self.lives.append((self.begin, self.last))
            self.begin = None
        if self.begin is None:
            self.begin, self.last = self.fresh_begin, self.fresh_last
        self.last = max(self.last, self.fresh_last)
        self.fresh = {}
