"""GpSimdE's gathers: meaning against numpy, limits, cost by generation."""

import math

import numpy as np
import pytest
from isa_tiles import CORES, cycles, floats, refused, run, tile

from jax_trn3.isa.gpsimd_gather import local_gather, nc_n_gather


@pytest.mark.parametrize(("each", "valid"), [(1, None), (4, None), (2, 37)])
def test_local_gather_takes_runs_by_the_indices_of_its_16_partitions(
    each: int, valid: int | None
) -> None:
    rng = np.random.default_rng(0)
    data = floats(48, 100, seed=1)
    index = rng.integers(0, 100 - each, (48, 4)).astype(np.uint16)
    count = 64 if valid is None else valid
    result = run(
        local_gather,
        dst=tile(48, count * each),
        src_buffer=data,
        index=index,
        num_elem_per_idx=each,
        num_valid_indices=valid,
    )
    expected = np.empty((48, count, each), np.float32)
    for core in range(3):
        group = slice(16 * core, 16 * core + 16)
        for i, offset in enumerate(index[group].flatten(order="F")[:count]):
            expected[group, i] = data[group, offset : int(offset) + each]
    np.testing.assert_array_equal(result["dst"], expected.reshape(48, -1))


def test_local_gather_limits() -> None:
    data, index = tile(32, 100), tile(32, 4, dtype="uint16")
    common = {"dst": tile(32, 64), "src_buffer": data, "index": index}
    refused(
        "num_elem_per_idx is 3; allowed: 1, 2, 4, 8, 16, 32",
        local_gather,
        **common,
        num_elem_per_idx=3,
    )
    refused(
        "65 indices for 16 partitions; allowed: 1 to 64",
        local_gather,
        **common,
        num_valid_indices=65,
    )
    refused(
        "4112 indices for 16 partitions; allowed: 1 to 4096",
        local_gather,
        dst=tile(32, 4112),
        src_buffer=data,
        index=tile(32, 257, dtype="uint16"),
    )
    refused(
        "dst has 64 elements a partition; 64 indices of 2 fill 128",
        local_gather,
        **common,
        num_elem_per_idx=2,
    )
    refused(
        "they must agree, a multiple of 16",
        local_gather,
        dst=tile(24, 64),
        src_buffer=tile(24, 100),
        index=tile(24, 4, dtype="uint16"),
    )
    refused(
        "index = .* has dtype uint32; allowed: uint16",
        local_gather,
        **common | {"index": tile(32, 4, dtype="uint32")},
    )
    refused(
        "must have the same dtype", local_gather, **common | {"dst": tile(32, 64, dtype="bfloat16")}
    )


def test_local_gather_cost() -> None:
    """150 + num_valid * e * C, C = ((28 + 4 e) / (4 e)) / min(4 / dtype_size, e); see the docstring."""
    for dtype, size, each in (
        ("float32", 4, 1),
        ("float32", 4, 32),
        ("bfloat16", 2, 4),
        ("uint8", 1, 2),
    ):
        data, index = tile(128, 512, dtype=dtype), tile(128, 4, dtype="uint16")
        made = local_gather(tile(128, 64 * each, dtype=dtype), data, index, num_elem_per_idx=each)
        factor = ((28 + 4 * each) / (4 * each)) / min(4 / size, each)
        for generation in CORES:
            assert cycles(made, generation) == 150 + math.ceil(64 * each * factor)


def test_nc_n_gather() -> None:
    data = floats(32, 5, 10)
    index = np.random.default_rng(0).integers(0, 50, (32, 3, 4)).astype(np.uint32)
    result = run(nc_n_gather, dst=tile(32, 12), data=data, indices=index)["dst"]
    expected = np.take_along_axis(
        data.reshape(32, 50), index.reshape(32, 12).astype(np.int64), axis=1
    )
    np.testing.assert_array_equal(result, expected)


def test_nc_n_gather_limits_and_cost() -> None:
    data, index = tile(32, 2000), tile(32, 1000, dtype="uint32")
    refused(
        "indices = .* has dtype int32; allowed: uint32",
        nc_n_gather,
        dst=tile(32, 1000),
        data=data,
        indices=tile(32, 1000, dtype="int32"),
    )
    refused(
        "indices has 32 partitions of 1000 elements, dst has 32 of 999",
        nc_n_gather,
        dst=tile(32, 999),
        data=data,
        indices=index,
    )
    refused(
        "data = .* lies in psum",
        nc_n_gather,
        dst=tile(32, 1000),
        data=tile(32, 2000, memory="psum"),
        indices=index,
    )
    assert cycles(nc_n_gather(tile(32, 1000), data, index), 4) == 2 * 150 + 1000
    packed = tile(32, 8, dtype="float8_e4m3fn_x4")
    assert cycles(nc_n_gather(packed, packed, tile(32, 8, dtype="uint32")), 4) == 158
