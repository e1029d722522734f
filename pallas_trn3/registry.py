"""Kernels of programs that were lowered in this process, by the keys that the programs carry."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from .kernel import Kernel
from .rewrite import programs
from .source import origin_of

WHOLE = "trn3.pallas_call"
"""What a kernel is called in a program: a composite, whose attribute `kernel` is its key."""

KERNELS: dict[str, Kernel] = {}
"""By key. A program that comes from another process names kernels that are not here."""


def remember(kernel: Kernel) -> str:
    """The kernel's key: its name, and a digest of all that its time and its lines depend on."""
    text = f"{kernel.jaxpr}{kernel.grid_mapping}{kernel.params}{kernel.aliases}"
    unsaid = "\n".join(_unsaid(kernel.jaxpr))
    key = f"{kernel.name}-{hashlib.sha256((text + unsaid).encode()).hexdigest()[:16]}"
    KERNELS[key] = kernel
    return key


def _unsaid(jaxpr: Any) -> Iterator[str]:
    """What a program's text leaves out: addresses and buffers of its Refs, and its lines."""
    for variable in jaxpr.invars:
        yield repr(getattr(variable.aval, "memory_space", None))
    for equation in jaxpr.eqns:
        yield str(origin_of(equation.source_info))
        for inner in programs(equation):
            yield from _unsaid(inner)
