"""The time of a kernel: its instructions on the engines and queues of one simulated core.

>>> kernel = kernel_of_function(matmul, x, y)  # arrays, or jax.ShapeDtypeStruct
>>> timed = program_of(kernel, TRAINIUM2)  # a simulator Program, and what was assumed
>>> timeline = timeline_of(matmul, x, y, chip=TRAINIUM3)
>>> timeline.engines["core0/tensor"].busy / timeline.active_ps  # utilisation
"""

from .find import kernel_of_function as kernel_of_function
from .find import timeline_of as timeline_of
from .grid import TimedKernel as TimedKernel
from .grid import program_of as program_of
from .grid import simulated as simulated
