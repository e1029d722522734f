"""JAX primitives on trn3: lowering rules for those that JAX has."""

from .cpu_rules import adopt_cpu_rules as adopt_cpu_rules
from .ffi_targets import forward_ffi_targets as forward_ffi_targets
from .host_callbacks import lower_host_callbacks as lower_host_callbacks
from .pallas_interpreted import interpret_kernels as interpret_kernels
from .ragged_collectives import lower_ragged_all_to_all as lower_ragged_all_to_all
