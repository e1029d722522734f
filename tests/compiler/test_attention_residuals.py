"""Matrices that a loop stacks for another: made again where that is the same, else left alone."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from attention_programs import Function, assert_as_on_cpu, count, randoms
from jax import lax

STEPS, ROWS = 4, 320
PLAIN = (0, STEPS, lambda i: i)  # first step, number of steps, place at a step
BACKWARDS = (0, STEPS, lambda i: STEPS - 1 - i)
ARGUMENTS = randoms((STEPS, ROWS, 16), (ROWS, 16), (ROWS, 16))


def loops(
    writes: Any = PLAIN, reads: Any = PLAIN, also: Function = lambda stack, i: 0.0
) -> Function:
    """A loop that stacks softmax(q k^T), and one that multiplies what it takes with v.

    also: what the first loop does with the stack besides.
    """

    def function(q: Any, k: Any, v: Any) -> Any:
        def forward(i: Any, carried: Any) -> Any:
            stack, out = carried
            at = writes[2](i)
            p = jax.nn.softmax(lax.dynamic_index_in_dim(q, at, keepdims=False) @ k.T)
            out += p @ v + also(stack, i)
            return lax.dynamic_update_index_in_dim(stack, p, at, 0), out

        def backward(i: Any, out: Any) -> Any:
            return out + (i + 1) * lax.dynamic_index_in_dim(stack, reads[2](i), keepdims=False) @ v

        zeros = jnp.zeros((STEPS, ROWS, ROWS)), jnp.zeros(v.shape)
        stack, out = lax.fori_loop(writes[0], writes[0] + writes[1], forward, zeros)
        return lax.fori_loop(reads[0], reads[0] + reads[1], backward, out)

    return function


def told(stack: Any, i: Any) -> float:
    """The loop carries a token, too."""
    jax.debug.callback(lambda i: None, i, ordered=True)
    return 0.0


@pytest.mark.parametrize(
    "function",
    [
        loops(),
        loops(also=told),
        loops(writes=BACKWARDS),
        loops(reads=BACKWARDS),
        loops(reads=(1, 2, lambda i: i)),
    ],
    ids=["plain", "told", "written backwards", "read backwards", "not all read"],
)
def test_every_entry_that_is_read_was_written(function: Function) -> None:
    assert count(function, ARGUMENTS) == 2
    assert_as_on_cpu(function, ARGUMENTS)


def returned(q: Any, k: Any, v: Any) -> Any:
    """The second loop takes the stack along and returns it."""

    def forward(i: Any, carried: Any) -> Any:
        stack, out = carried
        p = jax.nn.softmax(lax.dynamic_index_in_dim(q, i, keepdims=False) @ k.T)
        return lax.dynamic_update_index_in_dim(stack, p, i, 0), out + p @ v

    def backward(carried: Any) -> Any:
        i, stack, out = carried
        return i + 1, stack, out + lax.dynamic_index_in_dim(stack, i, keepdims=False) @ v

    zeros = jnp.zeros((STEPS, ROWS, ROWS)), jnp.zeros(v.shape)
    carried = 0, *lax.fori_loop(0, STEPS, forward, zeros)
    _, stack, out = lax.while_loop(lambda carried: carried[0] < STEPS, backward, carried)
    return jnp.concatenate([stack[1], out], 1)


def previous_row(stack: Any, i: Any) -> Any:
    return stack[jnp.maximum(i - 1, 0), :, :16]


@pytest.mark.parametrize(
    "function",
    [
        loops(writes=(0, 2, lambda i: i)),
        loops(writes=(1, 3, lambda i: i)),
        loops(writes=(0, STEPS, lambda i: i // 2)),
        loops(reads=(0, STEPS + 1, lambda i: i)),
        loops(also=previous_row),
        returned,
    ],
    ids=["first only", "last only", "half of them", "read beyond", "used before", "returned"],
)
def test_stack_that_is_more_than_its_entries_stays(function: Function) -> None:
    assert count(function, ARGUMENTS) == 0
    assert_as_on_cpu(function, ARGUMENTS)
