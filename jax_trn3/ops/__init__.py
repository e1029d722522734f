"""JAX primitives on trn3: lowering rules for those that JAX has."""

from .attention import dot_product_attention as dot_product_attention
from .cpu_rules import adopt_cpu_rules as adopt_cpu_rules
from .ffi_targets import forward_ffi_targets as forward_ffi_targets
from .host_callbacks import lower_host_callbacks as lower_host_callbacks
from .matmul_precision import lower_products as lower_products
from .mx_dot import mx_dot_general as mx_dot_general
from .precision_setting import as_written as as_written
from .precision_setting import check_environment as check_environment
from .precision_setting import matmul_precision as matmul_precision
from .quantize import dequantize_mx as dequantize_mx
from .quantize import quantize_dequantize_mx as quantize_dequantize_mx
from .quantize import quantize_mx as quantize_mx
from .ragged_collectives import lower_ragged_all_to_all as lower_ragged_all_to_all
from .scaled_dot import lower_scaled_dots as lower_scaled_dots
from .sparse_dot import sparse_dot_general as sparse_dot_general
