"""How the scale of an MX block follows from amax, the largest magnitude in it.

The specification (section 6.3) gives a sample rule and leaves others open; public implementations
differ. docs/mx_formats.md says which rule is whose and what each costs.

| rule | exponent of the scale |
|---|---|
| ocp | floor(log2(amax)) - emax |
| neuron | floor(log2(amax)) - (emax - 1) |
| rceil | ceil(log2(amax / max)) |
| ceil | ceil(log2(amax)) - emax |
| even | floor(log2(amax rounded to the element's mantissa_bits)) - emax |

All exponents come from integer bits, are exact, and are clamped to E8M0's -127..127. In all rules
a block of zeros has the scale 2^-127, and one with a NaN or an infinity the scale NaN.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from .float_bits import BIAS, INFINITY, MANTISSA_BITS, extended
from .formats import ElementFormat

NAN_BYTE = 255
"""The E8M0 code of NaN."""

_FRACTION = (1 << MANTISSA_BITS) - 1

# A rule maps the extended magnitude of amax (float_bits.py) to the exponent of the scale.
Rule = Callable[[jax.Array, ElementFormat], jax.Array]


def _floor_log2(amax: jax.Array) -> jax.Array:
    return (amax >> MANTISSA_BITS) - BIAS


def _ocp(amax: jax.Array, format: ElementFormat) -> jax.Array:
    """The sample conversion of MX v1.0, section 6.3."""
    return _floor_log2(amax) - format.emax


def _neuron(amax: jax.Array, format: ElementFormat) -> jax.Array:
    """quantize_mx of NeuronCore-v4: nki.isa.quantize_mx, AWS Neuron SDK 2.32.

    Documented for FP8, the only formats of that instruction; here the same formula for all.
    """
    return _floor_log2(amax) - (format.emax - 1)


def _rceil(amax: jax.Array, format: ElementFormat) -> jax.Array:
    """NVIDIA's recipe (arXiv:2506.08027), and jax.nn's: the least scale that saturates nothing.

    amax / max = 2^(difference of exponents) * (quotient of significands); the quotient, between
    1/2 and 2, exceeds 1 where amax's significand exceeds max's. The same as dividing in float32
    and rounding up, since a quotient just above 1 rounds to 1 + 2^-23, not to 1.
    """
    fraction_of_max = int(np.float32(format.max).view(np.int32)) & _FRACTION
    above = (amax & _FRACTION) > fraction_of_max
    return _floor_log2(amax) - format.emax + above.astype(jnp.int32)


def _ceil(amax: jax.Array, format: ElementFormat) -> jax.Array:
    above = (amax & _FRACTION) > 0
    return _floor_log2(amax) - format.emax + above.astype(jnp.int32)


def _even(amax: jax.Array, format: ElementFormat) -> jax.Array:
    """amax is rounded as the elements will be, half up.

    Half to even is no different: only a carry into the exponent counts, and a tie in front of one
    is odd.
    """
    half = 1 << (MANTISSA_BITS - 1 - format.mantissa_bits)
    return _floor_log2(amax + half) - format.emax


SCALE_RULES: dict[str, Rule] = {
    "ocp": _ocp,
    "neuron": _neuron,
    "rceil": _rceil,
    "ceil": _ceil,
    "even": _even,
}
"""The rules by name."""


def check_scale_rule(rule: str) -> None:
    """Raises ValueError if there is no such rule."""
    if rule not in SCALE_RULES:
        raise ValueError(f"unknown scale_rule {rule!r}; allowed are {', '.join(SCALE_RULES)}")


def scale_bytes(amax: jax.Array, format: ElementFormat, rule: str) -> jax.Array:
    """E8M0 codes (int32, 0..255) of blocks whose largest magnitude is amax.

    amax: int32 bits of a float32 magnitude, so that NaN is above infinity and that above all else.
    """
    exponent = SCALE_RULES[rule](extended(amax), format)
    byte = jnp.clip(exponent + BIAS, 0, NAN_BYTE - 1)
    return jnp.where(amax >= INFINITY, NAN_BYTE, byte)
