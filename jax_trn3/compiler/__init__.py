"""A program's two answers: values, from XLA:CPU, and (to come) time, from the simulator."""

from . import protobuf as protobuf
from .callbacks import install_callbacks as install_callbacks
from .program import Program as Program
from .values import Values as Values
from .values import compile_values as compile_values
