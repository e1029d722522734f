"""A product whose rows are gathered from other devices on the way: a ring in place of all_gather.

While a device multiplies the rows that it has, it passes them on to its neighbour. The ring is
`lax.ppermute` around the kernels of `matmul`, so that it runs wherever `shard_map` does.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .matmul import Precision, matmul, matmul_reference


def all_gather_matmul(
    x: jax.Array,
    y: jax.Array,
    axis_name: Any,
    *,
    precision: Precision = "default",
    preferred_element_type: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """`matmul(lax.all_gather(x, axis_name, tiled=True), y)`, transfers beside products.

    Inside of `shard_map`; with derivatives.

    **Arguments:**

    - `x`: [M, K], this device's rows.
    - `y`: [K, N], this device's columns, say.
    - `axis_name`: The mesh axis of D devices along which rows are gathered.
    - `precision`, `preferred_element_type`: As in `matmul`.

    **Returns:** [D * M, N], rows in the order of the devices.

    **Raises:** `TypeError` and `ValueError` as `matmul` does; `NameError` for an unbound axis.
    """
    devices, here = lax.axis_size(axis_name), lax.axis_index(axis_name)
    to_left = [(d, (d - 1) % devices) for d in range(devices)]

    def product(rows: jax.Array) -> jax.Array:
        return matmul(rows, y, precision=precision, preferred_element_type=preferred_element_type)

    def step(held: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        # Sent before it is multiplied: neither waits for the other.
        return lax.ppermute(held, axis_name, to_left), product(held)

    last, parts = lax.scan(step, x, None, length=devices - 1)
    parts = jnp.concatenate([parts, product(last)[None]])
    # The s-th part is of the s-th device to the right.
    in_order = jnp.roll(parts, here, axis=0)
    return in_order.reshape(-1, y.shape[1])


def all_gather_matmul_reference(
    x: jax.Array,
    y: jax.Array,
    axis_name: Any,
    *,
    precision: Precision = "default",
    preferred_element_type: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """The same in plain JAX."""
    rows = lax.all_gather(x, axis_name, tiled=True)
    return matmul_reference(
        rows, y, precision=precision, preferred_element_type=preferred_element_type
    )
