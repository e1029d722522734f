"""Attention that unmodified programs write: recognised, computed block by block, nothing else is."""

import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_programs import (
    QUERIES,
    Function,
    assert_as_on_cpu,
    chain,
    count,
    gradients,
    nn,
    program,
    randoms,
    run,
)
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from jax_trn3 import dot_product_attention
from jax_trn3.compiler.attention_rewrite import rewrite_attention

CAUSAL = np.tril(np.ones((320, 320), bool))


def gpt(q: Any, k: Any, v: Any) -> Any:
    """Heads first, products by `@`, a filling that is finite, softmax in float32."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    logits = q @ k.swapaxes(-1, -2) * 0.25
    logits = jnp.where(CAUSAL[None, None], logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(v.dtype)
    return (weights @ v).swapaxes(1, 2)


def capped(q: Any, k: Any, v: Any) -> Any:
    logits = 5 * jnp.tanh(jnp.einsum("bthd,bshd->bhts", q, k) / 20)
    weights = jnp.exp(logits) / jnp.exp(logits).sum(-1, keepdims=True)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def with_dropout(q: Any, k: Any, v: Any) -> Any:
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
    keep = jax.random.bernoulli(jax.random.key(0), 0.9, weights.shape)
    return jnp.einsum("bhts,bshd->bthd", jnp.where(keep, weights / 0.9, 0), v)


def unbatched(q: Any, k: Any, v: Any) -> Any:
    return jax.nn.softmax(q[0, :, 0] @ k[0, :, 0].T) @ v[0, :, 0]


def over_queries(q: Any, k: Any, v: Any) -> Any:
    """Slot attention: the softmax's columns are the queries."""
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k), axis=-2)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def two_layers(q: Any, k: Any, v: Any) -> Any:
    return chain(chain(q, k, v) + q, k, v)


def scanned(layer: Function) -> Function:
    def function(q: Any, k: Any, v: Any) -> Any:
        def body(x: Any, weight: Any) -> Any:
            return layer(x @ weight, k, v) + x, None

        weights = jnp.stack([jnp.eye(x.shape[-1]) for x in (q, q, q)]).astype(q.dtype)
        return jax.lax.scan(body, q, weights)[0]

    return function


PLAIN = {
    "nn": nn(),
    "nn causal": nn(is_causal=True),
    "nn scale, window": nn(scale=0.5, local_window_size=(40, 9)),
    "nn lengths": nn(query_seq_lengths=np.array([200]), key_value_seq_lengths=np.array([50])),
    "nn mask": nn(mask=np.random.default_rng(1).random((1, 1, 320, 320)) > 0.3),
    "chain": chain,
    "gpt": gpt,
    "capped": capped,
    "dropout": with_dropout,
    "unbatched": unbatched,
    "over queries": over_queries,
    "two layers": two_layers,
    "remat": jax.checkpoint(chain),
    "vmap": jax.vmap(lambda q, k, v: chain(q[None], k[None], v[None])[0]),
    "scan": scanned(nn(is_causal=True)),
    "scan remat": scanned(jax.checkpoint(chain)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_values_and_gradients_are_the_programs(name: str) -> None:
    arguments = randoms(QUERIES, QUERIES, QUERIES)
    function = gradients(PLAIN[name])
    assert count(PLAIN[name], arguments) >= 1
    assert count(function, arguments) >= 2
    assert_as_on_cpu(function, arguments)


def test_bias_has_a_gradient() -> None:
    def function(q: Any, k: Any, v: Any, bias: Any) -> Any:
        return jax.nn.dot_product_attention(q, k, v, bias=bias)

    arguments = randoms(QUERIES, QUERIES, QUERIES, (1, 1, 320, 320))
    assert count(gradients(function), arguments) == 2
    assert_as_on_cpu(gradients(function), arguments)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_grouped_heads_and_rows_that_fill_no_block(dtype: Any) -> None:
    arguments = randoms((2, 300, 4, 16), (2, 290, 2, 16), (2, 290, 2, 16), dtype=dtype)
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    assert count(gradients(nn(is_causal=True)), arguments) == 2
    assert_as_on_cpu(gradients(nn(is_causal=True)), arguments, tolerance)


def test_sums_over_rows_are_no_worse_in_bfloat16_than_the_programs() -> None:
    arguments = randoms(*[(1, 1024, 1, 16)] * 3, dtype=jnp.bfloat16)
    exact = run(gradients(chain), [x.astype(jnp.float32) for x in arguments], "cpu")[1:]
    errors = {
        platform: [
            np.abs(g - e).max()
            for e, g in zip(exact, run(gradients(chain), arguments, platform)[1:])
        ]
        for platform in ("cpu", "trn3")
    }
    assert all(ours <= 1.5 * cpus for ours, cpus in zip(errors["trn3"], errors["cpu"]))


@pytest.mark.parametrize(
    ("filling", "row"), [(-jnp.inf, np.nan), (-1e30, "mean")], ids=["infinite", "finite"]
)
def test_fully_masked_rows_keep_the_programs_meaning(filling: float, row: Any) -> None:
    mask = np.ones((320, 320), bool)
    mask[7] = False

    def function(q: Any, k: Any, v: Any) -> Any:
        logits = jnp.where(mask, jnp.einsum("td,sd->ts", q, k), filling)
        return jax.nn.softmax(logits) @ v

    arguments = randoms((320, 16), (320, 16), (320, 16))
    assert count(function, arguments) == 1
    (got,) = run(function, arguments, "trn3")
    expected = np.asarray(arguments[2]).mean(0) if row == "mean" else np.full(16, row)
    np.testing.assert_allclose(got[7], expected, atol=1e-6)
    assert np.isfinite(np.delete(got, 7, 0)).all()


def test_step_with_donation_and_a_callback() -> None:
    @jax.jit
    def step(q: Any, k: Any, v: Any) -> Any:
        jax.debug.callback(lambda x: seen.append(float(x)), q.sum())
        return chain(q, k, v)

    seen: list[float] = []
    arguments = randoms(QUERIES, QUERIES, QUERIES)
    (expected,), total = run(chain, arguments, "cpu"), float(arguments[0].sum())
    there = jax.device_put(arguments, jax.devices("trn3")[0])
    got = jax.jit(step, donate_argnums=0)(*there)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    jax.effects_barrier()
    assert seen == [pytest.approx(total, abs=1e-3)]


# What it is for: memory.


def temporaries(function: Function, length: int, platform: str) -> int:
    sharding = SingleDeviceSharding(jax.devices(platform)[0])
    array = jax.ShapeDtypeStruct((1, length, 2, 32), jnp.float32, sharding=sharding)
    compiled = jax.jit(function).lower(array, array, array).compile()
    size: int = compiled.memory_analysis().temp_size_in_bytes
    return size


@pytest.mark.parametrize(
    "function",
    [
        nn(is_causal=True),
        gradients(nn(is_causal=True)),
        gradients(chain),
        gradients(scanned(chain)),
    ],
    ids=["nn", "nn backward", "chain backward", "scan backward"],
)
def test_memory_grows_linearly_to_below_a_tenth(function: Function) -> None:
    short, long = (temporaries(function, length, "trn3") for length in (2048, 4096))
    assert long < 2.2 * short
    assert long < temporaries(function, 4096, "cpu") / 10


# What is left as it is.


def with_weights(q: Any, k: Any, v: Any) -> Any:
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
    return jnp.einsum("bhts,bshd->bthd", weights, v), weights


def with_logits(q: Any, k: Any, v: Any) -> Any:
    logits = jnp.einsum("bthd,bshd->bhts", q, k)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(logits), v), logits


def over_heads(q: Any, k: Any, v: Any) -> Any:
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k), axis=1)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def of_sorted_rows(q: Any, k: Any, v: Any) -> Any:
    """What needs all rows at once."""
    weights = jnp.sort(jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k)), axis=2)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def by_rows_and_columns(q: Any, k: Any, v: Any) -> Any:
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
    return jnp.einsum("bhts,bshd->bthd", weights + weights.swapaxes(2, 3), v)


def normalised_by_rows(q: Any, k: Any, v: Any) -> Any:
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
    return jnp.einsum("bhts,bshd->bthd", weights / weights.max(2, keepdims=True), v)


def without_exponential(q: Any, k: Any, v: Any) -> Any:
    return jnp.einsum("bhts,bshd->bthd", jnp.einsum("bthd,bshd->bhts", q, k), v)


def classifier(q: Any, k: Any, v: Any) -> Any:
    """exp and products, but not of each other."""
    logits = q[0, :, 0] @ jnp.tile(k[0, :, 0].T, 2)
    return jax.nn.log_softmax(logits)[:, 3].sum()


LEFT_ALONE = [
    with_weights,
    with_logits,
    over_heads,
    of_sorted_rows,
    by_rows_and_columns,
    normalised_by_rows,
    without_exponential,
    classifier,
]


@pytest.mark.parametrize("function", LEFT_ALONE, ids=lambda function: function.__name__)
def test_near_misses_are_left_as_they_are(function: Function) -> None:
    before = program(function, randoms(QUERIES, QUERIES, QUERIES))
    assert rewrite_attention(before) is before


def test_small_attention_is_left_as_it_is() -> None:
    before = program(chain, randoms(*[(8, 128, 4, 16)] * 3))
    assert rewrite_attention(before) is before


# Sharded programs.


def mesh_of(devices: Sequence[Any]) -> Any:
    types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((2, 2), ("x", "y"), types, devices=devices)


def sharded(spec: Any, function: Function, platform: str) -> tuple[list[np.ndarray], str]:
    """What a function of arrays with this sharding returns, and its compiled program."""
    mesh = mesh_of(jax.devices(platform)[:4])
    arguments = randoms(*[(2, 320, 2, 16)] * 3)
    placed = jax.device_put(arguments, NamedSharding(mesh, spec))
    compiled = jax.jit(function).lower(*placed).compile()
    return [np.asarray(x) for x in jax.tree.leaves(compiled(*placed))], compiled.as_text()


@pytest.mark.parametrize("layer", [chain, scanned(chain)], ids=["chain", "scan"])
def test_batch_and_heads_stay_sharded(layer: Function, caplog: pytest.LogCaptureFixture) -> None:
    def function(q: Any, k: Any, v: Any) -> Any:
        return gradients(layer)(q, k, v)[1]

    with caplog.at_level(logging.DEBUG, logger="jax_trn3.compiler"):
        got, text = sharded(P("x", None, "y"), function, "trn3")
    assert "attention recognised" in caplog.text
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in text
    for e, g in zip(run(function, randoms(*[(2, 320, 2, 16)] * 3), "cpu"), got):
        np.testing.assert_allclose(g, e, atol=1e-5 * np.abs(e).max())


@pytest.mark.parametrize("spec", [P("x", "y"), P(None, ("x", "y"))], ids=str)
def test_sharded_sequences_are_left_as_they_are(
    spec: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="jax_trn3.compiler"):
        got, _ = sharded(spec, gradients(chain), "trn3")
    assert "attention recognised" not in caplog.text
    for e, g in zip(run(gradients(chain), randoms(*[(2, 320, 2, 16)] * 3), "cpu"), got):
        np.testing.assert_allclose(g, e, atol=1e-5 * np.abs(e).max())


def test_shard_map_over_batch_and_heads() -> None:
    mesh = mesh_of(jax.devices("trn3")[:4])
    spec = P("x", None, "y")

    def function(*arguments: Any) -> Any:
        return jax.shard_map(chain, mesh=mesh, in_specs=spec, out_specs=spec)(*arguments)

    arguments = randoms(*[(2, 320, 2, 16)] * 3)
    placed = jax.device_put(arguments, NamedSharding(mesh, spec))
    assert count(function, placed) == 1
    got = jax.jit(gradients(function))(*placed)[1]
    for e, g in zip(run(gradients(chain), arguments, "cpu")[1:], got):
        np.testing.assert_allclose(g, e, atol=1e-5 * np.abs(e).max())


# How a user sees it.


def test_log_names_the_line_of_the_program(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="jax_trn3.compiler"):
        run(chain, randoms(QUERIES, QUERIES, QUERIES), "trn3")
    place = f"{chain.__code__.co_filename}:{chain.__code__.co_firstlineno + 4}"
    assert f"attention recognised at {place}: 320 queries x 320 keys" in caplog.text


def test_program_says_which_pass_it_is() -> None:
    before = program(gradients(chain), randoms(QUERIES, QUERIES, QUERIES))
    text = str(rewrite_attention(before).module())
    assert 'keys = 320 : i64, pass = "forward", queries = 320 : i64' in text
    assert 'keys = 320 : i64, pass = "backward", queries = 320 : i64' in text


def test_name_is_not_that_of_the_operation_of_ops() -> None:
    def function(q: Any, k: Any, v: Any) -> Any:
        return dot_product_attention(chain(q, k, v), k, v)

    arguments = randoms(QUERIES, QUERIES, QUERIES)
    text = str(rewrite_attention(program(function, arguments)).module())
    assert text.count('stablehlo.composite "trn3.recognized_attention"') == 1
    assert text.count('stablehlo.composite "trn3.dot_product_attention"') == 1
    assert_as_on_cpu(function, arguments)
