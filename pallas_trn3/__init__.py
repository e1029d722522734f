"""Pallas kernels on a simulated NeuronCore: Trainium's memories and engines, checked and timed."""

from typing import Any

from .memory import HBM as HBM
from .memory import PSUM as PSUM
from .memory import SBUF as SBUF
from .memory import engine_state as engine_state
from .operations import OPERATIONS as _OPERATIONS
from .params import CompilerParams as CompilerParams

globals().update(_OPERATIONS)


def __getattr__(name: str) -> Any:
    raise AttributeError(
        f"pallas_trn3 has no attribute {name!r}; the instructions it has: {', '.join(_OPERATIONS)}"
    )
