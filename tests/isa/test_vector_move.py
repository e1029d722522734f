"""Copies, constants, shuffles and dropout: meaning against numpy, limits, cost by generation."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isa_tiles import CORES, cycles, floats, like, refused, run, tile

from jax_trn3.isa.vector_move import (
    dropout,
    memset,
    nc_stream_shuffle,
    tensor_copy,
    tensor_copy_predicated,
)

BF16 = ml_dtypes.bfloat16


# tensor_copy


def test_tensor_copy_is_exact_where_the_type_stays() -> None:
    x = np.int32([[2**31 - 1, 2**24 + 1, -7]])
    np.testing.assert_array_equal(run(tensor_copy, dst=tile(1, 3, dtype="int32"), src=x)["dst"], x)
    bits = np.float32([[np.nan, -0.0, np.inf]])
    result = run(tensor_copy, dst=tile(1, 3), src=bits)["dst"]
    np.testing.assert_array_equal(result.view(np.uint32), bits.view(np.uint32))


def test_tensor_copy_converts_by_way_of_float32() -> None:
    x = np.int32([[2**24 + 1, -3]])
    result = run(tensor_copy, dst=tile(1, 2, dtype="uint32"), src=x)["dst"]
    np.testing.assert_array_equal(result, np.uint32([[2**24, 0]]))
    x = floats(8, 6)
    result = run(tensor_copy, dst=tile(8, 2, 3, dtype="bfloat16"), src=x)["dst"]
    np.testing.assert_array_equal(result, x.astype(BF16).reshape(8, 2, 3))


def test_tensor_copy_limits() -> None:
    x = tile(32, 8)
    packed, other = tile(32, 8, dtype="float8_e4m3fn_x4"), tile(32, 8, dtype="float8_e5m2_x4")
    refused("packed types are copied as they are", tensor_copy, dst=packed, src=other)
    refused("packed types are copied as they are", tensor_copy, dst=packed, src=x)
    assert cycles(tensor_copy(packed, packed), 4) == 64
    refused(
        "engine scalar runs it from NeuronCore-v3 on", tensor_copy, 2, engine="scalar", dst=x, src=x
    )
    refused(
        "gpsimd cannot access psum",
        tensor_copy,
        engine="gpsimd",
        dst=x,
        src=tile(32, 8, memory="psum"),
    )
    refused("dst has 64 partitions of 8|src has 32", tensor_copy, dst=tile(64, 8), src=x)
    refused("tensor does not run it", tensor_copy, engine="tensor", dst=x, src=x)


def test_tensor_copy_cost() -> None:
    """max(MIN_II, N) on Trainium1; modes in test_performance_modes.py; 150 + N on GpSimdE."""
    x = tile(128, 1000)
    for generation in CORES:
        assert cycles(tensor_copy(x, x), generation) == 1000
        assert cycles(tensor_copy(x, x, engine="gpsimd"), generation) == 1150
    assert cycles(tensor_copy(x, x, engine="scalar"), 3) == 1000
    assert tensor_copy.cost(tensor_copy(x, x), CORES[4]).flops == 0


# tensor_copy_predicated


@pytest.mark.parametrize("reverse", [False, True])
def test_tensor_copy_predicated(reverse: bool) -> None:
    x, before = floats(32, 6), floats(32, 6, seed=1)
    predicate = np.random.default_rng(2).integers(0, 3, (32, 6)).astype(np.uint16)
    wanted = (predicate == 0) if reverse else (predicate != 0)
    result = run(
        tensor_copy_predicated, dst=tile(32, 6), src=x, predicate=predicate, previous=before,
        reverse_pred=reverse,
    )  # fmt: skip
    np.testing.assert_array_equal(result["dst"], np.where(wanted, x, before))


def test_tensor_copy_predicated_of_a_number_onto_what_nobody_wrote() -> None:
    predicate = np.uint8([[1, 0]])
    result = run(
        tensor_copy_predicated, dst=tile(1, 2, dtype="int8"), src=-200.0, predicate=predicate
    )
    np.testing.assert_array_equal(result["dst"], np.int8([[-128, 4]]))
    result = run(tensor_copy_predicated, dst=tile(1, 2), src=1.5, predicate=predicate)
    np.testing.assert_array_equal(result["dst"], np.float32([[1.5, np.nan]]))


def test_tensor_copy_predicated_scatters() -> None:
    x, before = floats(16, 32), floats(16, 64, seed=1)
    predicate = np.random.default_rng(2).integers(0, 2, (16, 32)).astype(np.uint8)
    index = np.random.default_rng(3).permutation(64)[:32].reshape(16, 2).astype(np.uint16)
    result = run(
        tensor_copy_predicated,
        dst=tile(16, 64),
        dst_index=index,
        src=x,
        predicate=predicate,
        previous=before,
    )
    at, expected = index.flatten(order="F").astype(int), before.copy()
    expected[:, at] = np.where(predicate != 0, x, before[:, at])
    np.testing.assert_array_equal(result["dst"], expected)


def test_tensor_copy_predicated_limits_and_cost() -> None:
    x, psum = tile(32, 1000), tile(32, 1000, memory="psum")
    predicate = tile(32, 1000, dtype="uint8")
    in_psum = tile(32, 1000, dtype="uint8", memory="psum")
    refused(
        "src and predicate both lie in psum",
        tensor_copy_predicated,
        dst=x,
        src=psum,
        predicate=in_psum,
    )
    refused(
        "predicate = .* has dtype int32; allowed: uint8, uint16, uint32",
        tensor_copy_predicated,
        dst=x,
        src=x,
        predicate=tile(32, 1000, dtype="int32"),
    )
    refused(
        "src is float32 and dst bfloat16|must have the same dtype",
        tensor_copy_predicated,
        dst=tile(32, 1000, dtype="bfloat16"),
        src=x,
        predicate=predicate,
    )
    assert cycles(tensor_copy_predicated(x, x, predicate), 2) == 2000
    assert cycles(tensor_copy_predicated(x, psum, predicate), 2) == 1000
    assert cycles(tensor_copy_predicated(x, x, in_psum), 2) == 1000
    assert cycles(tensor_copy_predicated(x, 0.0, predicate), 2) == 1000
    for generation in (3, 4):
        assert cycles(tensor_copy_predicated(x, x, predicate), generation) == 1000


# memset


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("float32", 1.5, 1.5),
        ("bfloat16", 1 / 3, BF16(1 / 3)),
        ("uint8", 255, 255),
        ("int32", -(2**31), -(2**31)),
        ("uint32", 2**32 - 1, 2**32 - 1),
    ],
)
def test_memset(dtype: str, value: float, expected: object) -> None:
    result = run(memset, dst=tile(32, 3, dtype=dtype), value=value)["dst"]
    assert result.shape == (32, 3)
    assert (result == expected).all()


def test_memset_of_packed_types() -> None:
    for dtype in ("float8_e4m3fn_x4", "float4_e2m1fn_x4"):
        result = run(memset, dst=tile(32, 3, dtype=dtype), value=0)["dst"]
        assert result.shape == (32, 3, 4)
        assert (result.astype(np.float32) == 0).all()
        refused("a packed type can be set to 0 only", memset, dst=tile(32, 3, dtype=dtype), value=1)


def test_memset_limits_and_cost() -> None:
    refused(
        "value is 256; uint8 has the integers 0 to 255",
        memset,
        dst=tile(32, 4, dtype="uint8"),
        value=256,
    )
    refused(
        "value is 0.5; int16 has the integers -32768 to 32767",
        memset,
        dst=tile(32, 4, dtype="int16"),
        value=0.5,
    )
    refused("value is nan; int16", memset, dst=tile(32, 4, dtype="int16"), value=float("nan"))
    with pytest.raises(TypeError, match="memset needs value"):
        memset(tile(32, 4))
    for generation in CORES:
        assert cycles(memset(tile(128, 1000), value=0), generation) == 1000
        assert cycles(memset(tile(128, 1000, dtype="bfloat16"), value=0), generation) == 500
        assert cycles(memset(tile(128, 1000, dtype="float16"), value=1), generation) == 1000
        assert (
            cycles(memset(tile(128, 1000, dtype="bfloat16"), value=0, engine="gpsimd"), generation)
            == 1150
        )


# nc_stream_shuffle


@settings(max_examples=15)
@given(st.permutations(range(32)), st.sampled_from([1, 4]))
def test_a_shuffle_by_a_permutation_is_undone_by_its_inverse(
    mask: list[int], quadrants: int
) -> None:
    x = floats(32 * quadrants, 3)
    inverse = [mask.index(i) for i in range(32)]
    there = run(nc_stream_shuffle, dst=like(x), src=x, shuffle_mask=mask)["dst"]
    np.testing.assert_array_equal(there, x.reshape(quadrants, 32, 3)[:, mask].reshape(x.shape))
    back = run(nc_stream_shuffle, dst=like(x), src=there, shuffle_mask=inverse)["dst"]
    np.testing.assert_array_equal(back, x)


def test_a_shuffle_broadcasts_a_partition_and_keeps_others() -> None:
    x, before = floats(1, 5), floats(32, 5, seed=1)
    mask = [0] * 16 + [255] * 16
    result = run(nc_stream_shuffle, dst=tile(32, 5), src=x, shuffle_mask=mask, previous=before)[
        "dst"
    ]
    np.testing.assert_array_equal(result[:16], np.repeat(x, 16, axis=0))
    np.testing.assert_array_equal(result[16:], before[16:])


def test_shuffle_limits_and_cost() -> None:
    x, mask = tile(32, 4), list(range(32))
    refused(
        "shuffle_mask has 31 entries; it must have 32",
        nc_stream_shuffle,
        dst=x,
        src=x,
        shuffle_mask=mask[:31],
    )
    refused(
        r"shuffle_mask\[0\] is 32; allowed: 0 to 31, or 255",
        nc_stream_shuffle,
        dst=x,
        src=x,
        shuffle_mask=[32] * 32,
    )
    refused(
        "partition 1 of dst from partition 1 of src, which has 1",
        nc_stream_shuffle,
        dst=x,
        src=tile(1, 4),
        shuffle_mask=mask,
    )
    refused(
        "must have the same dtype",
        nc_stream_shuffle,
        dst=x,
        src=tile(32, 4, dtype="int32"),
        shuffle_mask=mask,
    )
    refused(
        "src has 5 elements a partition and dst 4",
        nc_stream_shuffle,
        dst=x,
        src=tile(32, 5),
        shuffle_mask=mask,
    )
    refused(
        "src starts at partition 32; a shuffle of 64 partitions may start at 0, 64",
        nc_stream_shuffle, dst=tile(64, 4), src=tile(32, 4, at=32), shuffle_mask=[0] * 32,
    )  # fmt: skip
    assert (
        cycles(nc_stream_shuffle(tile(32, 4, at=96), tile(32, 4, at=32), shuffle_mask=mask), 4)
        == 64
    )
    for generation in CORES:
        y = tile(128, 1000)
        assert cycles(nc_stream_shuffle(y, y, shuffle_mask=mask), generation) == 1000


# dropout


def seeded(partitions: int) -> np.ndarray:
    return np.random.default_rng(3).integers(1, 2**32, (partitions, 24), dtype=np.uint32)


def test_dropout_drops_a_share_and_keeps_the_rest_as_it_is() -> None:
    x = floats(128, 512) + np.float32(10)
    share = np.linspace(0, 1, 128, dtype=np.float32)[:, None]
    result = run(dropout, dst=tile(128, 512), data=x, prob=share, state=seeded(128))
    fallen = result["dst"] == 0
    np.testing.assert_array_equal(result["dst"], np.where(fallen, 0, x))
    assert not fallen[0].any()
    assert fallen[-1].all()
    # Five standard deviations of 512 draws, all partitions.
    spread = 5 * np.sqrt(share[:, 0] * (1 - share[:, 0]) / 512)
    assert (np.abs(fallen.mean(axis=1) - share[:, 0]) <= spread).all()
    again = run(dropout, dst=tile(128, 512), data=x, prob=share, state=result["state"])
    assert (again["dst"] != result["dst"]).any()


def test_dropout_of_integers_by_a_number() -> None:
    x = np.full((32, 64), 2**24 + 1, np.int32)
    result = run(dropout, dst=tile(32, 64, dtype="int32"), data=x, prob=0.5, state=seeded(32))[
        "dst"
    ]
    assert set(np.unique(result)) == {0, 2**24 + 1}


def test_dropout_limits_and_cost() -> None:
    x = tile(32, 1000)
    refused("prob is 1.5; a probability is from 0 to 1", dropout, dst=x, data=x, prob=1.5)
    refused(
        "must have the same dtype", dropout, dst=x, data=tile(32, 1000, dtype="int32"), prob=0.5
    )
    whole = tile(32, 1000, dtype="int16")
    refused(
        "prob is bfloat16 beside data of int16; allowed: float32",
        dropout,
        dst=whole,
        data=whole,
        prob=tile(32, 1, dtype="bfloat16"),
    )
    refused("prob has 32 partitions of 1000", dropout, dst=x, data=x, prob=x)
    for generation in CORES:
        assert cycles(dropout(x, x, 0.5), generation) == 1000
