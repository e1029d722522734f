"""RMS norm and layer norm of rows, and their derivatives."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn

from .catalogue import CATALOGUE, Entry
from .results import alike
from .rows import (
    PARTITIONS,
    as_rows,
    check_floats,
    columns,
    cut,
    in_steps,
    over_rows,
)

_BANK = 512
"""float32 columns of a PSUM bank, and elements that statistics are taken of at a time."""


def rmsnorm(x: jax.Array, weight: jax.Array, eps: float = 1e-6) -> jax.Array:
    """`x * rsqrt(mean(x**2) + eps) * weight`, the mean along the last axis.

    **Arguments:**

    - `x`: [..., n], float32, bfloat16 or float16. Computed in float32 and rounded once.
    - `weight`: [n] of the same dtypes.

    **Returns:** Of x's shape and dtype. Derivatives by x and weight are a kernel, too.

    **Raises:** `TypeError` for another dtype, `ValueError` for a weight of another shape, or rows
    that a partition cannot hold.
    """
    _check("rmsnorm", x, weight)
    x, weight = alike(x, weight)
    return _rmsnorm(float(eps), as_rows(x), weight).reshape(x.shape)


def layernorm(x: jax.Array, weight: jax.Array, bias: jax.Array, eps: float = 1e-5) -> jax.Array:
    """`(x - mean(x)) * rsqrt(var(x) + eps) * weight + bias`, along the last axis.

    Arguments, results and errors as of `rmsnorm`; `bias` [n].
    """
    _check("layernorm", x, weight, bias)
    x, weight, bias = alike(x, weight, bias)
    return _layernorm(float(eps), as_rows(x), weight, bias).reshape(x.shape)


def rmsnorm_reference(x: jax.Array, weight: jax.Array, eps: float = 1e-6) -> jax.Array:
    """The same as `rmsnorm`, in jax.numpy."""
    wide = x.astype(jnp.float32)
    normal = wide * lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + eps)
    return (normal * weight.astype(jnp.float32)).astype(x.dtype)


def layernorm_reference(
    x: jax.Array, weight: jax.Array, bias: jax.Array, eps: float = 1e-5
) -> jax.Array:
    """The same as `layernorm`, in jax.numpy."""
    wide = x.astype(jnp.float32)
    apart = wide - wide.mean(-1, keepdims=True)
    normal = apart * lax.rsqrt(jnp.mean(apart * apart, -1, keepdims=True) + eps)
    return (normal * weight.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def _check(name: str, x: jax.Array, *lines: jax.Array) -> None:
    check_floats(name, x, *lines)
    for line in lines:
        if line.shape != x.shape[-1:]:
            raise ValueError(
                f"{name}: weight or bias of shape {line.shape} for x of shape {x.shape}; it must "
                f"be {x.shape[-1:]}"
            )


def _line(x: jax.Array) -> jax.Array:
    """[n] as a tile of one partition, float32."""
    return x.astype(jnp.float32).reshape(1, -1)


# ---- what both have in their kernels ----


def spread_scratch(n: int, lines: int) -> list[Any]:
    """Scratch of `spread`: ones, a product, and the lines in every partition."""
    return [
        pltrn.SBUF((1, PARTITIONS), jnp.float32),
        pltrn.PSUM((PARTITIONS, _BANK), jnp.float32, buffers=2),
        columns(n, jnp.float32, lines),
    ]


def spread(lines: Sequence[Any], ones: Any, product: Any, everywhere: Any) -> None:
    """Copies lines [1, n] to all partitions before the first block, by products with ones."""

    @pl.when(pl.program_id(0) == 0)
    def _() -> None:
        pltrn.memset(ones, value=1.0)
        for k, line in enumerate(lines):
            for c, start in enumerate(range(0, line.shape[1], _BANK)):
                part = pl.ds(start, min(_BANK, line.shape[1] - start))
                bank = product.at[c % 2, :, pl.ds(0, part.size)]
                pltrn.nc_matmul(bank, ones, line.at[:, part], accumulate=False)
                pltrn.tensor_copy(everywhere.at[k, :, part], bank)


def rms_row(y: Any, x: Any, weight: Any, work: Any, small: Any, eps: float) -> None:
    """One row a partition: `small` [2, 128, 1] becomes the sum of squares and what to scale by."""
    n = weight.shape[-1]
    total, scale = small.at[0], small.at[1]
    pltrn.activation_reduce(work, x, total, op="square", reduce_op="add")
    pltrn.activation(scale, total, bias=eps, scale=1 / n, op="rsqrt")
    pltrn.scalar_tensor_tensor(y, x, scale, weight, op0="multiply", op1="multiply")


def normal_row(normal: Any, x: Any, small: Any, triples: Any, eps: float) -> None:
    """One row a partition with mean 0 and variance 1; `small` [2, 128, 2] as of `moments`."""
    moments(small, x, triples, eps)
    shift, scale = small.at[1, :, pl.ds(0, 1)], small.at[1, :, pl.ds(1, 1)]
    pltrn.activation(normal, x, bias=shift, scale=scale, op="copy")


def line_row(y: Any, normal: Any, weight: Any, bias: Any) -> None:
    """`normal * weight + bias`: as VectorE has the statistics to find, GpSimdE does most of it."""
    n = weight.shape[-1]
    middle = max(1, n // 2)
    for start, size, engine in ((0, middle, "vector"), (middle, n - middle, "gpsimd")):
        if size:
            part = pl.ds(start, size)
            here = normal.at[:, part]
            pltrn.tensor_tensor(here, here, weight.at[:, part], op="multiply", engine=engine)
    pltrn.tensor_tensor(y, normal, bias, op="add", engine="gpsimd")


def moments(small: Any, x: Any, triples: Any, eps: float) -> None:
    """Mean and variance of a row, and the line `x * scale + shift` that makes them 0 and 1."""
    n = x.shape[-1]
    for c, start in enumerate(range(0, n, _BANK)):
        part = x.at[(..., pl.ds(start, min(_BANK, n - start)))]
        pltrn.bn_stats(triples.at[:, pl.ds(6 * c, 6)], part)
    pltrn.bn_aggr(small.at[0], triples)
    mean, variance = small.at[0, :, pl.ds(0, 1)], small.at[0, :, pl.ds(1, 1)]
    shift, scale = small.at[1, :, pl.ds(0, 1)], small.at[1, :, pl.ds(1, 1)]
    pltrn.activation(scale, variance, bias=eps, op="rsqrt")
    pltrn.scalar_tensor_tensor(shift, mean, -1.0, scale, op0="multiply", op1="multiply")


# ---- RMS norm ----


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rmsnorm(eps: float, x: jax.Array, weight: jax.Array) -> jax.Array:
    rows, n = x.shape
    size = x.dtype.itemsize
    blocks = cut("rmsnorm", rows, n * size, n * size, 0, 2 * 4 * n + n * size)
    scratch = [*spread_scratch(n, 1), columns(n, x.dtype, 1)]
    scratch += [pltrn.SBUF((blocks.together, 2, PARTITIONS, 1), jnp.float32)]
    kernel = functools.partial(_rms_forward, eps=eps, together=blocks.together)
    (y,) = over_rows(kernel, "rmsnorm", [x], [_line(weight)], [(n, x.dtype)], blocks, scratch)
    return y


def _rms_forward(
    x: Any, line: Any, y: Any, ones: Any, product: Any, weight: Any, work: Any, small: Any,
    *, eps: float, together: int,
) -> None:  # fmt: skip
    spread([line], ones, product, weight)
    for g in range(together):
        row = pl.ds(g, 1)
        rms_row(y.at[:, row], x.at[:, row], weight.at[0], work.at[0], small.at[g], eps)


def _rms_residuals(eps: float, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, Any]:
    return _rmsnorm(eps, x, weight), (x, weight)


def _rms_gradient(eps: float, residuals: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """With r the scale and t = dy weight: dx = r t - x r^3 mean(t x), dweight = sum(dy x r)."""
    x, weight = residuals
    rows, n = x.shape
    x, dy = _whole_blocks(x, dy)
    size = x.dtype.itemsize
    blocks = cut("rmsnorm", x.shape[0], 2 * n * size, n * size, 2 * n * (4 + size), n * (20 + size))
    slots = 2 * blocks.together
    scratch = [
        *spread_scratch(n, 1),
        columns(n, jnp.float32, slots),
        columns(n, x.dtype, slots),
        columns(n, jnp.float32, 3),
        columns(n, x.dtype, 1),
        pltrn.SBUF((slots, 4, PARTITIONS, 1), jnp.float32),
        pltrn.PSUM((PARTITIONS, -(-n // PARTITIONS)), jnp.float32),
    ]
    kernel = functools.partial(_rms_backward, eps=eps, together=blocks.together)
    dx, dweight = over_rows(
        kernel, "rmsnorm_backward", [x, dy], [_line(weight)], [(n, x.dtype)], blocks, scratch,
        late=True, sums=[(PARTITIONS, -(-n // PARTITIONS))],
    )  # fmt: skip
    return dx[:rows], dweight.T.reshape(-1)[:n].astype(weight.dtype)


def _rms_backward(
    x: Any, dy: Any, line: Any, dx: Any, sums: Any, ones: Any, product: Any, weight: Any,
    weighted: Any, kept: Any, work: Any, idle: Any, small: Any, total: Any, *, eps: float,
    together: int,
) -> None:  # fmt: skip
    spread([line], ones, product, weight)
    _from_zero(total)
    n = line.shape[1]
    q, p, u = (work.at[k] for k in range(3))

    def first(g: int, slot: Any) -> None:
        t, here, of_dy = weighted.at[slot], x.at[:, pl.ds(g, 1)], dy.at[:, pl.ds(g, 1)]
        squares, r, inner = (small.at[slot, k] for k in range(3))
        pltrn.tensor_tensor(t, of_dy, weight.at[0], op="multiply", engine="gpsimd")
        pltrn.tensor_tensor(q, of_dy, here, op="multiply", engine="gpsimd")
        # Of squares and products only the sums are needed.
        pltrn.activation_reduce(idle.at[0], here, squares, op="square", reduce_op="add")
        pltrn.activation(r, squares, bias=eps, scale=1 / n, op="rsqrt")
        pltrn.tensor_copy(kept.at[slot], here)
        pltrn.tensor_tensor(p, t, here, op="multiply", engine="vector")
        pltrn.activation_reduce(p, p, inner, op="copy", reduce_op="add", scale=-1 / n)
        _add_up(total, q, r, (pl.program_id(0) > 0) | (g > 0))

    def second(g: int, slot: Any) -> None:
        r, inner, factor = (small.at[slot, k] for k in (1, 2, 3))
        pltrn.tensor_tensor(factor, r, r, op="multiply")
        pltrn.scalar_tensor_tensor(factor, factor, r, inner, op0="multiply", op1="multiply")
        pltrn.activation(u, kept.at[slot], scale=factor, op="copy")

    def third(g: int, slot: Any) -> None:
        row, r = dx.at[:, pl.ds(g, 1)], small.at[slot, 1]
        pltrn.scalar_tensor_tensor(row, weighted.at[slot], r, u, op0="multiply", op1="add")

    in_steps(together, (1, second), (0, first), (1, third))
    _at_the_end(sums, total)


_rmsnorm.defvjp(_rms_residuals, _rms_gradient)


# ---- layer norm ----


def _triples(n: int) -> int:
    return 6 * -(-n // _BANK)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layernorm(eps: float, x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    rows, n = x.shape
    size = x.dtype.itemsize
    blocks = cut("layernorm", rows, n * size, n * size, 2 * 4 * n, 4 * 4 * n)
    slots = 2 * blocks.together
    scratch = [
        *spread_scratch(n, 2),
        columns(n, jnp.float32, slots),
        pltrn.SBUF((slots, 2, PARTITIONS, 2), jnp.float32),
        columns(_triples(n), jnp.float32, 2),
    ]
    kernel = functools.partial(_layer_forward, eps=eps, together=blocks.together)
    lines = [_line(weight), _line(bias)]
    (y,) = over_rows(kernel, "layernorm", [x], lines, [(n, x.dtype)], blocks, scratch, late=True)
    return y


def _layer_forward(
    x: Any, line: Any, last: Any, y: Any, ones: Any, product: Any, lines: Any, normal: Any,
    small: Any, triples: Any, *, eps: float, together: int,
) -> None:  # fmt: skip
    spread([line, last], ones, product, lines)

    def first(g: int, slot: Any) -> None:
        normal_row(normal.at[slot], x.at[:, pl.ds(g, 1)], small.at[slot], triples.at[g % 2], eps)

    def second(g: int, slot: Any) -> None:
        line_row(y.at[:, pl.ds(g, 1)], normal.at[slot], lines.at[0], lines.at[1])

    in_steps(together, (0, first), (1, second))


def _layer_residuals(
    eps: float, x: jax.Array, weight: jax.Array, bias: jax.Array
) -> tuple[jax.Array, Any]:
    return _layernorm(eps, x, weight, bias), (x, weight, bias)


def _layer_gradient(
    eps: float, residuals: Any, dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """With z the normal rows, r their scale and t = dy weight:
    dx = r (t - mean(t) - z mean(t z)), dweight = sum(dy z), dbias = sum(dy)."""
    x, weight, bias = residuals
    rows, n = x.shape
    x, dy = _whole_blocks(x, dy)
    size = x.dtype.itemsize
    blocks = cut("layernorm", x.shape[0], 2 * n * size, n * size, 4 * n * 4, n * (16 + size))
    slots, chunks = 2 * blocks.together, -(-n // PARTITIONS)
    scratch = [
        *spread_scratch(n, 1),
        columns(n, jnp.float32, slots),
        columns(n, jnp.float32, slots),
        columns(n, jnp.float32, 2),
        columns(n, x.dtype, 1),
        pltrn.SBUF((slots, 2, PARTITIONS, 2), jnp.float32),
        pltrn.SBUF((slots, 3, PARTITIONS, 1), jnp.float32),
        columns(_triples(n), jnp.float32, 2),
        pltrn.PSUM((PARTITIONS, chunks), jnp.float32),
        pltrn.PSUM((PARTITIONS, chunks), jnp.float32),
        pltrn.SBUF((PARTITIONS, 1), jnp.float32),
        pltrn.SBUF((PARTITIONS, 1), dy.dtype),
    ]
    kernel = functools.partial(_layer_backward, eps=eps, together=blocks.together)
    dx, *sums = over_rows(
        kernel, "layernorm_backward", [x, dy], [_line(weight)], [(n, x.dtype)], blocks, scratch,
        late=True, sums=[(PARTITIONS, chunks)] * 2,
    )  # fmt: skip
    dweight, dbias = (y.T.reshape(-1)[:n] for y in sums)
    return dx[:rows], dweight.astype(weight.dtype), dbias.astype(bias.dtype)


def _layer_backward(
    x: Any, dy: Any, line: Any, dx: Any, of_weight: Any, of_bias: Any, ones: Any, product: Any,
    weight: Any, normal: Any, weighted: Any, work: Any, idle: Any, small: Any, inner: Any,
    triples: Any, by_weight: Any, by_bias: Any, one: Any, one_narrow: Any, *, eps: float,
    together: int,
) -> None:  # fmt: skip
    spread([line], ones, product, weight)
    _from_zero(by_weight, by_bias)
    pltrn.memset(one, value=1.0)
    pltrn.memset(one_narrow, value=1.0)
    n = line.shape[1]
    q, p = work.at[0], work.at[1]

    def first(g: int, slot: Any) -> None:
        z, t, of_dy = normal.at[slot], weighted.at[slot], dy.at[:, pl.ds(g, 1)]
        mean_t, mean_tz = inner.at[slot, 0], inner.at[slot, 1]
        pltrn.tensor_tensor(t, of_dy, weight.at[0], op="multiply", engine="gpsimd")
        normal_row(z, x.at[:, pl.ds(g, 1)], small.at[slot], triples.at[g % 2], eps)
        pltrn.tensor_tensor(q, of_dy, z, op="multiply", engine="gpsimd")
        # What is written is not needed: the sums are.
        pltrn.activation_reduce(idle.at[0], t, mean_t, op="copy", reduce_op="add", scale=-1 / n)
        pltrn.tensor_tensor(p, t, z, op="multiply", engine="vector")
        pltrn.activation_reduce(idle.at[0], p, mean_tz, op="copy", reduce_op="add", scale=-1 / n)
        going_on = (pl.program_id(0) > 0) | (g > 0)
        _add_up(by_weight, q, one, going_on)
        _add_up(by_bias, of_dy, one_narrow, going_on)

    def second(g: int, slot: Any) -> None:
        z, r = normal.at[slot], small.at[slot, 1, :, pl.ds(1, 1)]
        mean_t, mean_tz, shift = (inner.at[slot, k] for k in range(3))
        pltrn.tensor_tensor(shift, mean_t, r, op="multiply")
        pltrn.scalar_tensor_tensor(z, z, mean_tz, weighted.at[slot], op0="multiply", op1="add")
        pltrn.activation(dx.at[:, pl.ds(g, 1)], z, bias=shift, scale=r, op="copy")

    in_steps(together, (0, first), (1, second))
    _at_the_end(of_weight, by_weight)
    _at_the_end(of_bias, by_bias)


_layernorm.defvjp(_layer_residuals, _layer_gradient)


# ---- sums over all rows, a column a partition of PSUM ----


def _whole_blocks(x: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """With rows of ones behind them whose derivative is 0, until all blocks are full: a sum over
    rows would take in what lies behind the edge."""
    edge = ((0, -x.shape[0] % PARTITIONS), (0, 0))
    if not edge[0][1]:
        return x, dy
    return jnp.pad(x, edge, constant_values=1), jnp.pad(dy, edge)


def _add_up(total: Any, values: Any, weights: Any, going_on: Any) -> None:
    """`total[c, k] += sum over rows of values[row, 128 k + c] weights[row]`."""
    n = values.shape[-1]
    for k, start in enumerate(range(0, n, PARTITIONS)):
        width = pl.ds(start, min(PARTITIONS, n - start))
        part = values.at[:, width] if values.ndim == 2 else values.at[:, :, width]
        pltrn.nc_matmul(
            total.at[pl.ds(0, width.size), pl.ds(k, 1)], part, weights, accumulate=going_on
        )


def _from_zero(*totals: Any) -> None:
    """Where the last column of partitions is not full, nothing else writes its end."""

    @pl.when(pl.program_id(0) == 0)
    def _() -> None:
        for total in totals:
            pltrn.memset(total, value=0.0)


def _at_the_end(sums: Any, total: Any) -> None:
    @pl.when(pl.program_id(0) == pl.num_programs(0) - 1)
    def _() -> None:
        pltrn.tensor_copy(sums, total)


def _entries() -> Iterator[tuple[str, Entry]]:
    line = jax.ShapeDtypeStruct((4_096,), jnp.float32)
    for dtype in ("bfloat16", "float32"):
        x = jax.ShapeDtypeStruct((16_384, 4_096), dtype)
        yield f"rmsnorm {dtype} 16384x4096", Entry(rmsnorm, (x, line), "hbm")
        yield f"layernorm {dtype} 16384x4096", Entry(layernorm, (x, line, line), "hbm")
        # Of rows half as long: SBUF has to hold some more of them.
        x = jax.ShapeDtypeStruct((16_384, 2_048), dtype)
        rms = functools.partial(_rms_gradient, 1e-6)
        layer = functools.partial(_layer_gradient, 1e-5)
        short = jax.ShapeDtypeStruct((2_048,), jnp.float32)
        yield f"rmsnorm derivative {dtype} 16384x2048", Entry(rms, ((x, short), x), "hbm")
        whole = ((x, short, short), x)
        yield f"layernorm derivative {dtype} 16384x2048", Entry(layer, whole, "hbm")


CATALOGUE.update(_entries())
