"""An MXFP8 product whose moving operand arrives in bfloat16 and is quantized on the way.

[M, N] = [K, M].T @ [K, N]. The stationary operand, weights, lies quantized in SBUF; the moving one,
activations, comes in bfloat16, four values of the contracted axis side by side as MX wants them,
and VectorE quantizes each of its tiles once, for all M / 128 products that use it. ScalarE copies
the results out of PSUM, so that VectorE does nothing else; they go to HBM.
"""

from collections.abc import Iterable
from typing import Literal

from jax_trn3.isa import Index, Instruction, Tile, as_index
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.scalar import activation
from jax_trn3.isa.tensor import nc_matmul_mx
from jax_trn3.isa.vector import quantize_mx
from jax_trn3.simulator import Node, Program, loop, program

Memory = Literal["sbuf", "hbm"]

ROWS, COLUMNS, CONTRACTED = 128, 512, 512
"""Of a tile: rows of a result, columns of it, and length of the contracted axis."""

_GROUP = 4
"""Results summed at the same time, at most: while four are summed, four are copied out."""

_AHEAD = 2
"""Panels of activations, 512 columns each, that are loaded before they are needed."""

_PANELS = _AHEAD + 1
"""Panels in rotation."""


def quantized_matmul(
    m: int, k: int, n: int, *, quantize: bool = True, memory: Memory = "sbuf"
) -> Program:
    """The product as a program.

    **Arguments:**

    - `m`: A multiple of 128. A quantized tile is used m / 128 times.
    - `k`, `n`: Multiples of 512.
    - `quantize`: Whether activations come in bfloat16; else in MXFP8, quantized by someone else.
    - `memory`: Where they are; in SBUF, all of them (k * n up to 4096 * 2048 beside 1024 rows).

    **Raises:** `ValueError` for other sizes.
    """
    for name, size, step in (("m", m, ROWS), ("k", k, CONTRACTED), ("n", n, COLUMNS)):
        if size < 1 or size % step:
            raise ValueError(f"{name}={size} is not a multiple of {step}")
    depth, panels, height = k // CONTRACTED, n // COLUMNS, m // ROWS
    group = next(size for size in range(_GROUP, 0, -1) if height % size == 0)
    weights = _mx("weights", ROWS, height * depth, given=True)
    psum = Tile("psum", "psum", (ROWS, COLUMNS), "float32", slots=2 * _GROUP)
    staged = Tile("staged", "sbuf", (ROWS, COLUMNS), "bfloat16", slots=2 * _GROUP)
    result = Tile("result", "hbm", (ROWS, COLUMNS), "bfloat16", slots=height * panels)

    here, ready = memory == "sbuf", memory == "sbuf" and not quantize
    everything, window = depth * panels, depth * _PANELS
    moving = _mx("activations", COLUMNS, everything if ready else window, given=ready)
    shape, slots = (128, 4 * COLUMNS), everything if here else window
    plain = Tile("activations in bfloat16", "sbuf", shape, "bfloat16", slots, given=here)

    def load(column: Index | int) -> Iterable[Instruction]:
        """Brings a panel of activations to SBUF, where it is not there."""
        for near in () if here else (plain,) if quantize else moving:
            block = near.run(column * depth, depth)
            far = Tile(f"{near.name}, hbm", "hbm", block.shape, near.dtype, panels, given=True)
            yield dma_copy(block, far[column], engine="dma:sync")

    def quantized(column: Index) -> Iterable[Instruction]:
        """Makes it MXFP8, if it is not."""
        data, scales = moving
        for place in (column * depth + index for index in range(depth if quantize else 0)):
            yield quantize_mx(data[place], plain[place], scales[place])

    def results(column: Index, high: Index) -> Iterable[Node]:
        """`group` results from all tiles of the contracted axis."""
        place = column * height + high * group
        out = [place + row for row in range(group)]

        def step(index: Index) -> Iterable[Instruction]:
            right, right_scales = (part[column * depth + index] for part in moving)
            for row in range(group):
                left, left_scales = (part[(high * group + row) * depth + index] for part in weights)
                yield nc_matmul_mx(psum[out[row]], left, right, left_scales, right_scales)

        yield loop(depth, step)
        yield from (activation(staged[slot], psum[slot], op="copy") for slot in out)
        yield dma_copy(result.run(place, group), staged.run(place, group), engine="dma:gpsimd")

    def panel(column: Index) -> Iterable[Node]:
        yield from quantized(column)
        yield loop(height // group, lambda high: results(column, high))

    # Transfers are carried out in the order of the text: loads stand before what they hide behind.
    ahead = min(_AHEAD, panels)
    body = [
        *(copy for column in range(ahead) for copy in load(column)),
        loop(panels - ahead, lambda column: [*load(column + ahead), *panel(column)]),
        *(node for column in range(panels - ahead, panels) for node in panel(as_index(column))),
    ]
    kind = "quantized on line" if quantize else "quantized before"
    return program(f"mxfp8 matmul {m}x{k}x{n}, {kind}", body)


def _mx(name: str, columns: int, slots: int, given: bool) -> tuple[Tile, Tile]:
    """Tiles of MXFP8 in SBUF, four values a word, and their scales."""
    shape = (128, columns)
    return (
        Tile(name, "sbuf", shape, "float8_e4m3fn_x4", slots, given=given),
        Tile(f"{name}, scales", "sbuf", shape, "uint8", slots, given=given),
    )
