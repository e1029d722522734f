"""The projections around attention: x to queries, keys and values; what attends back, and added."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jax_trn3.numerics import MXArray

from .catalogue import CATALOGUE, Entry
from .matmul import Precision, longest, matmul, matmul_reference, products
from .results import alike


def qkv_projection(
    x: jax.Array,
    query: jax.Array | MXArray,
    key: jax.Array | MXArray,
    value: jax.Array | MXArray,
    *,
    precision: Precision = "default",
    preferred_element_type: jax.typing.DTypeLike | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`x @ query`, `x @ key`, `x @ value`: one kernel, unless in MX.

    **Arguments:**

    - `x`: [..., S, D].
    - `query`: [D, H * d]; `key`, `value`: [D, Hkv * d].
    - `precision`, `preferred_element_type`: As in `matmul`.

    **Returns:** [..., S, H * d] and twice [..., S, Hkv * d].

    **Raises:** `TypeError` and `ValueError` as `matmul` does.
    """
    weights = (query, key, value)
    one = {x.dtype.name, *(w.dtype.name for w in weights)}
    together = precision == "default" and len(one) == 1 and x.shape[-1] <= longest(x.dtype)
    plain = not any(isinstance(w, MXArray) for w in weights)
    if not (together and plain and _fit(x, weights)):
        return tuple(
            matmul(x, w, precision=precision, preferred_element_type=preferred_element_type)
            for w in weights
        )
    x, *plain_weights = alike(x, *weights)
    flat = x.reshape(-1, x.shape[-1])
    found = _together(flat, tuple(plain_weights), jnp.dtype(preferred_element_type or x.dtype))
    return tuple(p.reshape(*x.shape[:-1], p.shape[1]) for p in found)


def _fit(x: jax.Array, weights: Any) -> bool:
    known = x.dtype.name in ("bfloat16", "float16", "float32")
    shaped = x.ndim >= 2 and all(w.ndim == 2 and w.shape[0] == x.shape[-1] for w in weights)
    return known and shaped and 0 not in x.shape and all(w.shape[1] for w in weights)


def qkv_projection_reference(
    x: jax.Array,
    query: jax.Array | MXArray,
    key: jax.Array | MXArray,
    value: jax.Array | MXArray,
    *,
    precision: Precision = "default",
    preferred_element_type: jax.typing.DTypeLike | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same in plain JAX."""
    options: Any = {"precision": precision, "preferred_element_type": preferred_element_type}
    return tuple(matmul_reference(x, w, **options) for w in (query, key, value))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _together(x: jax.Array, weights: Any, dtype: Any) -> list[jax.Array]:
    return products(x, list(weights), dtype)


def _together_forward(x: jax.Array, weights: Any, dtype: Any) -> tuple[list[jax.Array], Any]:
    return products(x, list(weights), dtype), (x, weights)


def _together_backward(dtype: Any, kept: Any, cotangents: Any) -> Any:
    """The gradient of x sums three products in float32."""
    x, weights = kept
    grads = [g.astype(x.dtype) for g in cotangents]
    parts = [matmul(g, w.T, preferred_element_type=jnp.float32) for g, w in zip(grads, weights)]
    dx = functools.reduce(jnp.add, parts).astype(x.dtype)
    return dx, tuple(matmul(x.T, g, preferred_element_type=x.dtype) for g in grads)


_together.defvjp(_together_forward, _together_backward)


def output_projection(attended: jax.Array, weight: jax.Array, residual: jax.Array) -> jax.Array:
    """`residual + attended @ weight`, added in float32 as it leaves PSUM.

    **Arguments:**

    - `attended`: [..., S, H * d], bfloat16, float16 or float32.
    - `weight`: [H * d, D], likewise.
    - `residual`: [..., S, D], any float.

    **Returns:** [..., S, D] of residual's dtype.

    **Raises:** `TypeError` for other dtypes; `ValueError` for shapes that do not match.
    """
    wanted = (*attended.shape[:-1], weight.shape[-1])
    if weight.ndim != 2 or attended.shape[-1] != weight.shape[0] or residual.shape != wanted:
        raise ValueError(
            f"attended {attended.shape}, weight {weight.shape}, residual {residual.shape}; they "
            "are [..., S, K], [K, D] and [..., S, D]"
        )
    dtype = jnp.result_type(attended, weight)
    if dtype.name not in ("bfloat16", "float16", "float32"):
        raise TypeError(f"attended and weight make {dtype}; allowed: bfloat16, float16, float32")
    attended, weight, residual = alike(attended, weight, residual)
    flat = attended.reshape(-1, attended.shape[-1]).astype(dtype)
    term = residual.reshape(-1, residual.shape[-1])
    return _added(flat, weight.astype(dtype), term).reshape(residual.shape)


def output_projection_reference(
    attended: jax.Array, weight: jax.Array, residual: jax.Array
) -> jax.Array:
    """The same in plain JAX."""
    product = matmul_reference(attended, weight, preferred_element_type=jnp.float32)
    return (product + residual.astype(jnp.float32)).astype(residual.dtype)


@jax.custom_vjp
def _added(x: jax.Array, weight: jax.Array, residual: jax.Array) -> jax.Array:
    if x.shape[1] <= longest(x.dtype):
        return products(x, [weight], residual.dtype, residual)[0]
    product = matmul(x, weight, preferred_element_type=jnp.float32)
    return (product + residual.astype(jnp.float32)).astype(residual.dtype)


def _added_forward(x: jax.Array, weight: jax.Array, residual: jax.Array) -> tuple[jax.Array, Any]:
    return _added(x, weight, residual), (x, weight)


def _added_backward(kept: Any, cotangent: jax.Array) -> Any:
    x, weight = kept
    grad = cotangent.astype(x.dtype)
    dx = matmul(grad, weight.T, preferred_element_type=x.dtype)
    return dx, matmul(x.T, grad, preferred_element_type=weight.dtype), cotangent


_added.defvjp(_added_forward, _added_backward)


def _enter() -> None:
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)
    heads, kv_heads = (jax.ShapeDtypeStruct((4096, n), jnp.bfloat16) for n in (4096, 1024))
    CATALOGUE["qkv_projection bfloat16 4096x4096, 32 and 8 heads"] = Entry(
        qkv_projection, (x, heads, kv_heads, kv_heads)
    )
    CATALOGUE["output_projection bfloat16 4096^3"] = Entry(output_projection, (x, heads, x))


_enter()
