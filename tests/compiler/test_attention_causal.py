"""Columns that a causal mask hides from whole blocks of rows are skipped, others are not."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from attention_programs import (
    Function,
    assert_as_on_cpu,
    chain,
    count,
    gradients,
    nn,
    program,
    randoms,
)

from jax_trn3.compiler.attention_rewrite import rewrite_attention


def loops(function: Function, arguments: list[Any]) -> int:
    return str(rewrite_attention(program(function, arguments)).module()).count("stablehlo.while")


def with_bias(q: Any, k: Any, v: Any) -> Any:
    """Where a bias may be lower than the filling, masked columns are not nothing."""
    return jax.nn.dot_product_attention(q, k, v, bias=q[:, None, :, 0, :1], is_causal=True)


def with_sum_of_logits(q: Any, k: Any, v: Any) -> Any:
    mask = jnp.tril(jnp.ones((512, 512), bool))
    logits = jnp.where(mask, jnp.einsum("bthd,bshd->bhts", q, k), -1e32)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(logits), v), logits.sum(-1)


@pytest.mark.parametrize("function", [nn(is_causal=True), chain], ids=["nn", "chain"])
def test_causal_mask_saves_work(function: Function) -> None:
    arguments = randoms((1, 530, 2, 16), (1, 520, 2, 16), (1, 520, 2, 16))
    assert loops(function, arguments) == 2
    assert loops(gradients(function), arguments) == 4
    assert_as_on_cpu(gradients(function), arguments)


@pytest.mark.parametrize("function", [nn(), with_bias, with_sum_of_logits])
def test_columns_that_count_are_not_skipped(function: Function) -> None:
    arguments = randoms(*[(1, 512, 2, 16)] * 3)
    assert loops(function, arguments) == 1
    assert_as_on_cpu(function, arguments)


def where(mask: Function, filling: float = -1e30) -> Function:
    """Attention with a mask that is computed from the numbers of rows and columns."""

    def function(q: Any, k: Any, v: Any) -> Any:
        logits = jnp.einsum("bthd,bshd->bhts", q, k)
        masked = jnp.where(mask(q.shape[1], k.shape[1]), logits, filling)
        return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(masked), v)

    return function


def between(rows: int, columns: int) -> Any:
    """Row 0 sees nothing, so all columns count alike there."""
    return jnp.arange(rows, dtype=jnp.float32)[:, None] - 0.5 >= jnp.arange(columns)


def rounded(rows: int, columns: int) -> Any:
    """bfloat16 knows no 257: some rows see the column behind their own."""
    row, column = (jnp.arange(n, dtype=jnp.int32).astype(jnp.bfloat16) for n in (rows, columns))
    return row[:, None] >= column


def wrapped(rows: int, columns: int) -> Any:
    """An unsigned difference is never negative."""
    row, column = (jnp.arange(n, dtype=jnp.uint32) for n in (rows, columns))
    return row[:, None] - column >= 0


def above_infinity(rows: int, columns: int) -> Any:
    return jnp.zeros((rows, columns)).at[:, 7].set(-jnp.inf) > -jnp.inf


@pytest.mark.parametrize("mask", [between, rounded, wrapped, above_infinity])
def test_masks_that_only_look_causal(mask: Function) -> None:
    arguments = randoms(*[(1, 512, 2, 16)] * 3)
    assert count(where(mask), arguments) == 1
    assert loops(where(mask), arguments) == 1
    assert_as_on_cpu(where(mask), arguments)
