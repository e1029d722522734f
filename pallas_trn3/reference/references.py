"""Reads and writes of Refs: get, swap, addupdate, and their masked kin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax._src.lax import lax as lax_internal
from jax._src.state import discharge as state_discharge

from .machine import Machine, Rule, rule
from .selection import Selection, leaves
from .storage import Partly, Storage, parts, uninitialized


@rule("get")
def _get(equation: Any) -> Rule:
    selection = selected(equation, 1)
    return lambda machine, inputs: load(machine, equation, inputs[0], selection, inputs)


@rule("swap")
def _swap(equation: Any) -> Rule:
    selection = selected(equation, 2)
    dropped = not _used(equation.outvars[0])

    def run(machine: Machine, inputs: Sequence[Any]) -> Any:
        ref, value = inputs[0], inputs[1]
        # Who only writes does not read what nobody has written.
        before = None if dropped else load(machine, equation, ref, selection, inputs)
        store(machine, equation, ref, selection, inputs, value)
        return before

    return run


@rule("addupdate")
def _addupdate(equation: Any) -> Rule:
    selection = selected(equation, 2)

    def run(machine: Machine, inputs: Sequence[Any]) -> Any:
        before = load(machine, equation, inputs[0], selection, inputs)
        old, old_shadow = parts(before)
        new, new_shadow = parts(inputs[1])
        shadow = _either(old_shadow, new_shadow)
        after = Partly.of(_sum(old, new), shadow)
        store(machine, equation, inputs[0], selection, inputs, after)
        return ()

    return run


@jax.jit
def _sum(old: Any, new: Any) -> Any:
    return lax_internal.add(old, new)


def _either(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    if a is None or b is None:
        return b if a is None else a
    return np.maximum(a, b)


def selected(equation: Any, first: int) -> Selection:
    """The part of the Ref, whose transforms' arrays are inputs `first` on."""
    avals = [atom.aval for atom in equation.invars[first:]]
    tree = equation.params["tree"]
    return Selection.of(jax.tree.unflatten(tree, leaves(len(avals), first, avals)))


def _used(variable: Any) -> bool:
    return type(variable).__name__ != "DropVar"


def load(
    machine: Machine, equation: Any, ref: Storage, selection: Selection, inputs: Sequence[Any]
) -> Any:
    """What lies in a part of a Ref."""
    checks = machine.checks
    if not selection.plain:
        return _load_changed(machine, equation, ref, selection, inputs)
    if checks is None:
        return ref.read(selection.keys(inputs))
    keys = checks.keys(equation, ref, selection, inputs)
    return checks.read(equation, ref, keys)


def store(
    machine: Machine, equation: Any, ref: Storage, selection: Selection, inputs: Sequence[Any],
    value: Any,
) -> None:  # fmt: skip
    """Puts a value into a part of a Ref."""
    checks = machine.checks
    if not selection.plain:
        _store_changed(machine, equation, ref, selection, inputs, value)
    elif checks is None:
        ref.write(value, selection.keys(inputs))
    else:
        checks.write(equation, ref, checks.keys(equation, ref, selection, inputs), value)


def _load_changed(
    machine: Machine, equation: Any, ref: Storage, selection: Selection, inputs: Sequence[Any]
) -> Any:
    """From a Ref that was reshaped or taken as another type: JAX does it to the whole."""
    whole = ref.read() if machine.checks is None else machine.checks.read(equation, ref, ())
    value, shadow = parts(whole)
    transforms = selection.filled(inputs)
    found = np.asarray(_transformed(value, transforms))
    if shadow is None:
        return found
    return Partly.of(found, np.full(found.shape, shadow.max(), np.int32))


def _store_changed(
    machine: Machine, equation: Any, ref: Storage, selection: Selection, inputs: Sequence[Any],
    value: Any,
) -> None:  # fmt: skip
    value, shadow = parts(value)
    whole, before = parts(ref.read())
    changed = _replaced(whole, selection.filled(inputs), value)
    left = _either(before, None if shadow is None else np.full(ref.shape, shadow.max(), np.int32))
    new = Partly.of(changed, left)
    if machine.checks is None:
        ref.write(new)
    else:
        machine.checks.write(equation, ref, (), new)


@jax.jit
def _transformed(value: Any, transforms: Any) -> Any:
    return state_discharge.transform_array(value, transforms)


@jax.jit
def _replaced(value: Any, transforms: Any, new: Any) -> Any:
    return state_discharge.transform_swap_array(value, transforms, new)[1]


# ---- masked, as pl.load and pl.store have it ----


@rule("masked_load")
def _masked_load(equation: Any) -> Rule:
    masked = _Masked(equation)

    def run(machine: Machine, inputs: Sequence[Any]) -> Any:
        ref, mask, other = masked.operands(inputs)
        if mask is None:
            return load(machine, equation, ref, masked.selection, inputs)
        found = masked.read(machine, ref, mask, inputs)
        if other is None:
            return masked.without_other(machine, ref, found, mask)
        value, shadow = parts(found)
        other, other_shadow = parts(other)
        chosen = np.where(mask, value, other)
        shadow = np.where(mask, 0 if shadow is None else shadow,
                          0 if other_shadow is None else other_shadow)  # fmt: skip
        return Partly.of(chosen, shadow.astype(np.int32))

    return run


@rule("masked_swap")
def _masked_swap(equation: Any) -> Rule:
    masked = _Masked(equation)
    dropped = not _used(equation.outvars[0])

    def run(machine: Machine, inputs: Sequence[Any]) -> Any:
        ref, value, mask = masked.operands(inputs)
        if mask is None:
            before = None if dropped else load(machine, equation, ref, masked.selection, inputs)
            store(machine, equation, ref, masked.selection, inputs, value)
            return before
        before = None if dropped else masked.read(machine, ref, mask, inputs)
        masked.write(machine, ref, mask, value, inputs)
        if dropped:
            return None
        return Partly.of(np.where(mask, parts(before)[0], parts(value)[0]), parts(before)[1])

    return run


class _Masked:
    """A masked read or write of a part: elements behind the end may be masked off."""

    def __init__(self, equation: Any):
        self.equation = equation
        avals = [atom.aval for atom in equation.invars]
        self.tree = equation.params["args_tree"]
        _, transforms, *_ = self.tree.unflatten(leaves(len(avals), 0, avals))
        self.selection = Selection.of(transforms)

    def operands(self, inputs: Sequence[Any]) -> Any:
        """The Ref and what comes behind its transforms."""
        ref, _, *rest = self.tree.unflatten(inputs)
        return ref, *rest

    def read(self, machine: Machine, ref: Storage, mask: Any, inputs: Sequence[Any]) -> Any:
        """Elements at their places, those behind the end undefined."""
        shape = self.equation.outvars[0].aval.shape
        places, inside = self._places(machine, ref, shape, mask, inputs)
        if machine.checks is None:
            found = ref.read((places,))
        else:
            found = machine.checks.read(self.equation, ref, (places,))
        value, shadow = parts(found)
        if not inside.all():
            value = np.where(inside, value, uninitialized((), value.dtype))
        return Partly.of(value, shadow)

    def without_other(self, machine: Machine, ref: Storage, found: Any, mask: Any) -> Any:
        """Lanes that are not loaded are undefined."""
        if machine.checks is None:
            return found
        value, shadow = parts(found)
        off = machine.checks.masked_off(ref.name, self.equation)
        lanes = np.broadcast_to(np.asarray(mask), np.shape(value))
        left = np.where(lanes, 0 if shadow is None else shadow, off).astype(np.int32)
        return Partly.of(value, left)

    def write(
        self, machine: Machine, ref: Storage, mask: Any, value: Any, inputs: Sequence[Any]
    ) -> None:
        """Only where the mask says so."""
        value, shadow = parts(value)
        shape = np.shape(value)
        places, inside = self._places(machine, ref, shape, mask, inputs)
        lanes = np.broadcast_to(np.asarray(mask), shape) & inside
        keys = tuple(np.broadcast_to(p, shape)[lanes] for p in places)
        chosen = Partly.of(np.asarray(value)[lanes], None if shadow is None else shadow[lanes])
        if machine.checks is None:
            ref.write(chosen, (keys,))
        else:
            machine.checks.write(self.equation, ref, (keys,), chosen)

    def _places(
        self, machine: Machine, ref: Storage, shape: Any, mask: Any, inputs: Sequence[Any]
    ) -> Any:
        """Indices of every element, moved inside, and which ones were inside."""
        if len(self.selection.transforms) > 1 or not self.selection.plain:
            raise NotImplementedError("a masked access to a part of a part of a Ref")
        if machine.checks:
            machine.checks.defined_indices(self.equation, self.selection, inputs)
            machine.checks.defined_mask(self.equation, mask)
        places = self._indices(ref, shape, inputs)
        inside = np.ones(shape, bool)
        for place, extent in zip(places, ref.shape):
            inside = inside & ((place >= 0) & (place < extent))
        outside = np.broadcast_to(np.asarray(mask), shape) & ~inside
        if machine.checks and outside.any():
            at = tuple(int(k) for k in np.argwhere(outside)[0])
            where = [int(np.broadcast_to(p, shape)[at]) for p in places]
            machine.checks.outside(
                self.equation, ref, f"index {where}, which the mask does not take out"
            )
        return tuple(np.clip(p, 0, n - 1) for p, n in zip(places, ref.shape)), inside

    def _indices(self, ref: Storage, shape: Any, inputs: Sequence[Any]) -> list[np.ndarray]:
        if not self.selection.transforms:
            return list(np.indices(ref.shape, sparse=True))
        (indexer,) = self.selection.filled(inputs)
        places, axis = [], 0
        for part in indexer.indices:
            if hasattr(part, "stride"):
                along = np.asarray(part.start) + np.arange(part.size) * part.stride
                places.append(along.reshape([-1 if k == axis else 1 for k in range(len(shape))]))
                axis += 1
            else:
                places.append(np.asarray(part))
        return places
