"""A collective as data: who sends how much to whom, step by step, whatever joins them.

Ranks are members of a group, numbered from 0. A rank takes part in a step when it is through with
the steps before: what it sends in one step it had when the step began.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .groups import Ints

Moves = Callable[[int], Iterable[Ints]]


@dataclass(frozen=True, eq=False)
class Step:
    """Transfers that go on at the same time, and how often the like happens in a row.

    Arrays have an entry for each transfer, or are one number for all of them.
    """

    name: str
    """What reports call it."""

    src: Ints
    """Rank each transfer reads from."""

    dst: Ints
    """Rank each transfer writes to."""

    size: Ints
    """Bytes of each transfer."""

    moves: Moves
    """Which ranks' chunks each transfer carries in a repetition (from 0): what the transfers mean.
    Time does not depend on it."""

    repeat: int = 1
    """Times in a row, with other chunks."""

    channels: int = 1
    """Cycles that carry an equal share of each chunk."""

    channel: Ints | int = 0
    """Which of the channels each transfer belongs to."""

    reduce: bool = False
    """Whether transfers add to what the destination has."""

    engine: Ints | None = None
    """Rank whose DMA engines move each transfer; the source's if None."""

    reads: Ints | int = 1
    """Times the bytes are read from the source's memory: 0 if the transfer writes a second copy of
    what another has read."""

    updates: Ints | int = 0
    """Times the bytes are read from the destination's memory, to add to them."""

    writes: Ints | int = 1
    """Times the bytes are written to the destination's memory: 0 if they are an operand that is
    added to another transfer on its way."""

    copies: Ints | int = 1
    """Equal transfers that each entry stands for, to ranks placed like `dst`."""

    operands: bool = False
    """Whether the reverse of the step only brings operands to the step after it."""


def reverse(steps: Sequence[Step]) -> list[Step]:
    """The reduce-scatter to an all-gather: every transfer backwards, adding where it copied.

    In the all-gather each rank gets each chunk once, so the ways of a chunk form a tree; backwards,
    partial sums flow to its root. Second copies, and copies within a chip, become operands that are
    added on the way (intranode-collective-comm.rst: a KangaRing's rank reads three and writes one;
    a mesh's reads the chunks of its chip, adds them and writes the sum).
    """
    return [_backwards(step) for step in reversed(steps)]


def _backwards(step: Step) -> Step:
    operand = np.broadcast_to((np.asarray(step.reads) == 0) | step.operands, step.src.shape)
    whole = (~operand).astype(np.int64)
    last = step.repeat - 1
    return replace(
        step,
        src=step.dst,
        dst=step.src,
        moves=lambda repetition: step.moves(last - repetition),
        reduce=True,
        engine=np.where(operand, step.src, step.dst),
        reads=1,
        updates=whole,
        writes=whole,
    )
