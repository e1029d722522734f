"""matmul_precision in whole programs: models, exceptions by scope, transformations, export."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import export, lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jax_trn3
from jax_trn3 import matmul_precision

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(16, 40)).astype(np.float32)
WEIGHTS = [RANDOM.normal(size=(40, 40)).astype(np.float32) / 6 for _ in range(3)]


def products(function: Callable, *arguments) -> tuple[int, int]:
    """How many products the program runs in MX, and how many as they are; loops count once."""
    return products_of(jax.jit(function).lower(*arguments).as_text())


def products_of(program: str) -> tuple[int, int]:
    functions: dict[str, list[str]] = {}
    for line in program.splitlines():
        if named := re.search(r"func\.func \w+ @([^(]+)\(", line):
            functions[named[1]] = lines = []
        elif functions:
            lines.append(line)

    def count(name: str) -> np.ndarray:
        total = np.zeros(2, int)
        for line in functions[name]:
            total += [line.count('composite "trn3.mx_'), 0]
            total += [0, len(re.findall(r"stablehlo\.(?:dot_general|convolution)", line))]
            for called in re.findall(r"\bcall @([^(]+)\(", line):
                total += count(called)
        return total

    mx, plain = count("main")
    return int(mx), int(plain)


# Models of Flax, unmodified


class MLP(nn.Module):
    dot_general: Callable = lax.dot_general

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.gelu(nn.Dense(70, dot_general=self.dot_general)(x))
        x = nn.LayerNorm()(x)
        x = nn.gelu(nn.Dense(50, dot_general=self.dot_general)(x))
        return nn.Dense(10, name="head", dot_general=self.dot_general)(x)


def mlp_loss(params, x, dot_general=lax.dot_general):
    return jnp.square(MLP(dot_general).apply(params, x)).mean()


@pytest.fixture(scope="module")
def params():
    return jax.jit(MLP().init)(jax.random.key(0), X)


def test_unmodified_model_is_the_one_written_with_mx_dot_general(params) -> None:
    written = partial(mlp_loss, dot_general=jax_trn3.mx_dot_general)
    expected = jax.jit(jax.value_and_grad(written))(params, X)
    with matmul_precision("mxfp8"):
        actual = jax.jit(jax.value_and_grad(mlp_loss))(params, X)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), actual, expected)
    assert abs(actual[0] - jax.jit(mlp_loss)(params, X)) > 1e-4


def test_every_product_of_a_model_is_quantized_but_for_exceptions(params) -> None:
    # Each layer has a forward product and two backward ones; the first needs no gradient of X.
    step = jax.value_and_grad(mlp_loss)
    with matmul_precision("mxfp8"):
        assert products(step, params, X) == (8, 0)
    for scopes, plain in ("Dense_0", 2), ("Dense_1", 3), ("head", 3), ("Dense_*", 5), ("MLP", 8):
        with matmul_precision("mxfp8", except_scopes=scopes):
            assert products(step, params, X) == (8 - plain, plain), scopes
    with matmul_precision("mxfp8", except_scopes=("Dense_0", "MLP/head")):
        assert products(step, params, X) == (3, 5)
    for scopes in "dense_0", "Dense", "head/MLP":
        with matmul_precision("mxfp8", except_scopes=scopes):
            assert products(step, params, X) == (8, 0), scopes


def test_excepted_layer_is_exact_forward_and_backward(params) -> None:
    fp4 = {"lhs_dtype": jnp.float4_e2m1fn, "rhs_dtype": jnp.float4_e2m1fn}

    def but_first(x, w, *arguments, **options):
        if w.shape[0] == 40:
            return lax.dot_general(x, w, *arguments, **options)
        return jax_trn3.mx_dot_general(x, w, *arguments, **options, **fp4)

    expected = jax.jit(jax.value_and_grad(partial(mlp_loss, dot_general=but_first)))(params, X)
    with matmul_precision("mxfp4", except_scopes="Dense_0"):
        actual = jax.jit(jax.value_and_grad(mlp_loss))(params, X)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), actual, expected)


def test_convolutions_and_attention_of_linen() -> None:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3,))(x[..., None]))
            x = nn.MultiHeadDotProductAttention(2)(x)
            return nn.Dense(5)(x.reshape(len(x), -1))

    model = Model()
    variables = model.init(jax.random.key(0), X)

    def loss(variables, x):
        return jnp.square(model.apply(variables, x)).sum()

    # query, key, value, out, head; two in attention itself; the convolution.
    with matmul_precision("mxfp8"):
        assert products(loss, variables, X) == (8, 0)
        mx, plain = products(jax.grad(loss), variables, X)
        assert (mx, plain) == (8 + 2 * 8 - 1, 0)
    with matmul_precision("mxfp8", except_scopes="MultiHeadDotProductAttention_0"):
        assert products(loss, variables, X) == (2, 6)
        assert products(jax.grad(loss), variables, X) == (2 + 2 + 1, 18)
    with matmul_precision("mxfp8", except_scopes="Conv_0"):
        assert products(jax.grad(loss), variables, X) == (21, 2)


def test_nnx_trains_with_optax() -> None:
    model = nnx.Sequential(
        nnx.Linear(40, 64, rngs=nnx.Rngs(0)), nnx.gelu, nnx.Linear(64, 4, rngs=nnx.Rngs(1))
    )
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    def loss(model, x):
        return jnp.square(model(x) - 1).mean()

    @nnx.jit
    def train(model, optimizer, x):
        value, gradients = nnx.value_and_grad(loss)(model, x)
        optimizer.update(model, gradients)
        return value

    plain = loss(model, X)
    with matmul_precision("mxfp4"):
        losses = [float(train(model, optimizer, X)) for _ in range(8)]
    assert abs(losses[0] - plain) > 1e-3
    assert losses[-1] < 0.8 * losses[0]


def test_coarser_formats_move_the_loss_of_a_tiny_model_further(params) -> None:
    # Over several batches: one by one, errors may cancel.
    batches = RANDOM.normal(size=(20, 16, 40)).astype(np.float32)
    losses = {}
    for precision in "default", "bf16", "mxfp8", "mxfp4":
        with matmul_precision(precision):
            each = jax.jit(lambda batches: lax.map(partial(mlp_loss, params), batches))(batches)
        losses[precision] = np.asarray(each)
    error = {p: np.sqrt(np.mean((losses[p] / losses["default"] - 1) ** 2)) for p in losses}
    assert 0 < 3 * error["bf16"] < error["mxfp8"] < error["mxfp4"] / 2


# Scopes through JAX's transformations


def layer(name: str, x, w):
    with jax.named_scope(name):
        return jnp.tanh(jnp.einsum("ij,jk->ik", x, w))  # einsum is a jit function of its own


def chain(layer: Callable, weights, x):
    for i, w in enumerate(weights):
        x = layer(f"L{i}", x, w)
    return x.sum()


@jax.jit
def shared(x, w):
    return layer("inner", x, w)


def within(function: Callable) -> Callable:
    def scoped(name: str, x, w):
        with jax.named_scope(name):
            return function(x, w)

    return scoped


def scanned(x, w):
    return lax.scan(lambda x, _: (shared(x, w), None), x, None, length=3)[0]


def branched(x, w):
    return lax.cond(x[0, 0] > 0, lambda: shared(x, w), lambda: x)


@jax.custom_vjp
def custom(x, w):
    return shared(x, w)


custom.defvjp(
    lambda x, w: (custom(x, w), (x, w)),
    lambda saved, g: (g @ saved[1].T, saved[0].T @ g),
)


def sharded(x, w):
    mesh = jax.make_mesh((4,), ("d",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
    spec = P("d")
    return jax.shard_map(shared, mesh=mesh, in_specs=(spec, P()), out_specs=spec)(x, w)


@pytest.mark.parametrize(
    ("each", "of_one_layer"),
    [
        (layer, 3),
        (within(shared), 3),
        (within(jax.checkpoint(shared)), 4),  # one is computed again
        (within(scanned), 3),
        (within(branched), 3),
        (within(custom), 3),
        (within(sharded), 3),
        (within(jax.vmap(lambda x, w: shared(x[None], w)[0], (0, None))), 3),
    ],
    ids=["plain", "jit", "checkpoint", "scan", "cond", "custom_vjp", "shard_map", "vmap"],
)
def test_exceptions_reach_through(each: Callable, of_one_layer: int) -> None:
    step = jax.grad(partial(chain, each))
    with matmul_precision("mxfp8"):
        mx, plain = products(step, WEIGHTS, X)
    assert plain == 0
    with matmul_precision("mxfp8", except_scopes="L1"):
        assert products(step, WEIGHTS, X) == (mx - of_one_layer, of_one_layer)


def test_names_on_both_sides_of_a_call() -> None:
    step = partial(chain, within(shared))
    with matmul_precision("mxfp8", except_scopes="L1/inner"):
        assert products(step, WEIGHTS, X) == (2, 1)
    with matmul_precision("mxfp8", except_scopes="inner/L1"):
        assert products(step, WEIGHTS, X) == (3, 0)


def test_context_within_a_traced_function() -> None:
    def loss(w, x):
        with matmul_precision("mxfp8"):
            x = jnp.tanh(jax.jit(jnp.matmul)(x, w))
        with matmul_precision("mxfp4"), matmul_precision("default"):
            x = x @ w
        return (x @ w).sum()

    w = WEIGHTS[0]
    assert products(loss, w, X) == (1, 2)
    assert products(jax.grad(loss), w, X) == (2, 5)
    with matmul_precision("mxfp4"):
        assert products(loss, w, X) == (2, 1)
    # The same without jit, where the backward pass runs after the context's end.
    np.testing.assert_allclose(
        jax.grad(loss)(w, X), jax.jit(jax.grad(loss))(w, X), rtol=1e-4, atol=1e-4
    )


def test_functions_are_shared_again_without_exceptions() -> None:
    program = jax.jit(partial(chain, within(shared))).trace(WEIGHTS, X)
    before = program.lower().as_text()
    with matmul_precision("mxfp8", except_scopes="L1"):
        assert program.lower().as_text().count("@shared") > before.count("@shared")
    assert program.lower().as_text() == before


# Values through JAX's transformations


def loss(weights, x):
    return chain(layer, weights, x)


@pytest.fixture(scope="module")
def expected():
    with matmul_precision("mxfp8"):
        return jax.value_and_grad(loss)(WEIGHTS, X)


def assert_same(actual, expected) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), actual, expected)


def test_jit_checkpoint_and_vmap(expected) -> None:
    with matmul_precision("mxfp8"):
        assert_same(jax.jit(jax.value_and_grad(loss))(WEIGHTS, X), expected)
        assert_same(jax.jit(jax.value_and_grad(jax.checkpoint(loss)))(WEIGHTS, X), expected)
        values, gradients = jax.vmap(jax.value_and_grad(loss), (None, 0))(WEIGHTS, X[None])
    assert_same((values[0], [g[0] for g in gradients]), expected)


def test_scan_over_layers(expected) -> None:
    def scanned(weights, x):
        return lax.scan(lambda x, w: (layer("L", x, w), None), x, weights)[0].sum()

    with matmul_precision("mxfp8"):
        value, gradient = jax.jit(jax.value_and_grad(scanned))(jnp.stack(WEIGHTS), X)
    assert_same((value, list(gradient)), expected)


def test_derivative_compiled_apart(expected) -> None:
    with matmul_precision("mxfp8"):
        value, vjp = jax.vjp(jax.jit(loss), WEIGHTS, X)
        assert_same((value, vjp(np.float32(1))[0]), expected)
        _, tangent = jax.jit(partial(jax.jvp, loss))((WEIGHTS, X), (WEIGHTS, X))
    assert np.isfinite(tangent)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("d"), P(None, "d")])
def test_sharded(axis_type: AxisType, spec: P, expected) -> None:
    # 40 columns in 4 shards: a block of 32 is on several devices.
    mesh = jax.make_mesh((4,), ("d",), devices=jax.devices()[:4], axis_types=(axis_type,))
    with jax.set_mesh(mesh), matmul_precision("mxfp8"):
        x = jax.device_put(X, jax.NamedSharding(mesh, spec))
        weights = jax.device_put(WEIGHTS, jax.NamedSharding(mesh, P()))

        def sharded_loss(weights, x):
            for w in weights:
                x = jnp.tanh(jnp.matmul(x, w, out_sharding=spec) if EXPLICIT else x @ w)
            return x.sum()

        EXPLICIT = axis_type == AxisType.Explicit
        assert_same(jax.jit(jax.value_and_grad(sharded_loss))(weights, x), expected)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma: bool, expected) -> None:
    mesh = jax.make_mesh((4,), ("d",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))

    def body(weights, x):
        return lax.psum(loss(weights, x), "d")

    mapped = jax.shard_map(
        body, mesh=mesh, in_specs=(P(), P("d")), out_specs=P(), check_vma=check_vma
    )
    with matmul_precision("mxfp8"):
        np.testing.assert_allclose(jax.jit(mapped)(WEIGHTS, X), expected[0], rtol=2e-5)


# Compiled ahead of time


def test_lowered_and_compiled_ahead(expected) -> None:
    with matmul_precision("mxfp8"):
        lowered = jax.jit(loss).lower(WEIGHTS, X)
    np.testing.assert_allclose(lowered.compile()(WEIGHTS, X), expected[0], rtol=1e-5)
    assert "trn3.mx_dot_general" in lowered.as_text()


def test_setting_of_a_program_is_that_of_its_lowering() -> None:
    traced = jax.jit(loss).trace(WEIGHTS, X)
    with matmul_precision("mxfp8"):
        assert products_of(traced.lower().as_text()) == (3, 0)
    assert products_of(traced.lower().as_text()) == (0, 3)


def test_export(expected) -> None:
    with matmul_precision("mxfp8"):
        exported = export.export(jax.jit(loss), platforms=["trn3"])(WEIGHTS, X)
    assert products_of(exported.mlir_module()) == (3, 0)
    loaded = export.deserialize(exported.serialize())
    np.testing.assert_allclose(loaded.call(WEIGHTS, X), expected[0], rtol=1e-5)


@pytest.mark.parametrize("scopes", [(), "L1"])
def test_export_for_two_platforms_and_any_batch(scopes, expected) -> None:
    shape = export.symbolic_shape("batch, 40")
    with matmul_precision("mxfp8", except_scopes=scopes):
        exported = export.export(jax.jit(loss), platforms=["trn3", "cpu"])(
            WEIGHTS, jax.ShapeDtypeStruct(shape, np.float32)
        )
        here = jax.jit(loss)(WEIGHTS, X)
    cpu = jax.devices("cpu")[0]
    plain = loss(*jax.device_put((WEIGHTS, X), cpu))
    np.testing.assert_allclose(exported.call(WEIGHTS, X), here, rtol=1e-5)
    np.testing.assert_allclose(exported.call(*jax.device_put((WEIGHTS, X), cpu)), plain, rtol=1e-5)
    assert abs(plain - np.asarray(here)) > 1e-3
    assert (abs(expected[0] - here) > 1e-3) == bool(scopes)
