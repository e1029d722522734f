"""Results: on their way out of PSUM, and as what `pallas_call` is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

import pallas_trn3 as pltrn


def copied_out(dst: Any, src: Any, number: int) -> None:
    """Out of PSUM, by VectorE and ScalarE in turn."""
    if number % 2:
        pltrn.tensor_copy(dst, src)
    else:
        pltrn.activation(dst, src, op="copy")


def alike(*operands: Any) -> tuple[Any, ...]:
    """Operands (or trees of them) that vary over the same axes of a `shard_map`."""
    leaves, tree = jax.tree.flatten(operands)
    own = [jax.typeof(leaf).manual_axis_type.varying for leaf in leaves]
    axes = frozenset().union(*own)
    cast = [
        lax.pcast(leaf, tuple(sorted(axes - has)), to="varying") if axes - has else leaf
        for leaf, has in zip(leaves, own)
    ]
    return tuple(jax.tree.unflatten(tree, cast))


def result(like: jax.Array, shape: Sequence[int], dtype: Any) -> jax.ShapeDtypeStruct:
    """A result that varies over the axes that `like` varies over."""
    kind = jax.typeof(like).manual_axis_type
    return jax.ShapeDtypeStruct(tuple(shape), dtype, manual_axis_type=kind)
