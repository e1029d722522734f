"""sparse_dot_general against numpy and against the dot_general of the pruned operand."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import jax_trn3
from jax_trn3 import NMSparse, pack_sparse, prune, sparse_dot_general

PATTERNS = ["4:16", "4:12", "4:8", "2:8", "2:4", "1:4", "1:2"]
MATMUL = (((1,), (0,)), ((), ()))


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("side", ["lhs", "rhs"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_all_patterns_against_numpy(pattern: str, side: str) -> None:
    lhs, rhs = normal(0, 5, 37), normal(1, 37, 6)
    kept = {"lhs": lhs, "rhs": rhs}
    kept[side] = prune(kept[side], pattern, {"lhs": 1, "rhs": 0}[side])
    expected = np.asarray(kept["lhs"], np.float64) @ np.asarray(kept["rhs"], np.float64)
    pruned = jax.jit(
        lambda *a: sparse_dot_general(*a, MATMUL, pattern=pattern, sparse_operand=side)
    )(lhs, rhs)
    packed = (
        [pack_sparse(lhs, pattern, 1), rhs]
        if side == "lhs"
        else [lhs, pack_sparse(rhs, pattern, 0)]
    )
    np.testing.assert_allclose(pruned, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(sparse_dot_general(*packed, MATMUL), pruned)


@settings(max_examples=12)
@given(data=st.data())
def test_drawn_dimension_numbers(data: st.DataObject) -> None:
    """Any batch, contracting and free dimensions, in any order, several of each."""
    counts = [data.draw(st.integers(low, 2)) for low in (0, 1, 0, 0)]
    sizes = [[data.draw(st.integers(1, 4)) for _ in range(c)] for c in counts]
    sizes[1][-1] = data.draw(st.integers(1, 37))
    labels = iter("abcdefgh")
    names = [[next(labels) for _ in group] for group in sizes]
    size_of = dict(zip(itertools.chain(*names), itertools.chain(*sizes)))
    lhs_names = data.draw(st.permutations(names[0] + names[1] + names[2]))
    rhs_names = data.draw(st.permutations(names[0] + names[1] + names[3]))
    dims = tuple(
        (tuple(map(lhs_names.index, group)), tuple(map(rhs_names.index, group)))
        for group in (names[1], names[0])
    )
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    lhs, rhs = (
        random.normal(size=[size_of[n] for n in names]).astype(np.float32)
        for names in (lhs_names, rhs_names)
    )
    pattern, side = data.draw(st.sampled_from(PATTERNS)), data.draw(st.sampled_from(["lhs", "rhs"]))
    product = functools.partial(sparse_dot_general, pattern=pattern, sparse_operand=side)
    result = jax.jit(lambda *operands: product(*operands, dims))(lhs, rhs)

    last = names[1][-1]
    if side == "lhs":
        lhs = jax.jit(prune, static_argnums=(1, 2))(lhs, pattern, lhs_names.index(last))
    else:
        rhs = jax.jit(prune, static_argnums=(1, 2))(rhs, pattern, rhs_names.index(last))
    free = [n for names_of in (lhs_names, rhs_names) for n in names_of if n in names[2] + names[3]]
    formula = f"{''.join(lhs_names)},{''.join(rhs_names)}->{''.join(names[0] + free)}"
    expected = np.einsum(formula, np.asarray(lhs, np.float64), np.asarray(rhs, np.float64))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_precision_and_element_types() -> None:
    lhs, rhs = normal(0, 4, 16).astype(jnp.bfloat16), normal(1, 16, 3).astype(jnp.bfloat16)
    pruned = prune(rhs, "2:4", 0)
    for wanted in (None, jnp.float32, jnp.bfloat16):
        for precision in (None, "highest", lax.Precision.HIGH, (lax.Precision.DEFAULT,) * 2):
            result = sparse_dot_general(lhs, rhs, MATMUL, precision, wanted, pattern="2:4")
            expected = lax.dot_general(lhs, pruned, MATMUL, precision, wanted)
            assert result.dtype == expected.dtype
            np.testing.assert_array_equal(result, expected)


DIMS = (((2,), (0,)), ((0,), (1,)))


def gradients_of(product: Callable[..., jax.Array], *operands: jax.Array) -> Any:
    weights = normal(4, 3, 4, 5)
    loss = lambda *operands: jnp.sum(product(*operands) ** 2 * weights)  # noqa: E731
    return jax.jit(jax.grad(loss, (0, 1)))(*operands)


@pytest.mark.parametrize("side", ["lhs", "rhs"])
def test_derivatives(side: str) -> None:
    lhs, rhs = normal(0, 3, 4, 10), normal(1, 10, 3, 5)

    def sparse(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return sparse_dot_general(lhs, rhs, DIMS, pattern="2:4", sparse_operand=side)

    def masked(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        lhs = prune(lhs, "2:4", 2) if side == "lhs" else lhs
        rhs = prune(rhs, "2:4", 0) if side == "rhs" else rhs
        return lax.dot_general(lhs, rhs, DIMS)

    tangents = (normal(2, *lhs.shape), normal(3, *rhs.shape))
    results = [jax.jvp(f, (lhs, rhs), tangents) for f in (sparse, masked)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), *results)
    for wrap in (lambda f: f, jax.jit, jax.checkpoint):
        gradients = [gradients_of(wrap(f), lhs, rhs) for f in (sparse, masked)]
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *gradients
        )


def test_gradients_of_packed_values_against_finite_differences() -> None:
    lhs, packed = normal(0, 3, 4, 10), pack_sparse(normal(1, 10, 3, 5), "2:4", 0)

    @jax.jit
    def product(lhs: jax.Array, values: jax.Array) -> jax.Array:
        return sparse_dot_general(lhs, dataclasses.replace(packed, values=values), DIMS)

    check_grads(product, (lhs, packed.values), order=2, atol=1e-2, rtol=1e-2)
    gradient = jax.grad(lambda p: jnp.sum(sparse_dot_general(lhs, p, DIMS)), allow_int=True)(packed)
    assert isinstance(gradient, NMSparse)
    assert gradient.values.shape == packed.values.shape


@pytest.mark.parametrize("side", ["lhs", "rhs"])
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (1, 2)])
def test_vmap(side: str, axes: tuple[int | None, int | None]) -> None:
    lhs, rhs = normal(0, 2, 3, 4, 12), normal(1, 2, 12, 3, 5)
    lhs, rhs = (
        x[0] if axis is None else jnp.moveaxis(x, 0, axis) for x, axis in zip((lhs, rhs), axes)
    )

    def product(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return sparse_dot_general(lhs, rhs, DIMS, pattern="2:8", sparse_operand=side)

    mapped = jax.vmap(product, axes)
    assert "trn3.sparse_dot_general" in jax.jit(mapped).lower(lhs, rhs).as_text()
    one_by_one = [
        product(*(x if axis is None else jnp.take(x, i, axis) for x, axis in zip((lhs, rhs), axes)))
        for i in range(2)
    ]
    np.testing.assert_allclose(mapped(lhs, rhs), one_by_one, rtol=1e-5, atol=1e-5)


def test_vmap_of_indices_alone() -> None:
    packed = [pack_sparse(normal(seed, 8, 3), "2:4", 0) for seed in (0, 1)]
    lhs, values = normal(2, 4, 8), packed[0].values
    indices = jnp.stack([p.indices for p in packed])

    def product(indices: jax.Array) -> jax.Array:
        sparse = NMSparse(values, indices, "2:4", -2, 8)
        return sparse_dot_general(lhs, sparse, MATMUL)

    np.testing.assert_allclose(
        jax.vmap(product)(indices), [product(i) for i in indices], rtol=1e-5, atol=1e-6
    )


def test_scan_over_layers() -> None:
    weights = jax.vmap(lambda w: pack_sparse(w, "4:8", 0))(normal(0, 3, 16, 16))

    def layer(x: jax.Array, w: NMSparse) -> tuple[jax.Array, None]:
        return jnp.tanh(sparse_dot_general(x, w, MATMUL)), None

    x = normal(1, 2, 16)
    expected = x
    for dense in jax_trn3.unpack_sparse(weights):
        expected = jnp.tanh(expected @ dense)
    scanned = jax.jit(lambda x, w: lax.scan(layer, x, w)[0])
    np.testing.assert_allclose(scanned(x, weights), expected, rtol=1e-5, atol=1e-5)


def test_whole_in_the_program_and_exported() -> None:
    lhs, rhs = normal(0, 4, 16), pack_sparse(normal(1, 16, 3), "4:16", 0)
    product = jax.jit(lambda lhs, rhs: sparse_dot_general(lhs, rhs, MATMUL))
    text = product.lower(lhs, rhs).as_text()
    assert 'stablehlo.composite "trn3.sparse_dot_general"' in text
    assert 'pattern = "4:16"' in text
    for platforms in (["trn3"], ["cpu", "trn3"]):
        exported = jax.export.export(product, platforms=platforms)(lhs, rhs).serialize()
        loaded = jax.export.deserialize(exported)
        np.testing.assert_array_equal(loaded.call(lhs, rhs), product(lhs, rhs))


@pytest.mark.parametrize(
    ("lhs_spec", "rhs_spec"),
    [
        (P("x"), P()),
        (P(), P(None, "x")),
        (P(), P("x")),
        (P(None, "x"), P("x")),
        (P("x"), P(None, "x")),
    ],
)
def test_sharded_jit(lhs_spec: P, rhs_spec: P) -> None:
    mesh = jax.make_mesh(
        (4,), ("x",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,)
    )
    lhs, rhs = np.asarray(normal(0, 8, 32)), np.asarray(normal(1, 32, 12))
    given = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in ((lhs, lhs_spec), (rhs, rhs_spec))
    ]

    def loss(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return jnp.sum(sparse_dot_general(lhs, rhs, MATMUL, pattern="2:4") ** 2)

    results = jax.jit(jax.value_and_grad(loss, (0, 1)))(*given)
    expected = jax.value_and_grad(loss, (0, 1))(lhs, rhs)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), results, expected
    )


def test_explicit_mesh_axes() -> None:
    mesh = jax.make_mesh(
        (2, 2),
        ("x", "y"),
        devices=jax.devices()[:4],
        axis_types=(jax.sharding.AxisType.Explicit,) * 2,
    )
    with jax.set_mesh(mesh):
        lhs = jax.device_put(normal(0, 8, 32), P("x"))
        rhs = jax.device_put(normal(1, 32, 12), P(None, "y"))
        product = jax.jit(lambda *a: sparse_dot_general(*a, MATMUL, pattern="2:4"))(lhs, rhs)
        assert product.sharding.spec == P("x", "y")
        gradient = jax.jit(
            jax.grad(lambda r: jnp.sum(sparse_dot_general(lhs, r, MATMUL, pattern="2:4")))
        )(rhs)
        assert gradient.sharding.spec == P(None, "y")
        # A result whose sharding cannot be told from the operands', under vmap, too.
        split = jax.device_put(lhs, P(None, "x")), jax.device_put(rhs, P("x"))
        asked = functools.partial(sparse_dot_general, pattern="2:4", out_sharding=P("x"))
        stacked = jax.jit(jax.vmap(lambda a, b: asked(a, b, MATMUL), (None, 0)))(
            split[0], jnp.stack([split[1]] * 2)
        )
        assert stacked.sharding.spec[:2] == (None, "x")
    expected = np.asarray(lhs) @ np.asarray(prune(np.asarray(rhs), "2:4", 0))
    np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-5)


def test_shard_map_over_the_contracting_dimension() -> None:
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4], axis_types=auto)
    lhs, rhs = normal(0, 8, 64), normal(1, 64, 12)

    def product(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.psum(sparse_dot_general(lhs, rhs, MATMUL, pattern="4:16"), "x")

    mapped = jax.shard_map(product, mesh=mesh, in_specs=(P(None, "x"), P("x")), out_specs=P())
    results = jax.jit(jax.value_and_grad(lambda *a: jnp.sum(mapped(*a) ** 2), (0, 1)))(lhs, rhs)
    expected = jax.value_and_grad(
        lambda lhs, rhs: jnp.sum((lhs @ prune(rhs, "4:16", 0)) ** 2), (0, 1)
    )(lhs, rhs)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), results, expected
    )


def test_flax_dense() -> None:
    nnx = pytest.importorskip("flax.nnx")
    dot_general = functools.partial(sparse_dot_general, pattern="2:4")
    layer = nnx.Linear(16, 8, dot_general=dot_general, rngs=nnx.Rngs(0))
    x = normal(0, 4, 16)
    expected = x @ prune(layer.kernel[...], "2:4", 0) + layer.bias[...]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_bad_arguments() -> None:
    lhs, rhs = jnp.ones((4, 16)), jnp.ones((16, 3))
    packed = pack_sparse(rhs, "2:4", 0)
    for arguments, options, message in [
        ((lhs, rhs, MATMUL), {}, "no pattern to prune one to"),
        ((lhs, rhs, MATMUL), {"pattern": "3:5"}, "unknown sparsity pattern '3:5'.*4:16.*1:2"),
        ((lhs, packed, MATMUL), {"pattern": "3:5"}, "unknown sparsity pattern '3:5'"),
        ((lhs, packed, MATMUL), {"pattern": "1:2"}, "rhs has the pattern '2:4', but pattern='1:2'"),
        ((lhs, packed, MATMUL), {"sparse_operand": "lhs"}, "rhs is the NMSparse"),
        (
            (lhs, rhs, MATMUL),
            {"pattern": "1:2", "sparse_operand": "both"},
            "'lhs' or 'rhs', got 'both'",
        ),
        ((packed, packed, (((0,), (0,)), ((), ()))), {}, "both operands are NMSparse"),
        ((lhs.T, packed, (((1,), (0,)), ((), ()))), {}, "contract"),
        ((packed, lhs, (((1,), (0,)), ((), ()))), {}, r"lhs is sparse along axis 0.*\[1\]"),
        ((lhs, rhs, (((), ()), ((), ()))), {"pattern": "1:2"}, "without contracting dimensions"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            sparse_dot_general(*arguments, **options)
