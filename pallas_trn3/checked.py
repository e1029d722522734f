"""A kernel under the checks, within a compiled program: the reference executor, called back."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import lax
from jax._src import core as jax_core

from jax_trn3.isa import IllegalInstruction

from .errors import KernelError
from .kernel import Kernel
from .reference import run, run_together
from .rewrite import programs


def evaluate(kernel: Kernel, *operands: Any) -> list[Any]:
    """The outputs of a kernel, as `values.evaluate` has them, by a callback to this process.

    A kernel in which devices meet (collectives, `axis_index`, copies to others) gets the operands
    of all of them, runs on each, and returns one's own outputs.

    **Raises:** where the program runs, JAX's error of a callback that failed, whose text has the
    `KernelError`'s.
    """
    outputs = [block.mapping.array_aval for block in kernel.blocks if block.role == "output"]
    shapes = tuple(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in outputs)
    bound = {k: n for k, n in jax_core.get_axis_env().axis_sizes.items() if k is not None}
    axes = {k: n for k, n in bound.items() if k in _axes(kernel.jaxpr, bound)}
    if not axes:
        return list(jax.pure_callback(functools.partial(_alone, kernel), shapes, *operands))
    names = tuple(axes)
    everybody = [lax.all_gather(x, names) for x in operands]
    called = functools.partial(_together, kernel, axes)
    return list(jax.pure_callback(called, shapes, lax.axis_index(names), *everybody))


def _axes(jaxpr: Any, bound: Mapping[Any, int]) -> frozenset[Any]:
    """The mesh axes along which devices meet in a kernel; all, if they reach for each other."""
    found: set[Any] = set()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "trn3_collective":
            found.update(equation.params["axes"])
        elif name == "axis_index":
            named = equation.params["axis_name"]
            found.update(named if isinstance(named, tuple) else (named,))
        elif _reaches_others(equation):
            found.update(bound)
        for inner in programs(equation):
            found |= _axes(inner, bound)
    return frozenset(found)


def _reaches_others(equation: Any) -> bool:
    name, params = equation.primitive.name, equation.params
    if name in ("dma_start", "dma_wait"):
        return params["tree"].unflatten(equation.invars)[4] is not None
    if name == "semaphore_signal":
        return params["args_tree"].unflatten(equation.invars)[3] is not None
    return False


def _alone(kernel: Kernel, *operands: Any) -> tuple[np.ndarray, ...]:
    try:
        return tuple(run(kernel, [np.asarray(x) for x in operands], check=True))
    except (KernelError, IllegalInstruction) as error:
        raise type(error)(str(error)) from None  # the kernel's line is what counts, not ours


def _together(
    kernel: Kernel, axes: Mapping[Any, int], own: Any, *operands: Any
) -> tuple[np.ndarray, ...]:
    everybody = [np.asarray(x) for x in operands]
    each = [[x[rank] for x in everybody] for rank in range(len(everybody[0]))]
    try:
        return tuple(run_together(kernel, each, axes, check=True)[int(own)])
    except (KernelError, IllegalInstruction) as error:
        raise type(error)(str(error)) from None


class _Raised(logging.Filter):
    """What a kernel does wrong is raised; JAX need not write it to stderr as well."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, (KernelError, IllegalInstruction))


logging.getLogger("jax._src.callback").addFilter(_Raised())
