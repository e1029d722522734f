"""What `benchmarks/kernels.py` measures: a line a kernel, entered beside the kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Report = Literal["tensor", "vector", "scalar", "hbm"]


@dataclass(frozen=True)
class Entry:
    """A kernel at a shape."""

    function: Callable[..., Any]
    """Of ordinary arrays."""

    operands: tuple[Any, ...]
    """`jax.ShapeDtypeStruct`s, or pytrees of them."""

    report: Report = "tensor"
    """Whose utilisation says how good it is: what bounds the kernel."""

    chips: tuple[Literal["trn2", "trn3"], ...] = ("trn2", "trn3")
    """Chips that have its instructions."""


CATALOGUE: dict[str, Entry] = {}
"""By name, the shape in it: "matmul bfloat16 4096x4096x4096"."""
