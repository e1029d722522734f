"""A `pallas_call` as data: what its rules, executors and views read."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from jax._src import core as jax_core
from jax._src.pallas import core as pallas_core
from jax._src.pallas import primitives as pallas_primitives

from .memory import Memory, memory_of
from .rewrite import rewritten


@dataclass(frozen=True)
class Block:
    """An array of the call, and how the grid cuts it."""

    number: int
    """Among inputs and outputs together, inputs first."""

    role: str
    """"input" or "output"."""

    mapping: Any
    """JAX's BlockMapping."""

    level: int
    """Loops of the grid, outermost first, that its place depends on; it changes with the last."""

    @property
    def memory(self) -> Memory:
        """Where the kernel finds it."""
        return memory_of(self.mapping.transformed_block_aval)

    @property
    def name(self) -> str:
        """What the kernel's author calls it, as far as JAX knows."""
        return str(self.mapping.origin) or f"{self.role} {self.number}"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the block in each dimension of the array; squeezed ones are 1."""
        return tuple(pallas_core._get_block_shape(self.mapping.block_shape))

    @property
    def squeezed(self) -> tuple[int, ...]:
        """Dimensions of the array that the kernel does not see."""
        shape = self.mapping.block_shape
        return tuple(k for k, b in enumerate(shape) if isinstance(b, pallas_core.Squeezed))

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """Of the array, before and after, in each dimension (`pl.Element`)."""
        shape = self.mapping.block_shape
        return tuple(b.padding if isinstance(b, pallas_core.Element) else (0, 0) for b in shape)


@dataclass(frozen=True, eq=False)
class Kernel:
    """What `pallas_call` was given, its kernel traced."""

    name: str
    jaxpr: Any
    """On Refs: scalars, inputs, outputs, scratch, in this order."""

    grid_mapping: Any
    """JAX's GridMapping."""

    aliases: tuple[tuple[int, int], ...] = ()
    """(operand, output) that share memory; scalars count as operands."""

    params: Any = None
    """Compiler parameters: ours, JAX's for another platform, or None."""

    @property
    def grid(self) -> tuple[int | None, ...]:
        """Steps in each dimension; None where a run decides."""
        return tuple(g if isinstance(g, int) else None for g in self.grid_mapping.grid)

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Inputs and outputs."""
        inputs = self.grid_mapping.num_inputs
        return tuple(
            Block(k, "input" if k < inputs else "output", mapping, self._level(mapping))
            for k, mapping in enumerate(self.grid_mapping.block_mappings)
        )

    @property
    def scalars(self) -> int:
        """How many operands the index maps read (scalar prefetch)."""
        return int(self.grid_mapping.num_index_operands)

    def _level(self, mapping: Any) -> int:
        jaxpr = mapping.index_map_jaxpr.jaxpr
        used = needed(jaxpr)
        return max((d + 1 for d in range(len(self.grid)) if jaxpr.invars[d] in used), default=0)


def needed(jaxpr: Any) -> set[Any]:
    """The variables that its results depend on."""
    wanted = {v for v in jaxpr.outvars if isinstance(v, jax_core.Var)}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or wanted & set(equation.outvars):
            wanted |= {v for v in equation.invars if isinstance(v, jax_core.Var)}
    return wanted


def kernel_of(
    *, jaxpr: Any, grid_mapping: Any, input_output_aliases: Any, compiler_params: Any, name: Any,
    **_: Any,
) -> Kernel:  # fmt: skip
    """The kernel of a `pallas_call` equation, from its parameters."""
    called = name or getattr(jaxpr.debug_info, "func_name", None) or "kernel"
    names = tuple(grid_mapping.grid_names or ())
    numbered = rewritten(jaxpr, functools.partial(_numbered, names)) if any(names) else jaxpr
    return Kernel(str(called), numbered, grid_mapping, tuple(input_output_aliases), compiler_params)


def _numbered(names: tuple[Any, ...], equation: Any) -> list[Any] | None:
    """`axis_index` of a named dimension of the grid is its `program_id`."""
    axis = equation.params.get("axis_name")
    if equation.primitive.name != "axis_index" or axis not in names:
        return None
    params = {"axis": names.index(axis)}
    return [equation.replace(primitive=pallas_primitives.program_id_p, params=params)]
