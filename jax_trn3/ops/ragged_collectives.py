"""lax.ragged_all_to_all, which XLA:CPU lacks, from collectives that it has."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax._src.interpreters import mlir
from jax._src.lax import parallel


def lower_ragged_all_to_all(platform: str) -> None:
    """Registers the lowering for `platform`; once a process."""
    rule = mlir.lower_fun(_ragged_all_to_all, multiple_results=False)
    mlir.register_lowering(parallel.ragged_all_to_all_p, rule, platform=platform)


def _ragged_all_to_all(
    operand: Any,
    output: Any,
    input_offsets: Any,
    send_sizes: Any,
    output_offsets: Any,
    recv_sizes: Any,
    *,
    axis_name: Any,
    axis_index_groups: Any,
) -> Any:
    """Each device gathers all operands, and takes what is meant for it.

    Device i's update u for device j, number j * updates + u, is operand[start : start + size], and
    goes to output[place : place + size] of j, in the order of i and u. (StableHLO has no
    specification of it; this is what the docstring of jax.lax.ragged_all_to_all says.)
    """
    del recv_sizes  # the senders know the same
    axis = {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
    operands = lax.all_gather(operand, **axis)  # [senders, rows, ...]
    senders = operands.shape[0]

    def meant_for_me(numbers: Any) -> Any:
        rows = numbers.reshape(senders, -1)  # [receivers, updates]
        return lax.all_to_all(rows, split_axis=0, concat_axis=0, tiled=True, **axis).ravel()

    starts, sizes, places = map(meant_for_me, (input_offsets, send_sizes, output_offsets))
    updates = starts.shape[0] // senders
    positions = jnp.arange(output.shape[0])
    column = (-1,) + (1,) * (output.ndim - 1)

    def receive(i: Any, output: Any) -> Any:
        rows = positions - places[i]
        theirs = (rows >= 0) & (rows < sizes[i])
        source = jnp.clip(starts[i] + rows, 0, operand.shape[0] - 1)
        return jnp.where(theirs.reshape(column), operands[i // updates][source], output)

    return lax.fori_loop(0, senders * updates, receive, output)
