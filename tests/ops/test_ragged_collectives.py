"""lax.ragged_all_to_all against its definition, written as loops in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

DEVICES, ROWS = 4, 12


def exchange(operand, output, starts, sizes, places, updates):
    """What jax.lax.ragged_all_to_all's docstring says; all arrays have a leading device axis."""
    output = output.copy()
    for sender in range(DEVICES):
        for receiver in range(DEVICES):
            for u in range(receiver * updates, (receiver + 1) * updates):
                start, size, place = starts[sender, u], sizes[sender, u], places[sender, u]
                output[receiver, place : place + size] = operand[sender, start : start + size]
    return output


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), updates=st.sampled_from([1, 2]), wide=st.booleans())
def test_drawn_sizes(seed: int, updates: int, wide: bool) -> None:
    random = np.random.default_rng(seed)
    # What each receiver gets lies side by side, in a drawn order; some of it is empty.
    sizes = random.integers(0, ROWS // (DEVICES * updates) + 1, (DEVICES, DEVICES * updates))
    starts = random.integers(0, ROWS - sizes.max() + 1, sizes.shape)
    places = np.zeros_like(sizes)
    for receiver in range(DEVICES):
        own = slice(receiver * updates, (receiver + 1) * updates)
        order = random.permutation(DEVICES * updates)
        blocks = sizes[:, own].ravel()[order]
        ends = np.empty_like(blocks)
        ends[order] = np.cumsum(blocks) - blocks
        places[:, own] = ends.reshape(DEVICES, updates)
    shape = (DEVICES, ROWS, 3) if wide else (DEVICES, ROWS)
    operand = random.normal(size=shape).astype(np.float32)
    output = random.normal(size=shape).astype(np.float32)
    received = sizes.reshape(DEVICES, DEVICES, updates).swapaxes(0, 1).reshape(sizes.shape)

    mesh = jax.make_mesh(
        (DEVICES,),
        ("x",),
        devices=jax.devices()[:DEVICES],
        axis_types=(jax.sharding.AxisType.Auto,),
    )

    def body(*arrays: jax.Array) -> jax.Array:
        return jax.lax.ragged_all_to_all(*(a[0] for a in arrays), axis_name="x")[None]

    sharded = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P("x"), out_specs=P("x")))
    result = sharded(*map(jnp.asarray, (operand, output, starts, sizes, places, received)))
    expected = exchange(operand, output, starts, sizes, places, updates)
    np.testing.assert_array_equal(result, expected)
