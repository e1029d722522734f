"""Devices that run one kernel together: collectives, one device's turn after the other's.

No device is a thread. Each one runs until it needs what another has not brought yet; then it is the
next one's turn. If nobody gets any further, nobody ever will.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import EndlessWait, OutOfBounds
from ..source import line
from .machine import Machine, Rule, Running, rule
from .references import load, store
from .selection import leaves
from .semaphores import Place
from .storage import Partly, Storage, parts

_REDUCTIONS = {"add": jnp.add, "max": jnp.maximum, "min": jnp.minimum}


class Ranks:
    """All devices of a mesh's axes, by number; the last axis counts fastest."""

    def __init__(self, axes: Mapping[Any, int]):
        self.axes = dict(axes)
        self.size = math.prod(self.axes.values())
        self.brought: dict[tuple[Any, ...], dict[int, Any]] = {}
        """By collective, and how often it was reached: what each device brings."""
        self.progress = 0
        """Grows whenever somebody may have become able to go on."""
        self.runs: list[Any] = []
        """What each device runs."""

    def index(self, rank: int, name: Any) -> int:
        """A device's place along an axis."""
        places = np.unravel_index(rank, tuple(self.axes.values()))
        return int(places[list(self.axes).index(name)])

    def group(self, rank: int, names: Sequence[Any]) -> list[int]:
        """The devices that one meets along these axes, in their order."""
        others = [name for name in self.axes if name not in names]
        mine = [self.index(rank, name) for name in others]
        found = [
            r for r in range(self.size) if [self.index(r, name) for name in others] == mine
        ]  # fmt: skip
        return sorted(found, key=lambda r: [self.index(r, name) for name in names])

    def exchange(
        self, rank: int, group: Sequence[int], key: tuple[Any, ...], value: Any, equation: Any
    ) -> Generator[Any, None, list[Any]]:
        """What all of a group bring, when all have."""
        brought = self.brought.setdefault((*key, *group), {})
        brought[rank] = value
        self.progress += 1
        while len(brought) < len(group):
            missing = [r for r in group if r not in brought]
            yield f"device {rank} waits at {line(equation)} for device {missing[0]}"
        self.progress += 1
        return [brought[r] for r in group]

    def peer(self, machine: Machine, device: Any) -> Machine:
        """The machine of another device: a number, coordinates in a mesh, or some of them by name.

        **Raises:** `OutOfBounds` for a device that is not there.
        """
        names = list(self.axes)
        place = [self.index(machine.rank, name) for name in names]
        if isinstance(device, dict):
            for name, index in device.items():
                place[names.index(name)] = index
        elif isinstance(device, (tuple, list)):
            place = list(device)
        else:
            place = [int(k) for k in np.unravel_index(device % self.size, (*self.axes.values(),))]
            place = place if 0 <= device < self.size else [-1]
        sizes = tuple(self.axes.values())
        if len(place) != len(sizes) or any(not 0 <= p < n for p, n in zip(place, sizes)):
            raise OutOfBounds(f"device {device} of a mesh with {self.axes}")
        return self.runs[int(np.ravel_multi_index(place, sizes))].machine

    def there(self, machine: Machine, ref: Storage, peer: Machine) -> Storage:
        """The same memory of another device."""
        mine, theirs = self.runs[machine.rank], self.runs[peer.rank]
        for one, other in zip((*mine.arrays, *mine.scratch), (*theirs.arrays, *theirs.scratch)):
            if one is ref:
                return other
        raise NotImplementedError(
            f"{ref.name} of another device: only scratch and whole arrays can be reached"
        )


def together(running: Sequence[Any], ranks: Ranks, kernel: str) -> list[Any]:
    """The results of all devices.

    **Raises:** `EndlessWait` if devices wait for what never comes.
    """
    results: dict[int, Any] = {}
    while len(results) < len(running):
        before, waits = ranks.progress, []
        for rank, device in enumerate(running):
            if rank in results:
                continue
            try:
                waits.append(next(device))
            except StopIteration as end:
                results[rank] = end.value
                ranks.progress += 1
        if ranks.progress == before:
            ended = [f"device {rank} has ended" for rank in results]
            raise EndlessWait(
                f"kernel {kernel}: {'; '.join([*waits, *ended])}. All devices of an axis have to "
                "reach the same collectives"
            )
    return [results[rank] for rank in range(len(running))]


@rule("axis_index")
def _axis_index(equation: Any) -> Rule:
    name = equation.params["axis_name"]
    return lambda machine, inputs: np.int32(machine.ranks.index(machine.rank, name))


@rule("trn3_collective", waits=True)
def _collective(equation: Any) -> Rule:
    params = equation.params
    avals = [atom.aval for atom in equation.invars]
    (into, into_part), (out, out_part) = jax.tree.unflatten(
        params["tree"], leaves(len(avals), 0, avals)
    )
    dst, src = Place.of(into, into_part), Place.of(out, out_part)

    def run(machine: Machine, inputs: Sequence[Any]) -> Running:
        value = load(machine, equation, inputs[src.number], src.selection, inputs)
        ranks, rank = machine.ranks, machine.rank
        group = ranks.group(rank, params["axes"])
        turn = machine.turns[id(equation)] = machine.turns.get(id(equation), 0) + 1
        brought = yield from ranks.exchange(rank, group, (id(equation), turn), value, equation)
        received = _received(params, brought, group.index(rank))
        store(machine, equation, inputs[dst.number], dst.selection, inputs, received)
        return []

    return run


def _received(params: Mapping[str, Any], brought: Sequence[Any], place: int) -> Any:
    values = [np.asarray(parts(x)[0]) for x in brought]
    value = _moved(params["kind"], dict(params["params"]), values, place, None)
    if not any(type(x) is Partly for x in brought):
        return value
    empty = np.zeros(values[0].shape, np.int32)
    shadows = [empty if parts(x)[1] is None else parts(x)[1] for x in brought]
    shadow = _moved(params["kind"], dict(params["params"]), shadows, place, np.maximum)
    return Partly.of(value, np.asarray(shadow))


def _moved(
    kind: str, params: dict[str, Any], values: Sequence[Any], place: int, reduce: Any
) -> Any:
    """What a device gets; `reduce`: in place of the collective's own reduction."""
    axis, size = params.get("axis", 0), len(values)
    reduce = reduce or _REDUCTIONS[params.get("op", "add")]
    if kind in ("all_reduce", "reduce_scatter"):
        total = values[0]
        for value in values[1:]:
            total = np.asarray(reduce(total, value))
        return total if kind == "all_reduce" else np.split(total, size, axis)[place]
    if kind == "all_gather":
        return np.concatenate(values, axis)
    if kind == "all_to_all":
        return np.concatenate([np.split(v, size, axis)[place] for v in values], axis)
    pairs = params.get("pairs", ())
    if kind == "sendrecv":
        pairs = [(k, k ^ 1) for k in range(size)]
    sources = [s for s, target in pairs if target == place]
    return values[sources[0]] if sources else np.zeros_like(values[0])
