"""A program of engine instructions in, a timeline out. Knows nothing of JAX's tracing."""

from .allocation import allocate as allocate
from .errors import DoesNotFit as DoesNotFit
from .errors import IllegalProgram as IllegalProgram
from .program import Loop as Loop
from .program import Node as Node
from .program import Program as Program
from .program import loop as loop
from .program import program as program
from .simulate import simulate as simulate
from .spill import spill as spill
from .timeline import Timeline as Timeline
