"""Flash attention against float64, JAX's own and its derivatives; its time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_trn3.hardware import TRAINIUM2, TRAINIUM3
from pallas_trn3.kernels.flash_attention import choices_for, flash_attention
from pallas_trn3.kernels.flash_kernel import Choices
from pallas_trn3.timing import timeline_of

SMALL = Choices(section=512)
"""Short sections: short kernels, which compile fast, and several of them."""


def operands(
    batch: int, queries: int, heads: int, keys: int, kv_heads: int, features: int, width: int,
    dtype: str = "float32",
) -> list[jax.Array]:  # fmt: skip
    shapes = [(queries, heads, features), (keys, kv_heads, features), (keys, kv_heads, width)]
    rngs = jax.random.split(jax.random.key(queries + keys), 3)
    return [
        jax.random.normal(rng, (batch, *shape)).astype(dtype) for rng, shape in zip(rngs, shapes)
    ]


def expected(
    q: Any, k: Any, v: Any, causal: bool = False, window: Any = None, scale: float | None = None
) -> np.ndarray:
    """In float64."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = np.repeat(k, group, 2), np.repeat(v, group, 2)
    scores = np.einsum("btnh,bsnh->bnts", q, k) * (scale or q.shape[-1] ** -0.5)
    t, s = np.indices(scores.shape[2:])
    seen = np.ones_like(t, bool)
    if causal:
        seen &= s <= t
    if window is not None:
        left, right = (window, window) if isinstance(window, int) else window
        seen &= (s >= t - left) & (s <= t + right)
    scores = np.where(seen, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", p / p.sum(-1, keepdims=True), v)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        pytest.param((1, 512, 2, 128, 1, 16, 16), {}, id="two heads in one pipeline"),
        pytest.param((1, 130, 1, 700, 1, 32, 48), {"scale": 0.3}, id="edges, two sections"),
        pytest.param((1, 3, 2, 5, 1, 8, 8), {}, id="tiny"),
        pytest.param((1, 640, 1, 640, 1, 32, 32), {"causal": True}, id="causal, two sections"),
        pytest.param((1, 150, 1, 70, 1, 16, 16), {"causal": True}, id="causal, more queries"),
        pytest.param((1, 70, 1, 200, 1, 16, 16), {"causal": True}, id="causal, more keys"),
        pytest.param((1, 300, 1, 300, 1, 16, 16), {"window": (100, 30)}, id="window"),
        pytest.param((1, 100, 1, 128, 1, 192, 256), {}, id="wide heads"),
    ],
)
def test_values_are_those_of_float64(sizes: tuple[int, ...], options: dict[str, Any]) -> None:
    arrays = operands(*sizes)
    found = flash_attention(*arrays, choices=SMALL, **options)
    assert found.shape == (*sizes[:3], sizes[6])
    np.testing.assert_allclose(found, expected(*arrays, **options), rtol=2e-5, atol=2e-6)


def test_blocks_of_queries_before_which_there_are_others() -> None:
    arrays = operands(1, 4224, 1, 4224, 1, 8, 8)
    found = flash_attention(*arrays, causal=True, choices=SMALL)
    np.testing.assert_allclose(found, expected(*arrays, causal=True), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types_are_as_near_as_jax_is(dtype: str) -> None:
    arrays = operands(1, 100, 1, 256, 1, 64, 64, dtype)
    right = expected(*arrays)
    found = np.asarray(flash_attention(*arrays, choices=SMALL), np.float64)
    jaxs = np.asarray(jax.nn.dot_product_attention(*arrays), np.float64)
    assert np.abs(found - right).max() <= 2 * np.abs(jaxs - right).max()


def test_trainium2s_instructions_give_the_same() -> None:
    arrays = operands(1, 130, 1, 700, 1, 32, 32)
    found = flash_attention(
        *arrays, chip=TRAINIUM2, choices=Choices(section=512, exponentials="scalar", bank=1024)
    )
    np.testing.assert_allclose(found, expected(*arrays), rtol=2e-5, atol=2e-6)


def test_scores_beyond_float32s_exponent_range_overflow_nowhere() -> None:
    q, k, v = operands(1, 128, 1, 600, 1, 16, 16)
    found = flash_attention(100 * q, 100 * k, v, choices=SMALL)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected(100 * q, 100 * k, v), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        pytest.param((1, 130, 2, 140, 1, 32, 16), {}, id="grouped heads, edges"),
        pytest.param((1, 540, 1, 540, 1, 16, 16), {"causal": True}, id="causal"),
        pytest.param((1, 300, 1, 300, 1, 16, 16), {"window": (130, 40)}, id="window"),
    ],
)
def test_derivatives_are_those_of_plain_attention(
    sizes: tuple[int, ...], options: dict[str, Any]
) -> None:
    arrays = operands(*sizes)
    weights = jax.random.normal(jax.random.key(1), (*sizes[:3], sizes[6]))
    t, s = np.indices((sizes[1], sizes[3]))
    left, right = options.get("window", (sizes[1], sizes[3]))
    seen = (s <= t + (0 if options.get("causal") else right)) & (s >= t - left)

    def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        k, v = (jnp.repeat(x, sizes[2] // sizes[4], 2) for x in (k, v))
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) * sizes[5] ** -0.5
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, where=seen), v)

    def gradients(function: Any) -> tuple[jax.Array, ...]:
        loss = jax.grad(lambda *xs: jnp.vdot(function(*xs), weights), argnums=(0, 1, 2))
        return jax.jit(loss)(*arrays)

    found = gradients(functools.partial(flash_attention, choices=SMALL, **options))
    for mine, right_one in zip(found, gradients(plain)):
        np.testing.assert_allclose(mine, right_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((1, 8, 3, 8, 2, 8, 8), {}, "3 query heads are no multiple of 2"),
        ((1, 8, 1, 8, 1, 520, 8), {}, "up to 512"),
        ((1, 300, 1, 100, 1, 8, 8), {"window": 10}, "the last see none of 100 keys"),
        ((1, 8, 1, 8, 1, 8, 8), {"window": -1}, "at least 0"),
    ],
)
def test_what_it_cannot_do_is_said(
    sizes: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        flash_attention(*operands(*sizes), **options)
    with pytest.raises(TypeError, match="float64"):
        flash_attention(*(np.zeros((1, 8, 1, 8), np.float64),) * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"section": 100}, "multiple of 512"),
        ({"turned_by_dma": 9}, "0 to 8"),
        ({"move": 100}, "allowed"),
    ],
)
def test_choices_that_there_are_not(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Choices(**options)  # type: ignore[arg-type]


def busy(chip: Any, **options: Any) -> tuple[float, float]:
    """TensorE's share of the time, and the time in us, of 4096 tokens and 4 heads."""
    q, k = (jax.ShapeDtypeStruct((1, 4096, n, 128), jnp.bfloat16) for n in (4, 1))
    timeline = timeline_of(
        functools.partial(flash_attention, chip=chip, **options), q, k, k, chip=chip
    )
    return timeline.engines["core0/tensor"].busy / timeline.active_ps, timeline.active_ps / 1e6


def test_tensor_engine_is_busy() -> None:
    least = 4 * 4 * 4096**2 * 128 / TRAINIUM3.core.tensor.peak_flops() * 1e6
    share, time = busy(TRAINIUM3)
    assert share > 0.93
    assert least / time > 0.9


def test_tiles_that_nobody_sees_are_left_out() -> None:
    _, whole = busy(TRAINIUM3, choices=Choices(section=2048))
    causal, windowed = (busy(TRAINIUM3, causal=True, window=w)[1] for w in (None, 512))
    assert windowed < 0.7 * causal < 0.7 * whole


def test_choices_are_the_chips() -> None:
    assert choices_for(TRAINIUM2).exponentials == "scalar"
    assert choices_for(TRAINIUM3).exponentials == "vector"
