"""Attention of a few queries against a cache, against float64; its time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_trn3.hardware import TRAINIUM2, TRAINIUM3
from pallas_trn3.kernels.decode_attention import decode_attention
from pallas_trn3.timing import timeline_of


def expected(q: Any, k: Any, v: Any, lengths: Any) -> np.ndarray:
    """In float64."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("btnh,bsnh->bnts", q, np.repeat(k, group, 2)) / np.sqrt(q.shape[-1])
    last = np.asarray(lengths)[:, None] - q.shape[1] + np.arange(q.shape[1])
    seen = np.arange(k.shape[1]) <= last[:, None, :, None]
    p = np.exp(np.where(seen, scores, -np.inf) - scores.max(-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", p / p.sum(-1, keepdims=True), np.repeat(v, group, 2))


@pytest.mark.parametrize(
    ("queries", "heads", "kv_heads", "keys", "lengths", "chip"),
    [
        pytest.param(1, 4, 1, 300, None, TRAINIUM3, id="one query, an edge"),
        pytest.param(2, 4, 2, 2304, [3, 2304], TRAINIUM3, id="two queries, two sections"),
        pytest.param(1, 2, 1, 256, [1, 200], TRAINIUM2, id="Trainium2's instructions"),
    ],
)
def test_values_are_those_of_float64(
    queries: int, heads: int, kv_heads: int, keys: int, lengths: list[int] | None, chip: Any
) -> None:
    shapes = [(2, queries, heads, 64), (2, keys, kv_heads, 64), (2, keys, kv_heads, 32)]
    rngs = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(r, s, jnp.bfloat16) for r, s in zip(rngs, shapes))
    used = None if lengths is None else jnp.array(lengths)
    found = decode_attention(q, k, v, used, chip=chip)
    right = expected(q, k, v, [keys, keys] if lengths is None else lengths)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), right, rtol=0.02, atol=0.01)


def test_what_it_cannot_do_is_said() -> None:
    q, k = jnp.zeros((1, 4, 64, 32), jnp.bfloat16), jnp.zeros((1, 8, 1, 32), jnp.bfloat16)
    with pytest.raises(ValueError, match="at most 128"):
        decode_attention(q, k, k)
    with pytest.raises(TypeError, match="float32"):
        decode_attention(*(x.astype(jnp.float32) for x in (q[:, :1], k, k)))
    with pytest.raises(ValueError, match="lengths is float32"):
        decode_attention(q[:, :1], k, k, jnp.zeros(1))


@pytest.mark.parametrize("chip", [TRAINIUM2, TRAINIUM3], ids=lambda chip: chip.name)
def test_the_cache_is_read_once(chip: Any) -> None:
    query = jax.ShapeDtypeStruct((4, 1, 8, 128), jnp.bfloat16)
    cache = jax.ShapeDtypeStruct((4, 8192, 1, 128), jnp.bfloat16)
    function = functools.partial(decode_attention, chip=chip)
    timeline = timeline_of(function, query, cache, cache, chip=chip)
    read = sum(
        int(runs) * work.dma.bytes_read_hbm
        for work, runs in zip(timeline.work, timeline.executions)
        if work.dma is not None
    )
    assert read <= 1.05 * 2 * 4 * 8192 * 128 * 2
