"""Bytes on their way: copies within HBM in runs, and streams through SBUF."""

import math
from collections.abc import Callable, Iterable, Sequence

from jax_trn3.hardware import Chip
from jax_trn3.isa import DTYPES, Access, Index, Tile, as_index
from jax_trn3.isa.dma import dma_copy
from jax_trn3.simulator import Node, loop

from ..graph import Tensor
from .tiles import held_as, words

_BYTES = 1 << 20
"""Bytes of one transfer: much longer than its fixed costs."""

_FAR = 8
LOADS, STORE = ("dma:sync", "dma:scalar"), "dma:gpsimd"


def units(tensor: Tensor, chip: Chip) -> tuple[int, str]:
    """(elements, type) of a value as it lies in HBM."""
    dtype = held_as(tensor.dtype, chip.core)
    size = DTYPES[dtype].bytes
    if tensor.bytes < tensor.size * size:  # 4 bits and fewer
        return max(1, tensor.bytes), "uint8"
    return tensor.size * words(tensor.dtype), dtype


def copied(name: str, runs: int, run: int, dtype: str, *, queue: str = LOADS[0]) -> list[Node]:
    """`runs` pieces of `run` elements, which lie next to each other, from HBM to HBM."""
    size = DTYPES[dtype].bytes
    if runs < 1 or run < 1:
        return []
    if run * size > _BYTES:
        pieces = -(-run * size // _BYTES)
        each, rest = run // pieces, run % pieces
        return [
            *copied(name, runs * pieces, each, dtype, queue=queue),
            *(copied(f"{name}, rest", runs, rest, dtype, queue=queue) if rest else []),
        ]
    together = max(1, min(runs, _BYTES // (run * size)))
    full, rest = divmod(runs, together)
    # Not the whole of longer rows, so that nothing is next to each other but runs.
    apart = run if together == 1 and full <= 1 else run + 1
    src = Tile(f"{name}, from", "hbm", (together, apart), dtype, given=True)
    dst = Tile(f"{name}, to", "hbm", (together, apart), dtype, _FAR)
    nodes: list[Node] = []
    if full:
        nodes.append(
            loop(full, lambda i: [dma_copy(dst[i][:, 0:run], src[:, 0:run], engine=queue)])
        )
    if rest:
        nodes.append(dma_copy(dst[full][0:rest, 0:run], src[0:rest, 0:run], engine=queue))
    return nodes


Part = Callable[[list[Access], list[Access], Index], Iterable[Node]]


def streamed(
    name: str,
    reads: Sequence[tuple[int, str]],
    writes: Sequence[tuple[int, str]],
    work: Part,
    most: int = 2048,
) -> list[Node]:
    """Loads all of some values and stores all of others, a tile of each after another.

    - `reads`, `writes`: (elements, type) in HBM. What of them goes by in a tile is as long a part
      of each.
    - `work`: what is done to the tiles read, into the tiles written.
    - `most`: elements of a partition in the longest tile.
    """
    sizes = [size for size, _ in (*reads, *writes)]
    longest = max(sizes, default=1)
    tiles = max(1, min(math.ceil(longest / (128 * most)), longest // 128 or 1))
    if longest >= 128 * 4 * 256:
        tiles = max(tiles, 4)
    near = {
        (kind, n): _near(f"{name}, {kind} {n}", size, dtype, tiles)
        for kind, group in (("in", reads), ("out", writes))
        for n, (size, dtype) in enumerate(group)
    }
    parts = [
        (kind, n, size)
        for kind, g in (("in", reads), ("out", writes))
        for n, (size, _) in enumerate(g)
    ]

    def tile(i: Index, shapes: dict[tuple[str, int], tuple[int, int]]) -> list[Node]:
        accesses = {key: near[key][i][0:rows, 0:columns] for key, (rows, columns) in shapes.items()}
        nodes: list[Node] = []
        for number, key in enumerate(k for k in shapes if k[0] == "in"):
            far = _far(near[key], True)
            rows, columns = shapes[key]
            queue = LOADS[number % len(LOADS)]
            nodes.append(dma_copy(accesses[key], far[0][0:rows, 0:columns], engine=queue))
        ins = [a for key, a in accesses.items() if key[0] == "in"]
        outs = [a for key, a in accesses.items() if key[0] == "out"]
        nodes += work(ins, outs, i)
        for key in (k for k in shapes if k[0] == "out"):
            rows, columns = shapes[key]
            far = _far(near[key], False)
            nodes.append(dma_copy(far[i][0:rows, 0:columns], accesses[key], engine=STORE))
        return nodes

    full = {(k, n): (128, size // (128 * tiles)) for k, n, size in parts if size >= 128 * tiles}
    nodes: list[Node] = [loop(tiles, lambda i: tile(i, full))] if full else []
    left = {(k, n): size - 128 * tiles * (size // (128 * tiles)) for k, n, size in parts}
    wide = {key: (128, rest // 128) for key, rest in left.items() if rest >= 128}
    thin = {key: (rest % 128, 1) for key, rest in left.items() if rest % 128}
    for number, shapes in enumerate((wide, thin)):
        if shapes:
            nodes += tile(as_index(tiles + number), shapes)
    return nodes


def _near(name: str, size: int, dtype: str, tiles: int) -> Tile:
    width = max(1, size // (128 * tiles), -(-(size % (128 * tiles)) // 128))
    # Values that a step makes of others are there from the start, as far as order goes.
    return Tile(
        name, "sbuf", (128, width), dtype, 4, given=name.partition(", ")[2].startswith("out")
    )


def _far(near: Tile, given: bool) -> Tile:
    slots = 1 if given else _FAR
    return Tile(f"{near.name}, hbm", "hbm", near.shape, near.dtype, slots, given=given)
