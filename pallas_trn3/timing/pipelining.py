"""Loops of array code in stages: engines work on the next iteration while others finish this one.

Engines take instructions in their order. Where a value comes back to an engine that worked on it
before (a maximum by VectorE, exponentials by ScalarE, a product by VectorE again), the engine would
wait for the other one in every iteration. As an author of kernels does, the instructions behind
that point are put one iteration later in the text; their tiles have as many slots more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jax_trn3.isa import Access, Index, Instruction, Tile, as_index, new_loop_index
from jax_trn3.simulator import Loop, Node
from jax_trn3.simulator.liveness import operands

_MOST = 4
"""Stages of a loop."""

Slots = dict[Tile, int]


def staged(loop: Loop, least: int, slots: Slots) -> list[Node]:
    """The loop in stages; as it is where it has one only, or where stages would change what it
    does.

    **Arguments:**

    - `least`: Iterations that it has at least.
    - `slots`: By tile how many slots it must have; what is needed here is entered.
    """
    body = [node for node in loop.body if isinstance(node, Instruction)]
    if len(body) < len(loop.body) or any(i.wait or i.signal for i in body):
        return [loop]
    if _goes_through_hbm(body):
        return [loop]
    stages = _stages(body, loop.id)
    count = max(stages, default=0) + 1
    if count == 1 or least < count:
        return [loop]
    needed = _slots(body, stages, loop.id)
    if needed is None:
        return [loop]
    for tile, number in needed.items():
        slots[tile] = max(slots.get(tile, tile.slots), number)
    return _in_stages(loop, body, stages, count)


def _goes_through_hbm(body: Sequence[Instruction]) -> bool:
    """Whether it reads in HBM what it writes there."""
    ends: dict[bool, set[Tile]] = {True: set(), False: set()}
    for instruction in body:
        for access, reads in operands(instruction):
            if access.memory == "hbm":
                ends[reads].add(access.tile)
    return bool(ends[True] & ends[False])


def _in_stages(
    loop: Loop, body: Sequence[Instruction], stages: Sequence[int], count: int
) -> list[Node]:
    ahead = count - 1
    index = new_loop_index()

    def stage(number: int, iteration: Index) -> list[Instruction]:
        return [_at(i, loop.id, iteration) for i, s in zip(body, stages) if s == number]

    nodes: list[Node] = []
    for time in range(ahead):
        for s in range(time + 1):
            nodes += stage(s, as_index(time - s))
    steady = [i for s in range(count) for i in stage(s, index + (ahead - s))]
    nodes.append(Loop(index, loop.count - ahead, tuple(steady)))
    for time in range(ahead):
        for s in range(time + 1, count):
            nodes += stage(s, loop.count + (time - s))
    return nodes


def _at(instruction: Instruction, loop: int, iteration: Index) -> Instruction:
    """The instruction in another iteration."""
    moved = tuple((name, _moved(a, loop, iteration)) for name, a in instruction.operands)
    return replace(instruction, operands=moved)


def _moved(access: Access, loop: int, iteration: Index) -> Access:
    step = dict(access.slot.terms).get(loop, 0)
    if not step:
        return access
    slot = access.slot - Index(0, ((loop, step),)) + iteration * step
    return replace(access, slot=slot)


def _lane(instruction: Instruction) -> str:
    return instruction.engine.partition(":")[0]


def _stages(body: Sequence[Instruction], loop: int) -> list[int]:
    """The stage of each instruction."""
    writers: dict[Tile, list[int]] = {}
    users: dict[Tile, list[int]] = {}
    before: list[list[int]] = []
    for number, instruction in enumerate(body):
        needs: list[int] = []
        for access, reads in operands(instruction):
            needs += writers.get(access.tile, ()) if reads else users.get(access.tile, ())
        before.append(sorted(set(needs)))
        for access, reads in operands(instruction):
            users.setdefault(access.tile, []).append(number)
            if not reads:
                writers.setdefault(access.tile, []).append(number)
    stages: list[int] = []
    visited: list[set[str]] = []
    for number, instruction in enumerate(body):
        lane = _lane(instruction)
        stage = max((stages[p] for p in before[number]), default=0)
        same = [p for p in before[number] if stages[p] == stage]
        seen = {lane_ for p in same for lane_ in (*visited[p], _lane(body[p]))}
        back = any(_lane(body[p]) not in (lane, "dma") and lane in visited[p] for p in same)
        if back and lane != "dma" and stage < _MOST - 1:
            stage, seen = stage + 1, set()
        stages.append(stage)
        visited.append(seen)
    return _together(body, before, stages, users, loop)


def _together(
    body: Sequence[Instruction],
    before: Sequence[Sequence[int]],
    stages: list[int],
    users: dict[Tile, list[int]],
    loop: int,
) -> list[int]:
    """Stages in which what does not change its slot from iteration to iteration is used in one."""
    held = [
        (tile, numbers) for tile, numbers in users.items() if _step(body, numbers, tile, loop) == 0
    ]
    changed = True
    while changed:
        changed = False
        for tile, numbers in held:
            if tile.memory != "hbm" and _is_written(body, numbers, tile):
                latest = max(stages[n] for n in numbers)
                changed |= any(stages[n] < latest for n in numbers)
                for n in numbers:
                    stages[n] = latest
        for number, needs in enumerate(before):
            latest = max((stages[p] for p in needs), default=0)
            changed |= stages[number] < latest
            stages[number] = max(stages[number], latest)
    return stages


def _is_written(body: Sequence[Instruction], numbers: Sequence[int], tile: Tile) -> bool:
    found = (pair for n in numbers for pair in operands(body[n]))
    return any(access.tile == tile and not reads for access, reads in found)


def _step(body: Sequence[Instruction], numbers: Sequence[int], tile: Tile, loop: int) -> int:
    """By how many slots a tile's accesses move in an iteration; 0 if not all by as many."""
    steps = {
        dict(access.slot.terms).get(loop, 0)
        for n in numbers
        for _, access in body[n].operands
        if access.tile == tile
    }
    (step,) = steps if len(steps) == 1 else (0,)
    if tile.address is not None:  # its author has said where it lies, and how many
        return 0
    return step if step > 0 and tile.slots > step and tile.slots % step == 0 else 0


def _slots(body: Sequence[Instruction], stages: Sequence[int], loop: int) -> Slots | None:
    """Slots that tiles need so that stages of several iterations do not meet."""
    users: dict[Tile, list[int]] = {}
    for number, instruction in enumerate(body):
        for _, access in instruction.operands:
            users.setdefault(access.tile, []).append(number)
    needed: Slots = {}
    for tile, numbers in users.items():
        step = _step(body, numbers, tile, loop)
        apart = max(stages[n] for n in numbers) - min(stages[n] for n in numbers)
        if tile.memory == "hbm" or not apart:
            continue
        if not step:
            if _is_written(body, numbers, tile):
                return None
            continue
        needed[tile] = step * max(tile.slots // step, apart + 1)
    return needed
