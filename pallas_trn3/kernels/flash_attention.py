"""Flash attention: softmax(scale * q @ k.T) @ v without the scores in HBM.

Queries of a head are in SBUF, 32 groups of 128 at a time; keys and values come by in sections. What
happens to a group and a section is `flash_kernel.py`'s, here is which of them meet: all; with
`causal` those up to the diagonal; with a window a band.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn
from jax_trn3.hardware import TRAINIUM3, Chip

from .flash_kernel import FP32_MIN, ROWS, TILE, Choices, Sizes, Stages, Step, scratch
from .flash_pipeline import Repeat, Run, pipeline

GROUPS = 32
"""Groups of queries in SBUF at a time, at most."""

_LAGS = 3
PRODUCT = TILE


def choices_for(chip: Chip) -> Choices:
    """What is best on a chip, found by simulation at 4096 queries and keys of 128 features."""
    if chip.core.generation >= 4:
        return Choices()
    return Choices(moved_by_scalar=0, turned_by_dma=2, copied_by_vector=0, exponentials="scalar")


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    causal: bool,
    window: tuple[int, int] | None,
    chip: Chip,
    choices: Choices | None,
    residuals: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """Result [B, N, T, HV], and [B, N, T, 2] maxima and sums of the rows' exponentials.

    **Arguments:**

    - `q`: [B, N, T, H]; `k`, `v`: [B, K, S, H] and [B, K, S, HV].
    """
    batch, heads, queries, features = q.shape
    _, kv_heads, keys, width = v.shape
    choices = choices_for(chip) if choices is None else choices
    if causal and keys > queries:
        k, v, keys = k[:, :, :queries], v[:, :, :queries], queries
    plan = _plan(queries, keys, causal, window, choices)
    choices = replace(choices, section=min(choices.section, plan.widest))
    depth = -(-features // ROWS)
    features += -features % depth
    sizes = Sizes(
        plan.groups, features, width, q.dtype, scale, residuals, int(chip.core.generation)
    )
    rows = plan.blocks * plan.groups * ROWS
    q = _padded(q, rows, 0, features).reshape(batch * heads, rows, features)
    front = plan.front
    k = _padded(k, plan.keys, front, features).reshape(batch * kv_heads, plan.keys, features)
    v = _padded(v, plan.keys, front, width).reshape(batch * kv_heads, plan.keys, width)
    group = heads // kv_heads
    tiles = scratch(sizes, choices, plan.slots, plan.held)
    shapes = [jax.ShapeDtypeStruct((batch * heads, rows, width), q.dtype)]
    if residuals:
        shapes.append(jax.ShapeDtypeStruct((batch * heads, rows, 2), jnp.float32))

    def kernel(q_ref: Any, k_ref: Any, v_ref: Any, low_ref: Any, high_ref: Any, *refs: Any) -> None:
        outputs, held = refs[: len(shapes)], dict(zip(tiles, refs[len(shapes) :]))
        kv_head, member, block = (pl.program_id(axis) for axis in range(3))
        head = kv_head * group + member
        first = block * (plan.groups * ROWS)

        def store(number: Any, result: Any, statistics: Any) -> None:
            place = pl.ds(first + number * ROWS, ROWS)
            pltrn.dma_copy(outputs[0].at[head, place], result, engine="dma:vector")
            if statistics is not None:
                pltrn.dma_copy(outputs[1].at[head, place], statistics, engine="dma:vector")

        def load(slot: Any, start: Any, count: int) -> None:
            _load_keys(held, k_ref.at[kv_head], v_ref.at[kv_head], slot, start, count)

        def queries_of(number: Any, none: Any) -> None:
            rows = pl.ds(first + number * ROWS, ROWS)
            _, depth, partitions, _ = held["q"].shape
            for part in range(depth):
                source = q_ref.at[head, rows, pl.ds(part * partitions, partitions)]
                pltrn.dma_transpose(held["q"].at[number, part], source, engine="dma:gpsimd")
            if plan.masks:
                at = pl.ds((0 if plan.same_masks else first) + number * ROWS, ROWS)
                for name, source in (("lowest", low_ref), ("highest", high_ref)):
                    pltrn.dma_copy(held[name].at[number], source.at[at], engine="dma:gpsimd")

        lax.fori_loop(0, plan.groups, queries_of, None)
        if plan.divides_later:
            lax.fori_loop(0, plan.groups, functools.partial(_start, held, choices), None)
        stages = Stages(sizes, choices, held, store)
        pipeline(plan.work(block, load), _LAGS, stages.emit)
        if plan.divides_later:

            def divide(number: Any, none: Any) -> None:
                stages.divide(number, held["o"].at[number])

            lax.fori_loop(0, plan.groups, divide, None)

    low, high = plan.bounds(queries, keys)
    results = pl.pallas_call(
        kernel,
        grid=(batch * kv_heads, group, plan.blocks),
        in_specs=[pl.BlockSpec(memory_space=pltrn.HBM)] * 5,
        out_specs=[pl.BlockSpec(memory_space=pltrn.HBM)] * len(shapes),
        out_shape=shapes,
        scratch_shapes=list(tiles.values()),
        compiler_params=pltrn.CompilerParams(),
        name="flash_attention",
    )(q, k, v, low, high)
    out = results[0].reshape(batch, heads, rows, width)[:, :, :queries]
    if not residuals:
        return out, None
    return out, results[1].reshape(batch, heads, rows, 2)[:, :, :queries]


def _padded(x: jax.Array, rows: int, front: int, features: int) -> jax.Array:
    behind = rows - front - x.shape[2]
    wide = features - x.shape[3]
    if not (front or behind or wide):
        return x
    return jnp.pad(x, ((0, 0), (0, 0), (front, behind), (0, wide)))


def _load_keys(held: dict[str, Any], k: Any, v: Any, slot: Any, start: Any, count: int) -> None:
    """`count` keys, transposed, and their values into a slot."""
    _, depth, partitions, _ = held["k"].shape
    for part in range(depth):
        for at in range(0, count, 2048):
            size = min(2048, count - at)
            pltrn.dma_transpose(
                held["k"].at[slot, part, :, pl.ds(at, size)],
                k.at[pl.ds(start + at, size), pl.ds(part * partitions, partitions)],
                engine="dma:sync",
            )

    def values(chunk: Any, none: Any) -> None:
        source = v.at[pl.ds(start + chunk * ROWS, ROWS)]
        pltrn.dma_copy(held["v"].at[slot, chunk], source, engine="dma:gpsimd")

    lax.fori_loop(0, count // ROWS, values, None)


def _start(held: dict[str, Any], choices: Choices, number: Any, none: Any) -> None:
    """A group that has seen no keys: the least maximum, sums of nothing."""
    least = FP32_MIN if choices.exponentials == "vector" else -FP32_MIN
    for name, value in (("m", least), ("l", 0.0), ("o", 0.0)):
        pltrn.memset(held[name].at[number], value=value, engine="gpsimd")


# Which groups meet which keys.


class _Plan:
    """The blocks of queries, and the runs of steps of each."""

    masks = False
    same_masks = True
    """Whether bounds are the same for all blocks."""

    divides_later = False
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

    def work(self, block: Any, load: Callable[..., None]) -> Sequence[Run | Repeat]:
        """Of a block of queries."""
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


def _tiles(start: int, stop: int, masked: Callable[[int, int], bool]) -> tuple[Any, ...]:
    sizes = [(at, min(PRODUCT, stop - at)) for at in range(start, stop, PRODUCT)]
    return tuple((at, size, masked(at, size)) for at, size in sizes)


def _plan(
    queries: int, keys: int, causal: bool, window: tuple[int, int] | None, choices: Choices
) -> _Plan:
    if window is not None:
        left, right = window[0], 0 if causal else window[1]
        return _Band(queries, keys, left, right, choices)
    if causal:
        return _Causal(queries, keys, choices)
    return _Full(queries, keys, choices)


class _Full(_Plan):
    """All queries see all keys."""

    def __init__(self, queries: int, keys: int, choices: Choices) -> None:
        self.blocks, self.groups = _blocks(queries, GROUPS)
        self.real = keys
        self.keys = math.ceil(keys / ROWS) * ROWS
        self.held = self.widest = min(choices.section, self.keys)
        self.sections = math.ceil(self.keys / self.held)
        self.slots = min(3, self.sections + 1)
        self.masks = keys % ROWS != 0
        self.long = self.sections > 3
        self.even = self.groups % 2 == 0 and self.groups > _LAGS

    def work(self, block: Any, load: Callable[..., None]) -> Sequence[Run | Repeat]:
        def run(section: Any, last: bool = False, first: bool = False) -> Run:
            start = section * self.held
            slot = section % self.slots if isinstance(section, int) else lax.rem(section, self.slots)
            size = self.keys - (self.sections - 1) * self.held if last else self.held
            edge = self.real - (self.sections - 1) * self.held
            tiles = _tiles(0, size, lambda at, n: last and at + n > edge)

            def step(number: Any) -> Step:
                return Step(number, slot, tiles, first=first, last=last)

            return Run(self.groups, step, lambda: load(slot, start, size))

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


class _Causal(_Plan):
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

    def work(self, block: Any, load: Callable[..., None]) -> Sequence[Run | Repeat]:
        def diagonal(first: int, stop: int) -> Run:
            tiles = _tiles(0, stop * ROWS, lambda at, n: at + n == stop * ROWS)
            last = not self.divides_later

            def step(number: Any) -> Step:
                return Step(first + number, 0, tiles, first=last, last=last)

            def before() -> None:
                if first == 0:
                    load(0, block * self.held, self.held)

            return Run(stop - first, step, before)

        def earlier(section: Any) -> list[Run]:
            slot = lax.rem(section + 1, 3)
            tiles = _tiles(0, self.held, lambda at, n: False)

            def step(number: Any) -> Step:
                return Step(number, slot, tiles)

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


class _Band(_Plan):
    """Queries see keys from `left` before to `right` after their own number."""

    masks, same_masks, slots = True, False, 1

    def __init__(self, queries: int, keys: int, left: int, right: int, choices: Choices) -> None:
        self.left, self.right, self.real = left, right, keys
        self.front = math.ceil(left / ROWS) * ROWS
        behind = max(0, math.ceil(right / ROWS)) * ROWS
        self.band = self.front + ROWS + behind
        self.blocks, self.groups = _blocks(queries, GROUPS)
        self.held = self.groups * ROWS + self.band - ROWS
        self.section = min(choices.section, self.band)
        self.widest = self.section
        needed = self.blocks * self.groups * ROWS + self.band - ROWS
        self.keys = max(needed, self.front + keys)

    def work(self, block: Any, load: Callable[..., None]) -> Sequence[Run | Repeat]:
        per = self.section
        count = math.ceil(self.band / per)
        start = block * (self.groups * ROWS)

        def run(number: int) -> Run:
            size = min(per, self.band - number * per)
            tiles = _tiles(0, size, lambda at, n: self._edge(number * per + at, n))

            def step(group: Any) -> Step:
                return Step(
                    group, 0, tiles, number == 0, number == count - 1, number * per,
                    group + number * per // ROWS,
                )  # fmt: skip

            return Run(self.groups, step, lambda: load(0, start, self.held) if number == 0 else None)

        return [run(number) for number in range(count)]

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


# The public function.


@functools.partial(jax.jit, static_argnames=("causal", "window", "scale", "precision", "chip", "choices"))
def flash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = False,
    window: int | tuple[int, int] | None = None,
    scale: float | None = None,
    precision: str = "default",
    chip: Chip = TRAINIUM3,
    choices: Choices | None = None,
) -> jax.Array:
    """softmax(scale * q @ k.T) @ v, as `jax.nn.dot_product_attention`."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if isinstance(window, int):
        window = (window, window)
    by_head = [x.transpose(0, 2, 1, 3) for x in (q, k, v)]
    out, _ = forward(
        *by_head, scale=scale, causal=causal, window=window, chip=chip, choices=choices,
        residuals=False,
    )  # fmt: skip
    return out.transpose(0, 2, 1, 3)
