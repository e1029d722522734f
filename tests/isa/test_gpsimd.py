"""GpSimdE: meaning against numpy, limits, cost by generation."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isa_tiles import CORES, cycles, floats, like, refused, run, tile, wide

from jax_trn3.isa.gpsimd import (
    affine_select,
    iota,
    nonzero_with_count,
    sequence_bounds,
    tensor_partition_reduce,
    topk,
)

BF16 = ml_dtypes.bfloat16


# iota, affine_select


def affine_oracle(
    partitions: int, pattern: list[list[int]], offset: int, channel: int
) -> np.ndarray:
    """The loops of nki.isa.iota's documentation."""
    padded = [[0, 1]] * (4 - len(pattern)) + pattern
    rows = []
    for partition in range(partitions):
        row = []
        for w in range(padded[0][1]):
            for z in range(padded[1][1]):
                for y in range(padded[2][1]):
                    for x in range(padded[3][1]):
                        steps = sum(i * step for i, (step, _) in zip((w, z, y, x), padded))
                        row.append(offset + partition * channel + steps)
        rows.append(row)
    return np.array(rows)


STEPS = st.lists(st.integers(-50, 50), min_size=1, max_size=4)
NUMBERS = ([12], [3, 4], [2, 3, 2], [1, 2, 3, 2])  # of as many steps


@settings(max_examples=15)
@given(STEPS, st.integers(-1000, 1000), st.integers(-9, 9))
def test_iota_is_its_loops(steps: list[int], offset: int, channel: int) -> None:
    pattern = [list(pair) for pair in zip(steps, NUMBERS[len(steps) - 1])]
    result = run(
        iota,
        dst=tile(5, 12, dtype="int32"),
        pattern=pattern,
        offset=offset,
        channel_multiplier=channel,
    )
    np.testing.assert_array_equal(result["dst"], affine_oracle(5, pattern, offset, channel))


def test_iota_wraps_and_casts() -> None:
    result = run(iota, dst=tile(1, 2, dtype="int32"), pattern=[[1, 2]], offset=2**31 - 1)
    np.testing.assert_array_equal(result["dst"], np.int32([[2**31 - 1, -(2**31)]]))
    result = run(iota, dst=tile(2, 3, dtype="bfloat16"), pattern=[[3, 3]], channel_multiplier=100)
    np.testing.assert_array_equal(
        result["dst"], np.array([[0, 3, 6], [100, 103, 106]]).astype(BF16)
    )


@pytest.mark.parametrize(
    "op", ["equal", "not_equal", "greater_equal", "greater", "less_equal", "less"]
)
def test_affine_select_masks(op: str) -> None:
    """A causal mask: `greater_equal` keeps what is not after its row."""
    x = floats(16, 4, 4, dtype=BF16)
    result = run(
        affine_select, dst=tile(16, 16, dtype="bfloat16"), on_true_tile=x, pattern=[[-4, 4], [-1, 4]],
        channel_multiplier=1, on_false_value=-1e30, cmp_op=op,
    )  # fmt: skip
    kept = getattr(np, op)(affine_oracle(16, [[-4, 4], [-1, 4]], 0, 1), 0)
    np.testing.assert_array_equal(result["dst"], np.where(kept, x.reshape(16, 16), BF16(-1e30)))


def test_affine_select_converts_by_way_of_float32() -> None:
    x = np.int32([[2**24 + 1, 5]])
    common = {
        "on_true_tile": x,
        "pattern": [[1, 2]],
        "channel_multiplier": 0,
        "on_false_value": -2.5,
    }
    same = run(affine_select, dst=tile(1, 2, dtype="int32"), **common)["dst"]
    np.testing.assert_array_equal(same, np.int32([[2**24 + 1, -2]]))
    other = run(affine_select, dst=tile(1, 2), **common)["dst"]
    np.testing.assert_array_equal(other, np.float32([[2**24, -2.5]]))


def test_affine_limits_and_cost() -> None:
    x = tile(128, 1000)
    refused("pattern has 999 values, a partition of dst 1000", iota, dst=x, pattern=[[1, 999]])
    refused(
        r"it must be 1 to 4 pairs \[step, number >= 1\]",
        iota,
        dst=x,
        pattern=[[1, 1]] * 4 + [[1, 1000]],
    )
    refused(r"it must be 1 to 4 pairs", iota, dst=x, pattern=[])
    refused(
        "offset is 2147483648; it must be an int32", iota, dst=x, pattern=[[1, 1000]], offset=2**31
    )
    refused("dst = .* lies in psum", iota, dst=tile(128, 1000, memory="psum"), pattern=[[1, 1000]])
    select = {"pattern": [[1, 1000]], "channel_multiplier": 0, "on_false_value": 0.0}
    refused(
        "cmp_op is 'add'; allowed: 'equal'",
        affine_select,
        dst=x,
        on_true_tile=x,
        **select,
        cmp_op="add",
    )
    refused(
        "on_true_tile has 128 partitions of 500",
        affine_select,
        dst=x,
        on_true_tile=tile(128, 500),
        **select,
    )
    for generation in CORES:
        assert cycles(iota(x, pattern=[[1, 1000]]), generation) == 150 + 1000
        assert cycles(iota(tile(128, 4), pattern=[[1, 4]]), generation) == 150 + 4
        assert cycles(affine_select(x, x, **select), generation) == 150 + 1000


# Searches


def test_nonzero_with_count() -> None:
    """The example of its documentation in one of two groups of partitions."""
    src = np.zeros((32, 8), np.float32)
    src[0] = [0, 1, 1, 0, 0, 1, 0, 0]
    src[16] = [-2, 0, 0, 0, 0, 0, np.nan, 0.5]
    before = np.full((32, 9), 77, np.int32)
    result = run(
        nonzero_with_count,
        dst=tile(32, 9, dtype="int32"),
        src=src,
        index_offset=16,
        previous=before,
    )["dst"]
    np.testing.assert_array_equal(result[0], [17, 18, 21, -1, -1, -1, -1, -1, 3])
    np.testing.assert_array_equal(result[16], [16, 22, 23, -1, -1, -1, -1, -1, 3])
    rest = np.ones(32, bool)
    rest[[0, 16]] = False
    assert (result[rest] == 77).all()
    fresh = run(nonzero_with_count, dst=tile(32, 9, dtype="int32"), src=src, padding_val=5)["dst"]
    np.testing.assert_array_equal(fresh[0], [1, 2, 5, 5, 5, 5, 5, 5, 3])


def test_nonzero_limits_and_cost() -> None:
    src, dst = tile(128, 1000), tile(128, 1001, dtype="int32")
    refused("NeuronCore-v3 is the first", nonzero_with_count, 2, dst=dst, src=src)
    refused(
        "dst has 128 partitions of 1000 elements; src of 128 and 1000 needs 128 of 1001",
        nonzero_with_count,
        dst=tile(128, 1000, dtype="int32"),
        src=src,
    )
    refused(
        "src = .* has dtype bfloat16; allowed: float32, int32",
        nonzero_with_count,
        dst=dst,
        src=tile(128, 1000, dtype="bfloat16"),
    )
    refused(
        "padding_val is -2147483649; it must be an int32",
        nonzero_with_count,
        dst=dst,
        src=src,
        padding_val=-(2**31) - 1,
    )
    assert cycles(nonzero_with_count(dst, src), 4) == 1150


@settings(max_examples=15)
@given(st.lists(st.integers(0, 2), min_size=9, max_size=9))
def test_sequence_bounds(ids: list[int]) -> None:
    n = len(ids)
    starts, ends = [], []
    for i, name in enumerate(ids):
        start = next(j + 1 for j in range(i, -1, -1) if j == 0 or ids[j - 1] != name) - 1
        end = next(j + 1 for j in range(i, n) if j == n - 1 or ids[j + 1] != name)
        starts.append(start if name else n)
        ends.append(end if name else -1)
    result = run(sequence_bounds, dst=tile(1, 2, n, dtype="int32"), segment_ids=np.int32([ids]))[
        "dst"
    ]
    np.testing.assert_array_equal(result, [[starts, ends]])


def test_sequence_bounds_limits_and_cost() -> None:
    ids = tile(1, 100)
    refused(
        "segment_ids has 2 partitions; it must have 1",
        sequence_bounds,
        dst=tile(2, 2, 100),
        segment_ids=tile(2, 100),
    )
    refused(
        "dst has 1 partitions of 100 elements; segment_ids needs 1 of 200",
        sequence_bounds,
        dst=tile(1, 100),
        segment_ids=ids,
    )
    refused(
        "has dtype int16; allowed: float32, int32",
        sequence_bounds,
        dst=tile(1, 2, 100),
        segment_ids=tile(1, 100, dtype="int16"),
    )
    assert cycles(sequence_bounds(tile(1, 2, 100), ids), 4) == 150 + 200


@pytest.mark.parametrize(("n", "k"), [(42, 42), (48, 17)])
def test_topk_works_on_snakes_of_16_partitions(n: int, k: int) -> None:
    columns = 3
    src = np.random.default_rng(n).permutation(32 * columns).reshape(32, columns).astype(BF16)
    result = run(
        topk,
        val_dst=tile(32, k, dtype="bfloat16"),
        idx_dst=tile(32, k, dtype="uint32"),
        src=src,
        n=n,
    )
    for group in range(2):
        snake = src[16 * group : 16 * group + 16].astype(np.float64).flatten(order="F")[:n]
        order = np.argsort(snake)[-k:]
        values = (
            result["val_dst"][16 * group : 16 * group + 16].astype(np.float64).flatten(order="F")
        )
        places = result["idx_dst"][16 * group : 16 * group + 16].flatten(order="F")
        np.testing.assert_array_equal(values[:k], snake[order])
        np.testing.assert_array_equal(places[:k], order)
        assert np.isnan(values[k:]).all()
        assert (places[k:] == 0xFFFFFFFF).all()


def test_topk_limits_and_cost() -> None:
    def operands(
        partitions: int = 128, k: int = 8, columns: int = 64, n: int = 1024
    ) -> dict[str, object]:
        return {
            "val_dst": tile(partitions, k, dtype="bfloat16"),
            "idx_dst": tile(partitions, k, dtype="uint32"),
            "src": tile(partitions, columns, dtype="bfloat16"),
            "n": n,
        }

    refused("n is 7; allowed: 8 to 65535", topk, **operands(n=7))
    refused("n is 65536; allowed: 8 to 65535", topk, **operands(n=65536))
    refused("val_dst has 9 elements a partition; allowed: 1 to 8", topk, **operands(k=9, n=8))
    refused("n = 1025 in 16 partitions needs 65", topk, **operands(n=1025))
    refused(
        "src has 24 partitions and val_dst 24; they must agree, a multiple of 16",
        topk,
        **operands(24),
    )
    refused(
        "src = .* has dtype float32; allowed: bfloat16", topk, **operands() | {"src": tile(128, 64)}
    )
    for generation in CORES:
        assert cycles(topk(**operands()), generation) == 4 * 1024 + 8


# tensor_partition_reduce


@pytest.mark.parametrize("op", ["add", "average", "maximum"])
def test_tensor_partition_reduce(op: str) -> None:
    x = floats(96, 3, 4)
    expected = {"add": np.sum, "average": np.mean, "maximum": np.max}[op](
        wide(x), axis=0, keepdims=True
    )
    result = run(tensor_partition_reduce, dst=tile(1, 12), data=x, op=op)["dst"]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", ["bitwise_or", "bitwise_and"])
def test_tensor_partition_reduce_on_bits(op: str) -> None:
    x = np.random.default_rng(0).integers(0, 256, (4, 9)).astype(np.uint8)
    result = run(tensor_partition_reduce, dst=like(x[:1]), data=x, op=op)["dst"]
    np.testing.assert_array_equal(result, getattr(np, op).reduce(x, axis=0, keepdims=True))


def test_tensor_partition_reduce_limits_and_cost() -> None:
    x = tile(128, 1000)
    refused(
        "op is 'minimum'; allowed: add, average, maximum, bitwise_or, bitwise_and",
        tensor_partition_reduce,
        dst=tile(1, 1000),
        data=x,
        op="minimum",
    )
    refused(
        "works on bits, and dst is float32",
        tensor_partition_reduce,
        dst=tile(1, 1000),
        data=x,
        op="bitwise_or",
    )
    refused(
        "dst has 2 partitions of 1000 elements",
        tensor_partition_reduce,
        dst=tile(2, 1000),
        data=x,
        op="add",
    )
    refused(
        "data = .* lies in psum",
        tensor_partition_reduce,
        dst=tile(1, 1000),
        data=tile(128, 1000, memory="psum"),
        op="add",
    )
    assert cycles(tensor_partition_reduce(tile(1, 1000), x, op="add"), 4) == 1150
