"""Flash attention: softmax(scale * q @ k.T) @ v without the scores in HBM.

Queries of a head are in SBUF, 32 groups of 128 at a time; keys and values come by in sections. What
happens to a group and a section is `flash_kernel.py`'s, which of them meet `flash_meetings.py`'s.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn
from jax_trn3.hardware import TRAINIUM2, TRAINIUM3, Chip

from .catalogue import CATALOGUE, Entry
from .flash_kernel import FP32_MIN, ROWS, TILE, Choices, Sizes, Stages, scratch
from .flash_meetings import GROUPS, Meetings, meetings
from .flash_pipeline import LAGS, Repeat, pipeline


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

    def planned(choices: Choices, most: int) -> tuple[Choices, Meetings, Sizes, dict[str, Any]]:
        plan = meetings(queries, keys, causal, window, choices, most)
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
            pipeline([*runs(0), Repeat(count - 1, lambda n: runs(n + 1))], LAGS, stages.emit)
            return
        work = runs(0 if plan.carries else pl.program_id(0))
        pipeline(work, LAGS, stages.emit)
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
