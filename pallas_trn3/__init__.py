"""Pallas kernels on a simulated NeuronCore: Trainium's memories and engines, checked and timed."""

import importlib
from typing import TYPE_CHECKING, Any

from .custom_operation import gpsimd_operation as gpsimd_operation
from .lowering import lower_elsewhere as _lower_elsewhere
from .memory import HBM as HBM
from .memory import PSUM as PSUM
from .memory import SBUF as SBUF
from .memory import engine_state as engine_state
from .operations import OPERATIONS as _OPERATIONS
from .params import CompilerParams as CompilerParams

if TYPE_CHECKING:
    from .tuning import Tuned as Tuned
    from .tuning import autotune as autotune

globals().update(_OPERATIONS)
_lower_elsewhere()

# By name, the module that it is imported from when it is asked for: most programs only run.
_LATER = {"autotune": "tuning", "Tuned": "tuning"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(
        f"pallas_trn3 has no attribute {name!r}; the instructions it has: {', '.join(_OPERATIONS)}"
    )
