"""A kernel step by step: its grid as loops, blocks copied in and out as the grid goes on.

`values.evaluate` says the same in JAX; the two must agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax._src.pallas import core as pallas_core

from ..kernel import Block, Kernel
from . import control, instructions, references, semaphores  # noqa: F401 (they enter rules)
from .checks import Checks
from .machine import Machine
from .ranks import Ranks, together
from .storage import Partly, Storage, allocate, uninitialized


def run(kernel: Kernel, operands: Sequence[Any], *, check: bool = False) -> list[np.ndarray]:
    """The outputs of a kernel.

    **Arguments:**

    - `operands`: Bounds of the grid that a run decides, scalars, inputs, in this order.
    - `check`: Whether to look for what a kernel must not do.

    **Raises:** with `check` a `KernelError` (errors.py) for the first wrong thing.
    """
    with jax.default_device(jax.devices("cpu")[0]):
        machine = Machine(kernel, Checks(kernel) if check else None)
        running = _Run(machine, [np.asarray(x) for x in operands])
        results = _alone(running.whole())
        return [np.array(x) for x in results]


def run_together(
    kernel: Kernel,
    operands: Sequence[Sequence[Any]],
    axes: Mapping[Any, int],
    *,
    check: bool = False,
) -> list[list[np.ndarray]]:
    """The outputs of a kernel on each device of a mesh.

    **Arguments:**

    - `operands`: As of `run`, for each device.
    - `axes`: Sizes of the mesh's axes by name; devices are numbered with the last one fastest.

    **Raises:** as `run`; `EndlessWait` for devices that wait for each other in vain.
    """
    ranks = Ranks(axes)
    if len(operands) != ranks.size:
        raise ValueError(
            f"operands of {len(operands)} devices; axes {dict(axes)} have {ranks.size}"
        )
    with jax.default_device(jax.devices("cpu")[0]):
        for rank, own in enumerate(operands):
            machine = Machine(kernel, Checks(kernel) if check else None)
            machine.ranks, machine.rank = ranks, rank
            ranks.runs.append(_Run(machine, [np.asarray(x) for x in own]))
        results = together([one.whole() for one in ranks.runs], ranks, kernel.name)
        return [[np.array(x) for x in one] for one in results]


def _alone(running: Generator[Any, None, Any]) -> Any:
    """A program to its end, nobody being there to wait for."""
    try:
        while True:
            next(running)
    except StopIteration as end:
        return end.value


class _Run:
    """The grid of one kernel."""

    def __init__(self, machine: Machine, operands: Sequence[np.ndarray]):
        self.machine, self.kernel = machine, machine.kernel
        mapping = self.kernel.grid_mapping
        bounds = iter(operands[: mapping.num_dynamic_grid_bounds])
        self.grid = tuple(g if isinstance(g, int) else int(next(bounds)) for g in mapping.grid)
        operands = operands[mapping.num_dynamic_grid_bounds :]
        names = [*self._names(), *[""] * len(self.kernel.jaxpr.invars)]
        first = self.kernel.scalars
        self.scalars = [
            Storage(names[k], "sbuf", x) for k, x in enumerate(operands[:first])
        ]  # fmt: skip
        self.names = names[first : first + len(self.kernel.blocks)]
        self.arrays = [self._padded(*pair) for pair in self._arrays(operands)]
        scratch = self.kernel.jaxpr.invars[mapping.slice_scratch_ops]
        named = names[first + len(self.kernel.blocks) :]
        self.scratch = [
            allocate(name or f"scratch {k}", v.aval, self._origin(name or f"scratch {k}"))
            for k, (name, v) in enumerate(zip(named, scratch))
        ]
        self.blocks: dict[int, Storage] = {}

    def whole(self) -> Generator[Any, None, list[Any]]:
        """The kernel from its first step to its last."""
        yield from self.loop(0, ())
        outputs = [b for b in self.kernel.blocks if b.role == "output"]
        if self.machine.checks:
            self.machine.checks.ended(self, outputs)
        return [_trimmed(self.arrays[b.number].read(), b) for b in outputs]

    def loop(self, level: int, ids: tuple[int, ...]) -> Generator[Any, None, None]:
        """The loops from `level` on, those around it being in these iterations."""
        here = []
        for block in self.kernel.blocks:
            if block.level == level:
                here.append((block, (yield from self.start(block, ids))))
        for block, start in here:
            self.blocks[block.number] = self._cut(block, start, ids)
        if level == len(self.grid):
            self.machine.axes = self.axes(ids)
            blocks = [self.blocks[k] for k in range(len(self.arrays))]
            refs = [*self.scalars, *blocks, *self.scratch]
            yield from self.machine.run(self.kernel.jaxpr, (), refs)
        else:
            for i in range(self.grid[level]):
                yield from self.loop(level + 1, (*ids, i))
        for block, start in here:
            self._put(block, start)

    def start(self, block: Block, ids: tuple[int, ...]) -> Generator[Any, None, tuple[int, ...]]:
        """Where a block begins. Loops that it does not depend on count as in their first."""
        every = (*ids, *[0] * (len(self.grid) - len(ids)))
        self.machine.axes = self.axes(every)
        closed = block.mapping.index_map_jaxpr
        jaxpr, consts = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
        inputs = [*map(np.int32, every), *self.scalars]
        found = yield from self.machine.run(jaxpr, consts, inputs)
        numbers = [self.machine.number(x, None, f"a block index of {block.name}") for x in found]
        shape = block.mapping.block_shape
        steps = [b.block_size if isinstance(b, pallas_core.Blocked) else 1 for b in shape]
        return tuple(n * step for n, step in zip(numbers, steps))

    def axes(self, ids: tuple[int, ...]) -> Sequence[Any]:
        """What `program_id` and `num_programs` see."""
        mapping = self.kernel.grid_mapping
        if mapping.local_grid_env is not None:
            return list(mapping.local_grid_env(ids, self.grid))
        return [
            pallas_core.GridAxis(i, n)
            for d, (i, n) in enumerate(zip(ids, self.grid))
            if d not in mapping.vmapped_dims
        ]

    def _cut(self, block: Block, start: tuple[int, ...], ids: tuple[int, ...]) -> Storage:
        array = self.arrays[block.number]
        if self.machine.checks:
            self.machine.checks.block(self, block, start, ids)
        if block.sizes == array.shape and not block.squeezed:
            return array
        found = array.read((_key(block, array.shape, start),))
        value, shadow = (found.value, found.shadow) if type(found) is Partly else (found, None)
        cut = Storage(array.name, block.memory, np.asarray(value), shadow)
        cut.output = array.output
        return cut

    def _put(self, block: Block, start: tuple[int, ...]) -> None:
        array, cut = self.arrays[block.number], self.blocks.pop(block.number)
        if self.machine.checks and cut is not array:
            self.machine.checks.moved_on(cut, block)
        if cut.written and cut is not array:
            array.write(cut.read(), (_key(block, array.shape, start),))

    def _names(self) -> Sequence[str]:
        return getattr(self.kernel.jaxpr.debug_info, "arg_names", None) or ()

    def _origin(self, name: str) -> int:
        checks = self.machine.checks
        return checks.allocated(name, None) if checks else 0

    def _arrays(self, operands: Sequence[np.ndarray]) -> Iterator[tuple[Block, Any, int]]:
        """Blocks, what their arrays hold at first, and where undefined elements come from."""
        shared = {output: operand for operand, output in self.kernel.aliases}
        inputs = operands[self.kernel.scalars :]
        for block in self.kernel.blocks:
            if block.role == "input":
                yield block, inputs[block.number], 0
                continue
            output = block.number - len(inputs)
            aval = block.mapping.array_aval
            if output in shared:
                yield block, operands[shared[output]], 0
            else:
                checks = self.machine.checks
                origin = checks.output(self.names[block.number], output) if checks else 0
                yield block, uninitialized(aval.shape, aval.dtype), origin

    def _padded(self, block: Block, array: np.ndarray, origin: int) -> Storage:
        """The array, blocks at its edges made whole; what is behind the edge is undefined."""
        name = self.names[block.number] or block.name
        sizes = [n + sum(p) for n, p in zip(array.shape, block.padding)]
        ends = [(p[0], p[1] + -n % b) for n, p, b in zip(sizes, block.padding, block.sizes)]
        checks = self.machine.checks
        shadow = np.full(array.shape, origin, np.int32) if origin else None
        if any(low or high for low, high in ends):
            if checks:
                behind = checks.padding(name, array.shape)
                inside = np.zeros(array.shape, np.int32) if shadow is None else shadow
                shadow = np.pad(inside, ends, constant_values=behind)
            nothing = uninitialized((), array.dtype)
            array = np.pad(array, ends, constant_values=nothing)
        held = Storage(name, block.memory, array, shadow)
        held.output = block.role == "output"
        return held


def _key(block: Block, shape: tuple[int, ...], start: tuple[int, ...]) -> tuple[Any, ...]:
    """The block's place in its array, moved inside as XLA does."""
    first = [min(max(s, 0), n - b) for s, n, b in zip(start, shape, block.sizes)]
    return tuple(
        s if axis in block.squeezed else slice(s, s + b)
        for axis, (s, b) in enumerate(zip(first, block.sizes))
    )


def _trimmed(found: Any, block: Block) -> Any:
    value = found.value if type(found) is Partly else found
    shape = block.mapping.array_aval.shape
    low = [p[0] for p in block.padding]
    return np.asarray(value)[tuple(slice(a, a + n) for a, n in zip(low, shape))]
