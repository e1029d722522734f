"""The lines of a kernel."""

from __future__ import annotations

from typing import Any

from jax._src import source_info_util

from jax_trn3 import isa


def here(operation: str = "") -> isa.Origin:
    """The kernel's line that is being traced."""
    return origin_of(source_info_util.current(), operation)


def origin_of(source_info: Any, operation: str = "") -> isa.Origin:
    """The line of a kernel that an equation comes from."""
    traceback = source_info.traceback
    frame = source_info_util.user_frame(traceback)
    if frame is None:
        return isa.Origin("", 0, operation)
    return isa.Origin(frame.file_name, frame.start_line, operation)


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

source_info_util.register_exclusion(__file__)
