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
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn
from jax_trn3.hardware import TRAINIUM2, TRAINIUM3, Chip

from .catalogue import CATALOGUE, Entry
from .flash_kernel import FP32_MIN, ROWS, TILE, Choices, Sizes, Stages, Step, scratch
from .flash_pipeline import Repeat, Run, pipeline

GROUPS = 32
"""Groups of queries in SBUF at a time, at most."""

_LAGS = 3
PRODUCT = TILE


def choices_for(chip: Chip, causal: bool = False) -> Choices:
    """What is best on a chip, found by simulation at 4096 queries and keys of 128 features; with
    `causal` in shorter sections, whose steps are too short to wait for transposes by DMA."""
    if chip.core.generation >= 4:
        best = Choices()
    else:
        best = Choices(
            moved_by_scalar=0, turned_by_dma=6, exponentials="scalar", bank=1024, move=1024,
            raised=512,
        )  # fmt: skip
    if not causal:
        return best
    return replace(best, section=2048, turned_by_dma=0 if best.exponentials == "vector" else 2)


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
    choices = choices_for(chip, causal and window is None) if choices is None else choices
    if causal and keys > queries:
        k, v, keys = k[:, :, :queries], v[:, :, :queries], queries
    depth = -(-features // ROWS)
    features += -features % depth

    def planned(choices: Choices, most: int) -> tuple[Choices, _Plan, Sizes, dict[str, Any]]:
        plan = _plan(queries, keys, causal, window, choices, most)
        sizes = Sizes(
            plan.groups, plan.widest, features, width, q.dtype, scale, residuals,
            int(chip.core.generation),
        )  # fmt: skip
        return choices, plan, sizes, scratch(sizes, choices, plan.slots, plan.held)

    choices, plan, sizes, tiles = _fitting(planned, choices, chip)
    rows = plan.blocks * plan.groups * ROWS
    q = _padded(q, rows, 0, features).reshape(batch * heads, rows, features)
    front = plan.front
    k = _padded(k, plan.keys, front, features).reshape(batch * kv_heads, plan.keys, features)
    v = _padded(v, plan.keys, front, width).reshape(batch * kv_heads, plan.keys, width)
    group = heads // kv_heads
    shapes = [jax.ShapeDtypeStruct((batch * heads, rows, width), q.dtype)]
    if residuals:
        shapes.append(jax.ShapeDtypeStruct((batch * heads, rows, 2), jnp.float32))

    def kernel(q_ref: Any, k_ref: Any, v_ref: Any, low_ref: Any, high_ref: Any, *refs: Any) -> None:
        outputs, held = refs[: len(shapes)], dict(zip(tiles, refs[len(shapes) :]))

        def runs(number: Any) -> Sequence[Any]:
            """Of a block of queries of a head."""
            head, block = _split(number, plan.blocks)
            kv_head = head if group == 1 else lax.div(head, group)
            first = block * (plan.groups * ROWS)

            def store(at: Any, result: Any, statistics: Any) -> None:
                place = pl.ds(first + at * ROWS, ROWS)
                pltrn.dma_copy(outputs[0].at[head, place], result, engine="dma:vector")
                if statistics is not None:
                    pltrn.dma_copy(outputs[1].at[head, place], statistics, engine="dma:vector")

            def load(slot: Any, start: Any, count: int) -> None:
                _load_keys(held, k_ref.at[kv_head], v_ref.at[kv_head], slot, start, count)

            def begin() -> None:
                bounds = (low_ref, high_ref) if plan.masks else ()
                at = 0 if plan.same_masks else first
                _load_queries(held, q_ref.at[head], first, bounds, at)
                if plan.divides_later:
                    lax.fori_loop(0, plan.groups, functools.partial(_start, held, choices), None)

            return plan.work(number, block, begin, load, store)

        stages = Stages(sizes, choices, held)
        count = batch * heads * plan.blocks
        if plan.carries and count > 1:
            pipeline([*runs(0), Repeat(count - 1, lambda n: runs(n + 1))], _LAGS, stages.emit)
            return
        work = runs(0 if plan.carries else pl.program_id(0))
        pipeline(work, _LAGS, stages.emit)
        if plan.divides_later:
            step = work[0].step(0)

            def divide(number: Any, none: Any) -> None:
                stages.divide(replace(step, group=number), held["o"].at[number])

            lax.fori_loop(0, plan.groups, divide, None)

    low, high = plan.bounds(queries, keys)
    results = pl.pallas_call(
        kernel,
        grid=() if plan.carries else (batch * heads * plan.blocks,),
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


def _fitting(planned: Callable[..., Any], choices: Choices, chip: Chip) -> Any:
    """The plan with as long sections, and then as many queries at a time, as SBUF has room for."""
    most = GROUPS
    while True:
        found = planned(choices, most)
        needed = sum(_partition_bytes(tile) for tile in found[-1].values())
        if needed <= chip.core.sbuf_usable_partition_bytes or most <= 4:
            return found
        if choices.section > 1024:
            choices = replace(choices, section=choices.section // 2 // TILE * TILE)
        else:
            most //= 2


def _partition_bytes(tile: Any) -> int:
    """Of SBUF; none of a tile in PSUM."""
    if tile.memory_space.name != "sbuf":
        return 0
    slots, _, *free = tile.inner_aval.shape
    if len(tile.inner_aval.shape) == 4 and tile.inner_aval.shape[1] != ROWS:  # q, k: parts of H
        slots, free = slots * tile.inner_aval.shape[1], free[1:]
    return int(slots * math.prod(free) * tile.inner_aval.dtype.itemsize)


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
        pltrn.dma_copy(held["v"].at[slot, chunk], source, engine="dma:scalar.values")

    lax.fori_loop(0, count // ROWS, values, None)


def _split(number: Any, blocks: int) -> tuple[Any, Any]:
    """Head and block of a block of queries."""
    if blocks == 1:
        return number, 0
    if isinstance(number, int):
        return divmod(number, blocks)
    return lax.div(number, blocks), lax.rem(number, blocks)


def _load_queries(
    held: dict[str, Any], q: Any, first: Any, bounds: Sequence[Any], bounds_first: Any
) -> None:
    """All groups of a block, transposed; and which keys their queries see."""
    groups, depth, partitions, _ = held["q"].shape

    def load(number: Any, none: Any) -> None:
        rows = pl.ds(first + number * ROWS, ROWS)
        for part in range(depth):
            source = q.at[rows, pl.ds(part * partitions, partitions)]
            pltrn.dma_transpose(held["q"].at[number, part], source, engine="dma:gpsimd")
        for name, source in zip(("lowest", "highest"), bounds):
            place = source.at[pl.ds(bounds_first + number * ROWS, ROWS)]
            pltrn.dma_copy(held[name].at[number], place, engine=f"dma:gpsimd.{name}")

    lax.fori_loop(0, groups, load, None)


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
    return max(_LAGS + 1, groups + groups % 2)


def _tiles(start: int, stop: int, masked: Callable[[int, int], bool]) -> tuple[Any, ...]:
    sizes = [(at, min(PRODUCT, stop - at)) for at in range(start, stop, PRODUCT)]
    return tuple((at, size, masked(at, size)) for at, size in sizes)


def _plan(
    queries: int, keys: int, causal: bool, window: tuple[int, int] | None, choices: Choices,
    most: int,
) -> _Plan:  # fmt: skip
    if window is not None:
        left, right = window[0], 0 if causal else window[1]
        return _Band(queries, keys, left, right, choices, most)
    if causal:
        short = queries <= most * ROWS
        return (_Triangle if short else _Causal)(queries, keys, choices)
    return _Full(queries, keys, choices, most)


class _Full(_Plan):
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


class _Triangle(_Plan):
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


class _Band(_Plan):
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


# The public function.


def flash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = False,
    window: int | tuple[int, int] | None = None,
    scale: float | None = None,
    chip: Chip = TRAINIUM3,
    choices: Choices | None = None,
) -> jax.Array:
    """softmax(scale * q @ k.T) @ v, as `jax.nn.dot_product_attention`; with derivatives.

    **Arguments:**

    - `q`: [B, T, N, H], bfloat16, float16 or float32, any sizes.
    - `k`, `v`: [B, S, K, H] and [B, S, K, HV], of q's dtype; N a multiple of K (grouped queries).
    - `causal`: Query t sees the keys s <= t.
    - `window`: (left, right), or one number for both: query t sees t - left <= s <= t + right.
    - `scale`: None is 1 / sqrt(H).
    - `chip`: Whose instructions to use. (TRAINIUM3's are not all on TRAINIUM2.)
    - `choices`: Who does what, for tuning; None: what is best for the chip (`choices_for`).

    **Returns:** [B, T, N, HV] in q's dtype. Products are of q's dtype, summed in float32; the
    probabilities are rounded to q's dtype before they meet the values.

    **Raises:** `TypeError` for other dtypes; `ValueError` for shapes that do not match, features or
    values of more than 512, a window in which some query sees no key.
    """
    _check(q, k, v)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    if window is not None:
        window = (window, window) if isinstance(window, int) else (int(window[0]), int(window[1]))
        _check_window(window, q.shape[1], k.shape[1])
        if window[0] >= q.shape[1] - 1 and (causal or window[1] >= k.shape[1] - 1):
            window = None  # everyone sees everything
        else:
            window = (min(window[0], q.shape[1]), min(window[1], k.shape[1]))
    options = (scale, bool(causal), window, chip, choices)
    by_head = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    return _attention(*by_head, options).transpose(0, 2, 1, 3)


def flash_attention_reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = False,
    window: int | tuple[int, int] | None = None,
    scale: float | None = None,
) -> jax.Array:
    """The same in plain JAX."""
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, local_window_size=window, scale=scale
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
@functools.partial(jax.jit, static_argnums=3)
def _attention(q: jax.Array, k: jax.Array, v: jax.Array, options: tuple[Any, ...]) -> jax.Array:
    return _forward(q, k, v, options, False)[0]


def _attention_fwd(q: jax.Array, k: jax.Array, v: jax.Array, options: Any) -> tuple[Any, Any]:
    out, statistics = _forward(q, k, v, options, True)
    return out, (q, k, v, out, statistics)


def _attention_bwd(options: Any, residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, ...]:
    from .flash_attention_backward import backward

    scale, causal, window, chip, _ = options
    q, k, v, out, statistics = residuals
    return backward(
        q, k, v, out, statistics, cotangent, scale=scale, causal=causal, window=window, chip=chip
    )


_attention.defvjp(_attention_fwd, _attention_bwd)


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, options: tuple[Any, ...], residuals: bool
) -> tuple[jax.Array, jax.Array | None]:
    """As `forward`; where there are more queries than keys, the later ones see all of these."""
    scale, causal, window, chip, choices = options
    call = functools.partial(
        forward, scale=scale, chip=chip, choices=choices, residuals=residuals
    )  # fmt: skip
    keys = k.shape[2]
    if not causal or window is not None or q.shape[2] <= keys:
        return call(q, k, v, causal=causal, window=window)
    parts = (
        call(q[:, :, :keys], k, v, causal=True, window=None),
        call(q[:, :, keys:], k, v, causal=False, window=None),
    )
    out, statistics = (
        None if one is None else jnp.concatenate([one, other], 2) for one, other in zip(*parts)
    )
    return out, statistics


def _check(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    dtypes = {str(x.dtype) for x in (q, k, v)}
    if len(dtypes) > 1 or not dtypes <= {"bfloat16", "float16", "float32"}:
        raise TypeError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; all must be bfloat16, "
                        "float16 or float32, and the same")  # fmt: skip
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if any(x.ndim != 4 or 0 in x.shape for x in (q, k, v)):
        raise ValueError(f"{shapes}; [B, T, N, H], [B, S, K, H] and [B, S, K, HV], sizes >= 1")
    if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise ValueError(f"{shapes}; B, S, K and H must agree")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{shapes}; {q.shape[2]} query heads are no multiple of {k.shape[2]}")
    if max(q.shape[3], v.shape[3]) > 512:
        raise ValueError(f"{shapes}; features and values of a head up to 512")


def _check_window(window: tuple[int, int], queries: int, keys: int) -> None:
    left, right = window
    if left < 0 or right < 0:
        raise ValueError(f"window={window}; both ends at least 0")
    if queries - 1 - left > keys - 1:
        raise ValueError(
            f"window={window}: of {queries} queries the last see none of {keys} keys; "
            "jax_trn3.dot_product_attention averages all values for these"
        )


def _entries() -> None:
    """The story's shape: 4096 tokens, 8 heads of queries on 2 of keys, 128 features."""
    queries, keys = (jax.ShapeDtypeStruct((1, 4096, n, 128), jnp.bfloat16) for n in (8, 2))
    variants: dict[str, dict[str, Any]] = {
        "": {}, ", causal": {"causal": True}, ", window 1024": {"causal": True, "window": 1024},
    }  # fmt: skip
    chips: tuple[tuple[Literal["trn2", "trn3"], Chip], ...] = (
        ("trn2", TRAINIUM2), ("trn3", TRAINIUM3),
    )  # fmt: skip
    for name, chip in chips:
        for what, options in variants.items():
            function = functools.partial(flash_attention, chip=chip, **options)
            title = f"flash attention 4096 x 4096, 8 heads{what}, for {name}"
            CATALOGUE[title] = Entry(function, (queries, keys, keys), chips=(name,))


_entries()
