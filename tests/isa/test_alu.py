"""ALU operations and activation functions against numpy and scipy in float64."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jax_trn3.isa import alu

FLOATS = np.array(
    [-math.inf, -1e30, -3.0, -1.0, -0.5, -1e-30, 0.0, 1e-30, 0.5, 1.0, 2.0, 7.25, 1e30, math.inf],
    np.float32,
)
BINARY = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater_equal": np.greater_equal,
    "greater": np.greater,
    "less_equal": np.less_equal,
    "less": np.less,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "power": np.power,
    "abs_max": lambda x, y: np.where(np.abs(x) > np.abs(y), x, y),
    "abs_min": lambda x, y: np.where(np.abs(x) < np.abs(y), x, y),
}
UNARY = {
    "abs": np.abs,
    "square": np.square,
    "relu": lambda x: np.maximum(x, 0),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "bypass": lambda x: x,
}
BITVEC = {
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "left_shift": np.left_shift,
    "right_shift": np.right_shift,
}
REDUCING = {
    "bitwise_and", "bitwise_or", "bitwise_xor", "add", "subtract", "multiply", "maximum", "minimum",
    "logical_and", "logical_or", "logical_xor",
}  # fmt: skip


def in_float32(values: np.ndarray) -> np.ndarray:
    """The nearest float32, subnormals flushed to zero as XLA may."""
    with np.errstate(over="ignore"):
        rounded = np.asarray(values, np.float64).astype(np.float32)
    return np.where(np.abs(rounded) < np.finfo(np.float32).tiny, 0, rounded)


def test_the_tables_hold_what_nki_documents() -> None:
    assert set(alu.ALU_OPS) == {*BINARY, *UNARY, *BITVEC, "invert"}
    assert {name for name, op in alu.ALU_OPS.items() if op.reduces} == REDUCING
    assert {name for name, op in alu.ALU_OPS.items() if op.since == 4} == {"abs_max", "abs_min"}
    assert len(alu.ACTIVATIONS) == 26


@pytest.mark.parametrize("name", BINARY)
def test_binary_operations_are_float32(name: str) -> None:
    x, y = FLOATS[:, None], FLOATS[None, :]
    with np.errstate(all="ignore"):
        expected = in_float32(BINARY[name](x.astype(np.float64), y.astype(np.float64)))
    result = alu.compute(name, jnp.asarray(x), jnp.asarray(y))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=2e-6 if name == "power" else 0)
    np.testing.assert_array_equal(
        alu.compute(name, jnp.asarray(x), jnp.asarray(y), reverse=True),
        alu.compute(name, jnp.asarray(y), jnp.asarray(x)),
    )


@pytest.mark.parametrize("name", UNARY)
def test_unary_operations_ignore_the_second_operand(name: str) -> None:
    with np.errstate(all="ignore"):
        expected = in_float32(UNARY[name](FLOATS.astype(np.float64)))
    result = alu.compute(name, jnp.asarray(FLOATS), 0.0)
    kept = slice(None) if name in ("abs", "bypass") else np.abs(expected) != np.inf
    np.testing.assert_allclose(in_float32(result)[kept], expected[kept], rtol=2e-7)


def test_arithmetic_takes_integers_through_float32() -> None:
    x = jnp.array([2**24, 2**24 + 1], jnp.int32)
    np.testing.assert_array_equal(alu.compute("add", x, 0), np.float32([2**24, 2**24]))
    np.testing.assert_array_equal(alu.compute_exactly("add", x, x), [2**25, 2**25 + 2])
    wrapped = alu.compute_exactly("multiply", jnp.int32([2**30]), jnp.int32([3]))
    np.testing.assert_array_equal(wrapped, np.int32([-(2**30)]))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32])
@pytest.mark.parametrize("name", BITVEC)
def test_bitvec_operations_take_integers_as_bits(name: str, dtype: type[np.integer]) -> None:
    limits = np.iinfo(dtype)
    x = np.array([limits.min, limits.max, 0, 1, 85], dtype)
    y = np.array([0, 1, 3, 7, 5], dtype)
    bits = np.dtype(f"uint{limits.bits}")
    expected = BITVEC[name](x.view(bits), y.view(bits)).view(dtype)
    np.testing.assert_array_equal(alu.compute(name, jnp.asarray(x), jnp.asarray(y)), expected)
    by_number = BITVEC[name](x.view(bits), np.asarray(3, bits)).view(dtype)
    np.testing.assert_array_equal(alu.compute(name, jnp.asarray(x), 3), by_number)


def test_invert_and_bits_of_numbers_and_of_bools() -> None:
    np.testing.assert_array_equal(alu.compute("invert", jnp.uint8([0, 255, 1])), [255, 0, 254])
    np.testing.assert_array_equal(alu.compute("bitwise_and", jnp.uint32([7]), -1), [7])
    np.testing.assert_array_equal(alu.compute("bitwise_xor", jnp.array([True, False]), 1), [0, 1])
    np.testing.assert_array_equal(
        alu.compute("bitwise_or", jnp.int8([-1]), jnp.int32([0])), np.int32([-1])
    )


@pytest.mark.parametrize("name", sorted(REDUCING))
def test_reductions(name: str) -> None:
    rng = np.random.default_rng(1)
    if name in BITVEC:
        x = rng.integers(0, 2**16, (3, 4, 5)).astype(np.uint16)
        expected = BITVEC[name].reduce(x.reshape(3, 20), axis=1)
    else:
        x = rng.integers(0, 3, (3, 4, 5)).astype(np.float32)
        expected = BINARY[name].reduce(x.reshape(3, 20).astype(np.float64), axis=1)
    np.testing.assert_array_equal(alu.reduce(name, jnp.asarray(x), (1, 2)), expected)
    np.testing.assert_array_equal(alu.reduce(name, jnp.asarray(x), (-2, -1)), expected)


def test_reductions_by_magnitude_keep_the_sign() -> None:
    x = jnp.float32([[-5, 3, 4], [1, 2, -0.5]])
    np.testing.assert_array_equal(alu.reduce("abs_max", x, (1,)), [-5, 2])
    np.testing.assert_array_equal(alu.reduce("abs_min", x, (1,)), [3, -0.5])


def test_errors_say_what_is_known() -> None:
    with pytest.raises(ValueError, match="unknown ALU operation 'divide'; known: invert, bitw"):
        alu.compute("divide", jnp.ones(2), 1.0)
    with pytest.raises(ValueError, match="'power' does not reduce; these do: bitwise_and, "):
        alu.reduce("power", jnp.ones(2), (0,))
    with pytest.raises(ValueError, match="unknown activation function 'cos'; known: copy, square"):
        alu.activate("cos", jnp.ones(2))


def sigmoid_dx(x: np.ndarray, scale: float) -> np.ndarray:
    gate = special.expit(scale * x)
    return gate + scale * x * gate * (1 - gate)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_dx(x: np.ndarray) -> np.ndarray:
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return special.ndtr(x) + x * density


FUNCTIONS = {
    "copy": lambda x: x,
    "square": np.square,
    "sigmoid": special.expit,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * special.ndtr(x),
    "gelu_dx": gelu_dx,
    "gelu_apprx_tanh": gelu_tanh,
    "gelu_apprx_sigmoid": lambda x: x * special.expit(1.702 * x),
    "gelu_apprx_sigmoid_dx": lambda x: sigmoid_dx(x, 1.702),
    "silu": lambda x: x * special.expit(x),
    "silu_dx": lambda x: sigmoid_dx(x, 1.0),
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(x, 0),
    "mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
    "erf": special.erf,
    "erf_dx": lambda x: 2 / math.sqrt(math.pi) * np.exp(-(x**2)),
    "exp": np.exp,
    "log": np.log,
    "sin": np.sin,
    "arctan": np.arctan,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "sign": np.sign,
    "abs": np.abs,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activation_functions_where_they_are_valid(name: str) -> None:
    low, high = alu.ACTIVATIONS[name].valid
    if name in ("log", "sqrt", "rsqrt", "reciprocal"):
        x = np.geomspace(low, high, 400).astype(np.float32)
        x = np.concatenate([x, -x]) if name == "reciprocal" else x
    else:
        x = np.linspace(max(low, -12), min(high, 12), 400).astype(np.float32)
    expected = FUNCTIONS[name](x.astype(np.float64))
    np.testing.assert_allclose(alu.activate(name, jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)


def test_prelu_has_a_slope() -> None:
    x = jnp.float32([-2, 0, 3])
    np.testing.assert_array_equal(alu.activate("prelu", x, 0.25), np.float32([-0.5, 0, 3]))
    np.testing.assert_array_equal(alu.activate("prelu", x), np.float32([0, 0, 3]))
    np.testing.assert_array_equal(alu.activate("relu", x, 0.25), np.float32([0, 0, 3]))


@pytest.mark.parametrize(
    "name", [name for name in FUNCTIONS if alu.ACTIVATIONS[name].valid[1] == math.inf]
)
def test_infinities_are_valid_where_the_range_says_so(name: str) -> None:
    ends = np.array([-1e4, 1e4])
    with np.errstate(over="ignore", under="ignore"):
        expected = FUNCTIONS[name](ends)
    growing = np.abs(expected) >= 1e4
    expected = np.where(growing, np.copysign(np.inf, expected), expected)
    result = alu.activate(name, jnp.float32([-math.inf, math.inf]))
    np.testing.assert_allclose(result, expected, atol=1e-30)


def test_sine_has_no_range_reduction() -> None:
    """`sin(9.0)` returns ~27.65 (nki/api/nki.api.shared.rst)."""
    result = alu.activate("sin", jnp.float32([9.0, -9.0, math.pi, 0.0]))
    np.testing.assert_allclose(result, [27.65, -27.65, 0, 0], atol=5e-3)


def test_valid_ranges_are_the_published_ones() -> None:
    narrow = {
        name: activation.valid
        for name, activation in alu.ACTIVATIONS.items()
        if activation.valid != (-math.inf, math.inf)
    }
    assert narrow == {
        "log": (2**-64, 2**64),
        "sin": (-math.pi, math.pi),
        "arctan": (-math.pi / 2, math.pi / 2),
        "sqrt": (2**-116, 2**118),
        "rsqrt": (2**-87, 2**97),
        "reciprocal": (2**-42, 2**42),
    }
