"""Kernels of functions, and their time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import core as jax_core

from jax_trn3.hardware import TRAINIUM3, Chip
from jax_trn3.simulator import Timeline

from ..kernel import Kernel, kernel_of
from .grid import program_of, simulated


def kernel_of_function(function: Callable[..., Any], *args: Any) -> Kernel:
    """The one kernel that a function calls.

    **Arguments:**

    - `function`: Calls `pl.pallas_call` once, anywhere in it.
    - `args`: Arrays or `jax.ShapeDtypeStruct`, or trees of them.

    **Raises:** `ValueError` if it calls none, or several different ones.
    """
    traced = jax.make_jaxpr(function)(*args)
    found = list(_kernels(traced.jaxpr))
    if len(found) != 1:
        names = ", ".join(kernel.name for kernel in found)
        raise ValueError(
            f"{getattr(function, '__name__', function)} calls {len(found)} kernels"
            + (f" ({names}); " if found else "; ")
            + "one is expected"
        )
    return found[0]


def timeline_of(
    function: Callable[..., Any], *args: Any, chip: Chip = TRAINIUM3, active_cores: int = 1
) -> Timeline:
    """The simulated time of the one kernel that a function calls, on one core.

    **Arguments:**

    - `args`: Arrays or `jax.ShapeDtypeStruct`, or trees of them.
    - `active_cores`: Cores that use the same HBM stack at the same time, this one included.

    **Raises:** as `kernel_of_function`; as `jax_trn3.simulator.simulate`.
    """
    kernel = kernel_of_function(function, *args)
    return simulated(program_of(kernel, chip), chip, active_cores)


def _kernels(jaxpr: Any) -> Iterator[Kernel]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield kernel_of(**equation.params)
            continue
        for value in equation.params.values():
            for one in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(one, "jaxpr", one)
                if isinstance(inner, jax_core.Jaxpr):
                    yield from _kernels(inner)
