"""The engines' instructions as functions of a kernel, by NKI's names: the whole ISA table.

`nc_matmul(acc, x, y)` in a kernel issues the table's instruction on Refs (`acc`, `x.at[0:64]`) and,
where it reads, on arrays. What each one means, takes and costs: docs/isa.md, or `help(nc_matmul)`.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from jax._src import source_info_util

from jax_trn3 import isa

from .instruction import issue

_SCALARS = (
    "registers are the kernel's own scalars: read an element, x_ref[0, 0], and compute with it"
)

LEFT_OUT = {
    "register_alloc": _SCALARS,
    "register_move": _SCALARS,
    "register_load": _SCALARS,
    "register_store": "store a scalar by x_ref[0, 0] = value",
    "collective": "collectives go by their own names: all_reduce, all_gather, reduce_scatter, "
    "all_to_all, collective_permute",
    "sendrecv": "it takes an axis of shard_map's mesh: collectives.py",
    "core_barrier": "a kernel runs on one core; cores wait for each other in collectives and "
    "semaphores",
}
"""Lines of the table that are no operations of a kernel, and what is there instead."""


def operation_of(spec: isa.InstructionSpec) -> Callable[..., None]:
    """The function that issues an instruction."""
    issued = functools.partial(issue, spec)

    def operation(*operands: Any, **named: Any) -> None:
        issued(*operands, **named)

    operation.__name__ = operation.__qualname__ = spec.name
    operation.__module__ = __name__
    operation.__doc__ = (
        f"{spec.__doc__}\n\nEngines: {', '.join(spec.engines)}. Source: {spec.source}."
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    operation.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                o.name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=None if o.optional else inspect.Parameter.empty,
            )
            for o in sorted(spec.operands, key=lambda o: o.optional)
        ]
        + [
            inspect.Parameter(
                name, keyword, default=inspect.Parameter.empty if name in spec.required else None
            )
            for name in spec.params
        ]
        + [
            inspect.Parameter("engine", keyword, default=spec.engines[0]),
            inspect.Parameter("wait", keyword, default=()),
            inspect.Parameter("signal", keyword, default=()),
            inspect.Parameter("state", keyword, default=None),
        ]
    )
    return operation


OPERATIONS: dict[str, Callable[..., None]] = {
    name: operation_of(spec) for name, spec in isa.TABLE.items() if name not in LEFT_OUT
}
"""Every operation by name; each is an attribute of `pallas_trn3`, too."""

source_info_util.register_exclusion(__file__)  # lines of kernels are their authors'
