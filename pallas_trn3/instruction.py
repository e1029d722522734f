"""One engine instruction in a kernel: a line of the ISA table, on Refs and values.

`issue` puts `trn3_instruction` into the kernel's jaxpr. Its parameters say which instruction it is
(`name`, `engine`, `params`), its inputs are the leaves of an `Operands` (`tree`). Discharged, it is
the instruction's meaning, as one jitted function `trn3_<name>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import source_info_util
from jax._src.state import discharge as state_discharge
from jax._src.state import types as state_types
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from jax_trn3 import isa

from .accesses import checked_instruction
from .meaning import meaning

instruction_p = Primitive("trn3_instruction")
instruction_p.multiple_results = True


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
    refs = {name: ref_and_transforms(value) for name, value in given.items() if is_ref(value)}
    values = {name: jnp.asarray(v) for name, v in given.items() if not is_ref(v)}
    for operand in spec.operands:
        if operand.role != "read" and operand.name in values:
            raise TypeError(f"{spec.name}: {operand.name} is written; it must be a Ref")
    if state is not None and spec.state is None:
        raise TypeError(
            f"{spec.name} neither uses nor changes what its engine remembers: no state="
        )
    bundle = Operands(
        refs,
        values,
        tuple((*ref_and_transforms(semaphore), int(count)) for semaphore, count in wait),
        tuple((*ref_and_transforms(semaphore), int(count)) for semaphore, count in signal),
        state,
        accumulate,
    )
    leaves, tree = jax.tree.flatten(bundle)
    chosen = checked_instruction(spec, refs, values, params, engine).engine
    instruction_p.bind(*leaves, tree=tree, name=spec.name, engine=chosen, params=params)


def is_ref(value: Any) -> bool:
    """Whether it is a Ref, or a part of one."""
    if isinstance(value, state_types.TransformedRef):
        return True
    return isinstance(getattr(value, "aval", None), state_types.AbstractRef)


def ref_and_transforms(value: Any) -> tuple[Any, tuple[Any, ...]]:
    """A Ref, and what was done to it (`ref.at[...]`)."""
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
        number = isinstance(value, (bool, int, float, np.number))
        if name in spec.params or (number and _is_scalar(spec, name)):
            params[name] = _hashable(value)
        elif value is not None:
            tiles[name] = value
    missing = [o.name for o in spec.operands if not o.optional and o.name not in (*tiles, *params)]
    missing += [name for name in spec.required if name not in params]
    if missing:
        raise TypeError(f"{spec.name} needs {', '.join(missing)}")
    return tiles, tuple(sorted(params.items())), accumulate


def _hashable(value: Any) -> Any:
    """Lists as tuples, NumPy's numbers as Python's."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    return value.item() if isinstance(value, np.number) else value


def _is_scalar(spec: isa.InstructionSpec, name: str) -> bool:
    return any(operand.scalar for operand in spec.operands if operand.name == name)


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
