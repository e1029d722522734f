"""Makes a program fit: what is not needed for longest waits in HBM meanwhile.

A tile moves out between two places of the program's outermost body that use it (a loop counts as
one place). Saves and reloads are ordinary transfers; their origin's operation is "spill save" or
"spill reload".
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from jax_trn3.hardware import NeuronCore
from jax_trn3.isa import Access, Instruction, Origin, Tile
from jax_trn3.isa.dma import dma_copy

from .allocation import allocate, capacity, extent, replace_in
from .errors import DoesNotFit
from .liveness import operands
from .program import Node, Program

SAVE = Origin(operation="spill save")
RELOAD = Origin(operation="spill reload")


def spill(program: Program, core: NeuronCore, queue: str = "dma:sync") -> Program:
    """The program, allocated, with transfers to HBM and back where SBUF is short.

    **Arguments:**

    - `program`: As for `simulate`.
    - `core`: Whose SBUF it is to fit.
    - `queue`: Queue of the transfers.

    **Raises:** `DoesNotFit` if it does not fit even so.
    """
    while True:
        try:
            return allocate(program, core)
        except DoesNotFit as error:
            shorter = _spill_one(program, core, queue)
            if shorter is None:
                raise DoesNotFit(
                    f"{error}; no tile is left that is not needed where SBUF is short"
                ) from None
            program = shorter


def _spill_one(program: Program, core: NeuronCore, queue: str) -> Program | None:
    """Moves one tile out where most is needed at once; None if none can go."""
    uses = _uses(program)
    needed = [0] * len(program.body)
    for tile, places in uses.items():
        for place in range(places[0], places[-1] + 1):
            needed[place] += extent(tile, core)
    tightest = max(range(len(needed)), key=needed.__getitem__)
    if needed[tightest] <= capacity("sbuf", core):
        return None
    gaps = [
        (after - before, extent(tile, core), tile, before, after)
        for tile, places in uses.items()
        for before, after in itertools.pairwise(places)
        if before < tightest < after
        and tile.address is None
        and not tile.given
        # Nothing would be gained between saves and reloads alone, and there would be no end to it.
        and any(not _is_spill(node) for node in program.body[before + 1 : after])
    ]
    if not gaps:
        return None
    _, _, tile, before, after = max(gaps, key=lambda gap: gap[:2])
    return _moved_out(program, tile, before, after, queue)


def _uses(program: Program) -> dict[Tile, list[int]]:
    """Places in the outermost body where each tile in SBUF is used."""
    uses: dict[Tile, list[int]] = {}
    for place, node in enumerate(program.body):
        for access, _ in _accesses(node):
            if access.memory == "sbuf" and place not in uses.setdefault(access.tile, [])[-1:]:
                uses[access.tile].append(place)
    return uses


def _accesses(node: Node) -> Iterator[tuple[Access, bool]]:
    """What an instruction or a loop works on, and whether it reads it."""
    for instruction in Program("", (node,)).instructions():
        yield from operands(instruction)


def _moved_out(program: Program, tile: Tile, before: int, after: int, queue: str) -> Program:
    """The program in which the tile lies in HBM from one place to another."""
    count = sum(1 for other in program.tiles() if other.name.startswith(f"{tile.name} spilled"))
    parked = replace(tile, name=f"{tile.name} spilled {count}", memory="hbm")
    back = replace(tile, name=f"{tile.name} reloaded {count}")
    parts = dict.fromkeys(
        access if not access.slot.terms else tile.all
        for node in program.body[: before + 1]
        for access, reads in _accesses(node)
        if access.tile == tile and not reads
    )

    def copies(to: Tile, source: Tile, origin: Origin) -> list[Node]:
        """Transfers of all that was written of the tile."""
        ends = [(replace(part, tile=to), replace(part, tile=source)) for part in parts]
        return [dma_copy(*pair, engine=queue, origin=origin, core=tile.core) for pair in ends]

    later = [replace_in(node, {tile: back}) for node in program.body[after:]]
    between = program.body[before + 1 : after]
    saves, reloads = copies(parked, tile, SAVE), copies(back, parked, RELOAD)
    nodes = (*program.body[: before + 1], *saves, *between, *reloads, *later)
    return Program(program.name, nodes)


def _is_spill(node: Node) -> bool:
    return isinstance(node, Instruction) and node.origin in (SAVE, RELOAD)
