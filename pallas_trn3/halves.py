"""Grids whose two halves have nothing to do with each other: two loops, which XLA:CPU runs at the
same time where it has threads for both."""

from __future__ import annotations

from typing import Any

from jax import lax
from jax._src.pallas import core as pallas_core
from jax._src.state import types as state_types

from .kernel import Block, Kernel
from .rewrite import programs

_LONGEST = 200
"""Equations of a kernel that is worth compiling twice."""


def cut_dimensions(kernel: Kernel, changed: frozenset[int], jaxpr: Any) -> dict[int, int] | None:
    """By number of each output the dimension of its array that the grid's first dimension cuts into
    blocks; None where one half may see what the other does.

    **Arguments:**

    - `changed`: Numbers of the inputs and outputs that the kernel writes.
    - `jaxpr`: The kernel on values.
    """
    first = kernel.grid[0] if kernel.grid else None
    scalars = list(zip(jaxpr.invars, jaxpr.outvars))[: kernel.scalars]
    alone = (
        first is not None
        and first > 1
        and not kernel.aliases
        and not kernel.grid_mapping.num_scratch_operands
        and all(before is after for before, after in scalars)
        and all(isinstance(effect, state_types.RefEffect) for effect in kernel.jaxpr.effects)
        and _length(jaxpr) <= _LONGEST
        and not _communicates(jaxpr)
    )
    written = [block for block in kernel.blocks if block.number in changed]
    if not alone or any(block.role == "input" for block in written):
        return None
    dimensions = {block.number: _cut_dimension(block) for block in written}
    if None in dimensions.values():
        return None
    return {number: dim for number, dim in dimensions.items() if dim is not None}


def _cut_dimension(block: Block) -> int | None:
    jaxpr = block.mapping.index_map_jaxpr.jaxpr
    for dim, (index, kind) in enumerate(zip(jaxpr.outvars, block.mapping.block_shape)):
        if index is jaxpr.invars[0] and isinstance(
            kind, (pallas_core.Blocked, pallas_core.Squeezed)
        ):
            return dim
    return None


def _length(jaxpr: Any) -> int:
    return sum(1 + sum(map(_length, programs(e))) for e in jaxpr.eqns)


def _communicates(jaxpr: Any) -> bool:
    named = {"axis_name", "axes", "axis"}
    return any(
        any(isinstance(e.params.get(key), (str, tuple)) and _names(e.params[key]) for key in named)
        or any(map(_communicates, programs(e)))
        for e in jaxpr.eqns
    )


def _names(axes: Any) -> bool:
    return any(isinstance(axis, str) for axis in (axes if isinstance(axes, tuple) else (axes,)))


def joined(first: Any, second: Any, block: Block, dim: int, steps: int) -> Any:
    """An output, of its first `steps` blocks from one half and the others from the other."""
    edge = min(steps * block.sizes[dim], first.shape[dim])
    low = lax.slice_in_dim(first, 0, edge, axis=dim)
    return lax.concatenate([low, lax.slice_in_dim(second, edge, None, axis=dim)], dim)
