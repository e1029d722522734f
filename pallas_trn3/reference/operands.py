"""What only a run can tell of an instruction's operands: where they start, rows that they name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jax_trn3 import isa

from ..accesses import core
from ..errors import OutOfBounds
from ..source import line, origin_of
from .order import box
from .storage import Partly, parts


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
    allowed: Sequence[int] = core().partition_starts(count)
    if operand.quadrant_starts:  # scales of MX tiles, beside others'
        quadrants = range(0, core().partitions, core().quadrant_partitions)
        allowed = tuple(q + start for q in quadrants for start in operand.quadrant_starts)
    if first not in allowed:
        origin = origin_of(instruction.equation.source_info, instruction.name)
        raise isa.IllegalInstruction(
            f"{instruction.name} from {origin}: {name} = {ref.name} starts at partition {first}; "
            f"{count} partitions may start at {', '.join(map(str, allowed))}"
        )


def rows_exist(kernel: str, instruction: Any, given: list[Any]) -> Iterator[tuple[Partly, str]]:
    """Holds rows that a transfer gathers or scatters by an index against what there is; yields
    indices that are undefined, and their operand.

    **Raises:** `OutOfBounds`.
    """
    params = dict(instruction.params)
    if not instruction.engine.startswith("dma") or params.get("oob_mode") == "skip":
        return
    (reads, previous), *_ = given
    for name in [k for k in reads if k.endswith("_index")]:
        if type(reads[name]) is Partly:
            yield reads[name], name
        other = name.removesuffix("_index")
        rows = np.shape(parts((reads | previous)[other])[0])[0]
        index = np.asarray(reads[name])
        if instruction.name == "dma_transpose":
            index = index.T.reshape(-1)[: np.shape(parts(previous["dst"])[0])[-1]]
        wrong = index[(index < 0) | (index >= rows)]
        if wrong.size:
            raise OutOfBounds(
                f"kernel {kernel}, {line(instruction.equation)}: {name} names row {wrong.flat[0]} "
                f"of {other}, which has {rows} rows; oob_mode='skip' passes over such rows"
            )
