"""A program's two answers: values, from XLA:CPU, and time, from the simulator (`timing/`)."""

from typing import Any

from jax_trn3.hardware import Topology

from . import protobuf as protobuf
from .ahead_of_time import compile_without_devices as compile_without_devices
from .callbacks import install_callbacks as install_callbacks
from .footprint import check_fits as check_fits
from .persistent_cache import serve_persistent_cache as serve_persistent_cache
from .program import Program as Program
from .values import Values as Values
from .values import compile_values as compile_values
from .values import load_values as load_values


def cost_analysis(module: Any, topology: Topology) -> dict[str, float]:
    """See `timing.analysis`, which is only imported when it is asked for."""
    from .timing import analysis

    return analysis.cost_analysis(module, topology)
