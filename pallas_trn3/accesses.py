"""An instruction of a kernel as one of the table's: what its Refs are to the engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jax._src import core as jax_core
from jax._src import source_info_util
from jax._src.state import indexing
from jax._src.state import types as state_types

from jax_trn3 import isa
from jax_trn3.hardware import TRAINIUM3, NeuronCore

from .memory import dtype_name, memory_of
from .source import here


def instruction_of(
    name: str,
    engine: str | None,
    params: tuple[tuple[str, Any], ...],
    accesses: dict[str, isa.Access],
    origin: isa.Origin,
) -> isa.Instruction:
    """The table's instruction on these accesses."""
    operands: dict[str, Any] = {**accesses, **dict(params)}
    return isa.TABLE[name](**operands, engine=engine, origin=origin)


def access_of(tile: isa.Tile, transforms: Sequence[Any], slot: Any = 0) -> isa.Access:
    """The part of a tile (of one slot) that a Ref's transforms leave; starts that are not constant
    count as 0. Dimensions indexed by integers must come first.

    **Raises:** `NotImplementedError` for gathers and changes of shape.
    """
    access = isa.Access(tile, slot=isa.as_index(slot))
    for transform in transforms:
        if not isinstance(transform, indexing.NDIndexer):
            raise NotImplementedError(f"{type(transform).__name__} of {tile.name}")
        keys: list[slice | int] = []
        for index in transform.indices:
            if isinstance(index, indexing.Slice):
                start = index.start if isinstance(index.start, int) else 0
                keys.append(slice(start, start + (index.size - 1) * index.stride + 1, index.stride))
            else:
                keys.append(int(index) if isinstance(index, (int, np.integer)) else 0)
        access = access[tuple(keys)]
    return access


def checked_instruction(
    spec: isa.InstructionSpec,
    refs: dict[str, tuple[Any, tuple[Any, ...]]],
    values: dict[str, Any],
    params: tuple[tuple[str, Any], ...],
    engine: str | None,
) -> isa.Instruction:
    """The instruction that is being traced, held against the table as far as its text says.

    **Raises:** `IllegalInstruction`.
    """
    origin = here()
    accesses = {}
    for name, (ref, transforms) in refs.items():
        accesses[name] = _provisional(spec, name, ref, transforms, origin)
    for name, value in values.items():
        shape = value.shape if value.ndim > 1 else (value.shape or (1,))[0:1] + (1,)
        tile = isa.Tile(name, "sbuf", shape, named(spec, name, value.dtype, origin), given=True)
        accesses[name] = isa.Access(tile)
    made = instruction_of(spec.name, engine, params, accesses, origin)
    isa.check(made, core())
    return made


def core() -> NeuronCore:
    """The core that kernels are held against when they are traced."""
    return TRAINIUM3.core


def _provisional(
    spec: isa.InstructionSpec, name: str, ref: Any, transforms: Sequence[Any], origin: isa.Origin
) -> isa.Access:
    """An access to a Ref's tile, which lies nowhere yet."""
    aval, memory = ref.aval, memory_of(ref.aval)
    if memory in ("state", "semaphore"):
        raise isa.IllegalInstruction(f"{spec.name} from {origin}: {name} is a Ref to {memory}")
    full, start, shape, step = _reached(spec, name, aval, transforms, origin)
    if not shape or (len(shape) == 1 and memory != "hbm"):
        raise isa.IllegalInstruction(
            f"{spec.name} from {origin}: {name} has shape {shape}; a tile in {memory} has "
            "partitions first and at least one more dimension"
        )
    dtype = named(spec, name, aval.dtype, origin)
    element = element_of(spec, name, dtype)
    if element != dtype:
        if full[-1] != 4:
            raise isa.IllegalInstruction(
                f"{spec.name} from {origin}: {name} of {dtype} has shape {full}; four values make "
                "one element, its last dimension must be 4"
            )
        full, start, shape, step = full[:-1], start[:-1], shape[:-1], step[:-1]
    address = getattr(getattr(aval, "memory_space", None), "address", None)
    tile = isa.Tile(name, cast(Any, memory), full, element, address=address, given=True)
    return isa.Access(tile, start=start, size=shape, step=step)


_Sizes = tuple[int, ...]


def _reached(
    spec: isa.InstructionSpec,
    name: str,
    aval: Any,
    transforms: Sequence[Any],
    origin: isa.Origin,
) -> tuple[_Sizes, _Sizes, _Sizes, _Sizes]:
    """Of the dimensions that are sliced: sizes of the Ref, first elements, sizes and steps of the
    part. A start that is not constant counts as 0."""
    full = shape = tuple(aval.shape)
    start, step = (0,) * len(shape), (1,) * len(shape)
    for transform in transforms:
        if not isinstance(transform, indexing.NDIndexer):
            full = shape = tuple(
                state_types.transform_type((transform,), _plain(shape, aval)).shape
            )
            start, step = (0,) * len(shape), (1,) * len(shape)
            continue
        if any(np.shape(i) for i in transform.indices if not isinstance(i, indexing.Slice)):
            raise isa.IllegalInstruction(
                f"{spec.name} from {origin}: {name} is gathered by an array of indices; use its "
                f"{name}_index operand, or slices"
            )
        kept = [
            (at, index)
            for at, index in enumerate(transform.indices)
            if isinstance(index, indexing.Slice)
        ]
        first = [index.start if isinstance(index.start, int) else 0 for _, index in kept]
        start = tuple(start[at] + begin * step[at] for (at, _), begin in zip(kept, first))
        full = tuple(full[at] for at, _ in kept)
        step = tuple(step[at] * index.stride for at, index in kept)
        shape = tuple(index.size for _, index in kept)
    return full, start, shape, step


def _plain(shape: Sequence[int], aval: Any) -> Any:
    return state_types.AbstractRef(jax_core.ShapedArray(tuple(shape), aval.dtype))


def named(spec: isa.InstructionSpec, name: str, dtype: Any, origin: isa.Origin) -> str:
    found = dtype_name(dtype)
    if not found and dtype == jnp.dtype("float4_e2m1fn"):
        return "float4_e2m1fn"
    if not found:
        raise isa.IllegalInstruction(
            f"{spec.name} from {origin}: {name} has dtype {dtype}, which no engine knows"
        )
    return found


def element_of(spec: isa.InstructionSpec, name: str, dtype: str) -> str:
    """The element type of an operand whose Ref has this one: the packed type (x4) where the table
    has only that."""
    (operand,) = (o for o in spec.operands if o.name == name)
    packed = f"{dtype}_x4"
    if packed in operand.dtypes and dtype not in operand.dtypes:
        return packed
    return dtype


source_info_util.register_exclusion(__file__)
