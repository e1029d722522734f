"""Halves of a grid that run at the same time, and grids that must not be cut."""

from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn
from pallas_trn3 import halves, values

X = np.arange(5 * 8 * 40, dtype=np.float32).reshape(5, 8, 40)


def _twice(x_ref: Any, o_ref: Any) -> None:
    o_ref[...] = 2 * x_ref[...]


def run(kernel: Any, grid: Any, block: Any, index: Any, **options: Any) -> tuple[Any, bool]:
    """The result, and whether the grid was cut."""
    spec = pl.BlockSpec(block, index)
    with mock.patch.object(values, "joined", wraps=halves.joined) as joined:
        found = pl.pallas_call(
            kernel,
            grid=grid,
            in_specs=[spec],
            out_specs=spec,
            out_shape=jax.ShapeDtypeStruct(X.shape, jnp.float32),
            **options,
        )(X)
    return np.asarray(found), joined.called


@pytest.mark.parametrize(
    ("grid", "block", "index"),
    [
        ((5,), (None, 8, 40), lambda i: (i, 0, 0)),
        ((5, 2), (1, 8, 20), lambda i, j: (i, 0, j)),
        ((2, 5), (1, 4, 40), lambda i, j: (j, i, 0)),
        ((3, 5), (1, 8, 16), lambda i, j: (j, 0, i)),  # the last block is half outside
    ],
)
def test_cut(grid: Any, block: Any, index: Any) -> None:
    found, cut = run(_twice, grid, block, index)
    np.testing.assert_array_equal(found, 2 * X)
    assert cut


def test_blocks_that_come_twice_are_not_cut() -> None:
    def summed(x_ref: Any, o_ref: Any) -> None:
        @pl.when(pl.program_id(0) == 0)
        def _() -> None:
            o_ref[...] = jnp.zeros_like(o_ref)

        o_ref[...] += x_ref[...]

    found, cut = run(summed, (2, 5), (1, 8, 40), lambda i, j: (j, 0, 0))
    np.testing.assert_array_equal(found, 2 * X)
    assert not cut
    _, cut = run(_twice, (5,), (1, 8, 40), lambda i: (4 - i, 0, 0))
    assert not cut


def test_memory_that_stays_is_not_cut() -> None:
    def counted(x_ref: Any, o_ref: Any, count: Any) -> None:
        i = pl.program_id(0)
        count[...] = jnp.where(i == 0, 0, count[...]) + 1
        o_ref[...] = x_ref[...] * count[0, 0]

    scratch = [pltrn.SBUF((1, 1), jnp.float32)]
    found, cut = run(counted, (5,), (1, 8, 40), lambda i: (i, 0, 0), scratch_shapes=scratch)
    np.testing.assert_array_equal(found, X * np.arange(1, 6)[:, None, None])
    assert not cut


def test_operands_that_are_results_are_not_cut() -> None:
    found, cut = run(_twice, (5,), (1, 8, 40), lambda i: (i, 0, 0), input_output_aliases={0: 0})
    np.testing.assert_array_equal(found, 2 * X)
    assert not cut
