"""Pallas kernels on a simulated NeuronCore: Trainium's memories and engines, checked and timed."""

import importlib
from typing import TYPE_CHECKING, Any

from .collectives import all_gather as all_gather
from .collectives import all_reduce as all_reduce
from .collectives import all_to_all as all_to_all
from .collectives import collective_permute as collective_permute
from .collectives import reduce_scatter as reduce_scatter
from .collectives import sendrecv as sendrecv
from .custom_operation import gpsimd_operation as gpsimd_operation
from .lowering import lower_elsewhere as _lower_elsewhere
from .memory import HBM as HBM
from .memory import PSUM as PSUM
from .memory import SBUF as SBUF
from .memory import engine_state as engine_state
from .operations import LEFT_OUT as _LEFT_OUT
from .operations import OPERATIONS as _OPERATIONS
from .params import CompilerParams as CompilerParams

if TYPE_CHECKING:
    from .explanation import Explanation as Explanation
    from .explanation import explain as explain
    from .tuning import Tuned as Tuned
    from .tuning import autotune as autotune

globals().update(_OPERATIONS)
_lower_elsewhere()

# By name, the module that it is imported from when it is asked for: most programs only run.
_LATER = {
    "explain": "explanation",
    "Explanation": "explanation",
    "autotune": "tuning",
    "Tuned": "tuning",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    instead = _LEFT_OUT.get(name) or f"the instructions it has: {', '.join(_OPERATIONS)}"
    raise AttributeError(f"pallas_trn3 has no attribute {name!r}; {instead}")
