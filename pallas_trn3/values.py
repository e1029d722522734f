"""What a kernel computes, as a JAX function: its loops kept as loops, its grid as loops around it.

Refs become values (JAX's discharge of state). A block is cut out of its array in the loop of the
grid that moves it, and put back there if the kernel writes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax._src.pallas import core as pallas_core
from jax._src.pallas import hlo_interpreter
from jax._src.pallas import primitives as pallas_primitives

from . import grid_values
from .exact import exact
from .kernel import Block, Kernel
from .scopes import beginning, discharged, with_scopes


def evaluate(kernel: Kernel, *operands: Any) -> list[Any]:
    """The outputs of a kernel.

    **Arguments:**

    - `operands`: Bounds of the grid that a run decides, scalars, inputs, in this order.
    """
    mapping = kernel.grid_mapping
    found = iter(operands[: mapping.num_dynamic_grid_bounds])
    operands = operands[mapping.num_dynamic_grid_bounds :]
    grid = tuple(g if isinstance(g, int) else next(found) for g in mapping.grid)
    scalars, inputs = operands[: kernel.scalars], operands[kernel.scalars :]
    outputs = _outputs(kernel, operands)
    arrays = [
        _padded(x, block) for x, block in zip((*inputs, *outputs), kernel.blocks, strict=True)
    ]
    body = _Body.of(kernel)
    changed = body.changed(kernel)
    state = _State(
        {k: a for k, a in enumerate(arrays) if k in changed},
        {},
        tuple(scalars),
        tuple(_scratch(kernel, body)),
    )
    final = _Grid(kernel, grid, body, tuple(arrays), changed).run(0, (), state)
    results = [final.arrays.get(k, arrays[k]) for k in range(len(inputs), len(arrays))]
    return [_trimmed(x, block) for x, block in zip(results, kernel.blocks[len(inputs) :])]


@dataclass(frozen=True)
class _Body:
    """A kernel on values: what its Refs hold, in and out."""

    jaxpr: Any
    consts: Sequence[Any]

    @classmethod
    def of(cls, kernel: Kernel) -> _Body:
        with kernel.grid_mapping.trace_env():
            # Semaphores become integers.
            physical, consts = hlo_interpreter.resolve_physical_types(kernel.jaxpr, ())
            jaxpr, consts = discharged(with_scopes(physical), consts)
        return cls(exact(jaxpr), consts)

    def changed(self, kernel: Kernel) -> frozenset[int]:
        """Numbers of the inputs and outputs that the kernel writes."""
        first = kernel.scalars
        pairs = list(zip(self.jaxpr.invars, self.jaxpr.outvars))[first : first + len(kernel.blocks)]
        return frozenset(k for k, (before, after) in enumerate(pairs) if before is not after)

    def __call__(self, *values: Any) -> list[Any]:
        return grid_values.evaluate(self.jaxpr, self.consts, *values)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _State:
    """What changes as the grid goes on."""

    arrays: dict[int, Any]
    blocks: dict[int, Any]
    """Blocks that are loaded."""

    scalars: Sequence[Any]
    scratch: Sequence[Any]


@dataclass(frozen=True)
class _Grid:
    """Runs the body over the grid, a loop a dimension."""

    kernel: Kernel
    grid: tuple[Any, ...]
    body: _Body
    arrays: tuple[Any, ...]
    """Inputs and outputs as they were at first."""

    changed: frozenset[int]

    def run(self, level: int, ids: tuple[Any, ...], state: _State) -> _State:
        """The loops from `level` on, those around it being in these iterations."""
        here = [block for block in self.kernel.blocks if block.level == level]
        starts = {block.number: self.start(block, ids, state) for block in here}
        loaded = {
            block.number: _cut(self.array(block.number, state), block, starts[block.number])
            for block in here
        }
        state = _State(state.arrays, state.blocks | loaded, state.scalars, state.scratch)
        if level == len(self.grid):
            state = self.step(ids, state)
        else:
            state = self.loop(level, ids, state)
        arrays = dict(state.arrays)
        for block in here:
            if block.number in self.changed:
                arrays[block.number] = _put(
                    arrays[block.number], block, starts[block.number], state.blocks[block.number]
                )
        left = {k: v for k, v in state.blocks.items() if k not in loaded}
        return _State(arrays, left, state.scalars, state.scratch)

    def loop(self, level: int, ids: tuple[Any, ...], state: _State) -> _State:
        """One dimension. What it does not change stays outside of it."""
        fixed = {k: v for k, v in state.blocks.items() if k not in self.changed}
        moving = {k: v for k, v in state.blocks.items() if k in self.changed}

        def iteration(i: Any, carry: _State) -> _State:
            whole = _State(carry.arrays, carry.blocks | fixed, carry.scalars, carry.scratch)
            after = self.run(level + 1, (*ids, i), whole)
            kept = {k: after.blocks[k] for k in carry.blocks}
            return _State(after.arrays, kept, after.scalars, after.scratch)

        first = _State(state.arrays, moving, state.scalars, state.scratch)
        count = self.grid[level]
        if isinstance(count, int) and count == 1:
            last = iteration(jnp.int32(0), first)
        else:
            last = lax.fori_loop(jnp.int32(0), jnp.asarray(count, jnp.int32), iteration, first)
        return _State(last.arrays, last.blocks | fixed, last.scalars, last.scratch)

    def step(self, ids: tuple[Any, ...], state: _State) -> _State:
        """The kernel once."""
        blocks = [state.blocks[k] for k in range(len(self.arrays))]
        with self.environment(ids):
            results = self.body(*state.scalars, *blocks, *state.scratch)
        scalars = len(state.scalars)
        after = dict(enumerate(results[scalars : scalars + len(blocks)]))
        return _State(
            state.arrays,
            after,
            tuple(results[:scalars]),
            tuple(results[scalars + len(blocks) :]),
        )

    @contextlib.contextmanager
    def environment(self, ids: tuple[Any, ...]) -> Iterator[None]:
        """What `program_id` sees."""
        mapping = self.kernel.grid_mapping
        if mapping.local_grid_env is not None:
            env = mapping.local_grid_env(ids, self.grid)
        else:
            env = tuple(
                pallas_core.GridAxis(i, n)
                for d, (i, n) in enumerate(zip(ids, self.grid))
                if d not in mapping.vmapped_dims
            )
        with pallas_core.grid_env(env):
            yield

    def array(self, number: int, state: _State) -> Any:
        return state.arrays.get(number, self.arrays[number])

    def start(self, block: Block, ids: tuple[Any, ...], state: _State) -> tuple[Any, ...]:
        """Where the block begins. Loops that it does not depend on count as in their first."""
        every = (*ids, *(jnp.int32(0) for _ in self.grid[len(ids) :]))
        with self.environment(every):
            return tuple(block.mapping.compute_start_indices_interpret(every, *state.scalars))


def _cut(array: Any, block: Block, start: Sequence[Any]) -> Any:
    if block.sizes == array.shape:
        return lax.squeeze(array, block.squeezed)
    found = lax.dynamic_slice(array, [jnp.asarray(s, jnp.int32) for s in start], block.sizes)
    return lax.squeeze(found, block.squeezed)


def _put(array: Any, block: Block, start: Sequence[Any], value: Any) -> Any:
    value = lax.expand_dims(value, block.squeezed)
    if block.sizes == array.shape:
        return value
    return lax.dynamic_update_slice(array, value, [jnp.asarray(s, jnp.int32) for s in start])


def _padded(array: Any, block: Block) -> Any:
    """The array, blocks at its edges made whole; what is behind the edge is undefined."""
    sizes = [n + sum(p) for n, p in zip(array.shape, block.padding)]
    ends = [(p[0], p[1] + -n % b) for n, p, b in zip(sizes, block.padding, block.sizes)]
    if not any(low or high for low, high in ends):
        return array
    nothing = pallas_primitives.uninitialized_value(shape=(), dtype=array.dtype)
    return lax.pad(array, nothing, [(low, high, 0) for low, high in ends])


def _trimmed(array: Any, block: Block) -> Any:
    shape = block.mapping.array_aval.shape
    if array.shape == shape:
        return array
    low = [p[0] for p in block.padding]
    return lax.slice(array, low, [a + n for a, n in zip(low, shape)])


def _outputs(kernel: Kernel, operands: Sequence[Any]) -> list[Any]:
    """What the outputs hold before: the operands that they share memory with, or anything."""
    shared = {output: operand for operand, output in kernel.aliases}
    outputs = [block for block in kernel.blocks if block.role == "output"]
    return [
        operands[shared[k]]
        if k in shared
        else pallas_primitives.uninitialized_value(
            block.mapping.array_aval.shape, block.mapping.array_aval.dtype
        )
        for k, block in enumerate(outputs)
    ]


def _scratch(kernel: Kernel, body: _Body) -> list[Any]:
    own = kernel.jaxpr.invars[kernel.grid_mapping.slice_scratch_ops]
    held = body.jaxpr.invars[kernel.scalars + len(kernel.blocks) :]
    return [beginning(ref.aval, v.aval) for v, ref in zip(held, own)]
