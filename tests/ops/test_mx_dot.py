"""mx_dot_general against float64 products of operands quantized by ml_dtypes."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from mx_dot_oracle import (
    MATMUL,
    assert_within_accumulation,
    dot_of,
    draw_case,
    normal,
    on_grid,
    product,
)

import jax_trn3
from jax_trn3 import dequantize_mx, mx_dot_general, quantize_mx

# 10 products each; compiling them takes the time.
SEEDS = int(os.environ.get("JAX_TRN3_TEST_SEEDS", "1"))

X, W = normal(48, 96), normal(96, 40)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_drawn_dimension_numbers(seed: int) -> None:
    random = np.random.default_rng(seed)
    cases = [draw_case(random) for _ in range(10)]
    operands = [case["operands"] for case in cases]
    results = jax.jit(lambda all: [dot_of(c)(*x) for c, x in zip(cases, all)])(operands)
    for case, out in zip(cases, results):
        left, right = zip(case["operands"], case["names"], case["formats"])
        expected = product(left, right, case["out"], case["contracted"])
        terms = int(np.prod([left[0].shape[i] for i in case["numbers"][0][0]]))
        assert_within_accumulation(out, expected, terms)


@pytest.mark.parametrize("rule", ["ocp", "neuron", "rceil", "ceil", "even"])
def test_scale_rules_and_block_sizes(rule: str) -> None:
    options = {"scale_rule": rule, "block_size": 16}
    x, w = (dequantize_mx(quantize_mx(a, axis, **options)) for a, axis in ((X, 1), (W, 0)))
    expected = np.float64(x) @ np.float64(w)
    np.testing.assert_allclose(mx_dot_general(X, W, MATMUL, **options), expected, atol=1e-4)


@pytest.mark.parametrize("sides", [(True, True), (True, False), (False, True)])
def test_mx_arrays_are_used_as_they_are(sides: tuple[bool, bool]) -> None:
    """In the rule rceil, which mx_dot_general's default would not choose."""
    mx = (
        quantize_mx(X, 1, jnp.float8_e5m2, scale_rule="rceil"),
        quantize_mx(W, 0, jnp.float4_e2m1fn, scale_rule="rceil"),
    )
    operands = [m if use else a for m, use, a in zip(mx, sides, (X, W))]
    values = [
        np.float64(dequantize_mx(m)) if use else on_grid(rows, ml_dtypes.float8_e4m3fn)
        for m, use, rows in zip(mx, sides, (X, W.T))
    ]
    if not sides[1]:
        values[1] = values[1].T
    expected = values[0] @ values[1]
    out = jax.jit(lambda a, b: mx_dot_general(a, b, MATMUL))(*operands)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, atol=1e-4)
    batched = jax.vmap(lambda a, b: mx_dot_general(a, b, MATMUL))
    stacked = [jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), o) for o in operands]
    np.testing.assert_allclose(batched(*stacked)[1], expected, atol=1e-4)
    one = jax.vmap(lambda a, b: mx_dot_general(a, b, MATMUL), (None, 0), 2)
    np.testing.assert_allclose(one(operands[0], stacked[1])[..., 1], expected, atol=1e-4)


def test_result_dtypes() -> None:
    bf16 = X.astype(jnp.bfloat16), W.astype(jnp.bfloat16)
    assert mx_dot_general(*bf16, MATMUL).dtype == jnp.bfloat16
    assert mx_dot_general(*bf16, MATMUL, None, jnp.float32).dtype == jnp.float32
    assert mx_dot_general(X, W, MATMUL, preferred_element_type=jnp.bfloat16).dtype == jnp.bfloat16
    assert mx_dot_general(X.astype(jnp.float16), bf16[1], MATMUL).dtype == jnp.bfloat16
    assert mx_dot_general(bf16[0], quantize_mx(W, 0), MATMUL).dtype == jnp.bfloat16
    # one rounding, of a float32 sum
    exact = mx_dot_general(*bf16, MATMUL, preferred_element_type=jnp.float32)
    np.testing.assert_array_equal(mx_dot_general(*bf16, MATMUL), exact.astype(jnp.bfloat16))
    gradient = jax.grad(lambda x: mx_dot_general(x, W, MATMUL).sum())(bf16[0])
    assert gradient.dtype == jnp.bfloat16


def test_precision() -> None:
    highest, default = lax.Precision.HIGHEST, lax.Precision.DEFAULT
    plain = lax.dot_general(X, W, MATMUL, highest)
    np.testing.assert_array_equal(mx_dot_general(X, W, MATMUL, highest), plain)
    np.testing.assert_array_equal(mx_dot_general(X, W, MATMUL, "highest"), plain)
    one = mx_dot_general(X, W, MATMUL, lhs_dtype=None)
    np.testing.assert_array_equal(mx_dot_general(X, W, MATMUL, (highest, default)), one)
    both = mx_dot_general(X, W, MATMUL)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_array_equal(mx_dot_general(X, W, MATMUL), both)
    assert not np.array_equal(one, plain)
    assert not np.array_equal(one, both)
    np.testing.assert_array_equal(mx_dot_general(X, W, MATMUL, lax.Precision.HIGH), both)
    with pytest.raises(ValueError, match="lhs_dtype and rhs_dtype do"):
        mx_dot_general(X, W, MATMUL, lax.DotAlgorithmPreset.BF16_BF16_F32)


def test_nan_stays_in_its_row_and_zeros_are_zero() -> None:
    out = mx_dot_general(X.at[3, 5].set(jnp.nan).at[7].set(0), W, MATMUL)
    assert np.isnan(out[3]).all()
    assert not np.isnan(np.delete(out, 3, axis=0)).any()
    assert (np.asarray(out[7]) == 0).all()


def test_vmap_is_one_operation_with_a_batch_dimension() -> None:
    xs, ws = normal(3, 5, 40), normal(40, 4, 3)
    dot = lambda x, w: mx_dot_general(x, w, MATMUL)  # noqa: E731
    expected = np.stack([dot(xs[i], ws[..., i]) for i in range(3)], 1)
    both = jax.vmap(dot, (0, 2), 1)
    np.testing.assert_allclose(both(xs, ws), expected, atol=1e-5)
    (equation,) = [e for e in jax.make_jaxpr(both)(xs, ws).eqns if "trn3" in e.primitive.name]
    assert equation.params["dimension_numbers"] == (((2,), (0,)), ((0,), (2,)))
    one = jax.vmap(dot, (None, 2))(xs[0], ws)
    np.testing.assert_allclose(one, [dot(xs[0], ws[..., i]) for i in range(3)], atol=1e-5)
    other = jax.vmap(dot, (0, None))(xs, ws[..., 0])
    np.testing.assert_allclose(other, [dot(x, ws[..., 0]) for x in xs], atol=1e-5)


def test_einsum() -> None:
    x, w = normal(2, 3, 40), normal(40, 4, 5)
    actual = jnp.einsum("bsk,khd->bhsd", x, w, _dot_general=mx_dot_general)
    e4m3 = ml_dtypes.float8_e4m3fn
    assert_within_accumulation(actual, product((x, "bsk", e4m3), (w, "khd", e4m3), "bhsd", "k"), 40)


def test_flax_layers() -> None:
    x = normal(2, 5, 64)
    layer = nnx.Linear(64, 16, dot_general=mx_dot_general, rngs=nnx.Rngs(0))
    expected = product(
        (x, "bsk", ml_dtypes.float8_e4m3fn),
        (layer.kernel[...], "kn", ml_dtypes.float8_e4m3fn),
        "bsn",
        "k",
    )
    assert_within_accumulation(layer(x), expected, 64)
    gradient = nnx.jit(nnx.grad(lambda layer: (layer(x) ** 2).mean()))(layer)
    assert np.abs(gradient["kernel"][...]).max() > 0

    dense = linen.Dense(16, dot_general=mx_dot_general, dtype=jnp.bfloat16)
    variables = dense.init(jax.random.key(0), x)
    out = jax.jit(dense.apply)(variables, x)
    assert out.dtype == jnp.bfloat16
    plain = linen.Dense(16, dtype=jnp.bfloat16).apply(variables, x)
    assert 0 < np.abs(np.float32(out) - np.float32(plain)).max() < 0.3
    attention = linen.DenseGeneral((4, 8), dot_general=mx_dot_general)
    assert attention.apply(attention.init(jax.random.key(0), x), x).shape == (2, 5, 4, 8)


def test_program_holds_one_composite_with_its_attributes() -> None:
    text = jax.jit(lambda x, w: mx_dot_general(x, w, MATMUL)).lower(X, W).as_text()
    assert text.count("stablehlo.composite ") == 1
    for attribute in ('lhs_format = "mxfp8_e4m3"', "block_size = 32", '"(((1,), (0,)), ((), ()))"'):
        assert attribute in text


def test_export_of_symbolic_shapes() -> None:
    b, k = jax.export.symbolic_shape("b, k")
    shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((b, k), (k, 40))]
    exported = jax.export.export(
        jax.jit(lambda x, w: mx_dot_general(x, w, MATMUL)), platforms=["trn3", "cpu"]
    )(*shapes)
    again = jax.export.deserialize(exported.serialize())
    for n in (96, 70):
        x, w = normal(3, n), normal(n, 40)
        np.testing.assert_allclose(again.call(x, w), mx_dot_general(x, w, MATMUL), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lhs_dtype": jnp.bfloat16}, ValueError, "unknown MX format"),
        ({"gradient_dtype": "mxfp9"}, ValueError, "unknown MX format 'mxfp9'"),
        ({"precision": "highest", "lhs_dtype": "mxfp9"}, ValueError, "unknown MX format 'mxfp9'"),
        ({"scale_rule": "floor"}, ValueError, "unknown scale_rule 'floor'"),
        ({"block_size": 0}, ValueError, "block_size 0"),
        ({"preferred_element_type": jnp.int32}, TypeError, "preferred_element_type=int32"),
        ({"dimension_numbers": (((1,), (1,)), ((), ()))}, TypeError, "contracting dimensions"),
        ({"dimension_numbers": (((2,), (0,)), ((), ()))}, TypeError, "number of axes of the lhs"),
        ({"lhs": np.ones((48, 96), np.int32)}, TypeError, "lhs is int32"),
        ({"rhs": W.astype(jnp.float8_e5m2)}, TypeError, "rhs is float8_e5m2"),
        ({"rhs": quantize_mx(W, 1)}, ValueError, r"rhs is an MXArray .* along axis 1"),
        ({"rhs": quantize_mx(W, 0, block_size=16)}, ValueError, "in blocks of 16 along axis 0"),
    ],
)
def test_errors(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mx_dot_general(**{"lhs": X, "rhs": W, "dimension_numbers": MATMUL} | arguments)


@pytest.mark.parametrize(
    "unquantized", [{"precision": "highest"}, {"lhs_dtype": None, "rhs_dtype": None}]
)
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"scale_rule": "floor"}, "unknown scale_rule 'floor'"),
        ({"block_size": 0}, "block_size 0"),
        ({"gradient_dtype": "mxfp9"}, "unknown MX format 'mxfp9'"),
    ],
)
def test_arguments_that_nothing_needs_are_checked(
    unquantized: dict[str, Any], option: dict[str, Any], message: str
) -> None:
    mx_dot_general(X, W, MATMUL, **unquantized)
    with pytest.raises(ValueError, match=message):
        mx_dot_general(X, W, MATMUL, **unquantized, **option)


def test_mx_array_of_several_contracted_dimensions() -> None:
    x, w = normal(3, 2, 32), normal(2, 32, 4)
    numbers = (((1, 2), (0, 1)), ((), ()))
    out = mx_dot_general(quantize_mx(x), quantize_mx(w, 1), numbers)
    np.testing.assert_allclose(out, mx_dot_general(x, w, numbers), atol=1e-5)
    with pytest.raises(ValueError, match="of several dimensions the last"):
        mx_dot_general(quantize_mx(x, 1), w, numbers)


def test_public_names() -> None:
    assert jax_trn3.mx_dot_general is mx_dot_general
    assert isinstance(quantize_mx(X), jax_trn3.MXArray)
