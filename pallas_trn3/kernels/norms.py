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
from .rows import PARTITIONS, as_rows, check_floats, columns, over_rows, rows_together

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
    return _rmsnorm(float(eps), as_rows(x), weight).reshape(x.shape)


def layernorm(x: jax.Array, weight: jax.Array, bias: jax.Array, eps: float = 1e-5) -> jax.Array:
    """`(x - mean(x)) * rsqrt(var(x) + eps) * weight + bias`, along the last axis.

    Arguments, results and errors as of `rmsnorm`; `bias` [n].
    """
    _check("layernorm", x, weight, bias)
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


def layer_row(
    y: Any, x: Any, weight: Any, bias: Any, work: Any, small: Any, triples: Any, eps: float
) -> None:
    """One row a partition; `small` [2, 128, 2] is mean and variance, then bias and scale."""
    moments(small, x, triples, eps)
    shift, scale = small.at[1, :, pl.ds(0, 1)], small.at[1, :, pl.ds(1, 1)]
    pltrn.activation(work, x, bias=shift, scale=scale, op="copy")
    pltrn.tensor_tensor(work, work, weight, op="multiply", engine="vector")
    pltrn.tensor_tensor(y, work, bias, op="add", engine="gpsimd")


def moments(small: Any, x: Any, triples: Any, eps: float) -> None:
    """Mean and variance of a row, and the line `x * scale + shift` that makes them 0 and 1."""
    n = x.shape[-1]
    for c, start in enumerate(range(0, n, _BANK)):
        part = x.at[:, :, pl.ds(start, min(_BANK, n - start))]
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
    together = rows_together("rmsnorm", rows, n * size, 4 * n * size, 5 * 4 * n)
    scratch = [*spread_scratch(n, 1), columns(n, jnp.float32, 2)]
    scratch += [pltrn.SBUF((together, 2, PARTITIONS, 1), jnp.float32)]
    kernel = functools.partial(_rms_forward, eps=eps, together=together)
    (y,) = over_rows(kernel, "rmsnorm", [x], [_line(weight)], [(n, x.dtype)], together, scratch)
    return y


def _rms_forward(
    x: Any, line: Any, y: Any, ones: Any, product: Any, weight: Any, work: Any, small: Any,
    *, eps: float, together: int,
) -> None:  # fmt: skip
    spread([line], ones, product, weight)
    for g in range(together):
        row = pl.ds(g, 1)
        rms_row(y.at[:, row], x.at[:, row], weight.at[0], work.at[g % 2], small.at[g], eps)


def _rms_residuals(eps: float, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, Any]:
    return _rmsnorm(eps, x, weight), (x, weight)


def _rms_gradient(eps: float, residuals: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """With r the scale and t = dy weight: dx = r t - x r^3 mean(t x), dweight = sum(dy x r)."""
    x, weight = residuals
    rows, n = x.shape
    x, dy = _whole_blocks(x, dy)
    size = x.dtype.itemsize
    together = rows_together("rmsnorm", x.shape[0], n * size, 6 * n * size, 4 * n * 11)
    scratch = [
        *spread_scratch(n, 1),
        columns(n, jnp.float32, 8),
        pltrn.SBUF((together, 4, PARTITIONS, 1), jnp.float32),
        pltrn.PSUM((PARTITIONS, -(-n // PARTITIONS)), jnp.float32),
    ]
    kernel = functools.partial(_rms_backward, eps=eps, together=together)
    dx, dweight = _with_sums(
        kernel, "rmsnorm_backward", [x, dy], [_line(weight)], (n, x.dtype), 1, together, scratch
    )
    return dx[:rows], dweight[0].astype(weight.dtype)


def _rms_backward(
    x: Any, dy: Any, line: Any, dx: Any, sums: Any, ones: Any, product: Any, weight: Any,
    work: Any, small: Any, total: Any, *, eps: float, together: int,
) -> None:  # fmt: skip
    spread([line], ones, product, weight)
    _from_zero(total)
    n = line.shape[1]
    for g in range(together):
        row, part = pl.ds(g, 1), 4 * (g % 2)
        t, q, p, u = (work.at[part + k] for k in range(4))
        squares, r, inner, factor = (small.at[g, k] for k in range(4))
        pltrn.activation_reduce(p, x.at[:, row], squares, op="square", reduce_op="add")
        pltrn.activation(r, squares, bias=eps, scale=1 / n, op="rsqrt")
        pltrn.tensor_tensor(t, dy.at[:, row], weight.at[0], op="multiply", engine="gpsimd")
        pltrn.tensor_tensor(q, dy.at[:, row], x.at[:, row], op="multiply", engine="gpsimd")
        pltrn.tensor_tensor(p, t, x.at[:, row], op="multiply", engine="vector")
        pltrn.activation_reduce(u, p, inner, op="copy", reduce_op="add", scale=-1 / n)
        pltrn.tensor_tensor(factor, r, r, op="multiply")
        pltrn.scalar_tensor_tensor(factor, factor, r, inner, op0="multiply", op1="multiply")
        pltrn.activation(u, x.at[:, row], scale=factor, op="copy")
        pltrn.scalar_tensor_tensor(dx.at[:, row], t, r, u, op0="multiply", op1="add")
        _add_up(total, q, r, (pl.program_id(0) > 0) | (g > 0))
    _at_the_end(sums.at[0], total)


_rmsnorm.defvjp(_rms_residuals, _rms_gradient)


# ---- layer norm ----


def _triples(n: int) -> int:
    return 6 * -(-n // _BANK)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layernorm(eps: float, x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    rows, n = x.shape
    size = x.dtype.itemsize
    together = rows_together("layernorm", rows, n * size, 4 * n * size, 8 * 4 * n)
    scratch = [
        *spread_scratch(n, 2),
        columns(n, jnp.float32, 3),
        pltrn.SBUF((together, 2, PARTITIONS, 2), jnp.float32),
        columns(_triples(n), jnp.float32, 2),
    ]
    kernel = functools.partial(_layer_forward, eps=eps, together=together)
    lines = [_line(weight), _line(bias)]
    (y,) = over_rows(kernel, "layernorm", [x], lines, [(n, x.dtype)], together, scratch)
    return y


def _layer_forward(
    x: Any, line: Any, last: Any, y: Any, ones: Any, product: Any, lines: Any, work: Any,
    small: Any, triples: Any, *, eps: float, together: int,
) -> None:  # fmt: skip
    spread([line, last], ones, product, lines)
    for g in range(together):
        row = pl.ds(g, 1)
        layer_row(
            y.at[:, row], x.at[:, row], lines.at[0], lines.at[1], work.at[g % 3], small.at[g],
            triples.at[g % 2], eps,
        )  # fmt: skip


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
    together = rows_together("layernorm", x.shape[0], n * size, 6 * n * size, 4 * n * 12)
    scratch = [
        *spread_scratch(n, 1),
        columns(n, jnp.float32, 8),
        pltrn.SBUF((together, 2, PARTITIONS, 2), jnp.float32),
        pltrn.SBUF((together, 3, PARTITIONS, 1), jnp.float32),
        columns(_triples(n), jnp.float32, 2),
        pltrn.PSUM((PARTITIONS, -(-n // PARTITIONS)), jnp.float32),
        pltrn.PSUM((PARTITIONS, -(-n // PARTITIONS)), jnp.float32),
        pltrn.SBUF((PARTITIONS, 1), jnp.float32),
        pltrn.SBUF((PARTITIONS, 1), dy.dtype),
    ]
    kernel = functools.partial(_layer_backward, eps=eps, together=together)
    dx, sums = _with_sums(
        kernel, "layernorm_backward", [x, dy], [_line(weight)], (n, x.dtype), 2, together, scratch
    )
    return dx[:rows], sums[0].astype(weight.dtype), sums[1].astype(bias.dtype)


def _layer_backward(
    x: Any, dy: Any, line: Any, dx: Any, sums: Any, ones: Any, product: Any, weight: Any,
    work: Any, small: Any, inner: Any, triples: Any, by_weight: Any, by_bias: Any, one: Any,
    one_narrow: Any, *, eps: float, together: int,
) -> None:  # fmt: skip
    spread([line], ones, product, weight)
    _from_zero(by_weight, by_bias)
    pltrn.memset(one, value=1.0)
    pltrn.memset(one_narrow, value=1.0)
    n = line.shape[1]
    for g in range(together):
        row, part = pl.ds(g, 1), 4 * (g % 2)
        z, t, q, p = (work.at[part + k] for k in range(4))
        mean_t, mean_tz, shift = (inner.at[g, k] for k in range(3))
        moments(small.at[g], x.at[:, row], triples.at[g % 2], eps)
        middle, r = small.at[g, 1, :, pl.ds(0, 1)], small.at[g, 1, :, pl.ds(1, 1)]
        pltrn.activation(z, x.at[:, row], bias=middle, scale=r, op="copy")
        pltrn.tensor_tensor(t, dy.at[:, row], weight.at[0], op="multiply", engine="gpsimd")
        pltrn.tensor_tensor(q, dy.at[:, row], z, op="multiply", engine="gpsimd")
        pltrn.tensor_tensor(p, t, z, op="multiply", engine="vector")
        # What is written is not needed: the sums are.
        pltrn.activation_reduce(p, p, mean_tz, op="copy", reduce_op="add", scale=-1 / n)
        pltrn.activation_reduce(p, t, mean_t, op="copy", reduce_op="add", scale=-1 / n)
        pltrn.scalar_tensor_tensor(p, z, mean_tz, t, op0="multiply", op1="add")
        pltrn.tensor_tensor(shift, mean_t, r, op="multiply")
        pltrn.activation(dx.at[:, row], p, bias=shift, scale=r, op="copy")
        going_on = (pl.program_id(0) > 0) | (g > 0)
        _add_up(by_weight, q, one, going_on)
        _add_up(by_bias, dy.at[:, row], one_narrow, going_on)
    _at_the_end(sums.at[0], by_weight)
    _at_the_end(sums.at[1], by_bias)


_layernorm.defvjp(_layer_residuals, _layer_gradient)


# ---- sums over all rows, a column a partition of PSUM ----


def _whole_blocks(x: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """With rows of ones behind them whose derivative is 0, until all blocks are full: a sum over
    rows would take in what lies behind the edge."""
    edge = ((0, -x.shape[0] % PARTITIONS), (0, 0))
    if not edge[0][1]:
        return x, dy
    return jnp.pad(x, edge, constant_values=1), jnp.pad(dy, edge)


def _with_sums(
    kernel: Any,
    name: str,
    rows: Sequence[jax.Array],
    lines: Sequence[jax.Array],
    out: tuple[int, Any],
    sums: int,
    together: int,
    scratch: Sequence[Any],
) -> tuple[jax.Array, jax.Array]:
    """The results for rows, and sums [sums, n] over all of them."""
    count, n = rows[0].shape
    height, chunks = count // together, -(-n // PARTITIONS)

    def block(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((PARTITIONS, together, width), lambda i: (i, 0, 0))

    result, added = pl.pallas_call(
        kernel,
        grid=(height // PARTITIONS,),
        in_specs=[block(n) for _ in rows]
        + [pl.BlockSpec(x.shape, lambda i: (0, 0)) for x in lines],
        out_specs=[block(out[0]), pl.BlockSpec((sums, PARTITIONS, chunks), lambda i: (0, 0, 0))],
        out_shape=[
            jax.ShapeDtypeStruct((height, together, out[0]), out[1]),
            jax.ShapeDtypeStruct((sums, PARTITIONS, chunks), jnp.float32),
        ],
        scratch_shapes=list(scratch),
        compiler_params=pltrn.CompilerParams(),
        name=name,
    )(*(x.reshape(height, together, n) for x in rows), *lines)
    return result.reshape(count, out[0]), jnp.swapaxes(added, 1, 2).reshape(sums, -1)[:, :n]


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
        rms = functools.partial(_rms_gradient, 1e-6)
        layer = functools.partial(_layer_gradient, 1e-5)
        yield f"rmsnorm derivative {dtype} 16384x4096", Entry(rms, ((x, line), x), "hbm")
        yield f"layernorm derivative {dtype} 16384x4096", Entry(layer, ((x, line, line), x), "hbm")


CATALOGUE.update(_entries())
