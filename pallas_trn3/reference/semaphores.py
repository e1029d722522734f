"""Semaphores, and copies that run beside the kernel until it waits for them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax._src.pallas import core as pallas_core
from jax._src.state import discharge as state_discharge
from jax._src.state import types as state_types

from ..source import line
from .machine import Machine, Rule, Running, rule
from .references import load, store
from .selection import Selection, leaves
from .storage import Storage, parts


@dataclass(frozen=True)
class Place:
    """A Ref that an operation has among its inputs, and the part of it that it means."""

    number: int
    """Of the input that is the Ref."""

    selection: Selection

    @classmethod
    def of(cls, marked: Any, transforms: Sequence[Any] | None = None) -> Place:
        """From a tree whose inputs are marked by number."""
        if isinstance(marked, state_types.TransformedRef):
            marked, transforms = marked.ref, marked.transforms
        return cls(marked.number, Selection.of(transforms or ()))


def add(ref: Storage, keys: Any, count: int) -> int:
    """Changes a semaphore; what it is then."""
    value = int(np.asarray(ref.read(keys))) + count
    ref.write(np.asarray(value).astype(pallas_core.SEMAPHORE_INTERPRET_DTYPE), keys)
    return value


def signal(
    machine: Machine, equation: Any, ref: Storage, selection: Selection, inputs: Sequence[Any],
    count: int, agent: str = "",
) -> None:  # fmt: skip
    """Adds to a semaphore."""
    if machine.ranks is not None:
        machine.ranks.progress += 1
    if machine.checks is None:
        add(ref, selection.keys(inputs), count)
    else:
        keys = machine.checks.keys(equation, ref, selection, inputs)
        machine.checks.semaphores.signal(equation, ref, keys, count, agent)


def wait(
    machine: Machine, equation: Any, ref: Storage, selection: Selection, inputs: Sequence[Any],
    count: int, agent: str = "", take: bool = True,
) -> Generator[Any, None, None]:  # fmt: skip
    """Waits until a semaphore is `count` and takes that from it. On one device what was signalled
    before comes before in the kernel: there is nothing to wait for, or nobody will ever signal it.
    """
    if machine.ranks is not None:
        yield from _for_others(machine, equation, ref, selection.keys(inputs), count)
    if machine.checks is None:
        if take:
            add(ref, selection.keys(inputs), -count)
    else:
        keys = machine.checks.keys(equation, ref, selection, inputs)
        machine.checks.semaphores.wait(equation, ref, keys, count, agent, take)


def _for_others(
    machine: Machine, equation: Any, ref: Storage, keys: Any, count: int
) -> Generator[Any, None, None]:
    waited = False
    while (held := int(np.asarray(ref.read(keys)))) < count:
        waited = True
        yield (
            f"device {machine.rank} waits for {count} of semaphore {ref.name}, which holds {held}, "
            f"{line(equation)}"
        )
    machine.ranks.progress += waited


def _marked(equation: Any) -> Any:
    avals = [atom.aval for atom in equation.invars]
    tree = equation.params["args_tree" if "args_tree" in equation.params else "tree"]
    return tree.unflatten(leaves(len(avals), 0, avals))


def _value(marked: Any, inputs: Sequence[Any]) -> Any:
    return inputs[marked.number] if hasattr(marked, "number") else marked


@rule("semaphore_signal")
def _signal(equation: Any) -> Rule:
    ref, transforms, count, device, core = _marked(equation)
    if core is not None:
        raise NotImplementedError("semaphore_signal with a core_index: a device is one core")
    place = Place.of(ref, transforms)

    def run(machine: Machine, inputs: Sequence[Any]) -> Any:
        number = machine.number(_value(count, inputs), equation, "the count of a signal")
        ref = inputs[place.number]
        if device is None:
            signal(machine, equation, ref, place.selection, inputs, number)
            return ()
        peer = machine.ranks.peer(machine, _filled(device, inputs))
        there = machine.ranks.there(machine, ref, peer)
        signal(peer, equation, there, place.selection, inputs, number, f"device {machine.rank}")
        return ()

    return run


@rule("semaphore_wait", waits=True)
def _wait(equation: Any) -> Rule:
    ref, transforms, count, decrement = _marked(equation)
    place = Place.of(ref, transforms)

    def run(machine: Machine, inputs: Sequence[Any]) -> Running:
        number = machine.number(_value(count, inputs), equation, "the count of a wait")
        take = bool(_value(decrement, inputs))
        ref = inputs[place.number]
        yield from wait(machine, equation, ref, place.selection, inputs, number, take=take)
        return []

    return run


@rule("semaphore_read")
def _read(equation: Any) -> Rule:
    place = Place.of(*_marked(equation))

    def run(machine: Machine, inputs: Sequence[Any]) -> Any:
        keys = place.selection.keys(inputs)
        return np.int32(np.asarray(inputs[place.number].read(keys)))

    return run


@rule("dma_start")
def _dma_start(equation: Any) -> Rule:
    src, dst, arrived, sent, device = _copied(equation)
    if equation.params["add"]:
        raise NotImplementedError("an asynchronous copy that adds; use pltrn.dma_copy")
    ours = arrived if sent is None else sent

    def run(machine: Machine, inputs: Sequence[Any]) -> Any:
        checks, semaphore = machine.checks, inputs[ours.number]
        if checks:
            keys = checks.copying(equation, semaphore, ours.selection, inputs)
        value = load(machine, equation, inputs[src.number], src.selection, inputs)
        count = _count(np.size(parts(value)[0]))
        if device is None:
            store(machine, equation, inputs[dst.number], dst.selection, inputs, value)
        else:
            peer = machine.ranks.peer(machine, _filled(device, inputs))
            _arrive(machine, peer, equation, dst, arrived, inputs, value, count)
        if checks:
            checks.copied(equation, semaphore, keys, count)
        else:
            signal(machine, equation, semaphore, ours.selection, inputs, count)
        return ()

    return run


def _arrive(
    machine: Machine, peer: Machine, equation: Any, dst: Place, arrived: Place,
    inputs: Sequence[Any], value: Any, count: int,
) -> None:  # fmt: skip
    """What is sent is there at once; that it may come later is for the checks of who gets it."""
    target = machine.ranks.there(machine, inputs[dst.number], peer)
    semaphore = machine.ranks.there(machine, inputs[arrived.number], peer)
    machine.ranks.progress += 1
    if peer.checks is None:
        store(peer, equation, target, dst.selection, inputs, value)
        signal(peer, equation, semaphore, arrived.selection, inputs, count)
        return
    value = peer.checks.sent(machine, equation, value)
    keys = peer.checks.copying(equation, semaphore, arrived.selection, inputs)
    store(peer, equation, target, dst.selection, inputs, value)
    peer.checks.copied(equation, semaphore, keys, count)


@rule("dma_wait", waits=True)
def _dma_wait(equation: Any) -> Rule:
    _, dst, arrived, _, _ = _copied(equation)

    def run(machine: Machine, inputs: Sequence[Any]) -> Running:
        part = dst.selection
        if part.plain:
            keys = part.keys(inputs)
            shape = inputs[dst.number].shape
            probe = np.broadcast_to(np.int8(0), shape)
            for key in keys:
                probe = probe[key]
            size = probe.size
        else:
            filled = jax.eval_shape(
                lambda x: state_discharge.transform_array(x, part.filled(inputs)),
                inputs[dst.number].read(),
            )
            size = filled.size
        semaphore = inputs[arrived.number]
        yield from wait(machine, equation, semaphore, arrived.selection, inputs, _count(size))
        return []

    return run


def _count(size: int) -> int:
    """What a copy of so many elements adds to its semaphore: JAX's discharge says so."""
    return min(size, int(np.iinfo(pallas_core.SEMAPHORE_INTERPRET_DTYPE).max))


def _copied(equation: Any) -> tuple[Place, Place, Place, Place | None, Any]:
    """Source, target, semaphores of those who get and send, and the other device."""
    src, dst, arrived, sent, device = _marked(equation)
    back = None if sent is None else Place.of(sent)
    return Place.of(src), Place.of(dst), Place.of(arrived), back, device


def _filled(marked: Any, inputs: Sequence[Any]) -> Any:
    """A tree of marked inputs, as numbers."""
    return jax.tree.map(lambda x: int(_value(x, inputs)), marked)
