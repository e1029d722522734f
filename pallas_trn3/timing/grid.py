"""A kernel as a program: its grid as loops, its blocks as tiles that DMA loads and stores."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jax_trn3.hardware import TRAINIUM3, Chip
from jax_trn3.isa import Access, Index, Origin, Tile, as_index
from jax_trn3.simulator import DoesNotFit, Program, Timeline, program, simulate
from jax_trn3.simulator.allocation import allocate, replace_tiles
from jax_trn3.simulator.errors import IllegalProgram
from jax_trn3.simulator.liveness import operands

from ..kernel import Block, Kernel
from . import values
from .emission import issue
from .placement import loaded_transposed, summed_in_psum
from .refs import Recut, Ref, Span, access, laid_out, matrix, row_pieces
from .scalars import UNKNOWN, plain
from .semaphores import balanced, without_semaphores
from .survey import Names, new_ref, survey
from .walk import Room, Walker

_ATTEMPTS = 16


@dataclass(frozen=True)
class TimedKernel:
    """A kernel as instructions of one core."""

    kernel: Kernel
    program: Program
    assumptions: tuple[str, ...] = ()
    """What was assumed that the kernel does not say, a sentence each."""


def program_of(kernel: Kernel, chip: Chip = TRAINIUM3) -> TimedKernel:
    """What a kernel puts on the engines and queues of one core.

    Blocks of the grid are loaded and stored by DMA, one ahead of the kernel's steps. Where data
    decide (branches, loops without a known end), what was assumed is said.

    **Raises:** what the table's instructions raise for operands that they cannot have.
    """
    for room in _ROOM:
        timed = _settled(kernel, chip, room)
        try:
            allocate(timed.program, chip.core)
        except DoesNotFit:
            continue
        except IllegalProgram:  # tiles that the author placed; `simulated` says so
            pass
        break
    return timed


_ROOM: tuple[Room, ...] = ("stages", "turns", "once")
"""From what is fastest to what takes least memory."""


def _settled(kernel: Kernel, chip: Chip, room: Room) -> TimedKernel:
    """The kernel's program, its Refs cut where it turns out to index them."""
    recut: dict[str, dict[int, int]] = {}
    for _ in range(_ATTEMPTS):
        build = _Build(kernel, chip, recut)
        build.walker.room = room
        try:
            return build.timed()
        except Recut as again:
            recut.setdefault(again.ref.name, {})[again.axis] = again.piece
    raise ValueError(f"{kernel.name}: the places of {sorted(recut)} do not settle")


def simulated(timed: TimedKernel, chip: Chip = TRAINIUM3, active_cores: int = 1) -> Timeline:
    """A kernel's time on one core of a chip.

    **Raises:** as `jax_trn3.simulator.simulate`: `IllegalInstruction`, `DoesNotFit` (with the
    kernel's names and lines), `IllegalProgram`.
    """
    try:
        return simulate(timed.program, chip, active_cores=active_cores)
    except DoesNotFit as error:
        raise DoesNotFit(f"kernel {_source(timed.kernel)}: {error}") from None


class _Build:
    """One attempt."""

    def __init__(self, kernel: Kernel, chip: Chip, recut: dict[str, dict[int, int]]) -> None:
        self.kernel = kernel
        self.origin = _source(kernel)
        arguments = kernel.jaxpr.invars
        names = _argument_names(kernel)
        self.refs = [replace(new_ref(var, name), given=True) for var, name in zip(arguments, names)]
        blocks = range(kernel.scalars, kernel.scalars + len(kernel.blocks))
        self.blocks = dict(zip((self.refs[k] for k in blocks), kernel.blocks))
        found: Names = survey(kernel.jaxpr, self.refs)
        self.grid = tuple(1 if n is None else n for n in kernel.grid)
        spaces = {ref: getattr(var.aval, "memory_space", None) for var, ref in found.items()}
        for ref, space in spaces.items():
            if ref in self.blocks:
                ref.transposed = loaded_transposed(ref, self.blocks[ref])
            elif summed_in_psum(ref, space):
                ref.memory = "psum"
            ref.recut = recut.get(ref.name, {})
            if ref in self.blocks and ref.memory != "hbm":
                ref.buffers = _buffers(self.blocks[ref], self.grid)
            if ref.memory in ("sbuf", "psum", "hbm"):
                ref.given = True
                laid_out(ref)
        self.walker = Walker(chip, found, origin=self.origin)
        if None in kernel.grid:
            self.walker.assume("bounds of the grid that a run decides are 1")
        self.ids: tuple[Any, ...] = ()

    def timed(self) -> TimedKernel:
        """The kernel's program."""
        self.level(0)
        walker = self.walker
        made = program(self.kernel.name, walker.nodes)
        more = {tile: replace(tile, slots=n) for tile, n in walker.slots.items() if n > tile.slots}
        made = _beginning(replace_tiles(made, more) if more else made)
        if walker.assumptions and not balanced(made):
            walker.assume("data decide who signals semaphores: they are left out")
            made = without_semaphores(made)
        return TimedKernel(self.kernel, made, tuple(walker.assumptions))

    def level(self, level: int) -> None:
        """The loops from `level` on."""
        here = [
            (ref, block)
            for ref, block in self.blocks.items()
            if block.level == level and ref.memory != "hbm" and ref.uses
        ]
        turn = self.turn()
        for ref, block in here:
            ref.turn = turn
            if block.role == "input":
                self.transfer(ref, block, turn, load=True)
        if level == len(self.grid):
            self.step()
        else:
            self.walker.loop(self.grid[level], functools.partial(self.iteration, level))
        for ref, block in here:
            ref.turn = turn
            if block.role == "output" or ref.written:
                self.transfer(ref, block, turn, load=False)

    def iteration(self, level: int, index: Any) -> None:
        """One step of a dimension."""
        outer, self.ids = self.ids, (*self.ids, index)
        try:
            self.level(level + 1)
        finally:
            self.ids = outer

    def turn(self) -> Index:
        """How often the loops around have gone on."""
        turn = as_index(0)
        for count, index in zip(self.grid, self.ids):
            turn = turn * count + as_index(index)
        return turn

    def step(self) -> None:
        """The kernel once."""
        walker, kernel = self.walker, self.kernel
        mapping = kernel.grid_mapping
        walker.ids, walker.grid = self.ids, self.grid
        if mapping.local_grid_env is not None:
            env = _environment(mapping, self.ids, self.grid)
            walker.ids, walker.grid = tuple(a for a, _ in env), tuple(n for _, n in env)
        elif mapping.vmapped_dims:
            own = [d for d in range(len(self.grid)) if d not in mapping.vmapped_dims]
            walker.ids = tuple(self.ids[d] for d in own)
            walker.grid = tuple(self.grid[d] for d in own)
        walker.run(kernel.jaxpr, (), self.refs)

    def transfer(self, ref: Ref, block: Block, turn: Index, load: bool) -> None:
        """Loads or stores a block."""
        walker = self.walker
        what = "load" if load else "store"
        origin, walker.origin = walker.origin, replace(self.origin, operation=f"{what} {ref.name}")
        queue = f"dma:{'sync' if load else 'scalar'}.{ref.name}"
        blocks = math.prod(self.grid[: block.level])
        pieces = _near(ref)
        for near in pieces:
            far = _far(ref, block, near, turn, blocks, len(pieces))
            if ref.transposed:
                issue(walker, "dma_transpose", near, far, engine=queue)
                continue
            pair = (near, far) if load else (far, near)
            values.transfer(walker, *pair, queue)
        walker.origin = origin


def _beginning(made: Program) -> Program:
    """The program, tiles that are not written as they are read holding something from the start."""
    boxes: dict[Tile, tuple[set[Any], set[Any]]] = {}
    for instruction in made.instructions():
        for found, reads in operands(instruction):
            if found.memory != "hbm" and not found.tile.given:
                written, read = boxes.setdefault(found.tile, (set(), set()))
                (read if reads else written).add((found.start, found.size, found.step))
    fresh = {
        tile: replace(tile, given=True)
        for tile, (written, read) in boxes.items()
        if not read <= written and not any(size == tile.shape for _, size, _ in written)
    }
    return replace_tiles(made, fresh) if fresh else made


def _near(ref: Ref) -> list[Access]:
    """A block in SBUF: as few transfers as there are ways to say it."""
    keys = tuple(Span(0, n) for n in ref.shape)
    assert ref.tile is not None
    if not ref.rows:
        return [access(ref, keys)]
    pieces = row_pieces(ref, keys)
    if ref.transposed:
        return pieces
    full = [p for p in pieces if p.size == pieces[0].size]
    together = Access(
        pieces[0].tile, pieces[0].slot, len(full), pieces[0].start, pieces[0].size, pieces[0].step
    )
    return [together, *pieces[len(full) :]]


def _far(ref: Ref, block: Block, near: Access, turn: Index, blocks: int, pieces: int) -> Access:
    """The block in HBM: rows of the array's, a slot for each block."""
    array = block.mapping.array_aval.shape
    if ref.transposed:
        high, wide = ref.shape[-2], near.partitions
        shape = (max(high, math.prod(array[:-1])), array[-1])
        tile = Tile(f"{ref.name} in hbm", "hbm", shape, near.dtype, given=True)
        return Access(tile, Index(), 1, (0, 0), (high, wide), (1, 1))
    rows, columns = matrix(array) if len(array) > 1 else (array[0] if array else 1, 1)
    sizes = block.sizes
    wide = sizes[-1] if len(array) > 1 else near.elements
    columns = columns if len(array) > 1 else max(rows, near.elements)
    if near.dtype.endswith("_x4") and wide % 4 == 0 and near.elements * 4 != 0:
        wide, columns = wide // 4 or 1, columns // 4 or 1
    if near.elements % wide:
        wide = columns = near.elements
    high = near.elements // wide
    shape = (max(high, math.prod(array[:-1] or (1,))), max(columns, wide))
    slots = blocks if block.role == "output" else 1
    tile = Tile(f"{ref.name} in hbm", "hbm", shape, near.dtype, slots, given=True)
    return Access(tile, turn if slots > 1 else Index(), 1, (0, 0), (high, wide), (1, 1))


def _buffers(block: Block, grid: Sequence[int]) -> int:
    mode = block.mapping.pipeline_mode
    asked = getattr(mode, "buffer_count", None)
    if isinstance(asked, int):
        return asked
    return 2 if math.prod(grid[: block.level]) > 1 else 1


def _environment(mapping: Any, ids: Any, grid: Any) -> list[tuple[Any, Any]]:
    """What `program_id` and `num_programs` say where JAX has its own answer."""
    try:
        axes = mapping.local_grid_env(tuple(map(plain, ids)), grid)
        return [(axis.index, axis.size) for axis in axes]
    except TypeError:  # it computes with what only a run knows
        return [(UNKNOWN, n) for n in grid]


_PLACE = re.compile(r" at (?P<file>.+):(?P<line>\d+)$")


def _source(kernel: Kernel) -> Origin:
    """Where the kernel's function begins."""
    text = str(getattr(kernel.jaxpr.debug_info, "func_src_info", "") or "")
    found = _PLACE.search(text)
    return (
        Origin(found["file"], int(found["line"]), kernel.name)
        if found
        else Origin("", 0, kernel.name)
    )


def _argument_names(kernel: Kernel) -> list[str]:
    """What the kernel's author calls its Refs."""
    count = len(kernel.jaxpr.invars)
    names = list(getattr(kernel.jaxpr.debug_info, "arg_names", None) or ())
    if len(names) != count:
        names = [f"argument {k}" for k in range(count)]
    return [name or f"argument {k}" for k, name in enumerate(names)]
