"""Blocks and explicit mesh axes: a block must lie on one device."""

from __future__ import annotations

from typing import Any

import jax


def check_block_sharding(x: Any, axis: int, block_size: int) -> None:
    """Raises ValueError if an Explicit mesh axis shards `axis` (not negative) inside a block.

    Axes of type Auto are the partitioner's: it moves the data where it must.
    """
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis] if axis < len(sharding.spec) else None
    if names is None:
        return
    names = names if isinstance(names, tuple) else (names,)
    shards = 1
    for name in names:
        shards *= sharding.mesh.shape[name]
    size = x.shape[axis]
    if shards > 1 and size % (shards * block_size):
        raise ValueError(
            f"axis {axis} of {jax.typeof(x)}, of size {size}, is sharded over mesh axes {names} in "
            f"{shards} parts, across the boundary of a block of {block_size}; allowed are parts "
            f"that are multiples of {block_size}: pad the axis, or replicate it with "
            f"jax.sharding.reshard"
        )
