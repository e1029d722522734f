"""What an instruction computes, as a jitted function of arrays: for compiled kernels and for the
reference executor alike."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_trn3 import isa

from .accesses import element_of, instruction_of
from .memory import dtype_name

MEANING = "trn3_"
"""What the names of jitted meanings begin with."""


def meaning(
    name: str, engine: str, params: tuple[tuple[str, Any], ...], operands: dict[str, Any]
) -> Any:
    """The instruction as a jitted function of arrays.

    **Arguments:**

    - `operands`: By name anything with the shape and dtype of the operand's array.

    **Returns:** A function `(reads, previous, state, accumulate) -> (writes, state)`: dicts by
    operand name of what is read and of what lies under what is written; `accumulate` None, or
    whether a sum continues.
    """
    shapes = tuple((k, tuple(v.shape), np.dtype(v.dtype)) for k, v in sorted(operands.items()))
    return _meaning(name, engine, params, shapes)


@functools.cache
def _meaning(name: str, engine: str, params: tuple[Any, ...], shapes: tuple[Any, ...]) -> Any:
    instruction = _on_arrays(name, engine, params, shapes)
    written = [o.name for o in instruction.spec.operands if o.role != "read"]
    updated = [o.name for o in instruction.spec.operands if instruction.updates(o)] or written

    def apply(reads: Any, previous: Any, state: Any, accumulate: Any) -> tuple[Any, Any]:
        arrays = dict(reads)
        if state is not None:
            arrays[isa.state_name(instruction)] = state
        under = previous.get(updated[0]) if updated else None
        if accumulate is None:
            results = isa.execute(instruction, arrays, under)
        else:
            going_on = isa.execute(_told(instruction, True), arrays, under)
            starting = isa.execute(_told(instruction, False), arrays, under)
            results = {k: jnp.where(accumulate, going_on[k], starting[k]) for k in going_on}
        writes = {k: results[k] for k in written if k in results}
        own = isa.state_name(instruction) if instruction.spec.state else None
        return writes, results.get(own) if own and state is not None else None

    apply.__name__ = MEANING + name
    return jax.jit(apply)


def _told(instruction: isa.Instruction, accumulate: bool) -> isa.Instruction:
    params = dict(instruction.params) | {"accumulate": accumulate}
    return replace(instruction, params=tuple(sorted(params.items())))


def _on_arrays(name: str, engine: str, params: Any, shapes: Any) -> isa.Instruction:
    """The instruction on tiles that have the arrays' shapes."""
    spec = isa.TABLE[name]
    memories = {o.name: o.memories[0] for o in spec.operands}
    accesses = {}
    for operand, shape, dtype in shapes:
        plain = "float4_e2m1fn" if "float4" in str(dtype) else dtype_name(dtype)
        kind = element_of(spec, operand, plain)
        if kind.endswith("_x4"):
            shape = shape[:-1]
        shape = shape if len(shape) > 1 else (*(shape or (1,)), 1)
        accesses[operand] = isa.Access(isa.Tile(operand, memories[operand], shape, kind))
    return instruction_of(name, engine, params, accesses, isa.Origin())
