"""A JAX platform that is a simulated AWS Trainium3."""

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from .estimates import Estimate as Estimate
    from .estimates import Profile as Profile
    from .estimates import compare as compare
    from .estimates import estimate as estimate
    from .estimates import profile as profile

_OF_ESTIMATES = ("Estimate", "Profile", "compare", "estimate", "profile")


def __getattr__(name: str) -> Any:
    """What estimates programs is imported when it is asked for: most programs only run."""
    if name in _OF_ESTIMATES:
        from . import estimates

        return getattr(estimates, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_OF_ESTIMATES])
