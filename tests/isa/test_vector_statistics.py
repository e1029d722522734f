"""Mean and variance in parts: meaning against numpy, limits, cost by generation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isa_tiles import CORES, cycles, floats, refused, run, tile, wide

from jax_trn3.isa.vector_statistics import bn_aggr, bn_stats


@pytest.mark.parametrize("size", [1, 2, 7, 512])
def test_bn_stats_describes_even_and_odd_elements(size: int) -> None:
    x = floats(16, size)
    stats = run(bn_stats, dst=tile(16, 6), data=x)["dst"]
    for first in (0, 1):
        part = wide(x)[:, first::2]
        count = part.shape[1]
        mean = part.mean(axis=1) if count else np.zeros(16)
        expected = np.stack(
            [np.full(16, count), mean, (part.var(axis=1) if count else 0 * mean) * count], axis=1
        )
        np.testing.assert_allclose(
            stats[:, 3 * first : 3 * first + 3], expected, rtol=1e-5, atol=1e-5
        )


@settings(max_examples=8)
@given(st.sampled_from([[6], [1, 6, 6]]), st.integers(0, 99))
def test_bn_aggr_gives_mean_and_variance_of_all_parts(sizes: list[int], seed: int) -> None:
    parts = [floats(4, size, seed=seed + i) for i, size in enumerate(sizes)]
    stats = [run(bn_stats, dst=tile(4, 6), data=part)["dst"] for part in parts]
    data = np.concatenate(stats, axis=1)
    result = run(bn_aggr, dst=tile(4, 2), data=data)["dst"]
    whole = np.concatenate(parts, axis=1).astype(np.float64)
    np.testing.assert_allclose(result[:, 0], whole.mean(axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result[:, 1], whole.var(axis=1), rtol=1e-4, atol=1e-5)


def test_bn_limits_and_cost() -> None:
    refused(
        "data has 513 elements a partition; allowed: 1 to 512",
        bn_stats,
        dst=tile(32, 6),
        data=tile(32, 513),
    )
    refused(
        "dst has 5 elements a partition; allowed: 6", bn_stats, dst=tile(32, 5), data=tile(32, 8)
    )
    refused("dst has 64 partitions and data 32", bn_stats, dst=tile(64, 6), data=tile(32, 8))
    refused(
        "data has 8 elements a partition; it must have a multiple of 3",
        bn_aggr,
        dst=tile(32, 2),
        data=tile(32, 8),
    )
    for generation in CORES:
        assert cycles(bn_stats(tile(32, 6), tile(32, 500)), generation) == 500
        assert cycles(bn_aggr(tile(32, 2), tile(32, 300)), generation) == 13 * 300 / 3
