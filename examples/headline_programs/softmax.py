"""The softmax of rows as an instruction program: exponentials on VectorE or on ScalarE.

`exp(x - max) / sum`, a row a partition, in bfloat16. Whoever takes the exponentials sums them up on
the way; the other engine multiplies by 1 / sum. Maxima are VectorE's, those of the next rows while
exponentials are under way. Rows lie in SBUF, as after a product, or are brought from HBM.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

from jax_trn3.isa import Access, Index, Instruction, Tile, as_index
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.scalar import activation
from jax_trn3.isa.vector import reciprocal, tensor_scalar
from jax_trn3.isa.vector_move import tensor_copy
from jax_trn3.isa.vector_reduce import exponential, tensor_reduce
from jax_trn3.simulator import Program, loop, program

Exponentials = Literal["vector", "scalar"]
"""Who takes them: VectorE's `exponential` (Trainium3) or ScalarE's `activation(exp)`."""

ROWS = 128
"""Rows at a time: one a partition."""

_BUFFERS = 4
"""Groups of rows in rotation."""

_COLUMNS = {"largest": "bfloat16", "shift": "float32", "total": "float32", "scale": "float32"}


def softmax(
    rows: int, columns: int, on: Exponentials, memory: Literal["sbuf", "hbm"] = "sbuf"
) -> Program:
    """The softmax of each of `rows` rows as a program.

    **Arguments:**

    - `rows`: A multiple of 128.
    - `columns`: Elements of a row; four groups of rows and of results fit in SBUF (8,192 do).
    - `on`: Who takes the exponentials.
    - `memory`: Where rows and results lie. Four groups of them are in SBUF, used in turn; "sbuf" is
      as if others filled and emptied them in time.

    **Raises:** `ValueError` for rows that do not fill groups.
    """
    if rows % ROWS:
        raise ValueError(f"rows={rows} is not a multiple of {ROWS}")
    shape = (ROWS, columns)
    given = memory == "sbuf"
    source = Tile("x", "hbm", shape, "bfloat16", rows // ROWS, given=True)
    x = Tile("x in sbuf", "sbuf", shape, "bfloat16", _BUFFERS, given=given)
    y = Tile("y in sbuf", "sbuf", shape, "bfloat16", _BUFFERS)
    result = Tile("y", "hbm", shape, "bfloat16", rows // ROWS)
    largest, shift, total, scale = (
        Tile(name, "sbuf", (ROWS, 1), dtype, _BUFFERS) for name, dtype in _COLUMNS.items()
    )

    def maximum(i: Index) -> Iterable[Instruction]:
        if not given:
            yield dma_copy(x[i], source[i], engine="dma:sync")
        # A maximum is exact in bfloat16, which VectorE reduces at twice the rate.
        yield tensor_reduce(largest[i], x[i], op="maximum", axis=1, negate=on == "scalar")
        yield tensor_copy(shift[i], largest[i], engine="vector")

    def finish(i: Index) -> Iterable[Instruction]:
        other = "scalar" if on == "vector" else "vector"
        yield reciprocal(scale[i], total[i])
        yield tensor_scalar(y[i], y[i], scale[i], op0="multiply", engine=other)
        if not given:
            yield dma_copy(result[i], y[i], engine="dma:gpsimd")

    def group(i: Index) -> Iterable[Instruction]:
        yield _exponentials(on, y[i], x[i], shift[i], total[i])
        yield from maximum(i + 1)  # while the exponentials are under way
        yield from finish(i)

    last = as_index(rows // ROWS - 1)
    return program(
        f"softmax {rows}x{columns} on {on}",
        [
            *maximum(as_index(0)),
            loop(last, group),
            _exponentials(on, y[last], x[last], shift[last], total[last]),
            *finish(last),
        ],
    )


def _exponentials(
    on: Exponentials, dst: Access, src: Access, largest: Access, total: Access
) -> Instruction:
    """exp(src - maximum) and its sums; `largest` is the maximum, for ScalarE its negative."""
    if on == "vector":
        return exponential(dst, src, largest, total, reduce_cmd="reset_reduce")
    return activation(
        dst,
        src,
        largest,
        None,
        total,
        op="exp",
        reduce_op="add",
        reduce_cmd="reset_reduce",
    )


def exponentials(count: int, columns: int, on: Exponentials) -> Program:
    """`count` independent instructions, each with the exponentials of [128, `columns`]."""
    x = Tile("x", "sbuf", (ROWS, columns), "bfloat16", given=True)
    y = Tile("y", "sbuf", (ROWS, columns), "bfloat16", _BUFFERS)

    def one(i: Index) -> Iterator[Instruction]:
        if on == "vector":
            yield exponential(y[i], x[0])
        else:
            yield activation(y[i], x[0], op="exp")

    return program(f"exponentials {count}x{columns} on {on}", [loop(count, one)])
