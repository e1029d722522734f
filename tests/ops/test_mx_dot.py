"""mx_dot_general against float64 products of operands quantized by ml_dtypes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import jax_trn3
from jax_trn3 import dequantize_mx, mx_dot_general, quantize_mx

RANDOM = np.random.default_rng(0)
MATMUL = (((1,), (0,)), ((), ()))
# 10 products and 3 pairs of gradients each; compiling them takes the time.
SEEDS = int(os.environ.get("JAX_TRN3_TEST_SEEDS", "1"))
NO_FORMATS = {"lhs_dtype": None, "rhs_dtype": None}

# dtype: exponent and value of the largest number
FORMATS = {
    ml_dtypes.float8_e4m3fn: (8, 448.0),
    ml_dtypes.float8_e5m2: (15, 57344.0),
    ml_dtypes.float6_e3m2fn: (4, 28.0),
    ml_dtypes.float6_e2m3fn: (2, 7.5),
    ml_dtypes.float4_e2m1fn: (2, 6.0),
    np.int8: (0, 127 / 64),
}


def on_grid(rows: np.ndarray, dtype: Any) -> np.ndarray:
    """float64 values of rows [..., n], quantized by the rule "ocp" in blocks of 32 along n."""
    rows = np.asarray(rows, np.float64)
    if dtype is None or rows.size == 0:
        return rows
    emax, largest = FORMATS[dtype]
    n = rows.shape[-1]
    padded = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, -n % 32)])
    blocks = padded.reshape(*rows.shape[:-1], -1, 32)
    amax = np.abs(blocks).max(-1, keepdims=True)
    scale = np.where(amax == 0, 1.0, 2.0 ** (np.frexp(amax)[1] - 1 - emax))
    elements = np.clip(blocks / scale, -largest, largest)
    if dtype is np.int8:
        elements = np.rint(elements * 64) / 64
    else:
        elements = elements.astype(dtype).astype(np.float64)
    return (elements * scale).reshape(padded.shape)[..., :n]


def product(
    lhs: tuple[Any, str, Any], rhs: tuple[Any, str, Any], out: str, contracted: str
) -> tuple[np.ndarray, np.ndarray]:
    """The product of (array, names of its dimensions, format), and that of the magnitudes.

    contracted: the dimensions that make up the blocks, in order.
    """
    values = []
    for array, names, dtype in (lhs, rhs):
        kept = "".join(n for n in names if n not in contracted)
        moved = np.einsum(f"{names}->{kept}{contracted}", np.asarray(array, np.float64))
        flat = moved.reshape(*moved.shape[: len(kept)], int(np.prod(moved.shape[len(kept) :])))
        values.append((on_grid(flat, dtype).reshape(moved.shape), kept + contracted))
    (a, a_names), (b, b_names) = values
    form = f"{a_names},{b_names}->{out}"
    return np.einsum(form, a, b), np.einsum(form, np.abs(a), np.abs(b))


def assert_within_accumulation(actual: Any, expected: Any, terms: int) -> None:
    """Sums of `terms` products in float32, in any order, then rounded to actual's dtype."""
    exact, magnitude = expected
    epsilon = float(jnp.finfo(actual.dtype).eps)
    bound = (terms + 1) * 2.0**-24 * magnitude + epsilon * np.abs(exact) + 1e-30
    assert actual.shape == exact.shape
    excess = np.abs(np.asarray(actual, np.float64) - exact) - bound
    assert np.all(excess <= 0), excess.max()


def draw_case(random: np.random.Generator) -> dict[str, Any]:
    """Operands with named dimensions: a, b batch; c, d, e contracted; m, n and p, q free."""
    size = dict(zip("abmnpq", random.integers(1, 4, 6))) | {"e": 1}
    size |= {"c": random.choice([0, 1, 3, 32, 33, 70]), "d": random.choice([1, 2, 31, 32])}
    batch = "ab"[: random.integers(0, 3)]
    contracted = "".join(random.permutation(list("cde"[: random.integers(0, 4)])))
    free = "mn"[: random.integers(0, 3)], "pq"[: random.integers(0, 3)]
    if random.random() < 0.3:
        size["m"] = size["p"] = 40
    names = ["".join(random.permutation(list(batch + contracted + f))) for f in free]
    shapes = [tuple(int(size[n]) for n in side) for side in names]
    numbers = tuple(
        tuple(tuple(side.index(n) for n in kind) for side in names) for kind in (contracted, batch)
    )
    kept = [[n for n in side if n not in batch + contracted] for side in names]
    out = batch + "".join(kept[0] + kept[1])
    dtype = random.choice([np.float32, ml_dtypes.bfloat16])
    formats = [random.choice([*FORMATS, None]) for _ in range(2)]
    return {
        "names": names,
        "out": out,
        "contracted": contracted,
        "operands": [random.normal(size=s).astype(dtype) for s in shapes],
        "cotangent": random.normal(size=[int(size[n]) for n in out]).astype(dtype),
        "numbers": numbers,
        "formats": formats,
        "gradient": random.choice([None, ml_dtypes.float8_e5m2]),
    }


def dot_of(case: dict[str, Any]) -> Callable[..., Any]:
    return functools.partial(
        mx_dot_general,
        dimension_numbers=case["numbers"],
        lhs_dtype=case["formats"][0],
        rhs_dtype=case["formats"][1],
        gradient_dtype=case["gradient"],
    )


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


@pytest.mark.parametrize("seed", range(SEEDS))
def test_drawn_gradients(seed: int) -> None:
    """Products of the cotangent and an operand, quantized along what *they* contract."""
    random = np.random.default_rng(1000 + seed)
    cases = [draw_case(random) for _ in range(3)]

    def pull_back(all_operands: Any, cotangents: Any) -> Any:
        pullbacks = [jax.vjp(dot_of(c), *x)[1] for c, x in zip(cases, all_operands)]
        return [pullback(cotangent) for pullback, cotangent in zip(pullbacks, cotangents)]

    cotangents = [case["cotangent"] for case in cases]
    results = jax.jit(pull_back)([case["operands"] for case in cases], cotangents)
    for case, cotangent, (lhs_gradient, rhs_gradient) in zip(cases, cotangents, results):
        left, right = zip(case["operands"], case["names"], case["formats"])
        contracted = "".join(n for n in right[1] if n in "pq")
        factor = cotangent, case["out"], case["gradient"] or left[2]
        expected = product(factor, right, left[1], contracted)
        assert_within_accumulation(lhs_gradient, expected, right[0].size)
        contracted = "".join(n for n in left[1] if n in "mn")
        factor = cotangent, case["out"], case["gradient"] or right[2]
        expected = product(factor, left, right[1], contracted)
        assert_within_accumulation(rhs_gradient, expected, left[0].size)


def normal(*shape: int, dtype: Any = np.float32) -> Any:
    return jnp.asarray(RANDOM.normal(size=shape), dtype)


X, W = normal(48, 96), normal(96, 40)


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


def test_gradient_beside_an_mx_array() -> None:
    """The constant is dequantized and quantized along the dimensions that the gradient contracts."""
    frozen = quantize_mx(W, 0)
    g = normal(48, 40)
    for wrap in (lambda f: f, jax.checkpoint):
        dot = wrap(lambda x: mx_dot_general(x, frozen, MATMUL))
        (gradient,) = jax.vjp(dot, X)[1](g)
        expected = product(
            (g, "mn", ml_dtypes.float8_e4m3fn),
            (dequantize_mx(frozen), "kn", ml_dtypes.float8_e4m3fn),
            "mk",
            "n",
        )
        assert_within_accumulation(gradient, expected, 40)
    with pytest.raises(TypeError, match="not differentiable with respect to an MXArray"):
        jax.grad(lambda w: mx_dot_general(X, w, MATMUL).sum(), allow_int=True)(frozen)


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


def test_derivatives_without_formats_are_the_dot_products() -> None:
    x, w = normal(3, 2, 5), normal(2, 4, 5)
    numbers = (((2, 1), (2, 0)), ((), ()))
    dot = lambda x, w: mx_dot_general(x, w, numbers, **NO_FORMATS)  # noqa: E731
    check_grads(dot, (x, w), order=2, modes=["fwd", "rev"], atol=2e-2, rtol=2e-2)
    plain = lambda x, w: lax.dot_general(x, w, numbers, lax.Precision.HIGHEST)  # noqa: E731
    for f in (jax.jacfwd, jax.jacrev):
        actual, expected = (jax.jit(f(g))(x, w) for g in (dot, plain))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_derivatives_on_the_grid_are_the_dot_products() -> None:
    """Small integers are on E4M3's grid in every direction: there, quantization changes nothing."""
    x = jnp.asarray(RANDOM.integers(-8, 9, (6, 64)), jnp.float32)
    w = jnp.asarray(RANDOM.integers(-8, 9, (64, 5)), jnp.float32)
    g = jnp.asarray(RANDOM.integers(-8, 9, (6, 5)), jnp.float32)
    mx, plain = (
        jax.vjp(lambda x, w, dot=dot: dot(x, w, MATMUL), x, w)
        for dot in (mx_dot_general, lax.dot_general)
    )
    chex.assert_trees_all_equal((mx[0], mx[1](g)), (plain[0], plain[1](g)))
    mx, plain = (
        jax.jvp(lambda x, w, dot=dot: dot(x, w, MATMUL), (x, w), (2 * x, w + 1))
        for dot in (mx_dot_general, lax.dot_general)
    )
    chex.assert_trees_all_equal(mx, plain)


class TestVariants(chex.TestCase):
    variant: Callable[..., Any]

    @chex.all_variants
    def test_value_and_gradients(self) -> None:
        def loss(x: jax.Array, w: jax.Array) -> jax.Array:
            return mx_dot_general(x, w, MATMUL, gradient_dtype=jnp.float8_e5m2).sum()

        actual = self.variant(jax.value_and_grad(loss, (0, 1)))(X, W)
        with jax.default_device(jax.devices("cpu")[0]):
            expected = jax.value_and_grad(loss, (0, 1))(np.asarray(X), np.asarray(W))
        chex.assert_trees_all_close(
            jax.tree.map(np.asarray, actual), jax.tree.map(np.asarray, expected), rtol=1e-3
        )


def test_scan_and_remat() -> None:
    weights = normal(3, 32, 32)

    def run(x: jax.Array, weights: jax.Array, wrap: Callable[..., Any]) -> jax.Array:
        layer = wrap(lambda x, w: (jnp.tanh(mx_dot_general(x, w, MATMUL)), None))
        return lax.scan(layer, x, weights)[0].sum()

    def unrolled(x: jax.Array, weights: jax.Array) -> jax.Array:
        for w in weights:
            x = jnp.tanh(mx_dot_general(x, w, MATMUL))
        return x.sum()

    x = normal(8, 32)
    expected = jax.jit(jax.grad(unrolled, (0, 1)))(x, weights)
    for wrap in (lambda f: f, jax.checkpoint):
        gradients = jax.jit(jax.grad(lambda x, w, wrap=wrap: run(x, w, wrap), (0, 1)))(x, weights)
        chex.assert_trees_all_close(gradients, expected, rtol=1e-3, atol=1e-5)


def test_frozen_mx_weights_in_scan_with_remat() -> None:
    weights = jax.vmap(lambda w: quantize_mx(w, 0))(normal(3, 32, 32))

    @jax.checkpoint
    def layer(x: jax.Array, w: Any) -> Any:
        return jnp.tanh(mx_dot_general(x, w, MATMUL)), None

    gradient = jax.jit(jax.grad(lambda x: lax.scan(layer, x, weights)[0].sum()))(normal(8, 32))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


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


def make_mesh(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((4,), ("x",), devices=jax.devices("trn3")[:4], axis_types=(kind,))


def gradients(x: jax.Array, w: jax.Array, **options: Any) -> Any:
    loss = lambda x, w: (mx_dot_general(x, w, MATMUL, **options) ** 2).sum()  # noqa: E731
    return jax.value_and_grad(loss, (0, 1))(x, w)


@pytest.mark.parametrize("specs", [(P("x"), P()), (P(None, "x"), P("x")), (P("x"), P(None, "x"))])
def test_sharded_jit(specs: tuple[P, P]) -> None:
    """The partitioner's axes; that of the contraction in shards of full blocks, and that not."""
    mesh = make_mesh(AxisType.Auto)
    for contraction in (128, 40) if specs[0] == P(None, "x") else (128,):
        x, w = normal(64, contraction), normal(contraction, 32)
        sharded = [jax.device_put(a, jax.NamedSharding(mesh, s)) for a, s in zip((x, w), specs)]
        out = jax.jit(lambda x, w: mx_dot_general(x, w, MATMUL))(*sharded)
        np.testing.assert_allclose(out, mx_dot_general(x, w, MATMUL), atol=1e-4)
        chex.assert_trees_all_close(
            jax.jit(gradients)(*sharded), jax.jit(gradients)(x, w), rtol=1e-4, atol=2e-2
        )


@pytest.mark.parametrize(
    ("specs", "out_spec"),
    [
        ((P("x", None), P(None, None)), None),
        ((P(None, "x"), P("x", None)), P(None, None)),
        ((P(None, None), P(None, "x")), None),
    ],
)
def test_explicit_mesh_axes(specs: tuple[P, P], out_spec: P | None) -> None:
    mesh = make_mesh(AxisType.Explicit)
    x, w = normal(128, 128), normal(128, 128)
    expected = jax.jit(gradients)(x, w)
    with jax.set_mesh(mesh):
        sharded = [jax.device_put(a, s) for a, s in zip((x, w), specs)]
        out = mx_dot_general(*sharded, MATMUL, out_sharding=out_spec)
        plain = lax.dot_general(*sharded, MATMUL, out_sharding=out_spec)
        assert jax.typeof(out) == jax.typeof(plain)
        actual = jax.jit(lambda x, w: gradients(x, w, out_sharding=out_spec))(*sharded)
        batched = jax.vmap(lambda x: mx_dot_general(x, sharded[1], MATMUL, out_sharding=out_spec))
        assert batched(jnp.stack([sharded[0]] * 2)).shape == (2, 128, 128)
    assert [jax.typeof(a).sharding.spec for a in actual[1]] == list(specs)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-2)


def test_explicit_axis_across_a_block_boundary_is_an_error() -> None:
    with jax.set_mesh(make_mesh(AxisType.Explicit)):
        x = jax.device_put(normal(8, 96), P(None, "x"))
        w = jax.device_put(normal(96, 8), P("x", None))
        with pytest.raises(ValueError, match="across the boundary of a block of 32"):
            mx_dot_general(x, w, MATMUL, out_sharding=P(None, None))


def test_shard_map() -> None:
    mesh = make_mesh(AxisType.Auto)
    x, w = normal(128, 128), normal(128, 32)

    def body(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.psum(mx_dot_general(x, w, MATMUL), "x")

    contracted = jax.shard_map(body, mesh=mesh, in_specs=(P(None, "x"), P("x")), out_specs=P())
    np.testing.assert_allclose(
        jax.jit(contracted)(x, w), mx_dot_general(x, w, MATMUL), rtol=1e-4, atol=1e-4
    )

    def data_parallel(x: jax.Array, w: jax.Array) -> jax.Array:
        loss = lambda x, w: lax.psum((mx_dot_general(x, w, MATMUL) ** 2).sum(), "x")  # noqa: E731
        return jax.shard_map(loss, mesh=mesh, in_specs=(P("x"), P()), out_specs=P())(x, w)

    # the shards are full blocks of what the gradients contract
    actual = jax.jit(jax.value_and_grad(data_parallel, (0, 1)))(x, w)
    chex.assert_trees_all_close(actual, jax.jit(gradients)(x, w), rtol=1e-4, atol=5e-2)


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
