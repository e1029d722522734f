"""Kernels for a NeuronCore: functions of ordinary JAX arrays, a file a family.

Each one has a reference in plain JAX beside it, `<name>_reference`.
"""

from .adamw import adamw as adamw
from .adamw import adamw_reference as adamw_reference
from .catalogue import CATALOGUE as CATALOGUE
from .catalogue import Entry as Entry
from .decode_attention import decode_attention as decode_attention
from .decode_attention import decode_attention_reference as decode_attention_reference
from .flash_attention import flash_attention as flash_attention
from .flash_attention import flash_attention_reference as flash_attention_reference
from .gather_matmul import all_gather_matmul as all_gather_matmul
from .gather_matmul import all_gather_matmul_reference as all_gather_matmul_reference
from .matmul import matmul as matmul
from .matmul import matmul_reference as matmul_reference
from .moe import expert_matmul as expert_matmul
from .moe import expert_matmul_reference as expert_matmul_reference
from .moe import route as route
from .moe import route_reference as route_reference
from .norms import layernorm as layernorm
from .norms import layernorm_reference as layernorm_reference
from .norms import rmsnorm as rmsnorm
from .norms import rmsnorm_reference as rmsnorm_reference
from .norms_mx import layernorm_mx as layernorm_mx
from .norms_mx import rmsnorm_mx as rmsnorm_mx
from .packed_mx import PackedMX as PackedMX
from .packed_mx import pack_mx as pack_mx
from .packed_mx import unpack_mx as unpack_mx
from .projections import output_projection as output_projection
from .projections import output_projection_reference as output_projection_reference
from .projections import qkv_projection as qkv_projection
from .projections import qkv_projection_reference as qkv_projection_reference
from .rope import rope as rope
from .rope import rope_angles as rope_angles
from .rope import rope_reference as rope_reference
from .softmax import softmax as softmax
from .softmax import softmax_reference as softmax_reference
from .swiglu import swiglu as swiglu
from .swiglu import swiglu_reference as swiglu_reference
from .topk import top_k as top_k
from .topk import top_k_reference as top_k_reference
from .transpose import transpose as transpose
from .transpose import transpose_reference as transpose_reference
