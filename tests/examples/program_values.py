"""The values of an instruction program: its instructions, one after another, by their meaning."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_trn3.isa import Access, Instruction, Tile, execute, state_name
from jax_trn3.simulator import Program
from jax_trn3.simulator.walk import instances, slots


def values(program: Program, given: Mapping[str, np.ndarray]) -> dict[str, list[np.ndarray | None]]:
    """What every tile holds in the end: by name, slot by slot.

    `given`: Of tiles that hold values from the start, [slots, *shape].
    """
    instructions = tuple(program.instructions())
    memory: dict[str, list[Any]] = {}
    for tile in program.tiles():
        memory[tile.name] = list(given[tile.name]) if tile.given else [None] * tile.slots
        assert len(memory[tile.name]) == tile.slots, tile.name
    state: dict[str, Any] = {}
    sums: set[tuple[str, int]] = set()
    for number, indices in instances(program):
        instruction = instructions[number]
        _run(instruction, indices, memory, state, sums)
    return memory


def _run(
    instruction: Instruction,
    indices: dict[int, int],
    memory: dict[str, list[Any]],
    state: dict[str, Any],
    sums: set[tuple[str, int]],
) -> None:
    places = {name: slots(access, indices) for name, access in instruction.operands}
    accesses = dict(instruction.operands)
    roles = {operand.name: operand.role for operand in instruction.spec.operands}
    arrays, previous = {}, None
    for name, access in accesses.items():
        keys = {(access.tile.name, slot) for slot in places[name]}
        if roles[name] == "read":
            arrays[name] = _read(access, places[name], memory)
            sums -= keys  # a sum that was read is over
        elif roles[name] == "accumulate":
            going_on = access.memory == "sbuf" or keys <= sums
            written = memory[access.tile.name][places[name][0]] is not None
            previous = _read(access, places[name], memory) if going_on and written else None
            sums |= keys
    if instruction.spec.state:
        arrays |= {key: held for key, held in state.items() if key == state_name(instruction)}
    results = execute(instruction, arrays, previous)
    if instruction.spec.state:
        state[state_name(instruction)] = results.pop(state_name(instruction))
    for name, value in results.items():
        _write(accesses[name], places[name], memory, np.asarray(value))


def _part(access: Access) -> tuple[slice, ...]:
    bounds = zip(access.start, access.size, access.step)
    return tuple(slice(first, first + (n - 1) * step + 1, step) for first, n, step in bounds)


def _read(access: Access, places: tuple[int, ...], memory: dict[str, list[Any]]) -> np.ndarray:
    parts = [memory[access.tile.name][slot][_part(access)] for slot in places]
    return parts[0] if access.slot_count == 1 else np.stack(parts, axis=1)


def _write(
    access: Access, places: tuple[int, ...], memory: dict[str, list[Any]], value: np.ndarray
) -> None:
    tile = access.tile
    held = memory[tile.name]
    for k, slot in enumerate(places):
        fresh = held[slot] if held[slot] is not None else _empty(tile)
        held[slot] = fresh.copy()
        held[slot][_part(access)] = value if access.slot_count == 1 else value[:, k]


def _empty(tile: Tile) -> np.ndarray:
    packed = (tile.element.packed,) if tile.element.packed > 1 else ()
    return np.zeros((*tile.shape, *packed), tile.element.numpy)
