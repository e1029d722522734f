"""Which groups of queries meet which keys in flash attention: all; with `causal` those up to the
diagonal; with a window a band. Each is a way to write the steps of a block of queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from .flash_kernel import ROWS, TILE, Choices, Step
from .flash_pipeline import LAGS, Repeat, Run

GROUPS = 32
"""Groups of queries in SBUF at a time, at most."""


class Meetings:
    """The blocks of queries, and the runs of steps of each."""

    masks = False
    same_masks = True
    """Whether bounds are the same for all blocks."""

    divides_later = False
    carries = False
    """Whether one block's steps overlap those of the next: all have the same text."""

    front = 0
    """Keys of nothing before the first."""

    slots = 2

    groups: int
    blocks: int
    keys: int
    """With those of nothing before and behind."""

    held: int
    """Keys in a slot."""

    widest: int
    """Keys of the largest section."""

    def work(
        self, number: Any, block: Any, begin: Callable[[], None], load: Callable[..., None],
        store: Callable[..., None],
    ) -> Sequence[Run | Repeat]:  # fmt: skip
        """Of a block of queries, the `number`-th of all; `begin` loads them, `load` keys."""
        raise NotImplementedError

    def bounds(self, queries: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last key that each query sees, float32 [rows, 1], as `Step.offset`
        counts them."""
        return np.zeros((ROWS, 1), np.float32), np.zeros((ROWS, 1), np.float32)


def _blocks(queries: int, most: int) -> tuple[int, int]:
    groups = math.ceil(queries / ROWS)
    blocks = math.ceil(groups / most)
    groups = math.ceil(groups / blocks)
    return blocks, groups


def _apart(groups: int) -> int:
    """So many groups that the next section's steps take no slot of steps that are under way: an
    even number, and more than the pipeline is long."""
    return max(LAGS + 1, groups + groups % 2)


def _tiles(start: int, stop: int, masked: Callable[[int, int], bool]) -> tuple[Any, ...]:
    sizes = [(at, min(TILE, stop - at)) for at in range(start, stop, TILE)]
    return tuple((at, size, masked(at, size)) for at, size in sizes)


def meetings(
    queries: int, keys: int, causal: bool, window: tuple[int, int] | None, choices: Choices,
    most: int,
) -> Meetings:  # fmt: skip
    if window is not None:
        left, right = window[0], 0 if causal else window[1]
        return _Band(queries, keys, left, right, choices, most)
    if causal:
        short = queries <= most * ROWS
        return (_Triangle if short else _Causal)(queries, keys, choices)
    return _Full(queries, keys, choices, most)


class _Full(Meetings):
    """All queries see all keys."""

    def __init__(self, queries: int, keys: int, choices: Choices, most: int) -> None:
        self.blocks, self.groups = _blocks(queries, most)
        self.real = keys
        self.keys = math.ceil(keys / ROWS) * ROWS
        self.held = self.widest = min(choices.section, self.keys)
        self.sections = math.ceil(self.keys / self.held)
        self.slots = min(3, self.sections + 1)
        self.masks = keys % ROWS != 0
        self.long = self.sections > 3
        if self.sections > 1:
            self.groups = _apart(self.groups)
        self.carries = not self.long and self.groups == _apart(self.groups)
        self.slots = 3 if self.long else 2 * self.sections

    def work(
        self, number: Any, block: Any, begin: Callable[[], None], load: Callable[..., None],
        store: Callable[..., None],
    ) -> Sequence[Run | Repeat]:  # fmt: skip
        def run(section: Any, last: bool = False, first: bool = False) -> Run:
            start = section * self.held
            if self.long:
                slot = lax.rem(jnp.int32(section), 3)
            else:
                slot = lax.rem(jnp.int32(number), 2) * self.sections + section
            size = self.keys - (self.sections - 1) * self.held if last else self.held
            edge = self.real - (self.sections - 1) * self.held
            tiles = _tiles(0, size, lambda at, n: last and at + n > edge)

            def step(at: Any) -> Step:
                return Step(at, slot, tiles, store, first=first, last=last)

            def before() -> None:
                load(slot, start, size)
                if isinstance(section, int) and section == 0:
                    begin()

            return Run(self.groups, step, before)

        final = self.sections - 1
        if not self.long:
            return [run(k, last=k == final, first=k == 0) for k in range(self.sections)]
        return [
            run(0, first=True),
            run(1),
            Repeat(final - 2, lambda k: [run(k + 2)]),
            run(final, last=True),
        ]

    def bounds(self, queries: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
        rows = (self.groups * ROWS, 1)
        edge = self.real - (self.sections - 1) * self.held - 1
        return np.zeros(rows, np.float32), np.full(rows, edge, np.float32)


class _Triangle(Meetings):
    """Queries see the keys up to their own number, and all are in SBUF: of each section, the groups
    on the diagonal, then those behind it."""

    masks = True

    def __init__(self, queries: int, keys: int, choices: Choices) -> None:
        per = TILE // ROWS
        self.blocks, self.groups = 1, math.ceil(queries / TILE) * per
        self.keys = self.groups * ROWS
        self.held = self.widest = min(choices.section, self.keys)
        self.sections = math.ceil(self.keys / self.held)
        self.slots = 2 * self.sections
        self.carries = self.groups > per and self.sections == 1

    def work(
        self, number: Any, block: Any, begin: Callable[[], None], load: Callable[..., None],
        store: Callable[..., None],
    ) -> Sequence[Run | Repeat]:  # fmt: skip
        per = TILE // ROWS
        turn = lax.rem(jnp.int32(number), 2) * self.sections

        def run(section: int, first: int, stop: int, size: int, diagonal: bool) -> Run:
            tiles = _tiles(0, size, lambda at, n: diagonal and at + n == size)
            start = section * self.held

            def step(at: Any) -> Step:
                return Step(first + at, turn + section, tiles, store, section == 0, diagonal, start)

            def before() -> None:
                if first * ROWS == start:
                    load(turn + section, start, min(self.held, self.keys - start))
                if first == 0:
                    begin()

            return Run(stop - first, step, before)

        runs = []
        for section in range(self.sections):
            begins = section * self.held // ROWS
            ends = min(begins + self.held // ROWS, self.groups)
            for first in range(begins, ends, per):
                runs.append(run(section, first, first + per, (first + per - begins) * ROWS, True))
            if ends < self.groups:
                runs.append(run(section, ends, self.groups, self.held, False))
        return runs

    def bounds(self, queries: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(self.keys, dtype=np.float32)[:, None]
        return np.zeros_like(rows), rows


class _Causal(Meetings):
    """Queries see the keys up to their own number: sections on the diagonal, then those before."""

    masks = True

    def __init__(self, queries: int, keys: int, choices: Choices) -> None:
        most = choices.section // ROWS
        self.blocks, self.groups = _blocks(queries, most)
        if self.blocks > 1:
            self.groups = most
            self.blocks = math.ceil(queries / (most * ROWS))
        self.held = self.widest = self.groups * ROWS
        self.keys = self.blocks * self.held
        self.slots = 3
        self.divides_later = self.blocks > 1

    def work(
        self, number: Any, block: Any, begin: Callable[[], None], load: Callable[..., None],
        store: Callable[..., None],
    ) -> Sequence[Run | Repeat]:  # fmt: skip
        def diagonal(first: int, stop: int) -> Run:
            tiles = _tiles(0, stop * ROWS, lambda at, n: at + n == stop * ROWS)
            last = not self.divides_later

            def step(at: Any) -> Step:
                return Step(first + at, 0, tiles, store, first=last, last=last)

            def before() -> None:
                if first == 0:
                    begin()
                    load(0, block * self.held, self.held)

            return Run(stop - first, step, before)

        def earlier(section: Any) -> list[Run]:
            slot = lax.rem(section + 1, 3)
            tiles = _tiles(0, self.held, lambda at, n: False)

            def step(at: Any) -> Step:
                return Step(at, slot, tiles, store)

            return [Run(self.groups, step, lambda: load(slot, section * self.held, self.held))]

        per = TILE // ROWS
        work: list[Run | Repeat] = [
            diagonal(first, min(first + per, self.groups)) for first in range(0, self.groups, per)
        ]
        if self.divides_later:
            work.append(Repeat(block, earlier))
        return work

    def bounds(self, queries: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(self.held, dtype=np.float32)[:, None]
        return np.zeros_like(rows), rows


class _Band(Meetings):
    """Queries see keys from `left` before to `right` after their own number."""

    masks, same_masks = True, False

    def __init__(
        self, queries: int, keys: int, left: int, right: int, choices: Choices, most: int
    ) -> None:
        self.left, self.right, self.real = left, right, keys
        self.front = math.ceil(left / ROWS) * ROWS
        behind = max(0, math.ceil(right / ROWS)) * ROWS
        self.band = self.front + ROWS + behind
        self.blocks, self.groups = _blocks(queries, most)
        if self.band > choices.section:
            self.groups = _apart(self.groups)
        self.held = self.groups * ROWS + self.band - ROWS
        self.section = min(choices.section, self.band)
        self.widest = self.section
        self.carries = self.band <= 2 * self.section and self.groups == _apart(self.groups)
        needed = self.blocks * self.groups * ROWS + self.band - ROWS
        self.keys = max(needed, self.front + keys)

    def work(
        self, number: Any, block: Any, begin: Callable[[], None], load: Callable[..., None],
        store: Callable[..., None],
    ) -> Sequence[Run | Repeat]:  # fmt: skip
        per = self.section
        count = math.ceil(self.band / per)
        start = block * (self.groups * ROWS)
        slot = lax.rem(jnp.int32(number), 2)

        def run(part: int) -> Run:
            size = min(per, self.band - part * per)
            tiles = _tiles(0, size, lambda at, n: self._edge(part * per + at, n))

            def step(group: Any) -> Step:
                return Step(
                    group, slot, tiles, store, part == 0, part == count - 1, part * per,
                    group + part * per // ROWS,
                )  # fmt: skip

            def before() -> None:
                if part == 0:
                    begin()
                    load(slot, start, self.held)

            return Run(self.groups, step, before)

        return [run(part) for part in range(count)]

    def _edge(self, at: int, size: int) -> bool:
        """Whether some query of a group may not see some of these keys of its band."""
        everyone = (self.front - self.left + ROWS - 1, self.front + self.right)
        inner = everyone[0] <= at and at + size - 1 <= everyone[1]
        return not inner or self.real < self.keys  # keys of nothing: any tile may be at an edge

    def bounds(self, queries: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(self.blocks * self.groups * ROWS)
        origin = rows // ROWS * ROWS - self.front
        low = np.maximum(rows - self.left, 0) - origin
        high = np.minimum(rows + self.right, keys - 1) - origin
        return low.astype(np.float32)[:, None], high.astype(np.float32)[:, None]
