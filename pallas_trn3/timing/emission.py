"""Instructions for arrays: checked, and where a value can be made in its place at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jax_trn3 import isa
from jax_trn3.isa import Access, Instruction
from jax_trn3.isa.check import violations

from .arrays import Array, part, temporary
from .walk import Walker

_FREE = 16_384
"""Elements of a partition that passes treat at a time."""


def issue(
    walker: Walker, name: str, *operands: Any, engine: str | None = None, **named: Any
) -> None:
    """An instruction, the first operand being what it writes; passes over the elements where the
    hardware has none for these operands."""
    made = built(walker, name, *operands, engine=engine, **named)
    if made is not None:
        walker.emit(made)
    else:
        passes(walker, operands[0], [a for a in operands[1:] if isinstance(a, Access)])


def built(
    walker: Walker, name: str, *operands: Any, engine: str | None = None, **named: Any
) -> Instruction | None:
    """The instruction; None if the core cannot carry it out."""
    spec = isa.TABLE[name]
    try:
        made = spec(*operands, engine=engine, origin=walker.origin, **named)
        return None if any(violations(made, walker.chip.core)) else made
    except (TypeError, ValueError, IndexError):
        return None


def passes(walker: Walker, dst: Access, sources: Sequence[Access], times: int = 1) -> None:
    """Passes over elements, for what no instruction does: one an operand, `times` of each."""
    operation = walker.origin.operation
    walker.assume(
        f"{operation} has no instruction of its own: passes of {_passing(dst)} over its elements"
    )
    dst = legal(walker, dst)
    read: list[Access] = []
    for source in (legal(walker, source) for source in sources):
        for first in range(0, source.free_size, _FREE):
            piece = part(source, first, min(_FREE, source.free_size - first))
            scratch = temporary(
                walker, (piece.partitions, piece.free_size), piece.dtype, f"{operation} pass"
            ).pieces[0]
            for _ in range(times):
                _pass(walker, scratch, piece)
            read.append(scratch)
    memset = isa.TABLE["memset"](dst, value=0, engine=_passing(dst), origin=walker.origin)
    walker.emit(memset)
    for scratch in read:  # the result is there when all operands have been read
        if dst.tile.element.packed == scratch.tile.element.packed == 1:
            _pass(walker, _corner(dst), _corner(scratch))


def _pass(walker: Walker, dst: Access, src: Access) -> None:
    engine = "vector" if "psum" in (dst.memory, src.memory) else "gpsimd"
    walker.emit(isa.TABLE["tensor_copy"](dst, src, engine=engine, origin=walker.origin))


def _corner(access: Access) -> Access:
    """One element."""
    return replace(access, slot_count=1, size=(1,) * len(access.size))


def legal(walker: Walker, access: Access) -> Access:
    """The access, or one as large at partition 0 where engines cannot begin at its partition."""
    first = access.start[0] + (access.tile.address[0] if access.tile.address else 0)
    if access.memory == "hbm" or first in walker.chip.core.partition_starts(access.partitions):
        return access
    return replace(access, start=(0, *access.start[1:]))


def _passing(access: Access) -> str:
    return "vector" if access.memory == "psum" else "gpsimd"


def copy(walker: Walker, dst: Access, src: Access) -> None:
    """A copy, by VectorE and ScalarE in turn."""
    turn = walker.state["copies"] = walker.state.get("copies", 0) + 1
    if turn % 2 and dst.free_size > 1:
        made = built(walker, "activation", dst, src, op="copy")
        if made is not None:
            walker.emit(made)
            return
    if (dst.partitions, dst.free_size) == (src.partitions, src.free_size):
        issue(walker, "tensor_copy", dst, src, engine="vector")
    else:
        moved(walker, dst, src)


def moved(walker: Walker, dst: Access, src: Access) -> None:
    """A copy to another place of partitions: by DMA."""
    if "psum" in (dst.memory, src.memory) or dst.elements != src.elements:
        passes(walker, dst, [src])
        return
    issue(walker, "dma_copy", dst, src, engine=f"dma:gpsimd.{walker.origin.line}")


def redirected(walker: Walker, value: Array, targets: Sequence[Access]) -> bool:
    """Lets the instructions that made a value write it to `targets` at once; whether they can."""
    if value.made is None or value.made[0] is not walker.nodes:
        return False
    if len(targets) != len(value.pieces) or any(t.slot_count > 1 for t in targets):
        return False
    if [(t.partitions, t.free_size) for t in targets] != list(value.layout):
        return False
    nodes, start = value.made
    mapping = dict(zip(value.pieces, targets))
    tiles = {piece.tile for piece in value.pieces}
    places = {target.tile for target in targets}
    changed: dict[int, Instruction] = {}
    for number in range(start, len(nodes)):
        node = nodes[number]
        if not isinstance(node, Instruction):
            return False
        if not any(a.tile in tiles or a.tile in places for _, a in node.operands):
            continue
        fresh = _on_targets(node, mapping, tiles, places)
        if fresh is None or any(violations(fresh, walker.chip.core)):
            return False
        changed[number] = fresh
    for number, fresh in changed.items():
        nodes[number] = fresh
    return bool(changed)


def _on_targets(
    node: Instruction, mapping: dict[Access, Access], tiles: set[Any], places: set[Any]
) -> Instruction | None:
    """The instruction on the targets; None if it needs what they held, or only a part."""
    written = [o.name for o in node.spec.operands if o.role != "read"]
    made = [mapping.get(a) for name, a in node.operands if name in written]
    operands = []
    for name, access in node.operands:
        if access.tile in places and not (name not in written and access in made):
            return None
        if access.tile in tiles:
            image = _image(access, mapping)
            if image is None:
                return None
            access = image
        operands.append((name, access))
    return replace(node, operands=tuple(operands))


def _image(access: Access, mapping: dict[Access, Access]) -> Access | None:
    """Where a part of a value lies in its targets."""
    if access in mapping:
        return mapping[access]
    for piece, target in mapping.items():
        if (piece.tile, piece.slot) == (access.tile, access.slot) and len(target.size) == 2:
            start = tuple(t + a * s for t, a, s in zip(target.start, access.start, target.step))
            return Access(target.tile, target.slot, 1, start, access.size, target.step)
    return None


def evacuated(walker: Walker, value: Array, dtype: Any = None) -> Array:
    """A value in SBUF."""
    if not value.in_psum:
        return value
    found = temporary(walker, value.shape, dtype or value.dtype, "out of psum", layout=value.layout)
    for dst, src in zip(found.pieces, value.pieces):
        copy(walker, dst, src)
    return found
