"""Where Refs of array code are best: sums of products in PSUM, operands transposed as they come."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from ..kernel import Block
from ..memory import MemorySpace
from .products import sum_into
from .refs import At, Ref, Span, Use, matrix
from .walk import readers

_SUMS = 8 * 1024
"""Bytes of a partition of PSUM for sums that stay; the other half is for products."""


def summed_in_psum(ref: Ref, space: Any) -> bool:
    """Whether a scratch Ref is set to a constant and added products to, and nothing else: a sum
    that PSUM keeps by itself."""
    if ref.memory != "sbuf" or ref.dtype != jnp.float32 or isinstance(space, MemorySpace):
        return False
    rows, columns = matrix(ref.shape)
    if not ref.rows or -(-rows // 128) * columns * 4 > _SUMS:
        return False
    writes = [use for use in ref.uses if use.writes]
    kinds = [_written(use) for use in writes]
    return "product" in kinds and "other" not in kinds


def _written(use: Use) -> str:
    """ "product", "constant" or "other"."""
    if use.equation is None or use.equation.primitive.name not in ("swap", "addupdate"):
        return "other"
    jaxpr, value = use.jaxpr, use.equation.invars[1]
    made = _maker(jaxpr, value)
    if made is None:
        return "constant" if hasattr(value, "val") else "other"
    if made.primitive.name == "broadcast_in_dim":
        return "constant" if hasattr(made.invars[0], "val") else "other"
    products = [made] if made.primitive.name == "dot_general" else [
        _maker(jaxpr, atom) for atom in made.invars
    ]  # fmt: skip
    known = readers(jaxpr)
    for product in products:
        if product is not None and product.primitive.name == "dot_general":
            target = sum_into(jaxpr, product, lambda var: known.get(var, ()))
            if target is not None and target[0] is use.equation.invars[0]:
                return "product"
    return "other"


def _maker(jaxpr: Any, var: Any) -> Any:
    return next((e for e in jaxpr.eqns if any(o is var for o in e.outvars)), None)


def loaded_transposed(ref: Ref, block: Block) -> bool:
    """Whether every reader of a block is a product that contracts its last dimension."""
    if block.role != "input" or not ref.rows or ref.written or ref.memory != "sbuf":
        return False
    if len(ref.shape) < 2 or math.prod(ref.shape[:-2]) != 1 or jnp.dtype(ref.dtype).itemsize != 2:
        return False
    return bool(ref.uses) and all(_contracts_last(use, ref) for use in ref.uses)


def _contracts_last(use: Use, ref: Ref) -> bool:
    equation = use.equation
    if equation is None or equation.primitive.name != "get":
        return False
    for key, size in zip(use.keys, ref.shape):
        if isinstance(key, Span) and (key.start, key.size) != (0, size):
            return False
        if isinstance(key, At) and size != 1:
            return False
    (var,) = equation.outvars
    places = readers(use.jaxpr).get(var, ())
    if len(var.aval.shape) != 2 or not places or places[-1] >= len(use.jaxpr.eqns):
        return False
    return all(_is_product(use.jaxpr.eqns[place], var) for place in places)


def _is_product(equation: Any, var: Any) -> bool:
    if equation.primitive.name != "dot_general":
        return False
    (contracted, batch) = equation.params["dimension_numbers"]
    return not any(batch) and all(
        tuple(dims) == (1,) for atom, dims in zip(equation.invars, contracted) if atom is var
    )
