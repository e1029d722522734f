"""N:M sparsity against its definition, written as loops in numpy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_trn3 import numerics
from jax_trn3.numerics import NMSparse, pack_sparse, prune, prune_mask, unpack_sparse

PATTERNS = ["4:16", "4:12", "4:8", "2:8", "2:4", "1:4", "1:2"]


def kept_by_definition(x: np.ndarray, pattern: str, axis: int) -> np.ndarray:
    """The mask: sort each block by magnitude, NaN first, then by position; take N."""
    n, m = map(int, pattern.split(":"))
    moved = np.moveaxis(x, axis, -1)
    mask = np.zeros(moved.shape, bool)
    for place in np.ndindex(moved.shape[:-1]):
        for start in range(0, moved.shape[-1], m):
            block = moved[place][start : start + m].astype(np.float64)
            size = np.where(np.isnan(block), -1, -np.abs(block))
            order = np.lexsort((np.arange(len(block)), size, ~np.isnan(block)))
            mask[place][start + order[:n]] = True
    return np.moveaxis(mask, -1, axis)


def test_patterns_are_those_of_the_chip() -> None:
    assert list(numerics.SPARSITY_PATTERNS) == PATTERNS


@settings(max_examples=20)
@given(
    pattern=st.sampled_from(PATTERNS),
    shape=st.lists(st.integers(1, 37), min_size=1, max_size=3).filter(lambda s: np.prod(s) < 3000),
    data=st.data(),
    dtype=st.sampled_from(["float32", "bfloat16", "float16", "float8_e5m2", "int8", "uint8"]),
)
def test_prune_and_pack(pattern: str, shape: list[int], data: st.DataObject, dtype: str) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    x = random.integers(-4, 5, shape)  # small integers: ties are many
    x = (np.abs(x) if dtype == "uint8" else x).astype(jnp.dtype(dtype))
    kept = kept_by_definition(x, pattern, axis)
    expected = np.where(kept, x, np.zeros((), x.dtype))

    @jax.jit
    def all_of_it(x: jax.Array) -> tuple[jax.Array, jax.Array, NMSparse, jax.Array]:
        sparse = pack_sparse(x, pattern, axis)
        return prune_mask(x, pattern, axis), prune(x, pattern, axis), sparse, unpack_sparse(sparse)

    mask, pruned, sparse, dense = all_of_it(x)
    np.testing.assert_array_equal(mask, kept)
    np.testing.assert_array_equal(pruned, expected)
    assert (sparse.shape, sparse.ndim, sparse.dtype) == (x.shape, x.ndim, x.dtype)
    assert dense.dtype == x.dtype
    np.testing.assert_array_equal(dense, expected)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_packed_form(pattern: str) -> None:
    n, m = map(int, pattern.split(":"))
    x = np.random.default_rng(0).normal(size=(3, 5 * m)).astype(np.float32)
    sparse = pack_sparse(x, pattern)
    assert sparse.values.shape == sparse.indices.shape == (3, 5 * n)
    assert sparse.indices.dtype == np.uint8
    indices = np.asarray(sparse.indices).reshape(3, 5, n).astype(int)
    assert (np.diff(indices) > 0).all()
    assert indices.max() < m <= 2**sparse.index_bits < 2 * m
    blocks = x.reshape(3, 5, m)
    picked = np.take_along_axis(blocks, indices, -1)
    np.testing.assert_array_equal(np.asarray(sparse.values).reshape(3, 5, n), picked)


def test_special_values() -> None:
    nan, inf, tiny = np.nan, np.inf, 1e-45  # tiny is subnormal: a comparison might flush it
    x = np.array([[1, nan, inf, -inf], [0, tiny, 0, 2 * tiny], [-0.0, 0, -0.0, 0]], np.float32)
    kept = [[0, 1, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0]]
    np.testing.assert_array_equal(prune_mask(x, "2:4"), np.array(kept, bool))
    pruned = np.where(np.array(kept, bool), x, np.float32(0))
    for result in (prune(x, "2:4"), unpack_sparse(pack_sparse(x, "2:4"))):
        np.testing.assert_array_equal(np.asarray(result).view(np.int32), pruned.view(np.int32))
    least = np.array([-128, 127, 1, 0], np.int8)
    np.testing.assert_array_equal(prune(least, "1:4"), [-128, 0, 0, 0])
    unsigned = jnp.array([0.5, 3, -240, 1], ml_dtypes.float8_e4m3fnuz).at[0].set(jnp.nan)
    np.testing.assert_array_equal(prune_mask(unsigned, "2:4"), [True, False, True, False])


def test_float64() -> None:
    with jax.enable_x64(True):
        x = jnp.array([1.0, 1 + 1e-15, 0.5, 1 + 2e-15])
        np.testing.assert_array_equal(prune_mask(x, "2:4"), [False, True, False, True])


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0), (2, 1)])
def test_empty_and_short(shape: tuple[int, ...]) -> None:
    x = np.ones(shape, np.float32)
    np.testing.assert_array_equal(unpack_sparse(pack_sparse(x, "4:16")), x)
    np.testing.assert_array_equal(prune(x, "4:16"), x)


def test_gradients_are_masked_and_packed() -> None:
    x = jax.random.normal(jax.random.key(0), (6, 21))
    weights = jax.random.normal(jax.random.key(1), x.shape)
    masked = jnp.where(kept_by_definition(np.asarray(x), "2:4", 0), weights, 0)
    for function in (prune, lambda *a: unpack_sparse(pack_sparse(*a))):
        gradient = jax.grad(lambda x, f=function: jnp.sum(f(x, "2:4", 0) * weights))(x)
        np.testing.assert_array_equal(gradient, masked)
    sparse = pack_sparse(x, "2:4", 0)
    of_parts = jax.grad(lambda s: jnp.sum(unpack_sparse(s) * weights), allow_int=True)(sparse)
    assert isinstance(of_parts, NMSparse)
    # 6 rows are a block and a half; the last two kept are the rows 4 and 5, in order.
    expected = np.take_along_axis(np.asarray(weights)[:4], np.asarray(sparse.indices)[:2], 0)
    np.testing.assert_array_equal(of_parts.values, [*expected, weights[4], weights[5]])


def test_transformations() -> None:
    x = jax.random.normal(jax.random.key(0), (5, 3, 24))
    expected = prune(x, "4:12", 1)
    np.testing.assert_array_equal(jax.jit(prune, static_argnums=(1, 2))(x, "4:12", 1), expected)
    np.testing.assert_array_equal(jax.vmap(lambda x: prune(x, "4:12", 0))(x), expected)
    sparse = jax.vmap(lambda x: pack_sparse(x, "4:12", 0))(x)
    assert sparse.shape == x.shape
    np.testing.assert_array_equal(unpack_sparse(sparse), expected)
    np.testing.assert_array_equal(jax.vmap(unpack_sparse)(sparse), expected)
    np.testing.assert_array_equal(jax.lax.map(unpack_sparse, sparse), expected)
    np.testing.assert_array_equal(jax.jit(unpack_sparse)(sparse), expected)


def test_prints_itself() -> None:
    sparse = pack_sparse(jnp.ones((8, 6)), "2:4", 0)
    assert repr(sparse) == (
        "NMSparse(values=float32[4,6], indices=uint8[4,6], pattern='2:4', axis=-2, size=8)"
    )
    assert "values=None" in repr(jax.tree.map(lambda _: None, sparse))


@pytest.mark.parametrize("pattern", ["3:4", "2:16", "", (2, 4)])
def test_unknown_pattern(pattern: Any) -> None:
    with pytest.raises(ValueError, match="unknown sparsity pattern.*4:16, 4:12.*1:2"):
        prune(jnp.ones(4), pattern)


def test_bad_arguments() -> None:
    for x in (jnp.ones(4, bool), jnp.ones(4, jnp.complex64)):
        with pytest.raises(TypeError, match="real numbers"):
            pack_sparse(x, "2:4")
    with pytest.raises(ValueError, match="axis 2 of an array of 2 dimensions"):
        prune(jnp.ones((4, 4)), "2:4", 2)
    with pytest.raises(ValueError, match="axis"):
        prune(jnp.float32(1), "2:4")
    values, indices = jnp.ones((3, 4)), jnp.zeros((3, 4), jnp.uint8)
    for parts, message in [
        ((values, indices[:2], "2:4", -1, 8), r"float32\[3, 4\]; got uint8\[2, 4\]"),
        ((values, indices.astype(int), "2:4", -1, 8), "must be uint8"),
        ((values, indices, "2:4", 1, 8), "counts from the end, -2 to -1"),
        ((values, indices, "2:4", -1, 9), "9 elements in the pattern 2:4 have 6 values"),
    ]:
        with pytest.raises(ValueError, match=message):
            unpack_sparse(NMSparse(*parts))
