"""The lines of a kernel, for messages."""

from __future__ import annotations

from typing import Any

from .source import origin_of


def line(equation: Any) -> str:
    """`operation at file:line`."""
    name = equation.primitive.name
    if name == "trn3_instruction":
        name = equation.params["name"]
    elif name == "trn3_collective":
        name = equation.params["kind"]
    return str(origin_of(equation.source_info, _NAMES.get(name, name)))


_NAMES = {
    "get": "the read", "swap": "the write", "addupdate": "the addition", "masked_load": "the load",
    "masked_swap": "the store", "dma_start": "the copy", "dma_wait": "the wait",
    "semaphore_signal": "the signal", "semaphore_wait": "the wait", "cond": "the branch",
    "while": "the loop", "run_scoped": "the scope",
}  # fmt: skip
