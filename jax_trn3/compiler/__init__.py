"""A program's two answers: values, from XLA:CPU, and (to come) time, from the simulator."""

from . import protobuf as protobuf
from .ahead_of_time import compile_without_devices as compile_without_devices
from .callbacks import install_callbacks as install_callbacks
from .footprint import check_fits as check_fits
from .persistent_cache import serve_persistent_cache as serve_persistent_cache
from .program import Program as Program
from .values import Values as Values
from .values import compile_values as compile_values
from .values import load_values as load_values
