"""How long a program needs each tile: from the first instruction that touches it to the last.

In program order a tile can lie where another one lay that is not needed any more; the clock makes
whoever writes there wait for the other's last readers.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from jax_trn3.isa import Access, Instruction, Tile

from .program import Loop, Node, Program


@dataclass(frozen=True)
class Lifetime:
    """The part of a program's text in which a tile holds something that is needed."""

    first: int
    """First instruction, counted through the text."""

    last: int
    """Last one, inclusive."""

    def meets(self, other: "Lifetime") -> bool:
        """Whether both tiles are needed at the same time."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class _Use:
    place: int
    loops: tuple[tuple[int, int], ...]
    """(first instruction, last instruction) of each loop around it, outermost first."""

    access: Access
    reads: bool


def lifetimes(program: Program) -> dict[Tile, Lifetime]:
    """The lifetime of every tile in SBUF and PSUM."""
    uses: dict[Tile, list[_Use]] = {}
    _collect(program.body, 0, (), uses)
    return {tile: _lifetime(of_tile) for tile, of_tile in uses.items() if tile.memory != "hbm"}


def _collect(
    nodes: Iterable[Node],
    place: int,
    loops: tuple[tuple[int, int], ...],
    uses: dict[Tile, list[_Use]],
) -> int:
    """Notes all uses in a body from instruction number `place` on; returns the number after it."""
    for node in nodes:
        if isinstance(node, Loop):
            inside: dict[Tile, list[_Use]] = {}
            last = place + sum(1 for _ in Program("", node.body).instructions())
            _collect(node.body, place, (*loops, (place, last - 1)), inside)
            for tile, found in inside.items():
                uses.setdefault(tile, []).extend(found)
            place = last
            continue
        for access, reads in operands(node):
            uses.setdefault(access.tile, []).append(_Use(place, loops, access, reads))
        place += 1
    return place


def operands(instruction: Instruction) -> list[tuple[Access, bool]]:
    """Its tiles, those that it reads first."""
    roles = {operand.name: operand.role for operand in instruction.spec.operands}
    named = [(access, roles[name]) for name, access in instruction.operands]
    found = [(access, True) for access, role in named if role == "read"]
    for access, role in named:
        if role == "accumulate":
            # A matmul that is not told overwrites where a sum starts; others always keep something.
            told = "accumulate" in instruction.spec.params
            found.append((access, bool(instruction.get("accumulate")) or not told))
        elif role != "read":
            found.append((access, False))
    return found


def _lifetime(uses: list[_Use]) -> Lifetime:
    first, last = min(u.place for u in uses), max(u.place for u in uses)
    common = _common(uses)
    if uses[0].access.tile.given or _carried(uses):
        # From one iteration to the next: needed as long as the outermost loop around it runs.
        common = common[:0] if uses[0].access.tile.given else common
        spans = [span for use in uses for span in use.loops[:1]]
    else:
        spans = [use.loops[len(common)] for use in uses if len(use.loops) > len(common)]
    return Lifetime(
        min([first, *(start for start, _ in spans)]), max([last, *(end for _, end in spans)])
    )


def _common(uses: list[_Use]) -> tuple[tuple[int, int], ...]:
    """The loops around all uses."""
    common = []
    for spans in zip(*(use.loops for use in uses)):
        if len(set(spans)) > 1:
            break
        common.append(spans[0])
    return tuple(common)


def _carried(uses: list[_Use]) -> bool:
    """Whether some read may see what an earlier iteration wrote: no write of the same slot is
    before it in the text."""
    if not any(use.loops for use in uses):
        return False
    written: set[tuple[object, int]] = set()
    for use in uses:
        key = (use.access.slot, use.access.slot_count)
        if use.reads and key not in written and not _covered(use.access, uses, use.place):
            return True
        if not use.reads:
            written.add(key)
    return False


def _covered(access: Access, uses: list[_Use], place: int) -> bool:
    """Whether writes before `place` that do not depend on loops reach every slot of the tile."""
    slots: set[int] = set()
    for use in uses:
        if use.place < place and not use.reads and not use.access.slot.terms:
            first = use.access.slot.const
            slots |= {(first + k) % access.tile.slots for k in range(use.access.slot_count)}
    return len(slots) == access.tile.slots
