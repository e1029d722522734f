"""dot_product_attention: against jax.nn's, and under every transformation."""

from __future__ import annotations

import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import jax_trn3
from jax_trn3 import dot_product_attention

COLLECTIVES = re.compile(
    r"\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\b"
)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def operands(length: int = 300, heads: int = 4, kv_heads: int = 2, batch: int = 2) -> list[Any]:
    shapes = [(batch, length, heads, 16), *[(batch, length, kv_heads, 16)] * 2]
    return [draw(*shape, seed=i) for i, shape in enumerate(shapes)]


def loss(*args: Any, **options: Any) -> Any:
    return jnp.sum(dot_product_attention(*args, **options) ** 2)


MASK = np.random.default_rng(3).random((2, 1, 300, 300)) < 0.5
MASK[0, 0, [0, 299]] = False
LENGTHS = np.array([300, 120], np.int32)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.1, "is_causal": True},
    "bias": {"bias": draw(1, 4, 300, 300)},
    "bias by key": {"bias": draw(2, 1, 1, 300), "is_causal": True},
    "mask": {"mask": MASK, "is_causal": True},
    "window": {"local_window_size": (30, 5)},
    "lengths": {"query_seq_lengths": LENGTHS, "key_value_seq_lengths": LENGTHS[::-1].copy()},
    "no keys": {"key_value_seq_lengths": np.array([0, 7], np.int32), "is_causal": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_as_jax_nn(name: str) -> None:
    """Values, residuals and gradients, in float64 on the CPU (where JAX's softmax is float32)."""
    options = dict(OPTIONS[name])
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        at = {"args": [x.astype(np.float64) for x in operands()]}
        if "bias" in options:
            at["bias"] = options.pop("bias").astype(np.float64)

        def run(function: Any) -> Any:
            def both(at: Any) -> Any:
                out, residual = function(
                    *at["args"], at.get("bias"), **options, return_residual=True
                )
                return jnp.sum(out**2), (out, residual)

            return jax.jit(jax.value_and_grad(both, has_aux=True))(at)

        expected = run(jax.nn.dot_product_attention)
        chex.assert_trees_all_close(run(dot_product_attention), expected, rtol=1e-4, atol=1e-5)


def test_on_trn3_and_without_a_batch() -> None:
    query, key, value = operands()
    with jax.default_device(jax.devices("cpu")[0]):
        expected = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    out, residual = jax.jit(
        lambda *args: dot_product_attention(*args, is_causal=True, return_residual=True)
    )(query[0], key[0], value[0])
    assert out.device.platform == "trn3"
    assert residual.shape == (300, 4)
    np.testing.assert_allclose(out, expected[0], rtol=1e-5, atol=1e-6)


def test_derivatives_of_second_order() -> None:
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        args = [x.astype(np.float64)[:, :20] for x in operands()]
        args += [draw(1, 4, 1, 20).astype(np.float64), draw(4).astype(np.float64)]

        @jax.jit
        def function(query: Any, key: Any, value: Any, bias: Any, sinks: Any) -> Any:
            return dot_product_attention(
                query, key, value, bias, sinks=sinks, logits_soft_cap=3.0, is_causal=True
            )

        check_grads(function, args, order=2, modes=["fwd", "rev"], eps=1e-4)


def test_second_order_of_long_sequences_in_blocks() -> None:
    args = operands(600, batch=1)
    hvp = jax.jit(
        lambda *args: jax.jvp(
            jax.grad(lambda q: loss(q, *args[1:], is_causal=True)), (args[0],), (args[0],)
        )[1]
    )
    expected = jax.jit(
        lambda *args: jax.jvp(
            jax.grad(
                lambda q: jnp.sum(jax.nn.dot_product_attention(q, *args[1:], is_causal=True) ** 2)
            ),
            (args[0],),
            (args[0],),
        )[1]
    )
    np.testing.assert_allclose(hvp(*args), expected(*args), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("in_axes", [(0, None, None), (None, 1, 1), (2, 0, 0)])
def test_vmap(in_axes: tuple[int | None, ...]) -> None:
    args = operands(40)
    sinks, bias = draw(4), draw(1, 4, 1, 40)

    def gradients(query: Any, key: Any, value: Any, bias: Any) -> Any:
        function = lambda *a: loss(*a, sinks=sinks, is_causal=True)  # noqa: E731
        return jax.grad(function, (0, 1, 2, 3))(query, key, value, bias)

    stacked = [
        x if axis is None else np.stack([x, 2 * x, -x], axis) for x, axis in zip(args, in_axes)
    ]
    out = jax.jit(jax.vmap(gradients, (*in_axes, None)))(*stacked, bias)
    one = jax.jit(gradients)
    for i in range(3):
        each = [x if axis is None else x.take(i, axis) for x, axis in zip(stacked, in_axes)]
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, i=i: x[i], out), one(*each, bias), rtol=1e-4, atol=1e-5
        )


def test_stays_whole_under_vmap_and_grad() -> None:
    text = jax.jit(jax.vmap(jax.grad(loss), (0, None, None))).lower(
        np.stack([operands()[0]] * 2), *operands()[1:]
    )
    names = set(re.findall(r'stablehlo.composite "(trn3\.\w+)"', text.as_text()))
    assert names == {"trn3.dot_product_attention", "trn3.dot_product_attention_backward"}


class Variants(chex.TestCase, parameterized.TestCase):
    @chex.all_variants(with_pmap=False)
    def test_chex_variants(self) -> None:
        args = operands(20)
        out = self.variant(lambda *args: dot_product_attention(*args, is_causal=True))(*args)
        expected = jax.nn.dot_product_attention(*args, is_causal=True)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_scan_and_remat() -> None:
    query, key, value = operands(100, kv_heads=4)

    def model(attention: Any) -> Any:
        def layer(x: Any, _: Any) -> Any:
            return x + attention(x, key, value, is_causal=True), None

        def run(x: Any) -> Any:
            return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, None, length=3)[0] ** 2)

        return jax.jit(jax.grad(run))(query)

    np.testing.assert_allclose(
        model(dot_product_attention), model(jax.nn.dot_product_attention), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_sharded_batch_and_heads_stay_where_they_are(kind: AxisType, kv_heads: int) -> None:
    args = operands(kv_heads=kv_heads)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind,) * 2, devices=jax.devices("trn3"))
    specs = [P("x", None, "y"), *[P("x", None, "y" if kv_heads > 1 else None)] * 2]
    function = jax.value_and_grad(lambda *a: loss(*a, is_causal=True), (0, 1, 2))
    expected = jax.jit(function)(*args)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(args, specs)]
        compiled = jax.jit(function).lower(*placed).compile()
        chex.assert_trees_all_close(compiled(*placed), expected, rtol=1e-4, atol=1e-4)
        # The loss is summed, and gradients of what several devices have.
        assert set(COLLECTIVES.findall(compiled.as_text())) == {"all-reduce"}
        forward = jax.jit(lambda *a: dot_product_attention(*a, is_causal=True))
        compiled = forward.lower(*placed).compile()
        assert COLLECTIVES.findall(compiled.as_text()) == []
        assert compiled(*placed).sharding.is_equivalent_to(placed[0].sharding, 4)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma: bool) -> None:
    args = operands(100, kv_heads=1)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    sharded = jax.shard_map(
        lambda *a: dot_product_attention(*a, is_causal=True),
        mesh=mesh,
        in_specs=(P("x", None, "y"), P("x"), P("x")),
        out_specs=P("x", None, "y"),
        check_vma=check_vma,
    )
    gradients = jax.jit(jax.grad(lambda *a: jnp.sum(sharded(*a) ** 2), (0, 1, 2)))
    expected = jax.jit(jax.grad(lambda *a: loss(*a, is_causal=True), (0, 1, 2)))
    chex.assert_trees_all_close(gradients(*args), expected(*args), rtol=1e-4, atol=1e-5)


def test_sharded_sequences_are_refused() -> None:
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        args = [jax.device_put(x, NamedSharding(mesh, P(None, "x"))) for x in operands()]
        with pytest.raises(ValueError, match="axis 1 of query is sharded over 'x'.*reshard"):
            jax.jit(dot_product_attention)(*args)


def test_export_also_of_symbolic_shapes() -> None:
    args = operands(40)
    function = jax.jit(lambda *a: dot_product_attention(*a, is_causal=True))
    expected = function(*args)
    whole = export.export(function, platforms=["trn3"])(*args)
    assert "trn3.dot_product_attention" in whole.mlir_module()
    np.testing.assert_allclose(whole.call(*args), expected, rtol=1e-6)
    b, t = export.symbolic_shape("b, t")
    shapes = [jax.ShapeDtypeStruct((b, t, *x.shape[2:]), x.dtype) for x in args]
    anywhere = export.export(function, platforms=["trn3", "cpu"])(*shapes)
    np.testing.assert_allclose(anywhere.call(*args), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 8e-3), ("float16", 1e-3)])
def test_half_precision(dtype: str, bound: float) -> None:
    """Errors of an ulp or so of values up to 1; what JAX's own has, or less."""
    args = [jnp.asarray(x, dtype) for x in operands()]
    wide = [x.astype(np.float32) for x in args]
    expected = jax.jit(lambda *a: jax.nn.dot_product_attention(*a))(*wide)
    out = jax.jit(dot_product_attention)(*args)
    assert out.dtype == dtype
    assert float(jnp.max(jnp.abs(out.astype(np.float32) - expected))) < bound


def test_mxfp8_products() -> None:
    """Against attention of operands that were rounded before: the probabilities are rounded, too."""
    args = [x.astype(np.float32) for x in operands(200)]
    options = {"is_causal": True}
    query, key = (jax_trn3.quantize_dequantize_mx(x, axis=-1) for x in args[:2])
    value = jax_trn3.quantize_dequantize_mx(args[2], axis=1)
    expected = dot_product_attention(query, key, value, **options)
    out = dot_product_attention(*args, **options, precision="mxfp8")
    error = float(jnp.linalg.norm(out - expected) / jnp.linalg.norm(expected))
    assert 1e-3 < error < 4e-2, "E4M3 has 4 bits: relative errors of up to 1/16"
    exact = jax.jit(jax.grad(lambda *a: loss(*a, **options), (0, 1, 2)))(*args)
    rounded = jax.jit(jax.grad(lambda *a: loss(*a, **options, precision="mxfp8"), (0, 1, 2)))(*args)
    for x, y in zip(exact, rounded):
        assert 1e-3 < float(jnp.linalg.norm(x - y) / jnp.linalg.norm(x)) < 0.2


@pytest.mark.parametrize("backward", [False, True])
def test_memory_grows_with_the_length_not_with_its_square(backward: bool) -> None:
    def temporary(length: int) -> int:
        shape = jax.ShapeDtypeStruct((1, length, 4, 32), np.float32)
        function = lambda *a: loss(*a, is_causal=True)  # noqa: E731
        function = jax.grad(function, (0, 1, 2)) if backward else function
        lowered = jax.jit(function).lower(shape, shape, shape)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    long, longer = temporary(8192), temporary(16384)
    assert longer < 2.2 * long
    assert longer < 4 * 16384**2  # bytes: a sixteenth of one matrix of logits


ARGS = operands(10)
BAD: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, "value shape should be .*as of key", {"value": ARGS[2][:, :5]}),
    (ValueError, r"query shape should be \(2, T, N, 16\)", {"query": ARGS[0][..., :8]}),
    (ValueError, "multiple of key/value heads, but got 3 vs 2", {"query": ARGS[0][:, :, :3]}),
    (ValueError, "query dtype should be float32", {"query": ARGS[0].astype(np.float16)}),
    (
        TypeError,
        "query is int32; allowed are float32",
        {"query": np.ones((2, 10, 4, 16), np.int32)},
    ),
    (ValueError, "rank 3 or 4", {"query": ARGS[0][None]}),
    (ValueError, "mask dtype should be bool", {"mask": np.ones((1, 1, 10, 10))}),
    (TypeError, "argument mask", {"bias": np.ones((1, 1, 10, 10), bool)}),
    (ValueError, "bias shape should be broadcastable", {"bias": np.ones((1, 2, 10, 10))}),
    (ValueError, r"query_seq_lengths shape should be \[B\]", {"query_seq_lengths": [1, 2, 3]}),
    (ValueError, "integer", {"key_value_seq_lengths": [1.0, 2.0]}),
    (ValueError, "local_window_size must be", {"local_window_size": (1, 2, 3)}),
    (TypeError, "scale must be a number", {"scale": np.ones(3)}),
    (ValueError, "precision must be None, 'default' or 'mxfp8'", {"precision": "fp8"}),
    (ValueError, "logits_soft_cap must be a positive", {"logits_soft_cap": 0.0}),
    (ValueError, r"sinks shape should be \[N\] = \(4,\)", {"sinks": np.zeros(2)}),
    (ValueError, "implementation must be None", {"implementation": "cudnn"}),
    (ValueError, "has no precision", {"implementation": "xla", "precision": "mxfp8"}),
]


@pytest.mark.parametrize(("error", "message", "change"), BAD, ids=[m for _, m, _ in BAD])
def test_bad_input(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    arguments = dict(zip(("query", "key", "value"), ARGS)) | change
    with pytest.raises(error, match=message):
        dot_product_attention(**arguments)
