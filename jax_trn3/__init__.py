"""A JAX platform that is a simulated AWS Trainium3."""

from . import collectives as collectives
from ._version import __version__ as __version__
from .neuron_sdk import Finding as Finding
from .neuron_sdk import check as check
from .numerics import MXArray as MXArray
from .numerics import NMSparse as NMSparse
from .numerics import pack_sparse as pack_sparse
from .numerics import prune as prune
from .numerics import prune_mask as prune_mask
from .numerics import unpack_sparse as unpack_sparse
from .ops import dequantize_mx as dequantize_mx
from .ops import dot_product_attention as dot_product_attention
from .ops import matmul_precision as matmul_precision
from .ops import mx_dot_general as mx_dot_general
from .ops import quantize_dequantize_mx as quantize_dequantize_mx
from .ops import quantize_mx as quantize_mx
from .ops import sparse_dot_general as sparse_dot_general
