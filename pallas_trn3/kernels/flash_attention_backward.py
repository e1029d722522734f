"""Gradients of flash attention: probabilities are computed again, 128 queries and 512 keys a step.

Keys outside, queries inside (FlashAttention-2's order): the gradients of keys and values are summed
up in PSUM over all queries, that of queries in SBUF over all keys. Of a step

1. TensorE makes scores and the cotangents of the probabilities,
2. ScalarE the probabilities p = exp(scale * scores - log sum exp), VectorE
   ds = p * (cotangents - rows of out * d out),
3. TensorE adds p.T @ d out and ds.T @ q to what is summed up, transposes ds,
4. and later multiplies ds with the keys. (3 is two steps behind 1, 4 three.)
"""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn
from jax_trn3.hardware import Chip

from .flash_kernel import ROWS, TILE
from .flash_pipeline import LAGS, Run, pipeline

_MOST = 64
"""Groups of 128 queries whose gradients are in SBUF at a time."""


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    out: jax.Array,
    statistics: jax.Array,
    cotangent: jax.Array,
    *,
    scale: float,
    causal: bool,
    window: tuple[int, int] | None,
    chip: Chip,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients by q, k and v.

    **Arguments:**

    - `q`: [B, N, T, H]; `k`, `v`: [B, K, S, H], [B, K, S, HV]; `out`, `cotangent`: [B, N, T, HV].
    - `statistics`: [B, N, T, 2], the maximum (on NeuronCore-v3 minus it) and the sum of a row's
      exponentials.

    **Raises:** `ValueError` for features or values of more than 128.
    """
    batch, heads, queries, features = q.shape
    kv_heads, keys, width = v.shape[1:]
    if max(features, width) > 128:
        raise ValueError(
            f"derivatives of flash_attention: features {features}, values {width}; up to 128 (for "
            "more: jax_trn3.dot_product_attention)"
        )
    sign = 1.0 if chip.core.generation >= 4 else -1.0
    lse = sign * statistics[..., 0] + jnp.log(statistics[..., 1])
    delta = jnp.sum(out.astype(jnp.float32) * cotangent.astype(jnp.float32), -1)
    low, high = _bounds(queries, keys, causal, window)
    call = functools.partial(
        _gradients, scale=scale, causal=causal, window=window, heads=heads, kv_heads=kv_heads,
        chip=chip,
    )  # fmt: skip
    dq, dk, dv = [], 0.0, 0.0
    for start in range(0, queries, _MOST * ROWS):
        part = slice(start, start + _MOST * ROWS)
        mine, by_key, by_value = call(
            q[:, :, part], k, v, cotangent[:, :, part].astype(q.dtype), lse[:, :, part],
            delta[:, :, part], low[part], high[part], first=start,
        )  # fmt: skip
        dq.append(mine)
        dk, dv = dk + by_key, dv + by_value

    def of_group(x: jax.Array, like: jax.Array) -> jax.Array:
        parts = x.reshape(batch, kv_heads, heads // kv_heads, -1, x.shape[-1])
        return jnp.sum(parts, 2)[:, :, :keys].astype(like.dtype)

    return jnp.concatenate(dq, 2).astype(q.dtype), of_group(dk, k), of_group(dv, v)


def _bounds(
    queries: int, keys: int, causal: bool, window: tuple[int, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last key that each query sees."""
    rows = np.arange(queries)
    low, high = np.zeros(queries), np.full(queries, keys - 1)
    if window is not None:
        low, high = np.maximum(low, rows - window[0]), np.minimum(high, rows + window[1])
    if causal:
        high = np.minimum(high, rows)
    return low.astype(np.float32), high.astype(np.float32)


def _gradients(
    q: jax.Array, k: jax.Array, v: jax.Array, do: jax.Array, lse: jax.Array, delta: jax.Array,
    low: np.ndarray, high: np.ndarray, *, first: int, scale: float, causal: bool,
    window: tuple[int, int] | None, heads: int, kv_heads: int, chip: Chip,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Of some queries, by head of queries: dq, dk, dv in float32."""
    batch, _, queries, features = q.shape
    keys, width = v.shape[2:]
    blocks = math.ceil(keys / TILE)
    groups = math.ceil(queries / TILE) * TILE // ROWS
    rows = groups * ROWS
    masked = causal or window is not None or keys % TILE != 0

    def flat(x: jax.Array, count: int, value: float = 0.0) -> jax.Array:
        short = ((0, 0), (0, 0), (0, count - x.shape[2]), (0, 0))
        return jnp.pad(x, short, constant_values=value).reshape(-1, count, x.shape[3])

    # Queries of nothing have a log sum exp so large that their probabilities are 0.
    rows_of = [flat(-lse[..., None], rows, -1e30), flat(delta[..., None], rows)]
    limits = [np.zeros(rows, np.float32), np.full(rows, keys - 1, np.float32)]
    for limit, real in zip(limits, (low, high)):
        limit[:queries] = real
    operands = (
        flat(q, rows), flat(k, blocks * TILE), flat(v, blocks * TILE), flat(do, rows),
        jnp.concatenate(rows_of, -1), jnp.asarray(np.stack(limits, -1)),
    )  # fmt: skip
    shapes = [
        jax.ShapeDtypeStruct((batch * heads, rows, features), jnp.float32),
        jax.ShapeDtypeStruct((batch * heads, blocks * TILE, features), jnp.float32),
        jax.ShapeDtypeStruct((batch * heads, blocks * TILE, width), jnp.float32),
    ]
    tiles = _tiles(groups, features, width, q.dtype)

    def kernel(*refs: Any) -> None:
        hbm, held = refs[:9], dict(zip(tiles, refs[9:]))
        head = pl.program_id(0)
        kv_head = lax.div(head, heads // kv_heads) if heads > kv_heads else head
        q_ref, do_ref, rows_ref = (hbm[n].at[head] for n in (0, 3, 4))
        k_ref, v_ref = hbm[1].at[kv_head], hbm[2].at[kv_head]
        t = SimpleNamespace(**held)
        step = _Step(t, scale, masked)
        lax.fori_loop(
            0, groups, functools.partial(_load_group, t, q_ref, do_ref, rows_ref, hbm[5]), None
        )

        def block(number: Any, none: Any) -> None:
            _load_block(t, k_ref, v_ref, number)
            begin, end = _seen(number, groups, first, causal, window)

            def described(at: Any) -> Any:
                return (begin + at, number, at == 0, at)

            pipeline([Run(end - begin, described)], LAGS, step.emit)
            for name, out, factor in (("dk", hbm[7], scale), ("dv", hbm[8], 1.0)):
                place = out.at[head, pl.ds(number * TILE, TILE)]
                _write_block(t, name, place, factor, number)

        lax.fori_loop(0, blocks, block, None)

        def write(group: Any, none: Any) -> None:
            place = hbm[6].at[head, pl.ds(group * ROWS, ROWS)]
            result = t.dq_out.at[lax.rem(group, 2)]
            pltrn.activation(result, t.dq.at[group], scale=scale, op="copy")
            pltrn.dma_copy(place, result, engine="dma:vector")

        lax.fori_loop(0, groups, write, None)

    dq, dk, dv = pl.pallas_call(
        kernel,
        grid=(batch * heads,),
        in_specs=[pl.BlockSpec(memory_space=pltrn.HBM)] * 6,
        out_specs=[pl.BlockSpec(memory_space=pltrn.HBM)] * 3,
        out_shape=shapes,
        scratch_shapes=list(tiles.values()),
        compiler_params=pltrn.CompilerParams(),
        name="flash_attention_backward",
    )(*operands)
    by_head = (batch, heads)
    return tuple(x.reshape(*by_head, *x.shape[1:]) for x in (dq[:, :queries], dk, dv))


def _tiles(groups: int, features: int, width: int, dtype: Any) -> dict[str, Any]:
    f32, chunks = jnp.float32, TILE // ROWS
    return {
        "q": pltrn.SBUF((groups, ROWS, features), dtype),
        "q_turned": pltrn.SBUF((groups, features, ROWS), dtype),
        "do": pltrn.SBUF((groups, ROWS, width), dtype),
        "do_turned": pltrn.SBUF((groups, width, ROWS), dtype),
        "rows": pltrn.SBUF((groups, ROWS, 2), f32),
        "limits": pltrn.SBUF((groups, ROWS, 2), f32),
        "k": pltrn.SBUF((2, chunks, ROWS, features), dtype),
        "k_turned": pltrn.SBUF((2, features, TILE), dtype),
        "v_turned": pltrn.SBUF((2, width, TILE), dtype),
        "scores": pltrn.PSUM((2, ROWS, TILE), f32),
        "dp": pltrn.PSUM((2, ROWS, TILE), f32),
        "seen": pltrn.SBUF((2, ROWS, TILE), f32),
        "bounds": pltrn.SBUF((2, ROWS, 2), f32),
        "p": pltrn.SBUF((4, ROWS, TILE), dtype),
        "ds": pltrn.SBUF((4, ROWS, TILE), dtype),
        "turning": pltrn.PSUM((1 + (jnp.dtype(dtype).itemsize == 2), ROWS, chunks, ROWS), dtype),
        "ds_turned": pltrn.SBUF((4, ROWS, chunks, ROWS), dtype),
        "dk": pltrn.PSUM((chunks, ROWS, features), f32),
        "dv": pltrn.PSUM((chunks, ROWS, width), f32),
        "product": pltrn.PSUM((2 if jnp.dtype(dtype).itemsize == 2 else 1, ROWS, features), f32),
        "dq": pltrn.SBUF((groups, ROWS, features), f32),
        "dq_out": pltrn.SBUF((2, ROWS, features), f32),
        "dk_out": pltrn.SBUF((2, ROWS, features), f32),
        "dv_out": pltrn.SBUF((2, ROWS, width), f32),
    }


def _seen(
    block: Any, groups: int, first: int, causal: bool, window: tuple[int, int] | None
) -> tuple[Any, Any]:
    """The groups, from and up to, of which some query sees some key of a block; at least four."""
    per = TILE // ROWS
    before = first // ROWS
    begin, end = 0, groups
    if causal:
        begin = block * per - before
    elif window is not None:
        begin = block * per - before - math.ceil(window[1] / ROWS)
    if window is not None:
        end = jnp.clip(block * per - before + per + math.ceil(window[0] / ROWS), per, groups)
    if causal or window is not None:
        begin = jnp.clip(begin, 0, groups - per)
        begin = jnp.minimum(begin, end - per)
    return begin, end


def _load_group(t: Any, q: Any, do: Any, rows: Any, limits: Any, group: Any, none: Any) -> None:
    place = pl.ds(group * ROWS, ROWS)
    pltrn.dma_transpose(t.q_turned.at[group], q.at[place], engine="dma:gpsimd")
    pltrn.dma_transpose(t.do_turned.at[group], do.at[place], engine="dma:sync")
    pltrn.dma_copy(t.q.at[group], q.at[place], engine="dma:scalar")
    pltrn.dma_copy(t.do.at[group], do.at[place], engine="dma:scalar")
    pltrn.dma_copy(t.rows.at[group], rows.at[place], engine="dma:vector")
    pltrn.dma_copy(t.limits.at[group], limits.at[place], engine="dma:vector")
    pltrn.memset(t.dq.at[group], value=0.0, engine="gpsimd")


def _load_block(t: Any, k: Any, v: Any, number: Any) -> None:
    slot, place = lax.rem(number, 2), pl.ds(number * TILE, TILE)
    pltrn.dma_transpose(t.k_turned.at[slot], k.at[place], engine="dma:gpsimd")
    pltrn.dma_transpose(t.v_turned.at[slot], v.at[place], engine="dma:sync")
    for chunk in range(TILE // ROWS):
        part = pl.ds(number * TILE + chunk * ROWS, ROWS)
        pltrn.dma_copy(t.k.at[slot, chunk], k.at[part], engine="dma:scalar")


def _write_block(t: Any, name: str, place: Any, factor: float, number: Any) -> None:
    """A block's gradient out of PSUM, to HBM."""
    sums, out = getattr(t, name), getattr(t, f"{name}_out")
    for chunk in range(TILE // ROWS):
        result = out.at[chunk % 2]
        pltrn.activation(result, sums.at[chunk], scale=factor, op="copy")
        pltrn.dma_copy(place.at[pl.ds(chunk * ROWS, ROWS)], result, engine="dma:vector")


class _Step:
    """Emits steps: (group, block of keys, whether it is the block's first, its number)."""

    def __init__(self, tiles: Any, scale: float, masked: bool) -> None:
        self.t, self.scale, self.masked = tiles, scale, masked

    def emit(self, steps: tuple[Any, ...]) -> None:
        new, _, before, last = steps
        if new is not None:
            self.products(*new)
        if before is not None:
            self.sums(*before)
        if last is not None:
            self.for_queries(*last)
        if new is not None:
            self.probabilities(*new)

    def products(self, group: Any, block: Any, first: Any, at: Any) -> None:
        slot, t = lax.rem(block, 2), self.t
        pltrn.nc_matmul(
            t.scores.at[lax.rem(at, 2)], t.q_turned.at[group], t.k_turned.at[slot], accumulate=False
        )
        pltrn.nc_matmul(
            t.dp.at[lax.rem(at, 2)], t.do_turned.at[group], t.v_turned.at[slot], accumulate=False
        )

    def probabilities(self, group: Any, block: Any, first: Any, at: Any) -> None:
        t, slot = self.t, lax.rem(at, 4)
        scores = t.scores.at[lax.rem(at, 2)]
        if self.masked:
            seen, bounds = t.seen.at[lax.rem(at, 2)], t.bounds.at[lax.rem(at, 2)]
            limits = t.limits[group] - (block * TILE).astype(jnp.float32)
            t.bounds[lax.rem(at, 2)] = limits
            pltrn.range_select(
                seen, scores, bounds.at[:, pl.ds(0, 1)], bounds.at[:, pl.ds(1, 1)],
                comp_op0="greater_equal", comp_op1="less_equal",
            )  # fmt: skip
            scores = seen
        column = [t.rows.at[group].at[:, pl.ds(n, 1)] for n in range(2)]
        pltrn.activation(t.p.at[slot], scores, column[0], self.scale, op="exp")
        pltrn.scalar_tensor_tensor(
            t.ds.at[slot],
            t.dp.at[lax.rem(at, 2)],
            column[1],
            t.p.at[slot],
            op0="subtract",
            op1="multiply",
        )

    def sums(self, group: Any, block: Any, first: Any, at: Any) -> None:
        t, slot = self.t, lax.rem(at, 4)
        going_on = jnp.logical_not(first) if not isinstance(first, bool) else not first
        for chunk in range(TILE // ROWS):
            part = pl.ds(chunk * ROWS, ROWS)
            pltrn.nc_matmul(
                t.dv.at[chunk], t.p.at[slot, :, part], t.do.at[group], accumulate=going_on
            )
            pltrn.nc_transpose(
                t.turning.at[lax.rem(at, t.turning.shape[0]), :, chunk], t.ds.at[slot, :, part]
            )
        for chunk in range(TILE // ROWS):
            part = pl.ds(chunk * ROWS, ROWS)
            pltrn.nc_matmul(
                t.dk.at[chunk], t.ds.at[slot, :, part], t.q.at[group], accumulate=going_on
            )
        pltrn.tensor_copy(
            t.ds_turned.at[slot], t.turning.at[lax.rem(at, t.turning.shape[0])], engine="scalar"
        )

    def for_queries(self, group: Any, block: Any, first: Any, at: Any) -> None:
        t, slot = self.t, lax.rem(at, 4)
        product = t.product.at[lax.rem(at, t.product.shape[0])]
        for chunk in range(TILE // ROWS):
            keys = t.k.at[lax.rem(block, 2), chunk]
            turned = t.ds_turned.at[slot, :, chunk]
            pltrn.nc_matmul(product, turned, keys, accumulate=chunk > 0)
        dq = t.dq.at[group]
        pltrn.tensor_tensor(dq, dq, product, op="add")
