"""The algorithms of AWS's collectives, as steps of an all-gather among the ranks of one group.

Sources: intranode-collective-comm.rst and internode-collective-comm.rst under
neuron-runtime/explore/. The reduce-scatter is the all-gather backwards (`schedule.reverse`), the
all-reduce one after the other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .groups import Ints
from .schedule import Step


@dataclass(frozen=True, eq=False)
class Shape:
    """How the ranks of a group lie: rank `chip * per_chip + local`."""

    chips: int
    """Chips, or parts of chips, that have an equal run of ranks (a count)."""

    per_chip: int
    """Ranks in each run (a count)."""

    cycles: Ints
    """Orders of the chips, one row for each channel of a ring, each ending where it began."""

    gray: int = 0
    """Bits of a chip's number that are flipped by the bit above, so that numbers that differ in
    one bit belong to neighbours of a torus."""

    @property
    def size(self) -> int:
        """Ranks (a count)."""
        return self.chips * self.per_chip


AllGather = Callable[[Shape, int], list[Step]]


def ring(shape: Shape, chunk: int) -> list[Step]:
    """Every rank hands on to the next what it got from the one before, N - 1 times, in as many
    cycles as there are disjoint ones."""
    local = np.arange(shape.per_chip)
    orders = (shape.cycles[:, :, None] * shape.per_chip + local).reshape(len(shape.cycles), -1)
    channels, size = orders.shape
    if size == 1:
        return []
    place = np.tile(np.arange(size), channels)
    channel = np.repeat(np.arange(channels), size)
    return [
        Step(
            name="ring",
            src=orders.ravel(),
            dst=np.roll(orders, -1, axis=1).ravel(),
            size=np.array(-(-chunk // channels)),
            moves=lambda k: orders[channel, (place - k) % size][:, None],
            repeat=size - 1,
            channels=channels,
            channel=channel,
        )
    ]


def kangaring(shape: Shape, chunk: int) -> list[Step]:
    """A ring of every second rank of a chip (the primaries). Each hands on the chunks of two ranks
    and in the same breath writes them to its neighbour, the secondary: one read, two writes.
    Channels take turns in who is primary."""
    pairs = shape.per_chip // 2
    local = np.arange(pairs)
    orders = (shape.cycles[:, :, None] * pairs + local).reshape(len(shape.cycles), -1)
    channels, size = orders.shape
    place = np.tile(np.arange(size), channels)
    channel = np.repeat(np.arange(channels), size)
    pair = orders.ravel()
    first = pair * 2 + channel % 2
    second = pair * 2 + 1 - channel % 2
    downstream = np.roll(orders, -1, axis=1).ravel() * 2 + channel % 2
    share = -(-chunk // channels)

    def carried(k: int) -> Ints:
        """The chunks that each primary hands on in the k-th hop."""
        owner = orders[channel, (place - k) % size]
        return np.stack([owner * 2, owner * 2 + 1], axis=1)

    steps = []
    if size > 1:
        # First hop: the primary's own chunk, and its neighbour's, which it does not have yet.
        steps.append(
            Step(
                name="first hop",
                src=np.concatenate([first, second, first, second]),
                dst=np.concatenate([downstream, downstream, second, first]),
                size=np.array(share),
                moves=lambda k: np.concatenate([first, second, first, second])[:, None],
                channels=channels,
                channel=np.tile(channel, 4),
                engine=np.tile(first, 4),
                reads=np.repeat([1, 1, 0, 0], len(pair)),
            )
        )
    else:
        steps.append(_exchange(first, second, share, channels, channel))
    if size > 2:
        steps.append(
            Step(
                name="hops",
                src=np.tile(first, 2),
                dst=np.concatenate([downstream, second]),
                size=np.array(2 * share),
                moves=lambda k: np.tile(carried(k + 1), (2, 1)),
                repeat=size - 2,
                channels=channels,
                channel=np.tile(channel, 2),
                engine=np.tile(first, 2),
                reads=np.repeat([1, 0], len(pair)),
            )
        )
    if size > 1:
        steps.append(
            Step(
                name="last pair",
                src=first,
                dst=second,
                size=np.array(2 * share),
                moves=lambda k: carried(size - 1),
                channels=channels,
                channel=channel,
                operands=True,
            )
        )
    return steps


def _exchange(first: Ints, second: Ints, size: int, channels: int, channel: Ints) -> Step:
    """The two ranks of every pair give each other their chunk."""
    return Step(
        name="pairs",
        src=np.concatenate([first, second]),
        dst=np.concatenate([second, first]),
        size=np.array(size),
        moves=lambda k: np.concatenate([first, second])[:, None],
        channels=channels,
        channel=np.tile(channel, 2),
    )


def mesh(shape: Shape, chunk: int) -> list[Step]:
    """Two steps: every chip's chunks to one rank of every other chip, its own ranks and theirs
    taking turns; then each rank to the others of its chip."""
    chips, per_chip = shape.chips, shape.per_chip
    steps = []
    if chips > 1:
        home, away, local = (
            axis.ravel()
            for axis in np.meshgrid(
                np.arange(chips), np.arange(1, chips), np.arange(per_chip), indexing="ij"
            )
        )
        turn = (away - 1) % per_chip
        src = home * per_chip + local
        steps.append(
            Step(
                name="between chips",
                src=src,
                dst=(home + away) % chips * per_chip + turn,
                size=np.array(chunk),
                moves=lambda k: src[:, None],
                engine=home * per_chip + turn,
            )
        )
    if per_chip > 1:
        chip, own, other = _within(chips, per_chip)
        # A rank has its own chunk, and those of the chips whose turn it was.
        turns = [
            np.arange(1, chips)[(np.arange(1, chips) - 1) % per_chip == y] for y in range(per_chip)
        ]
        sizes = np.array([1 + len(turn) * per_chip for turn in turns])

        def held(chip: int, own: int) -> Ints:
            far = (chip - turns[own]) % chips
            chunks = (far[:, None] * per_chip + np.arange(per_chip)).ravel()
            return np.append(chunks, chip * per_chip + own)

        steps.append(
            Step(
                name="within chips",
                src=chip * per_chip + own,
                dst=chip * per_chip + other,
                size=chunk * sizes[own],
                moves=lambda k: [held(c, o) for c, o in zip(chip, own)],
                operands=True,
            )
        )
    return steps


def _within(chips: int, per_chip: int) -> tuple[Ints, Ints, Ints]:
    """Chip, rank and other rank of every pair of ranks on one chip."""
    chip, own, other = (
        axis.ravel()
        for axis in np.meshgrid(
            np.arange(chips), np.arange(per_chip), np.arange(per_chip), indexing="ij"
        )
    )
    different = own != other
    return chip[different], own[different], other[different]


def recursive_doubling(shape: Shape, chunk: int) -> list[Step]:
    """Ranks at the same place of their chips exchange all they have with a chip that differs in one
    bit, then in the next; then each rank gives what it has to the others of its chip."""
    chips, per_chip = shape.chips, shape.per_chip
    rank = np.arange(shape.size)
    chip, local = np.divmod(rank, per_chip)
    label = chip ^ (chip >> 1 & shape.gray)
    by_label = np.empty(chips, np.int64)
    by_label[label[::per_chip]] = np.arange(chips)

    def exchange(bit: int) -> Step:
        known = np.arange(bit)
        return Step(
            name=f"exchange {bit}",
            src=rank,
            dst=by_label[label ^ bit] * per_chip + local,
            size=np.array(chunk * bit),
            moves=lambda k: by_label[(label & -bit)[:, None] | known] * per_chip + local[:, None],
        )

    steps = [exchange(1 << bit) for bit in range(chips.bit_length() - 1)]
    if per_chip > 1:
        home, own, other = _within(chips, per_chip)
        steps.append(
            Step(
                name="within chips",
                src=home * per_chip + own,
                dst=home * per_chip + other,
                size=np.array(chunk * chips),
                moves=lambda k: own[:, None] + np.arange(chips) * per_chip,
                operands=True,
            )
        )
    return steps


def single_step_mesh(shape: Shape, num_bytes: int) -> list[Step]:
    """An all-reduce in one step: every rank sends all it has to every other, which adds it."""
    size = shape.size
    if size == 1:
        return []
    src, away = (
        axis.ravel() for axis in np.meshgrid(np.arange(size), np.arange(1, size), indexing="ij")
    )
    return [
        Step(
            name="broadcast and add",
            src=src,
            dst=(src + away) % size,
            size=np.array(num_bytes),
            moves=lambda k: np.broadcast_to(np.arange(size), (len(src), size)),
            reduce=True,
            reads=away % 2,  # a DMA writes two copies of what it reads once
            updates=1,
        )
    ]


def direct(size: int, pair_bytes: Ints) -> list[Step]:
    """An all-to-all in one step: every rank sends to every other what is meant for it.

    `pair_bytes[i, j]` is what rank i has for rank j. In `moves`, chunk `i * size + j`.
    """
    src, away = (
        axis.ravel() for axis in np.meshgrid(np.arange(size), np.arange(1, size), indexing="ij")
    )
    dst = (src + away) % size
    some = pair_bytes[src, dst] > 0
    src, dst = src[some], dst[some]
    if not len(src):
        return []
    return [
        Step(
            name="to each",
            src=src,
            dst=dst,
            size=pair_bytes[src, dst],
            moves=lambda k: (src * size + dst)[:, None],
        )
    ]


def permute(pairs: Ints, num_bytes: int) -> list[Step]:
    """One transfer for each pair (source, target)."""
    if not len(pairs):
        return []
    src, dst = pairs.T
    return [_copies("pairs", src, dst, num_bytes, src[:, None])]


def binomial(shape: Shape, num_bytes: int) -> list[Step]:
    """A broadcast from rank 0: whoever has the data sends them to a rank half as far as before."""
    size = shape.size
    steps = []
    for bit in (1 << place for place in reversed(range((size - 1).bit_length()))):
        src = np.arange(0, size - bit, 2 * bit)
        root = np.zeros((len(src), 1), np.int64)
        steps.append(_copies(f"distance {bit}", src, src + bit, num_bytes, root))
    return steps


def _copies(name: str, src: Ints, dst: Ints, num_bytes: int, chunks: Ints) -> Step:
    """Equal transfers that carry these chunks."""
    return Step(name, src, dst, np.array(num_bytes), lambda k: chunks)


ALL_GATHER: dict[str, AllGather] = {
    "mesh": mesh,
    "rdh": recursive_doubling,
    "kangaring": kangaring,
    "ring": ring,
}


def refusal(algorithm: str, shape: Shape) -> str | None:
    """Why an algorithm cannot serve a group of that shape, or None if it can."""
    if algorithm == "rdh" and shape.size & (shape.size - 1):
        return (
            f"rdh (recursive doubling and halving) needs a group of 2, 4, 8, ... ranks, not "
            f"{shape.size}; use mesh, ring or algorithm=None"
        )
    if algorithm == "kangaring" and shape.per_chip % 2:
        return (
            f"kangaring pairs the ranks of a chip: it needs an even number of consecutive ranks "
            f"on each, not {shape.per_chip}; use ring or algorithm=None"
        )
    return None
