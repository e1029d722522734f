"""What an engine computes with an element: ALU operations and activation functions, by NKI's names.

Arithmetic is float32 whatever the operands are; bitvec operations work on integers as they lie
(nki/api/nki.api.shared.rst, "Supported Math Operators", "Supported Activation Functions").

Undefined by AWS, and chosen here: `maximum` and `minimum` of a NaN are NaN; a shift by an integer's
width or more gives 0; a reduction adds up in an order of XLA's choice, and `subtract` takes all
others from the first, as numpy's `subtract.reduce`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Function = Callable[..., jax.Array]


@dataclass(frozen=True)
class AluOp:
    """One operation of an engine's ALU."""

    name: str
    kind: Literal["bitvec", "arithmetic"]
    arity: int
    """Operands: 2, or 1 where the second one stays unused."""

    function: Function
    identity: float | None = None
    """What leaves the other operand as it is, where a reduction starts."""

    reduces: bool = False
    """Whether VectorE reduces with it."""

    since: int = 2
    """Generation of NeuronCore that has it first."""


def _compared(compare: Function) -> Function:
    return lambda x, y: compare(x, y).astype(jnp.float32)


def _logical(combine: Function) -> Function:
    return lambda x, y: combine(x != 0, y != 0).astype(jnp.float32)


def _abs_max(x: jax.Array, y: jax.Array) -> jax.Array:
    """The operand of the larger magnitude with its sign, y when they tie (nki.language.abs_max)."""
    return jnp.where(jnp.abs(x) > jnp.abs(y), x, y)


def _abs_min(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(x) < jnp.abs(y), x, y)


_OPS = (
    AluOp("invert", "bitvec", 1, jnp.bitwise_not),
    AluOp("bitwise_and", "bitvec", 2, jnp.bitwise_and, -1, True),
    AluOp("bitwise_or", "bitvec", 2, jnp.bitwise_or, 0, True),
    AluOp("bitwise_xor", "bitvec", 2, jnp.bitwise_xor, 0, True),
    AluOp("left_shift", "bitvec", 2, lax.shift_left),
    # Also of signed integers: "Arithmetic Shift Right: not supported".
    AluOp("right_shift", "bitvec", 2, lax.shift_right_logical),
    AluOp("add", "arithmetic", 2, jnp.add, 0.0, True),
    AluOp("subtract", "arithmetic", 2, jnp.subtract, 0.0, True),
    AluOp("multiply", "arithmetic", 2, jnp.multiply, 1.0, True),
    AluOp("maximum", "arithmetic", 2, jnp.maximum, -math.inf, True),
    AluOp("minimum", "arithmetic", 2, jnp.minimum, math.inf, True),
    AluOp("equal", "arithmetic", 2, _compared(jnp.equal)),
    AluOp("not_equal", "arithmetic", 2, _compared(jnp.not_equal)),
    AluOp("greater_equal", "arithmetic", 2, _compared(jnp.greater_equal)),
    AluOp("greater", "arithmetic", 2, _compared(jnp.greater)),
    AluOp("less_equal", "arithmetic", 2, _compared(jnp.less_equal)),
    AluOp("less", "arithmetic", 2, _compared(jnp.less)),
    AluOp("logical_and", "arithmetic", 2, _logical(jnp.logical_and), 1.0, True),
    AluOp("logical_or", "arithmetic", 2, _logical(jnp.logical_or), 0.0, True),
    AluOp("logical_xor", "arithmetic", 2, _logical(jnp.logical_xor), 0.0, True),
    AluOp("power", "arithmetic", 2, jnp.power),
    AluOp("abs_max", "arithmetic", 2, _abs_max, 0.0, since=4),
    AluOp("abs_min", "arithmetic", 2, _abs_min, math.inf, since=4),
    AluOp("abs", "arithmetic", 1, jnp.abs),
    AluOp("square", "arithmetic", 1, jnp.square),
    AluOp("relu", "arithmetic", 1, jax.nn.relu),
    AluOp("rsqrt", "arithmetic", 1, lax.rsqrt),
    AluOp("reciprocal", "arithmetic", 1, jnp.reciprocal),
    AluOp("bypass", "arithmetic", 1, lambda x: x),
)
ALU_OPS: dict[str, AluOp] = {op.name: op for op in _OPS}
"""ALU operations by NKI's names (`nki.language`)."""


def alu_op(name: str) -> AluOp:
    """The ALU operation of that name.

    **Raises:** `ValueError` for a name that is none of NKI's.
    """
    if name not in ALU_OPS:
        raise ValueError(f"unknown ALU operation {name!r}; known: {', '.join(ALU_OPS)}")
    return ALU_OPS[name]


def compute(name: str, x: Any, y: Any = None, *, reverse: bool = False) -> jax.Array:
    """`x <name> y`, or `y <name> x` when reversed, element by element.

    **Arguments:**

    - `x`, `y`: An array, and another or a number, broadcast against each other; `y` is unused by a
      unary operation. Of two widths of integers the narrower one is extended by its own sign.

    **Returns:** float32; of a bitvec operation integers.
    """
    op = alu_op(name)
    if op.arity == 1:
        return op.function(_integer(x) if op.kind == "bitvec" else _float32(x))
    x, y = _same_width(x, y) if op.kind == "bitvec" else (_float32(x), _float32(y))
    return op.function(y, x) if reverse else op.function(x, y)


def compute_exactly(name: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """`x <name> y` in 32-bit integers, which wrap: GpSimdE's arithmetic on int32 and uint32."""
    x, y = _same_width(x, y)
    return alu_op(name).function(x, y).astype(x.dtype)


def reduce(name: str, x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Reduces the dimensions `axes` of `x`, which are left out of the result.

    **Raises:** `ValueError` for an operation that reduces nothing.
    """
    op = alu_op(name)
    if op.identity is None:
        known = ", ".join(known for known, op in ALU_OPS.items() if op.identity is not None)
        raise ValueError(f"{name!r} does not reduce; these do: {known}")
    x = _integer(x) if op.kind == "bitvec" else _float32(x)
    axes = tuple(axis % x.ndim for axis in axes)
    if name == "subtract":
        first = x[tuple(0 if axis in axes else slice(None) for axis in range(x.ndim))]
        return first - (jnp.sum(x, axes) - first)
    start = np.asarray(op.identity).astype(x.dtype)
    return lax.reduce(x, start, op.function, axes)


def _float32(x: Any) -> jax.Array:
    return jnp.asarray(x).astype(jnp.float32)


def _integer(x: jax.Array) -> jax.Array:
    """`x`, but bools as the uint8 in which they are stored."""
    return x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x


def _same_width(x: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    """Both as integers of the wider dtype, `x`'s if equally wide; numbers have their partner's."""
    if isinstance(x, (int, float)):
        x = jnp.asarray(np.int64(x).astype(_integer(y).dtype))
    if isinstance(y, (int, float)):
        y = jnp.asarray(np.int64(y).astype(_integer(x).dtype))
    x, y = _integer(x), _integer(y)
    dtype = x.dtype if x.dtype.itemsize >= y.dtype.itemsize else y.dtype
    x, y = jnp.broadcast_arrays(x.astype(dtype), y.astype(dtype))
    return x, y


@dataclass(frozen=True)
class Activation:
    """A function that ScalarE approximates with piecewise polynomials.

    What comes out for an argument that is not valid is undefined on the hardware. Here it is the
    function itself, but for `sin`, where AWS says what happens.
    """

    name: str
    function: Function
    valid: tuple[float, float] = (-math.inf, math.inf)
    """Arguments with a valid result; of `reciprocal` their magnitudes."""

    parameter: bool = False
    """Whether it takes `relu_param` as a second argument."""


def _sin(x: jax.Array) -> jax.Array:
    """sin in [-pi, pi]; beyond, the cubic of the nearest end goes on: sin(9.0) is about 27.65."""
    past = x - jnp.sign(x) * jnp.float32(math.pi)
    return jnp.where(jnp.abs(x) <= math.pi, jnp.sin(x), past**3 / 6 - past)


def _gated(function: Function) -> Function:
    """x times a gate that closes: 0 in the limit of -inf, where the product is NaN."""
    return lambda x: jnp.where(x == -math.inf, 0, function(x))


def _silu_dx(x: jax.Array) -> jax.Array:
    largest = float(jnp.finfo(jnp.float32).max)
    x = jnp.clip(x, -largest, largest)  # infinity times a closed gate is NaN
    gate = jax.nn.sigmoid(x)
    return gate * (1 + x * (1 - gate))


def _gelu_dx(x: jax.Array) -> jax.Array:
    density = jnp.exp(-jnp.square(x) / 2) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + lax.erf(x / math.sqrt(2))) + jnp.where(density == 0, 0, x * density)


_GELU_SIGMOID = 1.702  # Hendrycks and Gimpel, arXiv:1606.08415


def _gelu_sigmoid_dx(x: jax.Array) -> jax.Array:
    return _silu_dx(_GELU_SIGMOID * x)


_ACTIVATIONS = (
    Activation("copy", lambda x: x),
    Activation("square", jnp.square),
    Activation("sigmoid", jax.nn.sigmoid),
    Activation("relu", jax.nn.relu),
    Activation("prelu", lambda x, slope: jnp.where(x >= 0, x, slope * x), parameter=True),
    Activation("gelu", _gated(lambda x: jax.nn.gelu(x, approximate=False))),
    Activation("gelu_dx", _gelu_dx),
    Activation("gelu_apprx_tanh", _gated(lambda x: jax.nn.gelu(x, approximate=True))),
    Activation("gelu_apprx_sigmoid", _gated(lambda x: x * jax.nn.sigmoid(_GELU_SIGMOID * x))),
    Activation("gelu_apprx_sigmoid_dx", _gelu_sigmoid_dx),
    Activation("silu", _gated(jax.nn.silu)),
    Activation("silu_dx", _silu_dx),
    Activation("tanh", jnp.tanh),
    Activation("softplus", jax.nn.softplus),
    Activation("mish", _gated(lambda x: x * jnp.tanh(jax.nn.softplus(x)))),
    Activation("erf", lax.erf),
    Activation("erf_dx", lambda x: 2 / math.sqrt(math.pi) * jnp.exp(-jnp.square(x))),
    Activation("exp", jnp.exp),
    Activation("log", jnp.log, (2.0**-64, 2.0**64)),
    Activation("sin", _sin, (-math.pi, math.pi)),
    Activation("arctan", jnp.arctan, (-math.pi / 2, math.pi / 2)),
    Activation("sqrt", jnp.sqrt, (2.0**-116, 2.0**118)),
    Activation("rsqrt", lax.rsqrt, (2.0**-87, 2.0**97)),
    Activation("reciprocal", jnp.reciprocal, (2.0**-42, 2.0**42)),
    Activation("sign", jnp.sign),
    Activation("abs", jnp.abs),
)
ACTIVATIONS: dict[str, Activation] = {activation.name: activation for activation in _ACTIVATIONS}
"""Activation functions by NKI's names (`nki.language`)."""


def activate(name: str, x: jax.Array, relu_param: jax.Array | float = 0.0) -> jax.Array:
    """The activation function of that name of `x`, in float32.

    **Raises:** `ValueError` for a name that is none of NKI's.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation function {name!r}; known: {', '.join(ACTIVATIONS)}")
    activation = ACTIVATIONS[name]
    arguments = (_float32(x), _float32(relu_param))
    return activation.function(*arguments[: 1 + activation.parameter])
