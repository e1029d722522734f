"""Rotary position embedding: pairs of features turned by an angle that grows with the position."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn

from .catalogue import CATALOGUE, Entry
from .results import alike, result
from .rows import OUTPUTS, PARTITIONS, check_floats, columns, cut

_FEATURES = 4096
"""Features of a position that a block has at most; more heads are more blocks."""


def rope_angles(
    positions: jax.Array, features: int, theta: float = 10_000.0
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [S, features / 2] of positions [S], float32: the i-th pair turns by
    `position / theta**(2 i / features)`."""
    rates = theta ** (-jnp.arange(0, features, 2, dtype=jnp.float32) / features)
    angles = positions.astype(jnp.float32)[:, None] * rates
    return jnp.cos(angles), jnp.sin(angles)


def rope(x: jax.Array, cos: jax.Array, sin: jax.Array, *, interleaved: bool = False) -> jax.Array:
    """Turns pairs (a, b) of features to (a cos - b sin, b cos + a sin).

    **Arguments:**

    - `x`: [..., S, heads, features], float32, bfloat16 or float16. Computed in float32.
    - `cos`, `sin`: [S, features / 2], of the same dtypes (`rope_angles`).
    - `interleaved`: Whether a pair is two neighbours (GPT-J), or a feature of the first half and
      the one at its place in the second half (GPT-NeoX, Llama).

    **Returns:** Of x's shape and dtype. Its derivative by x is a kernel, too: the turn back.

    **Raises:** `TypeError` for another dtype, `ValueError` for shapes that do not fit.
    """
    check_floats("rope", x, cos, sin)
    if x.ndim < 3 or x.shape[-1] % 2:
        raise ValueError(f"rope of shape {x.shape}; it must be [..., S, heads, even features]")
    table = (x.shape[-3], x.shape[-1] // 2)
    for name, given in (("cos", cos), ("sin", sin)):
        if given.shape != table:
            raise ValueError(
                f"rope: {name} of shape {given.shape} for x of {x.shape}; needs {table}"
            )
    if not x.size:
        return x
    x, cos, sin = alike(x, cos, sin)
    flat = x.reshape(-1, *x.shape[-3:])
    return _rope(bool(interleaved), flat, cos, sin).reshape(x.shape)


def rope_reference(
    x: jax.Array, cos: jax.Array, sin: jax.Array, *, interleaved: bool = False
) -> jax.Array:
    """The same, in jax.numpy."""
    a, b = _pairs(x.astype(jnp.float32), interleaved)
    c, s = (y.astype(jnp.float32)[:, None] for y in (cos, sin))
    turned = a * c - b * s, b * c + a * s
    whole = jnp.stack(turned, -1) if interleaved else jnp.concatenate(turned, -1)
    return whole.reshape(x.shape).astype(x.dtype)


def _pairs(x: jax.Array, interleaved: bool) -> tuple[jax.Array, jax.Array]:
    half = x.shape[-1] // 2
    return (x[..., ::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rope(interleaved: bool, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x [B, S, H, D]."""
    batch, length, heads, features = x.shape
    few = next(h for h in range(heads, 0, -1) if heads % h == 0 and _few(h * features, h))
    size = x.dtype.itemsize * few * features
    # Angles, and of half of the features four products and two tables.
    room = 2 * 2 * 4 * (features // 2) + 4 * few * (features // 2) * (4 + 2)
    blocks = cut("rope", length, size, size, room)
    together = blocks.together if few == heads else 1
    places, line = together * few, together * features // 2
    kernel = functools.partial(_kernel, heads=few, interleaved=interleaved)

    def block(buffers: int) -> pl.BlockSpec:
        sizes, mode = (None, PARTITIONS, places, features), pl.Buffered(buffers)
        return pl.BlockSpec(sizes, lambda i, h, b: (b, i, h, 0), pipeline_mode=mode)

    angles = pl.BlockSpec((PARTITIONS, line), lambda i, h, b: (i, 0))
    shape = (batch, length // together, together * heads, features)
    y = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(shape[1], PARTITIONS), heads // few, batch),
        in_specs=[block(blocks.inputs), angles, angles],
        out_specs=block(OUTPUTS),
        out_shape=result(x, shape, x.dtype),
        scratch_shapes=[
            columns(places * (features // 2), jnp.float32, 2),
            columns(places * (features // 2), jnp.float32, 4),
        ],
        compiler_params=pltrn.CompilerParams(),
        name="rope",
    )(x.reshape(shape), cos.reshape(-1, line), sin.reshape(-1, line))
    return y.reshape(x.shape)


def _few(features: int, heads: int) -> bool:
    return features <= _FEATURES or heads == 1


def _kernel(
    x: Any, cos: Any, sin: Any, y: Any, tables: Any, work: Any, *, heads: int, interleaved: bool
) -> None:
    """Six products and sums of half of the features, by VectorE and GpSimdE in turn."""
    places, half = x.shape[-2], x.shape[-1] // 2

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:  # every head of a position turns by its angles
        for k, line in enumerate((cos, sin)):
            for place in range(places):
                part = pl.ds(place * half, half)
                own = pl.ds(place // heads * half, half)
                pltrn.tensor_copy(tables.at[k, :, part], line.at[:, own], engine="scalar")

    first = pl.ds(0, half, 2) if interleaved else pl.ds(0, half)
    second = pl.ds(1, half, 2) if interleaved else pl.ds(half, half)
    a, b, new_a, new_b = (ref.at[:, :, part] for ref in (x, y) for part in (first, second))
    c, s = tables.at[0], tables.at[1]
    ac, bc, bs, as_ = (work.at[k] for k in range(4))
    pltrn.tensor_tensor(ac, a, c, op="multiply", engine="vector")
    pltrn.tensor_tensor(bs, b, s, op="multiply", engine="gpsimd")
    pltrn.tensor_tensor(bc, b, c, op="multiply", engine="vector")
    pltrn.tensor_tensor(as_, a, s, op="multiply", engine="gpsimd")
    pltrn.tensor_tensor(new_a, ac, bs, op="subtract", engine="vector")
    pltrn.tensor_tensor(new_b, bc, as_, op="add", engine="gpsimd")


def _rope_forward(
    interleaved: bool, x: jax.Array, cos: jax.Array, sin: jax.Array
) -> tuple[jax.Array, Any]:
    return _rope(interleaved, x, cos, sin), (x, cos, sin)


def _rope_backward(interleaved: bool, residuals: Any, dy: jax.Array) -> Any:
    x, cos, sin = residuals
    dx = _rope(interleaved, dy, cos, -sin)
    a, b = _pairs(x.astype(jnp.float32), interleaved)
    da, db = _pairs(dy.astype(jnp.float32), interleaved)
    dcos, dsin = (a * da + b * db).sum((0, 2)), (a * db - b * da).sum((0, 2))
    return dx, dcos.astype(cos.dtype), dsin.astype(sin.dtype)


_rope.defvjp(_rope_forward, _rope_backward)


def _entry(dtype: str, interleaved: bool) -> Entry:
    x = jax.ShapeDtypeStruct((4, 4_096, 32, 128), dtype)
    table = jax.ShapeDtypeStruct((4_096, 64), jnp.float32)
    turn = functools.partial(rope, interleaved=interleaved)
    return Entry(turn, (x, table, table), "hbm")


CATALOGUE["rope float32 4x4096x32x128"] = _entry("float32", False)
CATALOGUE["rope bfloat16 4x4096x32x128"] = _entry("bfloat16", False)
CATALOGUE["rope, pairs side by side, bfloat16 4x4096x32x128"] = _entry("bfloat16", True)
