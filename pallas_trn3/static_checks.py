"""What a kernel's text says of its tiles: whether they fit, lie apart, and can be copied."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jax_trn3.hardware import NeuronCore
from jax_trn3.isa import IllegalInstruction

from .accesses import core
from .collectives import collective_p
from .errors import MemoryOverflow, OverlappingTiles
from .instruction import instruction_p
from .kernel import Block, Kernel
from .memory import memory_of
from .rewrite import programs
from .source import line


@dataclass(frozen=True)
class _Tile:
    """Memory that lives while something of the kernel runs."""

    name: str
    memory: str
    shape: tuple[int, ...]
    dtype: Any
    buffers: int
    address: tuple[int, int] | None
    spread: bool = False
    """Whether no instruction sees it: then no dimension need lie over partitions."""

    @property
    def rows(self) -> int:
        """Rows of one buffer; they lie over partitions."""
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else min(self.elements, 128)

    @property
    def elements(self) -> int:
        """Of one buffer."""
        return math.prod(self.shape)

    def bytes(self, partitions: int) -> int:
        """In each partition, at least: rows beyond the partitions come behind each other."""
        if self.spread:
            return self.buffers * -(-self.elements // partitions) * np.dtype(self.dtype).itemsize
        columns = -(-self.elements // max(self.rows, 1))
        return self.buffers * -(-self.rows // partitions) * columns * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        times = f"{self.buffers} x " if self.buffers > 1 else ""
        return f"{self.name} {times}{np.dtype(self.dtype).name}{list(self.shape)}"


def check(kernel: Kernel) -> None:
    """Holds a kernel's tiles against the memories of a NeuronCore.

    **Raises:** `MemoryOverflow` for tiles that do not fit, `OverlappingTiles` for two that live at
    the same time in one place, `IllegalInstruction` for asynchronous copies from or to PSUM.
    """
    blocks = [_of_block(block, kernel) for block in kernel.blocks if block.memory == "sbuf"]
    scratch = kernel.jaxpr.invars[kernel.grid_mapping.slice_scratch_ops]
    names = getattr(kernel.jaxpr.debug_info, "arg_names", None) or ()
    named = [*names, *[""] * len(kernel.jaxpr.invars)][len(kernel.jaxpr.invars) - len(scratch) :]
    spread = not issues(kernel.jaxpr)
    live = [*(replace(block, spread=spread) for block in blocks), *_tiles(scratch, named, spread)]
    where = str(getattr(kernel.jaxpr.debug_info, "func_src_info", kernel.name))
    _hold(live, f"kernel {where}", core())
    for tiles, equation in _scopes(kernel.jaxpr, live, spread):
        _hold(tiles, f"kernel {kernel.name}, {line(equation)}", core())
    _copies(kernel.name, kernel.jaxpr)


def issues(jaxpr: Any) -> bool:
    """Whether there are engines' instructions in a kernel, or arrays alone."""
    ours = (instruction_p, collective_p)
    return any(e.primitive in ours or any(map(issues, programs(e))) for e in jaxpr.eqns)


def _copies(kernel: str, jaxpr: Any) -> None:
    """Asynchronous copies are DMA's (nki.isa dma_copy: no PSUM since NKI 0.3)."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dma_start":
            ends = equation.params["tree"].unflatten(equation.invars)[:2]
            for what, end in zip(("source", "target"), ends):
                if memory_of(getattr(end, "ref", end).aval) == "psum":
                    raise IllegalInstruction(
                        f"kernel {kernel}, {line(equation)}: its {what} lies in psum; DMA reaches "
                        "sbuf and hbm. Copy between psum and sbuf with the vector or scalar engine"
                    )
        for inner in programs(equation):
            _copies(kernel, inner)


def _of_block(block: Block, kernel: Kernel) -> _Tile:
    """A block is loaded while the one before is used, where the grid changes it."""
    aval = block.mapping.transformed_block_aval
    asked = getattr(block.mapping.pipeline_mode, "buffer_count", None)
    steps = [n or 2 for n in kernel.grid[: block.level]]
    buffers = asked if isinstance(asked, int) else 2 if math.prod(steps) > 1 else 1
    return _Tile(block.name, "sbuf", tuple(aval.shape), aval.dtype, buffers, None)


def _tiles(variables: Sequence[Any], names: Sequence[str], spread: bool) -> list[_Tile]:
    found = []
    for k, variable in enumerate(variables):
        aval = variable.aval
        memory = memory_of(aval)
        if memory not in ("sbuf", "psum"):
            continue
        space = getattr(aval, "memory_space", None)
        buffers = getattr(space, "buffers", 1)
        shape = tuple(aval.shape)[1:] if buffers > 1 else tuple(aval.shape)
        name = names[k] if k < len(names) and names[k] else f"scratch {k}"
        address = getattr(space, "address", None)
        anywhere = spread and address is None and memory == "sbuf"
        found.append(_Tile(name, memory, shape, aval.dtype, buffers, address, anywhere))
    return found


def _scopes(jaxpr: Any, live: list[_Tile], spread: bool) -> Iterator[tuple[list[_Tile], Any]]:
    """What lives in each `run_scoped`."""
    for equation in jaxpr.eqns:
        inside = live
        if equation.primitive.name == "run_scoped":
            body = equation.params["jaxpr"]
            names = getattr(body.debug_info, "arg_names", None) or ()
            inside = [*live, *_tiles(body.invars, names, spread)]
            yield inside, equation
        for program in programs(equation):
            yield from _scopes(program, inside, spread)


def _hold(tiles: Sequence[_Tile], where: str, core: NeuronCore) -> None:
    limits = {"sbuf": core.sbuf_usable_partition_bytes, "psum": core.psum_partition_bytes}
    for memory, limit in limits.items():
        here = [tile for tile in tiles if tile.memory == memory]
        _apart(here, where, core)
        for tile in here:
            _at_its_address(tile, where, limit, core)
        needed = sum(tile.bytes(core.partitions) for tile in here)
        if needed > limit:
            largest = sorted(here, key=lambda t: -t.bytes(core.partitions))[:6]
            sizes = ", ".join(f"{t}: {t.bytes(core.partitions)}" for t in largest)
            raise MemoryOverflow(
                f"{where}: its tiles need {needed} bytes in each partition of {memory}, which has "
                f"{int(limit)} for programs; the largest are {sizes}. Take smaller blocks or fewer "
                "buffers"
            )


def _at_its_address(tile: _Tile, where: str, limit: int, core: NeuronCore) -> None:
    if tile.address is None:
        return
    partition, byte = tile.address
    rows, size = min(tile.rows, core.partitions), tile.bytes(core.partitions)
    if partition + rows > core.partitions or byte + size > limit or min(tile.address) < 0:
        raise MemoryOverflow(
            f"{where}: {tile} at address {tile.address} covers partitions {partition} to "
            f"{partition + rows - 1} and bytes {byte} to {byte + size - 1} of {tile.memory}, which "
            f"has {int(core.partitions)} partitions of {int(limit)} bytes for programs"
        )


def _apart(tiles: Sequence[_Tile], where: str, core: NeuronCore) -> None:
    placed = [tile for tile in tiles if tile.address is not None]
    for k, one in enumerate(placed):
        for other in placed[:k]:
            spans = [_span(tile, core) for tile in (other, one)]
            if all(max(a[0], b[0]) < min(a[1], b[1]) for a, b in zip(*spans)):
                raise OverlappingTiles(
                    f"{where}: tiles overlap in {one.memory} while both live: {other} at address "
                    f"{other.address} and {one} at address {one.address}, of "
                    f"{other.bytes(core.partitions)} and {one.bytes(core.partitions)} bytes a "
                    "partition; move one of them, or let it have no address"
                )


def _span(tile: _Tile, core: NeuronCore) -> tuple[tuple[int, int], tuple[int, int]]:
    partition, byte = tile.address or (0, 0)
    rows = min(tile.rows, core.partitions)
    return (partition, partition + rows), (byte, byte + tile.bytes(core.partitions))
