"""Where an instruction's operands start, as far as only a run can tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax_trn3 import isa

from ..accesses import core
from ..source import origin_of
from .order import box


def legal_starts(instruction: Any, inputs: Sequence[Any]) -> None:
    """Holds operands in SBUF and PSUM whose first partition a run decides against the rules.

    **Raises:** `IllegalInstruction`.
    """
    for name, place in instruction.refs.items():
        ref = inputs[place.number]
        if ref.memory not in ("sbuf", "psum") or not place.selection.numbers:
            continue
        ranges = box(ref, place.selection.keys(inputs))
        kept = place.selection.kept(len(ranges))
        partitions = next((ranges[axis] for axis in kept), None)
        if partitions is None or (name, partitions) in instruction.legal:
            continue
        _legal(instruction, name, ref, partitions)
        instruction.legal.add((name, partitions))


def _legal(instruction: Any, name: str, ref: Any, partitions: range) -> None:
    count, first = len(partitions), partitions[0]
    (operand,) = (o for o in instruction.spec.operands if o.name == name)
    allowed = core().partition_starts(count)
    if operand.quadrant_starts:  # scales of MX tiles, beside others'
        quadrants = range(0, core().partitions, core().quadrant_partitions)
        allowed = tuple(q + start for q in quadrants for start in operand.quadrant_starts)
    if first not in allowed:
        origin = origin_of(instruction.equation.source_info, instruction.name)
        raise isa.IllegalInstruction(
            f"{instruction.name} from {origin}: {name} = {ref.name} starts at partition {first}; "
            f"{count} partitions may start at {', '.join(map(str, allowed))}"
        )
