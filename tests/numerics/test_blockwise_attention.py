"""Attention in blocks against its definition, in float64, over drawn options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_trn3.numerics import attention_blocks, attention_plain
from jax_trn3.numerics.attention import attend, attend_backward, attend_tangent
from jax_trn3.numerics.attention_blocks import Attention, Operands
from jax_trn3.numerics.attention_logits import MASKED

B, K, G, H, D = 2, 2, 2, 8, 12
DIFFERENTIABLE = ("query", "key", "value", "bias", "sinks")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of 32 to 64, so that short sequences have several, on the CPU in float64."""
    monkeypatch.setattr(attention_blocks, "_LONGEST", 64)
    monkeypatch.setattr(attention_blocks, "_SHORTEST", 32)
    monkeypatch.setattr(attention_blocks, "_TILE_ELEMENTS", 2**14)
    monkeypatch.setattr(attention_plain, "_TILE_ELEMENTS", 2**15)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        yield


def definition(operands: Operands, attention: Attention) -> Any:
    """The whole matrix of logits at once; what is masked as jax.nn.dot_product_attention has it."""
    query, key, value, bias, mask, sinks, query_lengths, key_lengths = operands
    x = jnp.einsum("bkgth,bksh->bkgts", query, key) * attention.scale
    if attention.logits_soft_cap is not None:
        x = attention.logits_soft_cap * jnp.tanh(x / attention.logits_soft_cap)
    if bias is not None:
        x = x + bias
    t, s = np.arange(x.shape[3])[:, None], np.arange(x.shape[4])[None]
    seen = jnp.ones(x.shape, bool) if mask is None else jnp.broadcast_to(mask, x.shape)
    if attention.is_causal:
        seen &= t >= s
    if attention.local_window_size is not None:
        left, right = attention.local_window_size
        seen &= (t - left <= s) & (s <= t + right)
    if query_lengths is not None:
        seen &= t < query_lengths[:, None, None, None, None]
    if key_lengths is not None:
        seen &= s < key_lengths[:, None, None, None, None]
    x = jnp.where(seen, x, MASKED)
    sink = jnp.full(x[..., :1].shape, -np.inf)
    if sinks is not None:
        sink = jnp.broadcast_to(sinks[:, :, :, None, None], sink.shape)
    p = jax.nn.softmax(jnp.concatenate([x, sink], axis=-1), axis=-1)[..., :-1]
    out = jnp.einsum("bkgts,bksd->bkgtd", p, value)
    if query_lengths is not None:
        out = jnp.where(t < query_lengths[:, None, None, None, None], out, 0)
    return out


def draw(seed: int) -> tuple[Operands, Attention]:
    rng = np.random.default_rng(seed)
    queries, keys = (int(n) for n in rng.integers(1, 200, 2))
    coin = lambda: bool(rng.integers(2))  # noqa: E731
    logits = lambda: [n if coin() else 1 for n in (B, K, G, queries, keys)]  # noqa: E731
    operands = Operands(
        rng.normal(size=(B, K, G, queries, H)),
        rng.normal(size=(B, K, keys, H)),
        rng.normal(size=(B, K, keys, D if coin() else H)),
        bias=rng.normal(size=logits()) if coin() else None,
        mask=rng.random(logits()) < rng.choice([0.02, 0.5, 0.9]) if coin() else None,
        sinks=rng.normal(size=(B if coin() else 1, K, G)) if coin() else None,
        query_seq_lengths=rng.integers(0, queries + 1, B).astype(np.int32) if coin() else None,
        key_value_seq_lengths=(rng.integers(0, keys + 1, B) * rng.integers(2)).astype(np.int32)
        if coin()
        else None,
    )
    window = tuple(int(n) for n in rng.integers(-5, 90, 2)) if coin() else None
    attention = Attention(0.3, coin(), window, 1.5 if coin() else None)
    return jax.tree.map(jnp.asarray, operands), attention


def check(operands: Operands, attention: Attention) -> None:
    """Forward, tangent and gradients against the definition's."""
    rng = np.random.default_rng(0)
    wrt = tuple(name for name in DIFFERENTIABLE if getattr(operands, name) is not None)
    at = {name: getattr(operands, name) for name in wrt}
    moves = jax.tree.map(lambda x: rng.normal(size=x.shape), at)
    cotangent = rng.normal(size=(*operands.query.shape[:4], operands.value.shape[-1]))

    @jax.jit
    def theirs(at: Any, moves: Any, cotangent: Any) -> Any:
        function = lambda x: definition(operands._replace(**x), attention)  # noqa: E731
        out, tangent = jax.jvp(function, (at,), (moves,))
        return out, out, tangent, jax.vjp(function, at)[1](cotangent)[0]

    @jax.jit
    def ours(at: Any, moves: Any, cotangent: Any) -> Any:
        moved = operands._replace(**at)
        softmax = attend(moved, attention)
        tangents = Operands(None, None, None)._replace(**moves)
        gradients = attend_backward(moved, attention, softmax, cotangent, wrt)
        assert {k for k, x in gradients._asdict().items() if x is not None} == set(wrt)
        return (
            softmax.out,
            attention_plain.attend_plain(moved, attention),
            attend_tangent(moved, attention, softmax, tangents),
            {name: getattr(gradients, name) for name in wrt},
        )

    jax.tree.map_with_path(
        lambda path, x, y: np.testing.assert_allclose(
            x, y, rtol=1e-9, atol=1e-10, err_msg=str(path)
        ),
        ours(at, moves, cotangent),
        theirs(at, moves, cotangent),
    )


forward = jax.jit(attend, static_argnums=1)


@pytest.mark.parametrize("seed", range(6))
def test_drawn_options(seed: int) -> None:
    check(*draw(seed))


def plain_operands(queries: int = 150, keys: int = 150) -> Operands:
    rng = np.random.default_rng(1)
    shapes = (B, K, G, queries, H), (B, K, keys, H), (B, K, keys, H)
    return Operands(*(jnp.asarray(rng.normal(size=shape)) for shape in shapes))


def test_rows_that_see_nothing_average_all_values_also_of_blocks_that_are_skipped() -> None:
    operands = plain_operands()
    mask = np.ones((B, 1, 1, 150, 150), bool)
    mask[0, ..., [0, 70, 149], :] = False
    mask[1, ..., :3] = False  # with causality: rows 0 to 2
    operands = operands._replace(mask=jnp.asarray(mask))
    check(operands, Attention(0.3, is_causal=True))
    out = forward(operands, Attention(0.3, is_causal=True)).out
    mean = np.mean(operands.value, axis=2)
    np.testing.assert_allclose(out[1, :, 0, 2], mean[1], rtol=1e-12)
    np.testing.assert_allclose(out[0, :, 1, 70], mean[0], rtol=1e-12)


def test_window_that_lies_behind_all_keys() -> None:
    check(plain_operands(200, 100), Attention(0.3, local_window_size=(20, 0)))


def test_bias_below_the_number_of_what_is_masked() -> None:
    """Finite, yet so low that the masked keys outweigh what the row sees: JAX's semantics."""
    bias = np.zeros((1, 1, 1, 150, 150))
    bias[..., [5, 100], :] = float(np.finfo(np.float32).min)
    operands = plain_operands()._replace(bias=jnp.asarray(bias))
    check(operands, Attention(0.3, is_causal=True))


def test_bias_of_minus_infinity_is_a_mask_until_nothing_is_left() -> None:
    bias = np.zeros((1, 1, 1, 1, 150))
    bias[..., :70] = -np.inf
    operands = plain_operands()._replace(bias=jnp.asarray(bias))
    np.testing.assert_allclose(
        forward(operands, Attention(0.3)).out,
        jax.jit(definition, static_argnums=1)(operands, Attention(0.3)),
        rtol=1e-9,
    )
    operands = operands._replace(bias=jnp.full((1, 1, 1, 1, 150), -np.inf))
    assert np.isnan(forward(operands, Attention(0.3)).out).all()


def test_sink_of_minus_infinity_is_none() -> None:
    operands = plain_operands()
    sinks = jnp.full((1, K, G), -np.inf)
    with_sinks = forward(operands._replace(sinks=sinks), Attention(0.3, is_causal=True))
    np.testing.assert_allclose(
        with_sinks.out, forward(operands, Attention(0.3, is_causal=True)).out, rtol=1e-12
    )


@pytest.mark.parametrize("wrt", [("key",), ("query", "sinks"), ("bias",)])
def test_only_the_gradients_that_are_wanted(wrt: tuple[str, ...]) -> None:
    operands = plain_operands()._replace(
        bias=jnp.ones((1, K, G, 1, 150)), sinks=jnp.zeros((1, K, G))
    )
    softmax = forward(operands, Attention(0.3))
    backward = jax.jit(attend_backward, static_argnums=(1, 4))
    every = backward(operands, Attention(0.3), softmax, softmax.out, DIFFERENTIABLE)
    some = backward(operands, Attention(0.3), softmax, softmax.out, wrt)
    for name in Operands._fields:
        if name in wrt:
            np.testing.assert_array_equal(getattr(some, name), getattr(every, name))
        else:
            assert getattr(some, name) is None


@pytest.mark.parametrize("attention", [Attention(0.3, True), Attention(0.3, False, (70, 10))])
def test_skipped_blocks_are_not_computed(attention: Attention) -> None:
    """NaN in keys that no query of a block sees does not get into the sums."""
    operands = plain_operands(256, 256)
    blocks = attention_blocks.tiling(operands)
    first, last = attention_blocks.key_blocks(0, operands, attention, blocks)
    assert (int(first), int(last)) != (0, blocks.column_blocks)
    value = operands.value.at[:, :, int(last) * blocks.columns :].set(np.nan)
    out = forward(operands._replace(value=value), attention).out
    assert np.isfinite(out[:, :, :, : blocks.rows]).all()


@pytest.mark.parametrize(
    ("length", "longest", "block"),
    [(16, 64, 16), (64, 64, 64), (65, 64, 64), (1100, 512, 384), (8192, 256, 256), (0, 64, 0)],
)
def test_blocks_are_of_about_the_same_length(length: int, longest: int, block: int) -> None:
    assert attention_blocks._block_length(length, longest) == block
