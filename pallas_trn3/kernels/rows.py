"""Kernels that take rows one by one: 128 partitions of some neighbouring rows each make a block.

Rows that are neighbours in HBM stay neighbours in a partition, so that transfers are long however
short a row is; instructions take one row a partition at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn
from jax_trn3.hardware import TRAINIUM2

from .results import alike, result

PARTITIONS = int(TRAINIUM2.core.partitions)

FLOATS = ("float32", "bfloat16", "float16")
"""What the kernels for rows work on."""

_ROOM = int(0.9 * TRAINIUM2.core.sbuf_usable_partition_bytes)
"""Bytes of a partition for a kernel: what the smaller of the cores with its instructions has."""

_BLOCK = 32 * 1024
"""Bytes of a partition that are loaded for a block at most, if a row does not take more."""

INPUTS, OUTPUTS = 3, 2
"""Buffers of a block: of inputs one is computed with while the next is there and another comes."""

_BLOCKS = 4
"""Blocks at least, where there are so many rows: one is loaded, one computed, one stored."""


def check_floats(name: str, *arrays: jax.Array) -> None:
    """Refuses what the kernels do not compute with.

    **Raises:** `TypeError`.
    """
    for x in arrays:
        if x.dtype.name not in FLOATS:
            raise TypeError(f"{name} of {x.dtype}; allowed: {', '.join(FLOATS)}")


@dataclass(frozen=True)
class Cut:
    """How rows are cut into blocks."""

    together: int
    """Neighbouring rows of a partition in a block."""

    inputs: int
    """Buffers of an input's block."""


def cut(
    name: str,
    rows: int,
    loaded: int,
    stored: int,
    held: int = 0,
    fixed: int = 0,
    *,
    most: int = 16,
) -> Cut:
    """Blocks that SBUF holds, long enough for transfers.

    **Arguments:**

    - `rows`: Of the array; `together` divides it, and the rows of a partition where whole blocks
      of 128 partitions make up the array.
    - `loaded`, `stored`, `held`: Bytes that a row of a partition takes in all its input blocks, in
      its output blocks, and in scratch that grows with `together`.
    - `fixed`: Bytes of a partition that are taken whatever the blocks are.
    - `most`: Rows of a partition at most; the kernel's text has each of them.

    **Raises:** `ValueError` for a row that a partition cannot hold.
    """
    for inputs in range(INPUTS, 0, -1):
        row = inputs * loaded + OUTPUTS * stored + held
        if row + fixed <= _ROOM:
            break
    else:
        raise ValueError(
            f"{name}: a row takes {row + fixed} bytes of an SBUF partition with its buffers, and "
            f"there are {_ROOM}; use shorter rows, or jax.numpy for such long ones"
        )
    most = min(
        most,
        max(1, _BLOCK // loaded),
        (_ROOM - fixed) // row,
        max(1, rows // (_BLOCKS * PARTITIONS)),
    )
    unit = PARTITIONS if rows % PARTITIONS == 0 else 1
    return Cut(next(n for n in range(most, 0, -1) if rows // unit % n == 0), inputs)


def over_rows(
    kernel: Callable[..., None],
    name: str,
    rows: Sequence[jax.Array],
    whole: Sequence[jax.Array],
    out: Sequence[tuple[int, Any]],
    blocks: Cut,
    scratch: Sequence[Any] = (),
    *,
    aliases: dict[int, int] | None = None,
    late: bool = False,
    sums: Sequence[tuple[int, ...]] = (),
) -> list[jax.Array]:
    """Runs a kernel on all rows.

    **Arguments:**

    - `kernel`: Of Refs [128, together, n] of `rows`, the arrays `whole` as they are, Refs of the
      outputs like those of `rows`, and scratch.
    - `rows`: Arrays [R, n], each with its own n.
    - `whole`: Arrays that every block sees.
    - `out`: Columns and dtype of each result.
    - `aliases`: Of inputs to the outputs whose memory they are.
    - `late`: Whether results come one step later than what they are made of (`in_steps`).
    - `sums`: Shapes of float32 results that every block sees, as last outputs.

    **Returns:** Arrays [R, n], and the sums.
    """
    count, together = rows[0].shape[0], blocks.together
    height = count // together
    steps = pl.cdiv(height, PARTITIONS)

    def block(columns: int, buffers: int, place: Callable[[Any], Any]) -> pl.BlockSpec:
        shape, mode = (PARTITIONS, together, columns), pl.Buffered(buffers)
        return pl.BlockSpec(shape, lambda i: (place(i), 0, 0), pipeline_mode=mode)

    def now(i: Any) -> Any:
        return jnp.minimum(i, steps - 1) if late else i

    def before(i: Any) -> Any:
        return jnp.maximum(i - 1, 0) if late else i

    operands = alike(*(x.reshape(height, together, x.shape[1]) for x in rows), *whole)
    results = pl.pallas_call(
        kernel,
        grid=(steps + late,),
        in_specs=[block(x.shape[1], blocks.inputs, now) for x in rows]
        + [everywhere(x.shape) for x in whole],
        out_specs=[block(columns, OUTPUTS, before) for columns, _ in out]
        + [everywhere(shape) for shape in sums],
        out_shape=[result(operands[0], (height, together, n), dtype) for n, dtype in out]
        + [result(operands[0], shape, jnp.float32) for shape in sums],
        scratch_shapes=list(scratch),
        input_output_aliases=aliases or {},
        compiler_params=pltrn.CompilerParams(),
        name=name,
    )(*operands)
    lines = [y.reshape(count, y.shape[2]) for y in results[: len(out)]]
    return [*lines, *results[len(out) :]]


def everywhere(shape: tuple[int, ...]) -> pl.BlockSpec:
    """A block that is the whole array, loaded once."""
    mode = pl.Buffered(1)
    return pl.BlockSpec(shape, lambda *_: (0,) * len(shape), pipeline_mode=mode)


Stage = Callable[[int, Any], None]
"""A part of what is done with a row: of its number in its block, and of the slot of scratch (of
2 together) in which one part leaves it to the next."""


def in_steps(together: int, *stages: tuple[int, Stage]) -> None:
    """A block's rows go through their stages in different steps of the grid, so that no engine
    waits for another one's part of the same row.

    **Arguments:**

    - `stages`: How many steps later than the block's first one, and what is done then, in the order
      in which a step does it with its blocks. The grid has as many steps more as the latest.
    """
    step, latest = pl.program_id(0), max(late for late, _ in stages)
    count = pl.num_programs(0) - latest
    for g in range(together):
        for late, stage in stages:
            begun, goes_on = step >= late, step < count + late
            active = goes_on if late == 0 else begun if late == latest else begun & goes_on

            @pl.when(active)
            def _(g: int = g, late: int = late, stage: Stage = stage) -> None:
                stage(g, lax.rem(step + late, 2) * together + g)


def as_rows(x: jax.Array) -> jax.Array:
    """[..., n] as [rows, n]."""
    return x.reshape(-1, x.shape[-1])


def columns(size: int, dtype: Any, buffers: int) -> Any:
    """Scratch for rows of `size` elements, one a partition, `buffers` in rotation."""
    return pltrn.SBUF((buffers, PARTITIONS, size), jnp.dtype(dtype))
