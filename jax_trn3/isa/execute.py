"""The reference executor: an instruction's meaning applied to arrays. Slow, obvious, the
definition."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jax_trn3.numerics.hardware_layout import MAX_PARTITIONS

from .check import first_partition
from .dtypes import DType, cast
from .indirect import gather, scatter
from .operand import Access
from .spec import Instruction, Operand


def execute(
    instruction: Instruction, arrays: Mapping[str, Any], previous: Any = None
) -> dict[str, Any]:
    """What an instruction writes.

    **Arguments:**

    - `arrays`: By operand name the values that it reads: arrays of the accesses' shapes, in the
      dtypes' numpy types; of packed dtypes with a last axis of 4. Under `state_name(instruction)`,
      if it uses state, what the engine remembers, as an earlier result holds it.
    - `previous`: The values under the operand that is accumulated or scattered to (its whole
      access); None where a sum starts. An instruction with `accumulate=False` gets None.

    **Returns:** By operand name the values written, in the operand's shape and dtype, and the new
    state.

    **Raises:** `KeyError` for an operand without values, `ValueError` for values of another shape,
    for a sum that continues nothing, or a state that nobody made.
    """
    spec = instruction.spec
    if instruction.engine == "collective":
        raise ValueError(
            f"{instruction.name} needs the operands of all ranks, not of one core: call "
            "isa.collective.collective.meaning with them stacked"
        )
    reads = [
        _value(instruction, operand, arrays)
        for operand in spec.operands
        if operand.role == "read" and not operand.index_of
    ]
    written = [operand for operand in spec.operands if operand.role != "read"]
    params = {name: value for name, value in instruction.params if name in spec.params}
    supplied = _supplied(instruction, written, arrays, previous)
    result = spec.meaning(*reads, **params, **supplied)
    results: dict[str, Any] = {}
    if spec.state:
        result, state = result
        results[state_name(instruction)] = _merged(instruction, arrays, state)
    values = result if isinstance(result, tuple) else (result,)
    for operand, value in zip(written, values):
        if operand.name in dict(instruction.operands):
            results[operand.name] = _written(instruction, operand.name, value, arrays, previous)
    return results


def state_name(instruction: Instruction) -> str:
    """Where `execute` finds and leaves the state that an instruction uses: "vector.prng",
    "scalar.accumulators", "registers"."""
    state = instruction.spec.state
    if state is None:
        raise ValueError(f"{instruction.name} uses no state")
    return state if state == "registers" else f"{instruction.engine}.{state}"


def _value(instruction: Instruction, operand: Operand, arrays: Mapping[str, Any]) -> Any:
    """An operand as the meaning gets it: array, number or None."""
    access = instruction.get(operand.name)
    if not isinstance(access, Access):
        return access
    value = _array(instruction, operand.name, arrays)
    index = instruction.get(f"{operand.name}_index")
    if isinstance(index, Access) and operand.indirect:
        offsets = _array(instruction, f"{operand.name}_index", arrays)
        value = gather(_flat(value, access.tile.element), offsets, instruction.engine)
    return value


def _array(instruction: Instruction, name: str, arrays: Mapping[str, Any]) -> jax.Array:
    access = instruction[name]
    if name not in arrays:
        raise KeyError(f"{instruction.name} reads {name} = {access}, but no values are given")
    value = jnp.asarray(arrays[name])
    shape = _shape(access.shape, access.tile.element)
    if value.shape != shape or value.dtype != access.tile.element.numpy:
        raise ValueError(
            f"{instruction.name}: {name} = {access} needs "
            f"{access.tile.element.numpy}{list(shape)}, not {value.dtype}{list(value.shape)}"
        )
    return value


def _shape(shape: tuple[int, ...], dtype: DType) -> tuple[int, ...]:
    return (*shape, dtype.packed) if dtype.packed > 1 else shape


def _flat(value: jax.Array, dtype: DType) -> jax.Array:
    """[P, ...] -> [P, F], packed [P, F, 4]."""
    return value.reshape(value.shape[0], -1, *value.shape[value.ndim - (dtype.packed > 1) :])


def _supplied(
    instruction: Instruction, written: list[Operand], arrays: Mapping[str, Any], previous: Any
) -> dict[str, Any]:
    """What the meaning asks the executor for."""
    spec = instruction.spec
    outs = tuple(_out(instruction, operand) for operand in written)
    if instruction.get("accumulate") is False and written[0].role == "accumulate":
        previous = None
    elif instruction.get("accumulate") and previous is None:
        raise ValueError(f"{instruction.name} accumulates onto what nothing has written (previous)")
    if previous is not None:
        previous = _accumulated(instruction, written, arrays, jnp.asarray(previous))
    everything = {
        "out": outs[0] if len(outs) == 1 else outs,
        "previous": previous,
        "state": _lanes(instruction, arrays) if spec.state else None,
        "engine": instruction.engine,
    }
    return {name: everything[name] for name in spec.supplied}


def _accumulated(
    instruction: Instruction,
    written: list[Operand],
    arrays: Mapping[str, Any],
    previous: jax.Array,
) -> jax.Array:
    """What lies where the results go: of what is scattered, the elements that are replaced."""
    for operand in written:
        index = f"{operand.name}_index"
        if operand.indirect and isinstance(instruction.get(index), Access):
            flat = _flat(previous, instruction[operand.name].tile.element)
            return gather(flat, _array(instruction, index, arrays), instruction.engine)
    return previous


def _out(instruction: Instruction, operand: Operand) -> jax.ShapeDtypeStruct | None:
    access = instruction.get(operand.name)
    if not isinstance(access, Access):
        return None
    element = access.tile.element
    shape = instruction.shape(operand.name) if operand.indirect else access.shape
    return jax.ShapeDtypeStruct(_shape(shape, element), element.numpy)


def _written(
    instruction: Instruction, name: str, value: Any, arrays: Mapping[str, Any], previous: Any
) -> jax.Array:
    """A result in the shape and dtype of the access."""
    access = instruction[name]
    element = access.tile.element
    operand = next(o for o in instruction.spec.operands if o.name == name)
    shape = _shape(instruction.shape(name) if operand.indirect else access.shape, element)
    value = jnp.asarray(value)
    if value.size != math.prod(shape):
        raise ValueError(
            f"{instruction.name}: its result of shape {value.shape} does not fill {name} = {access}"
        )
    value = cast(value.reshape(shape), element)
    if operand.indirect and isinstance(instruction.get(f"{name}_index"), Access):
        if previous is None:
            raise ValueError(f"{instruction.name} scatters to {name}: what is there? (previous)")
        offsets = _array(instruction, f"{name}_index", arrays)
        before = _flat(jnp.asarray(previous), element)
        value = scatter(before, value, offsets, instruction.engine)
    return value.reshape(_shape(access.shape, element))


def _lanes(instruction: Instruction, arrays: Mapping[str, Any]) -> Any:
    """The engine's state: of a state with a row for each lane the rows of the partitions in use."""
    state = arrays.get(state_name(instruction))
    if state is None or instruction.spec.state == "registers":
        return state
    first, count = _rows(instruction)
    return jnp.asarray(state)[first : first + count]


def _merged(instruction: Instruction, arrays: Mapping[str, Any], rows: Any) -> Any:
    """The whole state with the new rows in it; lanes never written are zero."""
    if rows is None or instruction.spec.state == "registers" or rows.shape[0] == MAX_PARTITIONS:
        return rows
    state = arrays.get(state_name(instruction))
    if state is None:
        state = jnp.zeros((MAX_PARTITIONS, *rows.shape[1:]), rows.dtype)
    first, _ = _rows(instruction)
    return jnp.asarray(state).at[first : first + rows.shape[0]].set(rows)


def _rows(instruction: Instruction) -> tuple[int, int]:
    access = instruction.operands[0][1]
    return first_partition(access), access.partitions
