"""The instruction set: one table of what a NeuronCore's engines can do, at what price."""

from . import random as random
from . import scalar as scalar
from . import sync as sync
from . import tensor as tensor
from .check import IllegalInstruction as IllegalInstruction
from .check import check as check
from .dtypes import DTYPES as DTYPES
from .dtypes import DType as DType
from .dtypes import dtype_named as dtype_named
from .execute import execute as execute
from .execute import state_name as state_name
from .operand import Access as Access
from .operand import Index as Index
from .operand import Tile as Tile
from .operand import as_index as as_index
from .operand import new_loop_index as new_loop_index
from .spec import TABLE as TABLE
from .spec import DmaWork as DmaWork
from .spec import Instruction as Instruction
from .spec import InstructionSpec as InstructionSpec
from .spec import Operand as Operand
from .spec import Origin as Origin
from .spec import Register as Register
from .spec import Semaphore as Semaphore
from .spec import Work as Work
from .spec import instruction as instruction
