"""What a `pallas_call` can be told beyond the kernel."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class CompilerParams:
    """Parameters of a kernel on a NeuronCore: `pl.pallas_call(..., compiler_params=...)`.

    **Raises:** `ValueError` for a value that there is not.
    """

    check: bool | None = None
    """Whether the kernel runs under the checks that cost time: memory read before it is written,
    indices out of bounds, races, waits that nobody signals. None: as JAX_TRN3_CHECK says (0 or
    1)."""

    synchronization: Literal["automatic", "explicit"] = "automatic"
    """"automatic": an instruction waits for those before it whose tiles it needs, as NKI's compiler
    sees to it. "explicit": engines and queues wait for each other only where the kernel says so,
    with `wait=` and `signal=`."""

    dimension_semantics: tuple[str, ...] | None = None
    """As of JAX's other platforms, so that kernels run as they are: "parallel" or "arbitrary", a
    dimension of the grid each. A NeuronCore runs the grid in order; nothing changes."""

    def __post_init__(self) -> None:
        if self.synchronization not in ("automatic", "explicit"):
            raise ValueError(
                f"synchronization={self.synchronization!r}; allowed: 'automatic', 'explicit'"
            )
        unknown = set(self.dimension_semantics or ()) - {"parallel", "arbitrary"}
        if unknown:
            raise ValueError(
                f"dimension_semantics has {sorted(unknown)[0]!r}; allowed: 'parallel', 'arbitrary'"
            )


def checked(params: Any) -> bool:
    """Whether a kernel with these parameters runs under the checks.

    **Raises:** `ValueError` for a JAX_TRN3_CHECK that is neither 0 nor 1.
    """
    text = os.environ.get("JAX_TRN3_CHECK") or "0"
    if text not in ("0", "1"):
        raise ValueError(f"JAX_TRN3_CHECK must be 0 or 1, got {text!r}")
    own = params.check if isinstance(params, CompilerParams) else None
    return text == "1" if own is None else own


def explicit(params: Any) -> bool:
    """Whether engines wait for each other only where the kernel says so."""
    return isinstance(params, CompilerParams) and params.synchronization == "explicit"
