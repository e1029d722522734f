"""Attention in token generation: a few queries against a long cache of keys and values.

What it takes is the time to read the cache: its sections, 2048 keys each, are independent of each
other (flash decoding), run through the flash kernel's pipeline as the groups of queries do there,
and are put together at the end. All queries of a head of keys are one group.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn
from jax_trn3.hardware import TRAINIUM2, TRAINIUM3, Chip

from .catalogue import CATALOGUE, Entry
from .flash_attention import choices_for
from .flash_kernel import FP32_MIN, ROWS, TILE, Choices, Sizes, Stages, Step, scratch
from .flash_pipeline import LAGS, Run, pipeline

SECTION = 2048
"""Keys of a section."""

_SLOTS = 4
"""Sections in SBUF: one that is loaded, and those that are under way."""


def decode_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array | None = None,
    *,
    scale: float | None = None,
    chip: Chip = TRAINIUM3,
) -> jax.Array:
    """softmax(scale * q @ k.T) @ v for a few queries, the last tokens of each sequence.

    **Arguments:**

    - `q`: [B, T, N, H]; T * N / K up to 128, with K heads of keys.
    - `k`, `v`: The cache, [B, S, K, H] and [B, S, K, HV], of q's dtype, bfloat16 or float16.
    - `lengths`: [B] integers, 1 to S: how much of the cache is in use. Query t of T is token
      `length - T + t` and sees what is before it, and itself. None: S.
    - `scale`: None is 1 / sqrt(H).

    **Returns:** [B, T, N, HV] in q's dtype. All of the cache is read, whatever the lengths.

    **Raises:** `TypeError` for other dtypes; `ValueError` for shapes that do not match, for more
    queries, and for features or values of more than 128.
    """
    _check(q, k, v, lengths)
    batch, queries, heads, features = q.shape
    _, keys, kv_heads, width = v.shape
    group = heads // kv_heads
    padded = math.ceil(keys / ROWS) * ROWS
    if padded != keys:
        k, v = (jnp.pad(x, ((0, 0), (0, padded - keys), (0, 0), (0, 0))) for x in (k, v))
    rows = q.reshape(batch, queries, kv_heads, group, features).transpose(0, 2, 1, 3, 4)
    rows = rows.reshape(batch, kv_heads, queries * group, features)
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, ROWS - queries * group), (0, 0)))
    used = jnp.full(batch, keys) if lengths is None else lengths
    token = jnp.arange(ROWS) // group  # rows of nothing count on as if there were more tokens
    last = used[:, None] - queries + jnp.minimum(token, queries - 1)
    scale = 1 / math.sqrt(features) if scale is None else float(scale)
    found = _decoded(rows, k, v, last.astype(jnp.float32)[..., None], scale, chip)
    found = found[:, :, : queries * group].reshape(batch, kv_heads, queries, group, width)
    return found.transpose(0, 2, 1, 3, 4).reshape(batch, queries, heads, width)


def decode_attention_reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array | None = None,
    *,
    scale: float | None = None,
) -> jax.Array:
    """The same in plain JAX."""
    used = jnp.full(q.shape[0], k.shape[1]) if lengths is None else lengths
    last = used[:, None] - q.shape[1] + jnp.arange(q.shape[1])
    mask = jnp.arange(k.shape[1]) <= last[:, None, :, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale)


def _check(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None) -> None:
    dtypes = {str(x.dtype) for x in (q, k, v)}
    if len(dtypes) > 1 or not dtypes <= {"bfloat16", "float16"}:
        raise TypeError(
            f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; all bfloat16, or all float16"
        )
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if any(x.ndim != 4 or 0 in x.shape for x in (q, k, v)):
        raise ValueError(f"{shapes}; [B, T, N, H], [B, S, K, H] and [B, S, K, HV], sizes >= 1")
    if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise ValueError(f"{shapes}; B, S, K and H must agree")
    if q.shape[2] % k.shape[2] or q.shape[1] * q.shape[2] // k.shape[2] > ROWS:
        raise ValueError(
            f"{shapes}; N must be a multiple of K, and T * N / K at most {ROWS} (for more: "
            "flash_attention)"
        )
    if max(q.shape[3], v.shape[3]) > ROWS:
        raise ValueError(f"{shapes}; features and values of a head up to {ROWS}")
    if lengths is not None and (lengths.shape != q.shape[:1] or lengths.dtype.kind not in "iu"):
        raise ValueError(f"lengths is {lengths.dtype}{lengths.shape}; integers [{q.shape[0]}]")


@functools.partial(jax.jit, static_argnums=(4, 5))
def _decoded(
    q: jax.Array, k: jax.Array, v: jax.Array, last: jax.Array, scale: float, chip: Chip
) -> jax.Array:
    """[B, K, 128, HV] of q [B, K, 128, H]; `last` [B, 128, 1] is the last key that a row sees."""
    batch, kv_heads, _, features = q.shape
    _, keys, _, width = v.shape
    section = min(SECTION, keys)
    sections = math.ceil(keys / section)
    count = max(LAGS + 1, sections + sections % 2)  # slots of steps under way stay apart
    best = choices_for(chip)
    choices = Choices(
        section=max(TILE, section // TILE * TILE), moved_by_scalar=best.moved_by_scalar,
        turned_by_dma=0, exponentials=best.exponentials, bank=best.bank, move=best.move,
        raised=best.raised,
    )  # fmt: skip
    sizes = Sizes(count, section, features, width, q.dtype, scale, False, int(chip.core.generation))
    tiles = scratch(sizes, choices, _SLOTS, section) | {
        "q": pltrn.SBUF((2, 1, features, ROWS), q.dtype),
        "k": pltrn.SBUF((_SLOTS, features, 1, section), q.dtype),
        "v": pltrn.SBUF((_SLOTS, ROWS, section // ROWS * width), q.dtype),
        "p": pltrn.SBUF((2, ROWS, section), q.dtype),
        "highest": pltrn.SBUF((2, ROWS, 1), jnp.float32),
        "bounds": pltrn.SBUF((2, ROWS, 1), jnp.float32),
        "least": pltrn.SBUF((2, ROWS, 1), jnp.float32),
        "weight": pltrn.SBUF((2, ROWS, 1), jnp.float32),
        "all": pltrn.SBUF((2, ROWS, 1), jnp.float32),
        "sum": pltrn.SBUF((2, ROWS, width), jnp.float32),
    }

    def kernel(q_ref: Any, k_ref: Any, v_ref: Any, last_ref: Any, out_ref: Any, *refs: Any) -> None:
        stages = _Sections(sizes, choices, dict(zip(tiles, refs)), kv_heads)
        pltrn.memset(stages.t.lowest.at[0], value=0.0, engine="gpsimd")

        def runs(number: Any) -> list[Run]:
            """Of a head of keys of a sequence."""
            sequence, head = _split(number, kv_heads)
            turn = lax.rem(jnp.int32(number), 2)

            def begin() -> None:
                source = q_ref.at[sequence, head]
                pltrn.dma_transpose(stages.t.q.at[turn, 0], source, engine="dma:gpsimd")
                place = stages.t.highest.at[turn]
                pltrn.dma_copy(place, last_ref.at[sequence], engine="dma:gpsimd")

            def run(first: int, stop: int, size: int) -> Run:
                def step(at: Any) -> Section:
                    group = first + at
                    slot = lax.rem(jnp.int32(number * sections + group), _SLOTS)
                    parts = [(s, min(TILE, size - s), True) for s in range(0, size, TILE)]
                    return Section(
                        group, slot, tuple(parts), None, True, turn=turn, sequence=sequence,
                        head=head, refs=(k_ref, v_ref), keys_before=group * section,
                    )  # fmt: skip

                return Run(stop - first, step, begin if first == 0 else None)

            full = keys // section
            parts = [run(0, full, section)] if full else []
            return parts + ([run(full, sections, keys % section)] if keys % section else [])

        def head_done(number: Any) -> None:
            sequence, head = _split(number, kv_heads)
            stages.together(sections, sequence, head, out_ref)

        def one(number: Any, none: Any) -> None:
            pipeline(runs(number), LAGS, stages.emit)
            head_done(number)

        lax.fori_loop(0, batch * kv_heads, one, None)

    return pl.pallas_call(
        kernel,
        in_specs=[pl.BlockSpec(memory_space=pltrn.HBM)] * 4,
        out_specs=pl.BlockSpec(memory_space=pltrn.HBM),
        out_shape=jax.ShapeDtypeStruct((batch, kv_heads, ROWS, width), q.dtype),
        scratch_shapes=list(tiles.values()),
        compiler_params=pltrn.CompilerParams(),
        name="decode_attention",
    )(q, k, v, last)


def _split(number: Any, kv_heads: int) -> tuple[Any, Any]:
    """Sequence and head of keys."""
    if kv_heads == 1:
        return number, 0
    return lax.div(jnp.int32(number), kv_heads), lax.rem(jnp.int32(number), kv_heads)


@dataclass(frozen=True)
class Section(Step):
    """All queries of a head against a section of the cache; `group` is the section's number."""

    turn: Any = 0
    """Where the queries are."""

    sequence: Any = 0
    head: Any = 0
    refs: tuple[Any, ...] = ()
    """The caches of keys and values."""

    keys_before: Any = 0


class _Sections(Stages):
    """The flash kernel's stages where keys differ from step to step and queries stay.

    Partition p of a section of n keys has the values of keys p * n / 128 and so on, as they lie in
    the cache; so transposes take every (n / 128)-th probability.
    """

    def __init__(self, sizes: Sizes, choices: Choices, tiles: dict[str, Any], heads: int) -> None:
        super().__init__(sizes, choices, tiles)
        self.heads = heads

    def scores(self, step: Any) -> Iterator[Callable[[], None]]:
        """Loads the section, multiplies, and moves what is to be seen of it out of PSUM."""
        parity, columns = lax.rem(step.group, 2), itertools.count()

        def load() -> None:
            size, (k, v) = step.keys, step.refs
            rows = pl.ds(step.keys_before, size)
            head = pl.ds(step.head, 1)
            into = self.t.k.at[step.slot, :, :, pl.ds(0, size)]
            pltrn.dma_transpose(into, k.at[step.sequence, rows, head], engine="dma:sync")
            wide = size // ROWS * self.sizes.value_features
            pltrn.dma_copy(
                self.t.v.at[step.slot, :, pl.ds(0, wide)],
                v.at[step.sequence, rows, head],
                engine="dma:scalar",
            )
            # Bounds count from the section's first key.
            self.t.bounds[parity] = self.t.highest[step.turn] - jnp.float32(step.keys_before)

        banks = self._banks(step)
        for number, tiles in enumerate(banks):
            place = lax.rem(step.group * len(banks) + number, self.t.scores.shape[0])
            bank = self.t.scores.at[place]
            for tile in tiles:

                def act(
                    tile: Any = tile, tiles: Any = tiles, bank: Any = bank, number: int = number
                ) -> None:
                    start, size, _ = tile
                    if start == 0:
                        load()
                    pltrn.nc_matmul(
                        bank.at[:, pl.ds(start % bank.shape[-1], size)],
                        self.t.q.at[step.turn, 0],
                        self.t.k.at[step.slot, :, 0, pl.ds(start, size)],
                        accumulate=False,
                    )
                    if tile is tiles[-1]:
                        self._seen(step, tiles, bank, parity, columns)

                yield act

    def _seen(self, step: Any, tiles: Any, bank: Any, parity: Any, columns: Iterator[int]) -> None:
        for start, size, _ in tiles:
            into = self.t.scaled.at[parity, :, pl.ds(start, size)]
            source = bank.at[:, pl.ds(start % bank.shape[-1], size)]
            pltrn.activation(into, source, scale=self.sizes.scale, op="copy")
            pltrn.range_select(
                into, into, self.t.lowest.at[0], self.t.bounds.at[parity],
                self.t.maxima.at[parity, :, pl.ds(next(columns), 1)],
                comp_op0="greater_equal", comp_op1="less_equal", range_start=start,
            )  # fmt: skip

    def _probabilities(self, parity: Any, at: int, size: int) -> Any:
        return self.t.p.at[parity, :, pl.ds(at, size)]

    def transposes(self, step: Any) -> Iterator[Callable[[], None]]:
        """Of every so manieth probability."""
        parity, apart = lax.rem(step.group, 2), step.keys // ROWS
        for chunk in range(apart):

            def act(chunk: int = chunk) -> None:
                turning = self.t.turning.at[chunk // 4 % 2]
                source = self.t.p.at[parity, :, pl.ds(chunk, ROWS, stride=apart)]
                pltrn.nc_transpose(turning.at[:, chunk % 4], source)
                if chunk % 4 == 3 or chunk == apart - 1:
                    tile = range(chunk // 4 * 4, chunk + 1)
                    self._copied(parity, tile, turning, chunk // 4)

            yield act

    def products(self, step: Any) -> Iterator[Callable[[], None]]:
        """Probabilities with values."""
        parity, wide = lax.rem(step.group, 2), self.sizes.value_features
        for chunk in range(step.keys // ROWS):

            def act(chunk: int = chunk) -> None:
                pltrn.nc_matmul(
                    self.t.product.at[parity],
                    self.t.turned.at[parity, :, 0, chunk],
                    self.t.v.at[step.slot, :, pl.ds(chunk * wide, wide)],
                    accumulate=chunk > 0,
                )

            yield act

    def together(self, sections: int, sequence: Any, head: Any, out: Any) -> None:
        """The sections' results, each times exp(its maximum - the largest), over the sum."""
        t, sign = self.t, 1.0 if self.on_vector else -1.0
        best, weight, total, result = (x.at[0] for x in (t.least, t.weight, t.all, t.sum))
        pltrn.memset(best, value=sign * FP32_MIN, engine="gpsimd")
        better = "maximum" if self.on_vector else "minimum"

        def compare(number: Any, none: Any) -> None:
            pltrn.tensor_tensor(best, best, t.m.at[number], op=better)

        lax.fori_loop(0, sections, compare, None)
        pltrn.memset(total, value=0.0, engine="gpsimd")
        pltrn.memset(result, value=0.0, engine="gpsimd")

        def add(number: Any, none: Any) -> None:
            if self.on_vector:
                pltrn.exponential(weight, t.m.at[number], best)
            else:
                pltrn.activation(weight, t.m.at[number], best, -1.0, op="exp")
            for held, part in ((total, t.l.at[number]), (result, t.o.at[number])):
                pltrn.scalar_tensor_tensor(held, part, weight, held, op0="multiply", op1="add")

        lax.fori_loop(0, sections, add, None)
        pltrn.reciprocal(t.inverse.at[0], total)
        pltrn.activation(t.written.at[0], result, scale=t.inverse.at[0], op="copy")
        pltrn.dma_copy(out.at[sequence, head], t.written.at[0], engine="dma:vector")


def _entries() -> None:
    """A query of each of 8 sequences of 8192 tokens, 8 heads on one of keys."""
    query = jax.ShapeDtypeStruct((8, 1, 8, 128), jnp.bfloat16)
    cache = jax.ShapeDtypeStruct((8, 8192, 1, 128), jnp.bfloat16)
    chips: tuple[tuple[Literal["trn2", "trn3"], Chip], ...] = (
        ("trn2", TRAINIUM2), ("trn3", TRAINIUM3),
    )  # fmt: skip
    for name, chip in chips:
        function = functools.partial(decode_attention, chip=chip)
        title = f"decode attention 8 x 8192, 8 heads on 1, for {name}"
        CATALOGUE[title] = Entry(function, (query, cache, cache), "hbm", chips=(name,))


_entries()
