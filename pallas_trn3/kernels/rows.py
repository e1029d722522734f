"""Kernels that take rows one by one: 128 partitions of some neighbouring rows each make a block.

Rows that are neighbours in HBM stay neighbours in a partition, so that transfers are long however
short a row is; instructions take one row a partition at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn
from jax_trn3.hardware import TRAINIUM2

PARTITIONS = int(TRAINIUM2.core.partitions)

FLOATS = ("float32", "bfloat16", "float16")
"""What the kernels for rows work on."""

_ROOM = int(0.9 * TRAINIUM2.core.sbuf_usable_partition_bytes)
"""Bytes of a partition for a kernel: what the smaller of the cores with its instructions has."""

_BLOCK = 16 * 1024
"""Bytes of a partition in the largest block that make transfers long: 2 MiB in all."""

_BLOCKS = 4
"""Blocks at least, where there are so many rows: one is loaded, one computed, one stored."""


def check_floats(name: str, *arrays: jax.Array) -> None:
    """Refuses what the kernels do not compute with.

    **Raises:** `TypeError`.
    """
    for x in arrays:
        if x.dtype.name not in FLOATS:
            raise TypeError(f"{name} of {x.dtype}; allowed: {', '.join(FLOATS)}")


def rows_together(
    name: str, rows: int, block_bytes: int, row_bytes: int, fixed: int = 0, most: int = 16
) -> int:
    """How many neighbouring rows a partition gets in a block.

    **Arguments:**

    - `rows`: Of the array; the result divides it, and the rows of a partition where whole blocks
      of 128 partitions make up the array.
    - `block_bytes`: Of a row in the widest block.
    - `row_bytes`: Of SBUF that a row of a partition takes in all blocks and buffers.
    - `fixed`: Of a partition, that are taken whatever the blocks are.
    - `most`: Rows at most; the kernel's text has each of them.

    **Raises:** `ValueError` for a row that a partition cannot hold.
    """
    if row_bytes + fixed > _ROOM:
        raise ValueError(
            f"{name}: a row takes {row_bytes + fixed} bytes of an SBUF partition with its buffers, "
            f"and there are {_ROOM}; use shorter rows, or jax.numpy for such long ones"
        )
    most = min(
        most,
        max(1, _BLOCK // block_bytes),
        (_ROOM - fixed) // row_bytes,
        max(1, rows // (_BLOCKS * PARTITIONS)),
    )
    unit = PARTITIONS if rows % PARTITIONS == 0 else 1
    return next(n for n in range(most, 0, -1) if rows // unit % n == 0)


def over_rows(
    kernel: Callable[..., None],
    name: str,
    rows: Sequence[jax.Array],
    whole: Sequence[jax.Array],
    out: Sequence[tuple[int, Any]],
    together: int,
    scratch: Sequence[Any] = (),
    aliases: dict[int, int] | None = None,
) -> list[jax.Array]:
    """Runs a kernel on all rows.

    **Arguments:**

    - `kernel`: Of Refs [128, together, n] of `rows`, the arrays `whole` as they are, Refs of the
      outputs like those of `rows`, and scratch.
    - `rows`: Arrays [R, n], each with its own n.
    - `whole`: Arrays that every block sees.
    - `out`: Columns and dtype of each result.
    - `aliases`: Of inputs to the outputs whose memory they are.

    **Returns:** Arrays [R, n].
    """
    count = rows[0].shape[0]
    height = count // together

    def block(columns: int) -> pl.BlockSpec:
        return pl.BlockSpec((PARTITIONS, together, columns), lambda i: (i, 0, 0))

    results = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(height, PARTITIONS),),
        in_specs=[block(x.shape[1]) for x in rows]
        + [pl.BlockSpec(x.shape, lambda i, n=x.ndim: (0,) * n) for x in whole],
        out_specs=[block(columns) for columns, _ in out],
        out_shape=[jax.ShapeDtypeStruct((height, together, n), dtype) for n, dtype in out],
        scratch_shapes=list(scratch),
        input_output_aliases=aliases or {},
        compiler_params=pltrn.CompilerParams(),
        name=name,
    )(*(x.reshape(height, together, x.shape[1]) for x in rows), *whole)
    return [y.reshape(count, y.shape[2]) for y in results]


def as_rows(x: jax.Array) -> jax.Array:
    """[..., n] as [rows, n]."""
    return x.reshape(-1, x.shape[-1])


def columns(size: int, dtype: Any, buffers: int) -> Any:
    """Scratch for rows of `size` elements, one a partition, `buffers` in rotation."""
    return pltrn.SBUF((buffers, PARTITIONS, size), jnp.dtype(dtype))
