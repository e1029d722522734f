"""Finds every Ref of a kernel, and every place where it is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
from jax._src import core as jax_core
from jax._src.state import types as state_types

from jax_trn3 import isa

from ..accesses import element_of
from ..instruction import Operands, instruction_p
from ..memory import dtype_name, memory_of
from ..source import origin_of
from .refs import Ref, Use, keys_of
from .scalars import UNKNOWN

Names = dict[Any, Ref]


def survey(jaxpr: Any, refs: Sequence[Ref]) -> Names:
    """Notes in `refs`, one for each input of the kernel's jaxpr, how they are used.

    **Returns:** The Refs of the kernel by variable, those of inner scopes included.
    """
    found: Names = {}
    pairs: list[tuple[Ref, Ref]] = []
    _walk(jaxpr, dict(zip(jaxpr.invars, refs)), found, pairs)
    packed = {ref for ref in found.values() if any(use.packed for use in ref.uses)}
    copied = {pair for pair in pairs if pair[0] is not pair[1]}
    while mixed := [pair for pair in copied if (pair[0] in packed) != (pair[1] in packed)]:
        packed.update(ref for pair in mixed for ref in pair)
    for ref in packed:  # what is copied as it is is packed on both sides
        ref.uses[:] = [replace(use, packed=True) for use in ref.uses]
    return found


def new_ref(var: Any, name: str) -> Ref:
    """The Ref of a variable of a jaxpr."""
    aval = var.aval
    space = getattr(aval, "memory_space", None)
    return Ref(
        name, memory_of(aval), tuple(aval.shape), aval.dtype, getattr(space, "address", None)
    )


def is_ref(var: Any) -> bool:
    """Whether a variable holds a Ref."""
    return isinstance(getattr(var, "aval", None), state_types.AbstractRef)


def programs(equation: Any) -> Iterator[tuple[Any, Sequence[Any]]]:
    """The programs inside of an equation, and what is handed to each."""
    params, inputs = equation.params, equation.invars
    name = equation.primitive.name
    if name == "cond":
        for branch in params["branches"]:
            yield getattr(branch, "jaxpr", branch), inputs[1:]
    elif name == "while":
        asked, used = params["cond_nconsts"], params["body_nconsts"]
        carry = inputs[asked + used :]
        yield _inner(params["cond_jaxpr"]), [*inputs[:asked], *carry]
        yield _inner(params["body_jaxpr"]), [*inputs[asked : asked + used], *carry]
    else:
        for value in params.values():
            program = _inner(value)
            if isinstance(program, jax_core.Jaxpr) and len(program.invars) == len(inputs):
                yield program, inputs
                break


def _inner(program: Any) -> Any:
    return getattr(program, "jaxpr", program)


def _walk(jaxpr: Any, env: dict[Any, Ref], found: Names, pairs: list[tuple[Ref, Ref]]) -> None:
    found.update(env)

    def value(atom: Any) -> Any:
        if isinstance(atom, jax_core.Literal):
            return atom.val
        if atom in env:
            return env[atom]
        return UNKNOWN if not atom.aval.shape else _Array(atom.aval.shape)

    for equation in jaxpr.eqns:
        name = equation.primitive.name
        values = [value(atom) for atom in equation.invars]
        if equation.primitive is instruction_p:
            _instruction(equation, values, pairs)
            continue
        if name == "trn3_collective":
            target, source = jax.tree.unflatten(equation.params["tree"], values)
            _note(target[0], target[1], True, "dma")
            _note(source[0], source[1], False, "dma")
            continue
        if name == "run_scoped":
            inner = _inner(equation.params["jaxpr"])
            names = _scoped_names(inner, equation, {ref.name for ref in found.values()})
            scoped = {
                var: found.get(var) or new_ref(var, name) for var, name in zip(inner.invars, names)
            }
            captured = zip(inner.constvars, equation.invars)
            outer = {v: env[a] for v, a in captured if not _literal(a) and a in env}
            _walk(inner, outer | scoped, found, pairs)
            continue
        for ref, transforms, writes, by in accesses(equation, values):
            _note(ref, transforms, writes, by, where=(jaxpr, equation))
        if name == "dma_start":
            ends = [ref for ref, _, _, by in accesses(equation, values) if by == "dma"]
            pairs += [(ends[0], ends[1])] if len(ends) == 2 else []
        for program, inputs in programs(equation):
            handed = zip(program.invars, inputs)
            _walk(
                program,
                {v: env[a] for v, a in handed if not _literal(a) and a in env},
                found,
                pairs,
            )


def _literal(atom: Any) -> bool:
    return isinstance(atom, jax_core.Literal)


def _scoped_names(jaxpr: Any, equation: Any, taken: set[str]) -> list[str]:
    """What the author calls the Refs of a scope, and where; each name once."""
    line = origin_of(equation.source_info).line
    own = list(getattr(jaxpr.debug_info, "arg_names", None) or ())[-len(jaxpr.invars) :]
    if len(own) != len(jaxpr.invars):
        own = [memory_of(var.aval) for var in jaxpr.invars]
    names: list[str] = []
    for name in own:
        plain = f"{name or 'scratch'} (line {line})"
        number = sum(other.startswith(plain) for other in (*taken, *names))
        names.append(f"{plain} {number + 1}" if number else plain)
    return names


class _Array:
    """An array in place of a number: a gather's indices."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)


def _note(
    ref: Any,
    transforms: Sequence[Any],
    writes: bool,
    by: str,
    packed: bool = False,
    where: tuple[Any, Any] = (None, None),
) -> None:
    if not isinstance(ref, Ref):
        return
    keys = keys_of(ref.shape, transforms)
    if keys is None:
        keys = keys_of(ref.shape, ())
    assert keys is not None
    ref.uses.append(Use(keys, by, writes, packed, *where))


def _instruction(equation: Any, values: Sequence[Any], pairs: list[tuple[Ref, Ref]]) -> None:
    params = equation.params
    operands: Operands = jax.tree.unflatten(params["tree"], values)
    spec = isa.TABLE[params["name"]]
    roles = {o.name: o.role for o in spec.operands}
    by = "dma" if params["engine"].startswith("dma") else "engine"
    for name, (ref, transforms) in operands.refs.items():
        dtype = dtype_name(ref.dtype) or str(ref.dtype)
        packed = element_of(spec, name, dtype) != dtype
        kind = "engine" if packed else by
        _note(ref, transforms, roles[name] != "read", kind, packed)
    for ref, transforms, _ in (*operands.wait, *operands.signal):
        _note(ref, transforms, True, "semaphore")
    ends = {ref for ref, _ in operands.refs.values()}
    if by == "dma" and len({str(ref.dtype) for ref in ends}) == 1:
        one, *others = ends
        pairs += [(one, other) for other in others]


def accesses(equation: Any, values: Sequence[Any]) -> Iterator[tuple[Any, Any, bool, str]]:
    """(Ref, what is done to it, whether it is written, by whom) of JAX's primitives on Refs."""
    name, params = equation.primitive.name, equation.params
    if name == "get":
        ref, *leaves = values
        yield ref, jax.tree.unflatten(params["tree"], leaves), False, "value"
    elif name in ("swap", "addupdate"):
        ref, _, *leaves = values
        yield ref, jax.tree.unflatten(params["tree"], leaves), True, "value"
    elif name == "masked_load":
        ref, transforms, *_ = params["args_tree"].unflatten(values)
        yield ref, transforms, False, "value"
    elif name == "masked_swap":
        ref, transforms, *_ = params["args_tree"].unflatten(values)
        yield ref, transforms, True, "value"
    elif name in ("dma_start", "dma_wait"):
        for number, part in enumerate(transfer(equation, values)[:4]):
            ref, transforms = parts(part)
            writes = number == 1 and name == "dma_start"
            yield ref, transforms, writes, "dma" if number < 2 else "semaphore"
    elif name in ("semaphore_signal", "semaphore_wait", "semaphore_read"):
        ref, transforms, *_ = params["args_tree"].unflatten(values)
        yield ref, transforms, True, "semaphore"


def transfer(equation: Any, values: Sequence[Any]) -> tuple[Any, ...]:
    """(source, destination, its semaphore, the source's, device) of an asynchronous copy."""
    parted = equation.params["tree"].unflatten(values)
    return tuple(getattr(parted, "vals", parted)) if not isinstance(parted, tuple) else parted


def parts(value: Any) -> tuple[Any, tuple[Any, ...]]:
    """A Ref and what was done to it."""
    if isinstance(value, state_types.TransformedRef):
        return value.ref, tuple(value.transforms)
    return value, ()
