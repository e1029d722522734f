"""Operations of a kernel's own on GpSimdE, whose eight processors run what is programmed for them.

>>> def swish(x, *, beta):
...     return x * jax.nn.sigmoid(beta * x)
>>> swish = pltrn.gpsimd_operation(swish, cycles=2.5)
>>> swish(y_ref, x_ref, beta=1.702)  # in a kernel
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from jax_trn3 import isa
from jax_trn3.hardware import NeuronCore
from jax_trn3.isa.dtypes import ANY
from jax_trn3.isa.spec import reads, writes

from .operations import operation_of

_UNPACKED = tuple(dtype for dtype in ANY if not dtype.endswith("_x4"))


def gpsimd_operation(
    function: Callable[..., Any],
    *,
    cycles: float | Callable[..., float],
    name: str | None = None,
    since: int = 2,
) -> Callable[..., None]:
    """An operation on GpSimdE that a kernel issues like those of the instruction set.

    **Arguments:**

    - `function`: What it computes, in JAX: of arrays [partitions, ...], as many as it has
      positional arguments; keyword-only arguments are constants of the operation. It returns an
      array with as many elements as the destination, which is cast to the destination's dtype.
    - `cycles`: What it costs. A number: cycles for each element of a partition of the destination,
      after the engine's start. A function: of the shapes of destination and sources, all cycles.
    - `name`: By which profiles and errors call it; the function's by default.
    - `since`: Generation of NeuronCore that can run it first.

    **Returns:** `operation(dst_ref, *sources, engine=, wait=, signal=, **constants)` for kernels.
    All operands lie in SBUF, which is what GpSimdE reaches, and have no packed dtype.

    **Raises:** `TypeError` for a function with `*args` or `**kwargs`; `ValueError` for a name that
    is taken, or for cycles that are negative.
    """
    called = name or function.__name__
    if called in isa.TABLE or called in isa.CUSTOM:
        raise ValueError(f"there is an operation {called!r} already; give this one another name=")
    if not called.isidentifier():
        raise ValueError(f"name {called!r} is no identifier; give it a name=")
    if not callable(cycles) and cycles < 0:
        raise ValueError(f"{called}: cycles={cycles}; at least 0")
    sources, constants = _arguments(called, function)
    spec = isa.InstructionSpec(
        called,
        ("gpsimd",),
        (
            writes("dst", "sbuf", dtypes=_UNPACKED),
            *(reads(source, "sbuf", dtypes=_UNPACKED) for source in sources),
        ),
        function,
        _cost(sources, cycles),
        "the program's own",
        since=since,
        params=tuple(constants),
        required=tuple(k for k, default in constants.items() if default is inspect.Parameter.empty),
    )
    spec.__dict__["__doc__"] = function.__doc__ or "An operation of the program's own."
    isa.CUSTOM[called] = spec
    return operation_of(spec)


def _arguments(name: str, function: Callable[..., Any]) -> tuple[list[str], dict[str, Any]]:
    """Names of the sources, and the constants with their defaults."""
    sources, constants = [], {}
    for argument in inspect.signature(function).parameters.values():
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            raise TypeError(f"{name}: {argument} stands for any number of arguments; name them all")
        if argument.kind is argument.KEYWORD_ONLY:
            constants[argument.name] = argument.default
        else:
            sources.append(argument.name)
    if taken := {"dst", "engine", "wait", "signal", "state", *isa.spec.SUPPLIED} & {
        *sources,
        *constants,
    }:
        raise TypeError(f"{name}: an argument called {', '.join(sorted(taken))}; rename it")
    return sources, constants


def _cost(sources: list[str], cycles: float | Callable[..., float]) -> isa.spec.Cost:
    def cost(instruction: isa.Instruction, core: NeuronCore) -> isa.Work:
        shapes = [instruction[operand].shape for operand in ("dst", *sources)]
        if not callable(cycles):
            return isa.Work(core.gpsimd.start_cycles + cycles * math.prod(shapes[0][1:]))
        told = cycles(*shapes)
        if told < 0:
            raise ValueError(f"{instruction.name}: its cost of {told} cycles is negative")
        return isa.Work(float(told))

    return cost
