"""Where tiles lie in SBUF and PSUM.

Tiles with an address of their own stay there. The others get one: side by side as long as there is
room, else where tiles lay that are not needed at the same time. A tile takes its bytes of all
partitions, however few it uses.
"""

import dataclasses
from collections.abc import Iterable

from jax_trn3.hardware import NeuronCore
from jax_trn3.isa import Access, Tile

from .errors import DoesNotFit, IllegalProgram
from .liveness import Lifetime, lifetimes
from .program import Loop, Node, Program

_SBUF_ALIGNMENT = 32  # bytes; nki-library's SbufManager aligns to as many


def allocate(program: Program, core: NeuronCore) -> Program:
    """The program with an address for every tile in SBUF and PSUM.

    **Raises:** `DoesNotFit` naming the tiles, their sizes and the limit; `IllegalProgram` if tiles
    with addresses of their own overlap while both are needed.
    """
    needed = lifetimes(program)
    placed: dict[Tile, int] = {}
    for memory, number in sorted({(t.memory, t.core) for t in needed}):
        tiles = [t for t in needed if (t.memory, t.core) == (memory, number)]
        placed |= _allocate(program.name, tiles, needed, core)
    fresh = {
        tile: dataclasses.replace(tile, address=(0, offset))
        for tile, offset in placed.items()
        if tile.address is None
    }
    return replace_tiles(program, fresh) if fresh else program


def capacity(memory: str, core: NeuronCore) -> int:
    """Bytes of one partition that a program may use."""
    return core.psum_partition_bytes if memory == "psum" else core.sbuf_usable_partition_bytes


def pitch(tile: Tile, core: NeuronCore) -> int:
    """Bytes in a partition from one slot of a tile to the next. A PSUM slot does not cross banks
    that it could stay inside of: what a matmul writes lies in one."""
    size = tile.partition_bytes
    if tile.memory == "sbuf":
        return -(-size // _SBUF_ALIGNMENT) * _SBUF_ALIGNMENT if tile.slots > 1 else size
    bank = core.psum_bank_bytes
    if size >= bank:
        return -(-size // bank) * bank
    return next(bank // k for k in range(bank, 0, -1) if bank % k == 0 and bank // k >= size)


def extent(tile: Tile, core: NeuronCore) -> int:
    """Bytes in a partition that all slots of a tile take."""
    return pitch(tile, core) * (tile.slots - 1) + tile.partition_bytes


def _allocate(
    name: str, tiles: list[Tile], needed: dict[Tile, Lifetime], core: NeuronCore
) -> dict[Tile, int]:
    memory, limit = tiles[0].memory, capacity(tiles[0].memory, core)
    placed: dict[Tile, int] = {}
    for tile in (t for t in tiles if t.address is not None):
        _check_address(tile, placed, needed, core, limit)
        placed[tile] = tile.address[1]  # type: ignore[index]
    free = [t for t in tiles if t.address is None]
    always = Lifetime(0, max((life.last for life in needed.values()), default=0))
    apart = _first_fit(free, dict.fromkeys(tiles, always), placed, core, limit)
    if apart is not None:
        return apart
    # The largest first: what is left over then fits between them.
    shared = _first_fit(sorted(free, key=lambda t: -extent(t, core)), needed, placed, core, limit)
    if shared is not None:
        return shared
    raise DoesNotFit(_excess(name, memory, tiles, needed, core, limit))


def _first_fit(
    tiles: Iterable[Tile],
    needed: dict[Tile, Lifetime],
    placed: dict[Tile, int],
    core: NeuronCore,
    limit: int,
) -> dict[Tile, int] | None:
    """Puts each tile at the lowest address free while it is needed; None if there is none."""
    placed = dict(placed)
    for tile in tiles:
        size, align = extent(tile, core), _alignment(tile, core)
        taken = sorted(
            (start, start + extent(other, core))
            for other, start in placed.items()
            if needed[other].meets(needed[tile])
        )
        offset = 0
        for start, end in taken:
            if start >= offset + size:
                break
            offset = max(offset, -(-end // align) * align)
        if offset + size > limit:
            return None
        placed[tile] = offset
    return placed


def _alignment(tile: Tile, core: NeuronCore) -> int:
    return (
        _SBUF_ALIGNMENT if tile.memory == "sbuf" else min(pitch(tile, core), core.psum_bank_bytes)
    )


def _check_address(
    tile: Tile,
    placed: dict[Tile, int],
    needed: dict[Tile, Lifetime],
    core: NeuronCore,
    limit: int,
) -> None:
    assert tile.address is not None
    first, offset = tile.address
    size = extent(tile, core)
    if (
        offset < 0
        or offset + size > limit
        or first < 0
        or first + tile.partitions > core.partitions
    ):
        raise DoesNotFit(
            f"tile {tile.name} at partition {first}, byte {offset} takes {tile.partitions} "
            f"partitions of {size} bytes; {tile.memory} of {core.name} has {core.partitions} "
            f"of {limit}"
        )
    for other, start in placed.items():
        apart = start + extent(other, core) <= offset or offset + size <= start
        above = other.address is not None and (
            other.address[0] + other.partitions <= first
            or first + tile.partitions <= other.address[0]
        )
        if not apart and not above and needed[other].meets(needed[tile]):
            raise IllegalProgram(
                f"tiles {other.name} (bytes {start} to {start + extent(other, core)}) and "
                f"{tile.name} (bytes {offset} to {offset + size}) overlap in {tile.memory} and "
                f"both are needed at the same time: instructions {needed[other].first} to "
                f"{needed[other].last} and {needed[tile].first} to {needed[tile].last}"
            )


def _excess(
    name: str,
    memory: str,
    tiles: list[Tile],
    needed: dict[Tile, Lifetime],
    core: NeuronCore,
    limit: int,
) -> str:
    """Which tiles are too much, at the place where most is needed at once."""
    place = max(
        (needed[t].first for t in tiles),
        key=lambda k: sum(extent(t, core) for t in tiles if needed[t].first <= k <= needed[t].last),
    )
    alive = [t for t in tiles if needed[t].first <= place <= needed[t].last]
    alive.sort(key=lambda t: -extent(t, core))
    total = sum(extent(t, core) for t in alive)
    largest = ", ".join(
        f"{t.name} {extent(t, core)}"
        + (f" ({t.slots} slots of {t.partition_bytes})" * (t.slots > 1))
        for t in alive[:5]
    )
    return (
        f"{name} needs {total} bytes a partition of {memory} at once, {core.name} has {limit}: "
        f"{largest}{', ...' if len(alive) > 5 else ''}; use fewer slots or smaller tiles"
    )


def replace_tiles(program: Program, tiles: dict[Tile, Tile]) -> Program:
    """The program with other tiles in place of some."""
    return Program(program.name, tuple(replace_in(node, tiles) for node in program.body))


def replace_in(node: Node, tiles: dict[Tile, Tile]) -> Node:
    """An instruction or a loop with other tiles in place of some."""
    if isinstance(node, Loop):
        return dataclasses.replace(
            node, body=tuple(replace_in(inner, tiles) for inner in node.body)
        )
    operands = tuple((name, _moved(access, tiles)) for name, access in node.operands)
    params = tuple(
        (name, _moved(value, tiles) if isinstance(value, Access) else value)
        for name, value in node.params
    )
    return dataclasses.replace(node, operands=operands, params=params)


def _moved(access: Access, tiles: dict[Tile, Tile]) -> Access:
    tile = tiles.get(access.tile)
    return access if tile is None else dataclasses.replace(access, tile=tile)
