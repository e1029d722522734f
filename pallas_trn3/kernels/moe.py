"""Mixtures of experts: who gets a token, and each expert's product over its tokens."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

import pallas_trn3 as pltrn

from .catalogue import CATALOGUE, Entry
from .loops import pieces, tiled, turn
from .results import alike, copied_out, result

_SIDE, _COLUMNS = 128, 512
_EIGHT = 8
"""Values that VectorE finds at once."""

_LOWEST = -3.0e38
"""Logit of experts that there are not: VectorE searches eight at least."""

_WEIGHTS = 16
"""Tiles of weights in rotation."""


def route(logits: jax.Array, k: int, *, normalize: bool = True) -> tuple[jax.Array, jax.Array]:
    """Gates and experts of each token: the k largest of softmax(logits), the largest first.

    **Arguments:**

    - `logits`: [T, E], bfloat16, float16 or float32.
    - `k`: 1 to 8, at most E.
    - `normalize`: Whether the k gates of a token add up to 1 (softmax over the chosen experts), or
      to what they have of the softmax over all.

    **Returns:** Gates [T, k], float32, with a derivative; experts [T, k], int32. Of equal logits
    the first expert comes first.

    **Raises:** `TypeError` for another dtype, `ValueError` for another shape or k.
    """
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits has the shape {logits.shape}; it is [T, E], sizes >= 1")
    if not 1 <= k <= min(_EIGHT, logits.shape[1]):
        raise ValueError(f"k={k} of {logits.shape[1]} experts; allowed: 1 to 8, and not more")
    if logits.dtype.name not in ("bfloat16", "float16", "float32"):
        raise TypeError(f"logits is {logits.dtype}; allowed: bfloat16, float16, float32")
    return _route(logits, k, normalize)


def route_reference(
    logits: jax.Array, k: int, *, normalize: bool = True
) -> tuple[jax.Array, jax.Array]:
    """The same in plain JAX."""
    wide = logits.astype(jnp.float32)
    _, experts = lax.top_k(wide, k)
    return _gates(wide, experts, normalize), experts


def _gates(logits: jax.Array, experts: jax.Array, normalize: bool) -> jax.Array:
    chosen = jnp.take_along_axis(logits, experts, axis=1)
    if normalize:
        return jax.nn.softmax(chosen, axis=1)
    return jnp.exp(chosen - jax.nn.logsumexp(logits, axis=1, keepdims=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _route(logits: jax.Array, k: int, normalize: bool) -> tuple[jax.Array, jax.Array]:
    tokens, experts = logits.shape
    width = max(experts, _EIGHT)
    hbm = pl.BlockSpec(memory_space=pltrn.HBM)
    rows = min(tokens, _SIDE)
    gates, places = pl.pallas_call(
        functools.partial(_route_kernel, shape=(tokens, experts), k=k, normalize=normalize),
        out_shape=[result(logits, (tokens, _EIGHT), t) for t in (jnp.float32, jnp.uint32)],
        in_specs=[hbm],
        out_specs=[hbm, hbm],
        scratch_shapes=[
            pltrn.SBUF((2, rows, width), logits.dtype),
            pltrn.SBUF((2, rows, width), jnp.float32),
            pltrn.SBUF((2, rows, _EIGHT), jnp.float32),
            pltrn.SBUF((2, rows, _EIGHT), jnp.uint32),
            pltrn.SBUF((2, rows, _EIGHT), jnp.float32),
            *[pltrn.SBUF((2, rows, 1), jnp.float32) for _ in range(3)],
        ],
        compiler_params=pltrn.CompilerParams(),
        name="route",
    )(logits)
    return gates[:, :k], places[:, :k].astype(jnp.int32)


def _route_kernel(
    logits: Any, gates: Any, experts: Any, loaded: Any, powers: Any, largest: Any, places: Any,
    shares: Any, shift: Any, total: Any, scale: Any, *, shape: tuple[int, int], k: int,
    normalize: bool,
) -> None:  # fmt: skip
    """A token a partition."""
    tokens, width = shape

    def some(i: Any, t0: Any, rows: int) -> None:
        slot, part = turn(i, 2), pl.ds(0, rows)
        row = loaded.at[slot, part]
        if width < _EIGHT:
            pltrn.memset(row, value=_LOWEST)
        pltrn.dma_copy(row.at[:, pl.ds(0, width)], logits.at[pl.ds(t0, rows)])
        top, share = largest.at[slot, part], shares.at[slot, part]
        one, less = (top.at[:, pl.ds(0, 1)], shift.at[slot, part])
        pltrn.max8(top, row)
        pltrn.nc_find_index8(places.at[slot, part], row, top)
        pltrn.tensor_scalar(less, one, -1.0, op0="multiply")
        summed, over = total.at[slot, part], scale.at[slot, part]
        taken = top.at[:, pl.ds(0, k)] if normalize else row
        room = share.at[:, pl.ds(0, k)] if normalize else powers.at[slot, part]
        pltrn.activation_reduce(room, taken, summed, less, op="exp", reduce_op="add")
        if not normalize:
            pltrn.activation(share, top, less, op="exp")
        elif k < _EIGHT:
            pltrn.memset(share.at[:, pl.ds(k, _EIGHT - k)], value=0.0)
        pltrn.reciprocal(over, summed)
        pltrn.tensor_scalar(share, share, over, op0="multiply")
        pltrn.dma_copy(gates.at[pl.ds(t0, rows)], share, engine="dma:gpsimd")
        pltrn.dma_copy(experts.at[pl.ds(t0, rows)], places.at[slot, part], engine="dma:gpsimd")

    tiled(tokens, _SIDE, some)


def _route_forward(logits: jax.Array, k: int, normalize: bool) -> Any:
    found = _route(logits, k, normalize)
    return found, (logits, found[1])


def _route_backward(k: int, normalize: bool, kept: Any, cotangents: Any) -> tuple[jax.Array]:
    logits, experts = kept
    _, pull = jax.vjp(lambda x: _gates(x.astype(jnp.float32), experts, normalize), logits)
    return pull(cotangents[0])


_route.defvjp(_route_forward, _route_backward)


# ---- experts ----


def expert_matmul(
    lhs: jax.Array,
    rhs: jax.Array,
    group_sizes: jax.Array,
    *,
    preferred_element_type: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """`jax.lax.ragged_dot(lhs, rhs, group_sizes)`: each expert's rows with its own weights.

    Rows are sorted by expert. Each expert's are cut into groups of 128, 256 or 512, the last one
    filled up; the kernel's time is that of the most groups that there can be.

    **Arguments:**

    - `lhs`: [T, K], bfloat16, float16 or float32.
    - `rhs`: [E, K, N], of the same dtype.
    - `group_sizes`: [E], integers; their sum is at most T, rows beyond it give 0.

    **Returns:** [T, N], by default of lhs's dtype. Derivatives with respect to lhs (such a product)
    and rhs (`jax.lax.ragged_dot_general`).

    **Raises:** `TypeError` for other dtypes, `ValueError` for shapes that do not match.
    """
    if (
        lhs.ndim != 2
        or rhs.ndim != 3
        or lhs.shape[1] != rhs.shape[1]
        or 0 in (*lhs.shape, *rhs.shape)
    ):
        raise ValueError(
            f"lhs {lhs.shape}, rhs {rhs.shape}; they are [T, K], [E, K, N], sizes >= 1"
        )
    if group_sizes.shape != rhs.shape[:1] or not jnp.issubdtype(group_sizes.dtype, jnp.integer):
        raise ValueError(
            f"group_sizes is {group_sizes.dtype}{list(group_sizes.shape)}; integers "
            f"[{rhs.shape[0]}] are needed"
        )
    if lhs.dtype != rhs.dtype or lhs.dtype.name not in ("bfloat16", "float16", "float32"):
        raise TypeError(
            f"lhs is {lhs.dtype} and rhs {rhs.dtype}; both are bfloat16, float16 or float32"
        )
    dtype = jnp.dtype(preferred_element_type or lhs.dtype)
    return _expert_matmul(*alike(lhs, rhs, group_sizes), dtype)


def expert_matmul_reference(
    lhs: jax.Array,
    rhs: jax.Array,
    group_sizes: jax.Array,
    *,
    preferred_element_type: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """The same in plain JAX: every row with its expert's weights."""
    ends = jnp.cumsum(group_sizes)
    expert = jnp.searchsorted(ends, jnp.arange(lhs.shape[0]), side="right")
    each = [
        jnp.matmul(
            jnp.where((expert == e)[:, None], lhs, 0).astype(jnp.float32),
            rhs[e].astype(jnp.float32),
            precision=lax.Precision.HIGHEST,
        )
        for e in range(rhs.shape[0])
    ]
    return functools.reduce(jnp.add, each).astype(preferred_element_type or lhs.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _expert_matmul(lhs: jax.Array, rhs: jax.Array, group_sizes: jax.Array, dtype: Any) -> jax.Array:
    tokens, experts = lhs.shape[0], rhs.shape[0]
    rows = next((r for r in (512, 256) if tokens >= r * experts), _SIDE)
    groups = tokens // rows + experts
    expert, source, place = _groups(group_sizes, tokens, rows, groups)
    spread = _products(lhs[source], rhs, expert, rows, dtype)
    inside = jnp.arange(tokens) < jnp.sum(group_sizes)
    return jnp.where(inside[:, None], spread[place], 0)


def _groups(
    sizes: jax.Array, tokens: int, rows: int, groups: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The expert of each group; for each of its rows the row of lhs; for each row of lhs its place
    among all groups' rows."""
    sizes = sizes.astype(jnp.int32)
    ends, needed = jnp.cumsum(sizes), -(-sizes // rows)
    groups_end = jnp.cumsum(needed)
    expert = jnp.searchsorted(groups_end, jnp.arange(groups), side="right").astype(jnp.int32)
    expert = jnp.minimum(expert, sizes.shape[0] - 1)
    starts, groups_start = ends - sizes, groups_end - needed
    within = (jnp.arange(groups) - groups_start[expert]) * rows + starts[expert]
    source = jnp.clip(within[:, None] + jnp.arange(rows), 0, tokens - 1)
    own = jnp.searchsorted(ends, jnp.arange(tokens), side="right")
    own = jnp.minimum(own, sizes.shape[0] - 1)
    place = groups_start[own] * rows + jnp.arange(tokens) - starts[own]
    return expert, source.reshape(-1), jnp.clip(place, 0, groups * rows - 1)


@dataclass(frozen=True)
class _Cut:
    """Rows of a group, and of its product what is summed at once: four results."""

    rows: int
    groups: int
    k: int
    n: int

    @property
    def parts(self) -> int:
        return self.rows // _SIDE

    @property
    def columns(self) -> int:
        """Of the weights that are loaded at once."""
        return min(self.n, 4 // self.parts * _COLUMNS)


def _products(
    x: jax.Array, weights: jax.Array, expert: jax.Array, rows: int, dtype: Any
) -> jax.Array:
    """[groups * rows, K] and [E, K, N] -> [groups * rows, N]."""
    cut = _Cut(rows, expert.shape[0], x.shape[1], weights.shape[2])
    hbm = pl.BlockSpec(memory_space=pltrn.HBM)
    tiles, columns = -(-cut.k // _SIDE), min(cut.n, _COLUMNS)
    return pl.pallas_call(
        functools.partial(_experts_kernel, cut=cut),
        out_shape=result(x, (x.shape[0], cut.n), dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(),
            in_specs=[hbm, hbm],
            out_specs=hbm,
            scratch_shapes=[
                pltrn.SBUF((2, tiles, _SIDE, rows), x.dtype),
                pltrn.SBUF((_WEIGHTS, _SIDE, cut.columns), x.dtype),
                pltrn.PSUM((2, 4, _SIDE, columns), jnp.float32),
                pltrn.SBUF((4, _SIDE, columns), dtype),
            ],
        ),
        compiler_params=pltrn.CompilerParams(),
        name="expert_matmul",
    )(expert, x, weights)


def _experts_kernel(
    expert: Any, x: Any, weights: Any, out: Any, xt: Any, held: Any, psum: Any, staged: Any, *,
    cut: _Cut,
) -> None:  # fmt: skip
    tiles, wide = -(-cut.k // _SIDE), -(-cut.n // cut.columns)

    def group(g: Any, m0: Any, rows: int) -> None:
        own = expert[g]

        def load(i: Any, k0: Any, depth: int) -> None:
            here = xt.at[turn(g, 2), i, pl.ds(0, depth)]
            source = x.at[pl.ds(m0, rows), pl.ds(k0, depth)]
            pltrn.dma_transpose(here, source, engine="dma:gpsimd")

        tiled(cut.k, _SIDE, load)
        tiled(cut.n, cut.columns, functools.partial(results, own, g, m0))

    def results(own: Any, g: Any, m0: Any, n: Any, n0: Any, width: int) -> None:
        number = g * wide + n
        bank = psum.at[turn(number, 2)]
        places = [
            (row * (4 // cut.parts) + c, row, start, size)
            for row in range(cut.parts)
            for c, (start, size) in enumerate(pieces(width, _COLUMNS))
        ]

        def multiply(i: Any, k0: Any, depth: int) -> None:
            near = held.at[turn(number * tiles + i, _WEIGHTS), pl.ds(0, depth), pl.ds(0, width)]
            far = weights.at[own, pl.ds(k0, depth), pl.ds(n0, width)]
            pltrn.dma_copy(near, far, engine="dma:sync")
            for place, row, start, size in places:
                pltrn.nc_matmul(
                    bank.at[place, :, pl.ds(0, size)],
                    xt.at[turn(g, 2), i, pl.ds(0, depth), pl.ds(row * _SIDE, _SIDE)],
                    near.at[:, pl.ds(start, size)],
                    accumulate=i > 0,
                )

        tiled(cut.k, _SIDE, multiply)
        for place, row, start, size in places:
            tile = (place, slice(None), pl.ds(0, size))
            copied_out(staged.at[tile], bank.at[tile], place)
            far = out.at[pl.ds(m0 + row * _SIDE, _SIDE), pl.ds(n0 + start, size)]
            pltrn.dma_copy(far, staged.at[tile], engine="dma:scalar")

    tiled(cut.groups * cut.rows, cut.rows, group)


def _expert_forward(lhs: Any, rhs: Any, sizes: Any, dtype: Any) -> tuple[jax.Array, Any]:
    return _expert_matmul(lhs, rhs, sizes, dtype), (lhs, rhs, sizes)


def _expert_backward(dtype: Any, kept: Any, cotangent: jax.Array) -> Any:
    lhs, rhs, sizes = kept
    grad = cotangent.astype(lhs.dtype)
    numbers = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    moved = lax.ragged_dot_general(
        lhs, grad, sizes.astype(jnp.int32), numbers, preferred_element_type=jnp.float32
    )
    back = _expert_matmul(grad, rhs.transpose(0, 2, 1), sizes, lhs.dtype)
    return back, moved.astype(rhs.dtype), None


_expert_matmul.defvjp(_expert_forward, _expert_backward)


def _enter() -> None:
    logits = jax.ShapeDtypeStruct((4096, 128), jnp.float32)
    CATALOGUE["route 4096 tokens to 8 of 128 experts"] = Entry(
        functools.partial(route, k=8), (logits,), "vector"
    )
    shapes = ((16384, 2048), (16, 2048, 2048))
    operands = tuple(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)
    sizes = jax.ShapeDtypeStruct((16,), jnp.int32)
    CATALOGUE["expert_matmul bfloat16 16384 rows, 16 experts of 2048x2048"] = Entry(
        expert_matmul, (*operands, sizes)
    )


_enter()
