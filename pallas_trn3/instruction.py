"""One engine instruction in a kernel: a line of the ISA table, on Refs and values.

`issue` puts `trn3_instruction` into the kernel's jaxpr. Its parameters say which instruction it is
(`name`, `engine`, `params`), its inputs are the leaves of an `Operands` (`tree`). Discharged, it is
the instruction's meaning, as one jitted function `trn3_<name>`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import core as jax_core
from jax._src import source_info_util
from jax._src.state import discharge as state_discharge
from jax._src.state import indexing
from jax._src.state import types as state_types
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from jax_trn3 import isa
from jax_trn3.hardware import TRAINIUM3, NeuronCore

from .memory import dtype_name, memory_of

instruction_p = Primitive("trn3_instruction")
instruction_p.multiple_results = True

MEANING = "trn3_"
"""What the names of jitted meanings begin with."""


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class Operands:
    """What an instruction works on: of its primitive, the leaves are the inputs."""

    refs: dict[str, tuple[Any, tuple[Any, ...]]]
    """By operand: a Ref and what was done to it (`ref.at[...]`)."""

    values: dict[str, Any]
    """By operand: arrays of the kernel's own."""

    wait: tuple[tuple[Any, tuple[Any, ...], int], ...] = ()
    """Semaphores, what was done to them, counts."""

    signal: tuple[tuple[Any, tuple[Any, ...], int], ...] = ()
    state: Any = None
    """A Ref to what the engine remembers."""

    accumulate: Any = None
    """Whether a sum continues, where the kernel decides at run time."""

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        """Counts are no leaves."""
        semaphores = [(ref, transforms) for ref, transforms, _ in (*self.wait, *self.signal)]
        counts = tuple(count for *_, count in (*self.wait, *self.signal))
        children = (self.refs, self.values, semaphores, self.state, self.accumulate)
        return children, (len(self.wait), *counts)

    @classmethod
    def tree_unflatten(cls, static: tuple[int, ...], children: tuple[Any, ...]) -> Operands:
        """The other way round."""
        refs, values, semaphores, state, accumulate = children
        waits, *counts = static
        counted = tuple((*pair, count) for pair, count in zip(semaphores, counts))
        return cls(refs, values, counted[:waits], counted[waits:], state, accumulate)


def issue(
    spec: isa.InstructionSpec,
    *operands: Any,
    engine: str | None = None,
    wait: Iterable[tuple[Any, int]] = (),
    signal: Iterable[tuple[Any, int]] = (),
    state: Any = None,
    **named: Any,
) -> None:
    """Puts an instruction into the kernel that is being traced.

    **Arguments:**

    - `operands`, `named`: As the table has them; Refs, arrays to read, or numbers. `accumulate` may
      be a traced boolean.
    - `engine`: Which one runs it, of those that can; of a DMA the queue, "dma:<name>".
    - `wait`, `signal`: Semaphores and counts, before it starts and when it is done.
    - `state`: A Ref made by `engine_state`, for instructions that continue what came before.

    **Raises:** `TypeError` for operands that it does not have or that are missing;
    `IllegalInstruction` for what the hardware cannot do, with the kernel's line.
    """
    given, params, accumulate = _sorted_out(spec, operands, named)
    refs = {name: _parts(value) for name, value in given.items() if is_ref(value)}
    values = {name: jnp.asarray(v) for name, v in given.items() if not is_ref(v)}
    for operand in spec.operands:
        if operand.role != "read" and operand.name in values:
            raise TypeError(f"{spec.name}: {operand.name} is written; it must be a Ref")
    bundle = Operands(
        refs,
        values,
        tuple((*_parts(semaphore), int(count)) for semaphore, count in wait),
        tuple((*_parts(semaphore), int(count)) for semaphore, count in signal),
        state,
        accumulate,
    )
    leaves, tree = jax.tree.flatten(bundle)
    chosen = _checked(spec, bundle, params, engine).engine
    instruction_p.bind(*leaves, tree=tree, name=spec.name, engine=chosen, params=params)


def is_ref(value: Any) -> bool:
    """Whether it is a Ref, or a part of one."""
    if isinstance(value, state_types.TransformedRef):
        return True
    return isinstance(getattr(value, "aval", None), state_types.AbstractRef)


def _parts(value: Any) -> tuple[Any, tuple[Any, ...]]:
    if isinstance(value, state_types.TransformedRef):
        return value.ref, value.transforms
    return value, ()


def _sorted_out(
    spec: isa.InstructionSpec, operands: Sequence[Any], named: dict[str, Any]
) -> tuple[dict[str, Any], tuple[tuple[str, Any], ...], Any]:
    """Tiles and arrays by name, constant parameters, and `accumulate` if it is traced."""
    names = [operand.name for operand in spec.operands]
    if len(operands) > len(names):
        raise TypeError(f"{spec.name} takes {len(names)} operands, not {len(operands)}")
    given: dict[str, Any] = dict(zip(names, operands))
    for name, value in named.items():
        if name in given or name not in (*names, *spec.params):
            raise TypeError(
                f"{spec.name}: {name!r} is given twice or unknown; it has "
                f"{', '.join([*names, *spec.params])}"
            )
        given[name] = value
    accumulate = None
    if isinstance(given.get("accumulate"), jax.Array):
        accumulate = given.pop("accumulate")
    params, tiles = {}, {}
    for name, value in given.items():
        if name in spec.params:
            params[name] = value
        elif isinstance(value, (bool, int, float, np.number)) and _is_scalar(spec, name):
            params[name] = value
        elif value is not None:
            tiles[name] = value
    missing = [o.name for o in spec.operands if not o.optional and o.name not in (*tiles, *params)]
    missing += [name for name in spec.required if name not in params]
    if missing:
        raise TypeError(f"{spec.name} needs {', '.join(missing)}")
    return tiles, tuple(sorted(params.items())), accumulate


def _is_scalar(spec: isa.InstructionSpec, name: str) -> bool:
    return any(operand.scalar for operand in spec.operands if operand.name == name)


# ---- what it is as an instruction of the table ----


def instruction_of(
    name: str,
    engine: str | None,
    params: tuple[tuple[str, Any], ...],
    accesses: dict[str, isa.Access],
    origin: isa.Origin,
) -> isa.Instruction:
    """The table's instruction on these accesses. `accumulate`, where traced, is left to `params`."""
    spec = isa.TABLE[name]
    return spec(**accesses, **dict(params), engine=engine, origin=origin)


def access_of(tile: isa.Tile, transforms: Sequence[Any], slot: Any = 0) -> isa.Access:
    """The part of a tile (of one slot) that a Ref's transforms leave; starts that are not constant
    count as 0. Dimensions indexed by integers must come first.

    **Raises:** `NotImplementedError` for gathers and changes of shape.
    """
    access = isa.Access(tile, slot=isa.as_index(slot))
    for transform in transforms:
        if not isinstance(transform, indexing.NDIndexer):
            raise NotImplementedError(f"{type(transform).__name__} of {tile.name}")
        keys = []
        for index, size in zip(transform.indices, access.size):
            if isinstance(index, indexing.Slice):
                start = index.start if isinstance(index.start, int) else 0
                keys.append(slice(start, start + (index.size - 1) * index.stride + 1, index.stride))
            else:
                keys.append(int(index) if isinstance(index, (int, np.integer)) else 0)
        access = access[tuple(keys)]
    return access


def _checked(
    spec: isa.InstructionSpec, operands: Operands, params: Any, engine: str | None
) -> isa.Instruction:
    """Holds it against the table, as far as the kernel's text says.

    **Raises:** `IllegalInstruction`.
    """
    origin = here(spec.name)
    accesses = {}
    for name, (ref, transforms) in operands.refs.items():
        accesses[name] = _provisional(spec, name, ref, transforms, origin)
    for name, value in operands.values.items():
        shape = value.shape if value.ndim > 1 else (value.shape or (1,))[0:1] + (1,)
        tile = isa.Tile(name, "sbuf", shape, _named(spec, name, value.dtype, origin), given=True)
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
    aval = ref.aval
    shape, start = tuple(aval.shape), [0] * len(aval.shape)
    step = [1] * len(shape)
    full = shape
    for transform in transforms:
        if not isinstance(transform, indexing.NDIndexer):
            shape = tuple(state_types.transform_type((transform,), _plain(shape, aval)).shape)
            full, start, step = shape, [0] * len(shape), [1] * len(shape)
            continue
        kept = [
            (index, at) for at, index in enumerate(transform.indices)
            if isinstance(index, indexing.Slice)
        ]  # fmt: skip
        if any(np.shape(i) for i in transform.indices if not isinstance(i, indexing.Slice)):
            raise isa.IllegalInstruction(
                f"{spec.name} from {origin}: {name} is gathered by an array of indices; use its "
                f"{name}_index operand, or slices"
            )
        full = tuple(full[at] for _, at in kept)
        start = [
            start[at] + (index.start if isinstance(index.start, int) else 0) * step[at]
            for index, at in kept
        ]
        step = [step[at] * index.stride for index, at in kept]
        shape = tuple(index.size for index, _ in kept)
    memory = memory_of(aval)
    if memory in ("state", "semaphore"):
        raise isa.IllegalInstruction(f"{spec.name} from {origin}: {name} is a Ref to {memory}")
    if not shape or (len(shape) == 1 and memory != "hbm"):
        raise isa.IllegalInstruction(
            f"{spec.name} from {origin}: {name} has shape {shape}; a tile in {memory} has partitions "
            "first and at least one more dimension"
        )
    dtype = _named(spec, name, aval.dtype, origin)
    packed = _packed(spec, name, dtype)
    if packed != dtype:
        if full[-1] != 4:
            raise isa.IllegalInstruction(
                f"{spec.name} from {origin}: {name} of {dtype} has shape {full}; four values make "
                "one element, its last dimension must be 4"
            )
        full, shape, start, step = full[:-1], shape[:-1], start[:-1], step[:-1]
    buffered = getattr(getattr(aval, "memory_space", None), "address", None)
    tile = isa.Tile(name, memory, full, packed, address=buffered, given=True)
    return isa.Access(tile, start=tuple(start), size=shape, step=tuple(step))


def _plain(shape: Sequence[int], aval: Any) -> Any:
    return state_types.AbstractRef(jax_core.ShapedArray(tuple(shape), aval.dtype))


def _named(spec: isa.InstructionSpec, name: str, dtype: Any, origin: isa.Origin) -> str:
    found = dtype_name(dtype)
    if not found and dtype == jnp.dtype("float4_e2m1fn"):
        return "float4_e2m1fn"
    if not found:
        raise isa.IllegalInstruction(
            f"{spec.name} from {origin}: {name} has dtype {dtype}, which no engine knows"
        )
    return found


def _packed(spec: isa.InstructionSpec, name: str, dtype: str) -> str:
    """The packed type (x4) of an operand that the table has in packed types only."""
    (operand,) = (o for o in spec.operands if o.name == name)
    packed = f"{dtype}_x4"
    if packed in operand.dtypes and dtype not in operand.dtypes:
        return packed
    return dtype


def here(operation: str) -> isa.Origin:
    """The kernel's line that is being traced."""
    return origin_of(source_info_util.current(), operation)


def origin_of(source_info: Any, operation: str = "") -> isa.Origin:
    """The line of a kernel that an equation comes from."""
    traceback = source_info.traceback
    frame = source_info_util.user_frame(traceback)
    if frame is None:
        return isa.Origin("", 0, operation)
    return isa.Origin(frame.file_name, frame.start_line, operation)


# ---- the primitive ----


@instruction_p.def_effectful_abstract_eval
def _abstract_eval(*avals: Any, tree: Any, name: str, **_: Any) -> tuple[list[Any], set[Any]]:
    spec = isa.TABLE[name]
    numbered = jax.tree.unflatten(tree, range(len(avals)))
    effects: set[Any] = set()
    for operand, (number, _transforms) in numbered.refs.items():
        (role,) = (o.role for o in spec.operands if o.name == operand)
        if role != "write":
            effects.add(state_types.ReadEffect(number))
        if role != "read":
            effects.add(state_types.WriteEffect(number))
    for number, *_rest in (*numbered.wait, *numbered.signal):
        effects |= {state_types.ReadEffect(number), state_types.WriteEffect(number)}
    if numbered.state is not None:
        effects |= {state_types.ReadEffect(numbered.state), state_types.WriteEffect(numbered.state)}
    return [], effects


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


@functools.lru_cache(maxsize=None)
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
        kind = _packed(spec, operand, "float4_e2m1fn" if "float4" in str(dtype) else dtype_name(dtype))
        if kind.endswith("_x4"):
            shape = shape[:-1]
        shape = shape if len(shape) > 1 else (*(shape or (1,)), 1)
        accesses[operand] = isa.Access(isa.Tile(operand, memories[operand], shape, kind))
    return instruction_of(name, engine, params, accesses, isa.Origin())


def _discharged(args: Sequence[Any], tree: Any, name: str, engine: str, params: Any) -> Any:
    """New values of the inputs (None where they stay), and no results."""
    operands: Operands = jax.tree.unflatten(tree, args)
    numbered: Operands = jax.tree.unflatten(tree, range(len(args)))
    spec = isa.TABLE[name]
    roles = {o.name: o.role for o in spec.operands}
    arrays = {
        k: state_discharge.transform_array(ref, transforms)
        for k, (ref, transforms) in operands.refs.items()
    } | operands.values
    reads = {k: _at_least_2d(v) for k, v in arrays.items() if roles[k] == "read"}
    previous = {k: v for k, v in arrays.items() if roles[k] != "read"}
    function = meaning(name, engine, params, arrays)
    writes, state = function(reads, previous, operands.state, operands.accumulate)
    new = [None] * len(args)
    for key, value in writes.items():
        ref, transforms = operands.refs[key]
        value = value.reshape(arrays[key].shape)
        _, new[numbered.refs[key][0]] = state_discharge.transform_swap_array(ref, transforms, value)
    if state is not None:
        new[numbered.state] = state
    for (sem, transforms, count), (number, *_), sign in _counts(operands, numbered):
        held = sem if new[number] is None else new[number]
        old = state_discharge.transform_array(held, transforms)
        changed = old + jnp.asarray(sign * count, old.dtype)
        _, new[number] = state_discharge.transform_swap_array(held, transforms, changed)
    return new, []


def _underivable(primals: Any, tangents: Any, *, name: str, **_: Any) -> Any:
    raise NotImplementedError(
        f"{name} has no derivative; give the kernel one with jax.custom_vjp, as those of "
        "pallas_trn3.kernels have"
    )


def _unbatched(args: Any, dims: Any, *, name: str, **_: Any) -> Any:
    raise NotImplementedError(
        f"{name} in a vmap inside of a kernel; vmap the pallas_call, or loop over tiles"
    )


ad.primitive_jvps[instruction_p] = _underivable
batching.primitive_batchers[instruction_p] = _unbatched


def _at_least_2d(value: Any) -> Any:
    return value if value.ndim > 1 else value.reshape(*(value.shape or (1,)), 1)


def _counts(operands: Operands, numbered: Operands) -> Iterable[tuple[Any, Any, int]]:
    yield from ((a, b, -1) for a, b in zip(operands.wait, numbered.wait))
    yield from ((a, b, 1) for a, b in zip(operands.signal, numbered.signal))


@state_discharge.register_discharge_rule(instruction_p)
def _discharge(*inputs: Any, **params: Any) -> Any:
    # JAX 0.10 hands over abstract values of inputs and outputs, 0.12 one context.
    leaves = params["tree"].num_leaves
    return _discharged(inputs[len(inputs) - leaves :], **params)


source_info_util.register_exclusion(__file__)
