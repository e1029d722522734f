"""A step of AdamW in one pass: parameters and moments are read and written once."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn

from .catalogue import CATALOGUE, Entry
from .results import alike
from .rows import PARTITIONS, check_floats, columns, cut, over_rows

_WIDTH = 1024
"""Elements that a partition takes at a time."""


def adamw(
    params: jax.Array,
    m: jax.Array,
    v: jax.Array,
    grads: jax.Array,
    step: jax.typing.ArrayLike,
    learning_rate: jax.typing.ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 1e-4,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Parameters and moments after a step of AdamW: `optax.adamw` and `optax.apply_updates`.

    The results take the memory of `params`, `m` and `v` where the caller gives it away
    (`jax.jit(..., donate_argnums=...)`).

    **Arguments:**

    - `params`, `grads`: Of one shape; float32, bfloat16 or float16. Computed in float32.
    - `m`, `v`: First and second moment, of that shape; float32, bfloat16 or float16.
    - `step`: Number of the step, from 1 on; it may be traced, as `learning_rate` may.

    **Returns:** params, m and v, of the dtypes given.

    **Raises:** `TypeError` for another dtype, `ValueError` for other shapes.
    """
    check_floats("adamw", params, m, v, grads)
    shapes = {x.shape for x in (params, m, v, grads)}
    if len(shapes) > 1:
        raise ValueError(f"adamw of arrays of shapes {sorted(shapes)}; they must be the same")
    if not params.size:
        return params, m, v
    params, m, v, grads = alike(params, m, v, grads)
    factors = _factors(step, learning_rate, b1, b2, weight_decay)
    arrays = [_as_lines(x) for x in (params, m, v, grads)]
    bytes_of = [x.dtype.itemsize for x in arrays]
    width = arrays[0].shape[1]
    blocks = cut(
        "adamw", arrays[0].shape[0], width * sum(bytes_of), width * sum(bytes_of[:3]), 0,
        4 * width * 8, most=4,
    )  # fmt: skip
    kernel = functools.partial(
        _kernel, together=blocks.together, b1=b1, b2=b2, eps=eps, eps_root=eps_root
    )
    new = over_rows(
        kernel, "adamw", arrays, [jnp.broadcast_to(factors, (PARTITIONS, 4))],
        [(width, x.dtype) for x in arrays[:3]], blocks,
        [columns(width, jnp.float32, 8)], aliases={0: 0, 1: 1, 2: 2},
    )  # fmt: skip
    p, m, v = (x.reshape(-1)[: params.size].reshape(params.shape) for x in new)
    return p, m, v


def adamw_reference(
    params: jax.Array,
    m: jax.Array,
    v: jax.Array,
    grads: jax.Array,
    step: jax.typing.ArrayLike,
    learning_rate: jax.typing.ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 1e-4,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same, in jax.numpy."""
    p, m32, v32, g = (x.astype(jnp.float32) for x in (params, m, v, grads))
    m32 = b1 * m32 + (1 - b1) * g
    v32 = b2 * v32 + (1 - b2) * g * g
    t = jnp.asarray(step, jnp.float32)
    m_hat, v_hat = m32 / (1 - b1**t), v32 / (1 - b2**t)
    change = m_hat / (jnp.sqrt(v_hat + eps_root) + eps) + weight_decay * p
    p = p - learning_rate * change
    return p.astype(params.dtype), m32.astype(m.dtype), v32.astype(v.dtype)


def _factors(step: Any, learning_rate: Any, b1: float, b2: float, weight_decay: float) -> jax.Array:
    """What changes from step to step: of m, of v, of params, and eps's place."""
    t = jnp.asarray(step, jnp.float32)
    rate = jnp.asarray(learning_rate, jnp.float32)
    # 1 - b**t by expm1: of b2 = 0.999 at the first steps a power in float32 keeps few digits.
    first, second = (-jnp.expm1(t * math.log(b)) if b > 0 else jnp.ones_like(t) for b in (b1, b2))
    return jnp.stack([-rate / first, 1 / second, 1 - rate * weight_decay, jnp.zeros_like(t)])[None]


def _as_lines(x: jax.Array) -> jax.Array:
    """Any array as rows for partitions; what a last row lacks is zeros."""
    flat = x.reshape(-1)
    width = _WIDTH if flat.size >= _WIDTH * PARTITIONS else max(1, -(-flat.size // PARTITIONS))
    return jnp.pad(flat, (0, -flat.size % width)).reshape(-1, width)


def _kernel(
    p: Any, m: Any, v: Any, g: Any, factors: Any, new_p: Any, new_m: Any, new_v: Any, work: Any,
    *, together: int, b1: float, b2: float, eps: float, eps_root: float,
) -> None:  # fmt: skip
    """Four passes of VectorE and four of ScalarE."""
    of_m, of_v, of_p = (factors.at[:, pl.ds(k, 1)] for k in range(3))

    def moments(k: int) -> tuple[Any, Any]:
        """Where they are in float32."""
        kept = (new_m.at[:, pl.ds(k, 1)], new_v.at[:, pl.ds(k, 1)])
        own = work.at[4 * (k % 2) + 2], work.at[4 * (k % 2) + 3]
        first, second = (a if a.dtype == jnp.float32 else b for a, b in zip(kept, own))
        return first, second

    for k in range(together + 1):
        if k < together:
            row, (a, b) = pl.ds(k, 1), (work.at[4 * (k % 2) + j] for j in range(2))
            pltrn.activation(a, g.at[:, row], scale=1 - b1, op="copy")
            pltrn.activation(b, g.at[:, row], scale=math.sqrt(1 - b2), op="square")
            first, second = moments(k)
            pltrn.scalar_tensor_tensor(first, m.at[:, row], b1, a, op0="multiply", op1="add")
            pltrn.scalar_tensor_tensor(second, v.at[:, row], b2, b, op0="multiply", op1="add")
        if k > 0:  # while the next row begins
            row, (a, b) = pl.ds(k - 1, 1), (work.at[4 * ((k - 1) % 2) + j] for j in range(2))
            first, second = moments(k - 1)
            for new, value in ((new_m, first), (new_v, second)):
                if new.dtype != jnp.float32:  # rounded only where it is kept
                    pltrn.tensor_copy(new.at[:, row], value, engine="gpsimd")
            pltrn.activation(b, second, bias=eps_root, scale=of_v, op="sqrt")
            pltrn.activation(b, b, bias=eps, op="reciprocal")
            pltrn.scalar_tensor_tensor(a, first, of_m, b, op0="multiply", op1="multiply")
            pltrn.scalar_tensor_tensor(
                new_p.at[:, row], p.at[:, row], of_p, a, op0="multiply", op1="add"
            )


def _entry(*dtypes: str) -> Entry:
    arrays = (jax.ShapeDtypeStruct((8_192, 4_096), dtype) for dtype in dtypes)
    return Entry(adamw, (*arrays, jax.ShapeDtypeStruct((), jnp.int32), 1e-3), "hbm")


CATALOGUE["adamw float32 8192x4096"] = _entry("float32", "float32", "float32", "float32")
CATALOGUE["adamw bfloat16 8192x4096"] = _entry("bfloat16", "float32", "float32", "bfloat16")
