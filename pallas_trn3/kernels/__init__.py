"""Kernels for a NeuronCore: functions of ordinary JAX arrays, a file a family.

Each one has a reference in plain JAX beside it, `<name>_reference`.
"""

from .catalogue import CATALOGUE as CATALOGUE
from .catalogue import Entry as Entry
from .matmul import matmul as matmul
from .matmul import matmul_reference as matmul_reference
