"""The eight largest values: meaning against numpy, limits, cost by generation."""

import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from isa_tiles import CORES, cycles, floats, like, refused, run, tile

from jax_trn3.isa.vector_search import max8, nc_find_index8, nc_match_replace8

U32 = np.uint32(0xFFFFFFFF)


def test_max8() -> None:
    x = floats(32, 4, 9)
    expected = -np.sort(-x.reshape(32, 36), axis=1)[:, :8]
    np.testing.assert_array_equal(run(max8, dst=tile(32, 8), src=x)["dst"], expected)
    narrow = run(max8, dst=tile(32, 8, dtype="bfloat16"), src=x)["dst"]
    np.testing.assert_array_equal(narrow, expected.astype(ml_dtypes.bfloat16))


def test_find_index8_finds_the_first_and_says_where_nothing_is() -> None:
    data = np.float32([[5, 1, 5, 2, 3, 4, 6, 7, 8]])
    vals = np.float32([[8, 5, 1, 9, 5, 2, 3, 5]])
    expected = [8, 0, 1, -1, 2, 3, 4, -1]
    for dtype in (np.uint32, np.uint16):
        result = run(nc_find_index8, dst=like(np.zeros((1, 8), dtype)), data=data, vals=vals)["dst"]
        np.testing.assert_array_equal(result, np.array([expected]).astype(dtype))


def test_match_replace8_pairs_equal_values_from_the_last_on() -> None:
    """The example in nki.isa.nc_match_replace8's documentation."""
    data = np.float32([[1, 2, 3, 4, 8, 8, 8, 8, 8, 8, 8]])
    vals = np.float32([[3, 8, 8, 8, 8, 8, 8, 8]])
    result = run(
        nc_match_replace8, dst=tile(1, 11), data=data, vals=vals, imm=0.0,
        dst_idx=tile(1, 8, dtype="uint32"),
    )  # fmt: skip
    np.testing.assert_array_equal(result["dst_idx"], np.uint32([[2, 10, 9, 8, 7, 6, 5, 4]]))
    np.testing.assert_array_equal(result["dst"], np.float32([[1, 2, 0, 4] + [0] * 7]))


def test_match_replace8_without_indices_or_matches() -> None:
    data, vals = np.float32([[1, 2, 3, 4, 5, 6, 7, 8]]), np.float32([[9, 1, 2, 3, 4, 5, 6, 7]])
    result = run(nc_match_replace8, dst=tile(1, 8), data=data, vals=vals, imm=-np.inf)
    assert set(result) == {"dst"}
    np.testing.assert_array_equal(result["dst"], [[-np.inf] * 7 + [8]])
    result = run(
        nc_match_replace8,
        dst=tile(1, 8),
        data=data,
        vals=vals,
        imm=2.0,
        dst_idx=tile(1, 8, dtype="uint32"),
    )
    np.testing.assert_array_equal(result["dst_idx"], [[U32, 0, 1, 2, 3, 4, 5, 6]])


@settings(max_examples=12)
@given(st.integers(0, 999), st.integers(1, 6))
def test_three_instructions_make_a_top_k(seed: int, distinct: int) -> None:
    """Also with ties: each place once, values descending."""
    data = np.random.default_rng(seed).integers(0, 4**distinct, (4, 40)).astype(np.float32)
    rest, values, places = data, [], []
    for _ in range(3):
        top = run(max8, dst=tile(4, 8), src=rest)["dst"]
        found = run(nc_find_index8, dst=tile(4, 8, dtype="uint32"), data=rest, vals=top)["dst"]
        step = run(
            nc_match_replace8, dst=tile(4, 40), data=rest, vals=top, imm=-np.inf,
            dst_idx=tile(4, 8, dtype="uint32"),
        )  # fmt: skip
        np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(step["dst_idx"], axis=1))
        values, places, rest = [*values, top], [*places, found], step["dst"]
    where = np.concatenate(places, axis=1).astype(np.int64)
    top24 = np.concatenate(values, axis=1)
    np.testing.assert_array_equal(top24, -np.sort(-data, axis=1)[:, :24])
    np.testing.assert_array_equal(np.take_along_axis(data, where, axis=1), top24)
    assert all(len(set(row)) == 24 for row in where.tolist())


def test_limits() -> None:
    x, eight, index = tile(32, 64), tile(32, 8), tile(32, 8, dtype="uint32")
    refused("src has 7 elements a partition; allowed: 8 to 16384", max8, dst=eight, src=tile(32, 7))
    refused(
        "src has 16385 elements a partition; allowed: 8 to 16384",
        max8,
        dst=eight,
        src=tile(32, 16385),
    )
    refused("dst has 9 elements a partition; allowed: 8", max8, dst=tile(32, 9), src=x)
    refused("dst has 64 partitions and src 32", max8, dst=tile(64, 8), src=x)
    refused(
        "dst = .* has dtype int32; allowed: uint16, uint32",
        nc_find_index8,
        dst=tile(32, 8, dtype="int32"),
        data=x,
        vals=eight,
    )
    refused(
        "vals has 7 elements a partition; allowed: 8",
        nc_find_index8,
        dst=index,
        data=x,
        vals=tile(32, 7),
    )
    refused(
        "dst_idx has 4 elements a partition; allowed: 8",
        nc_match_replace8,
        dst=x,
        data=x,
        vals=eight,
        imm=0.0,
        dst_idx=tile(32, 4, dtype="uint32"),
    )
    refused(
        "data has 32 partitions of 64 elements, dst has 32 of 65",
        nc_match_replace8,
        dst=tile(32, 65),
        data=x,
        vals=eight,
        imm=0.0,
    )


def test_at_most_three_dimensions() -> None:
    refused(
        r"src of shape \(32, 2, 4, 8\) has 4 dimensions; allowed: 3",
        max8,
        dst=tile(32, 8),
        src=tile(32, 2, 4, 8),
    )


def test_cost() -> None:
    """N cycles (SDK 2.26; nc_match_replace8 says min(MIN_II, N), surely max)."""
    x, eight, index = tile(128, 1000), tile(128, 8), tile(128, 8, dtype="uint32")
    for generation in CORES:
        assert cycles(max8(eight, x), generation) == 1000
        assert cycles(nc_find_index8(index, x, eight), generation) == 1000
        assert cycles(nc_match_replace8(x, x, eight, index, imm=0.0), generation) == 1000
        assert cycles(max8(eight, tile(128, 8)), generation) == 64
