"""Pure functions on arrays: MX formats, scale rules, quantization, the hardware's layout."""

from .formats import BLOCK_SIZE as BLOCK_SIZE
from .formats import ELEMENT_FORMATS as ELEMENT_FORMATS
from .formats import MXFP4_E2M1 as MXFP4_E2M1
from .formats import MXFP6_E2M3 as MXFP6_E2M3
from .formats import MXFP6_E3M2 as MXFP6_E3M2
from .formats import MXFP8_E4M3 as MXFP8_E4M3
from .formats import MXFP8_E5M2 as MXFP8_E5M2
from .formats import MXINT8 as MXINT8
from .formats import SCALE_DTYPE as SCALE_DTYPE
from .formats import ElementFormat as ElementFormat
from .formats import element_format as element_format
from .mx_array import MXArray as MXArray
from .quantize import ROUNDINGS as ROUNDINGS
from .quantize import dequantize as dequantize
from .quantize import quantize as quantize
from .quantize import quantize_dequantize as quantize_dequantize
from .scale_rules import SCALE_RULES as SCALE_RULES
from .sparsity import PATTERNS as PATTERNS
from .sparsity import NMSparse as NMSparse
from .sparsity import pack_sparse as pack_sparse
from .sparsity import prune as prune
from .sparsity import prune_mask as prune_mask
from .sparsity import unpack_sparse as unpack_sparse
