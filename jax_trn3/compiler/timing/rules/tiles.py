"""What rules for matrix products share: element types on the engines, sizes, and rates."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jax_trn3.hardware import Chip, NeuronCore
from jax_trn3.isa.dtypes import DTYPES
from jax_trn3.simulator import Node, Program
from jax_trn3.simulator.allocation import extent

ROWS, COLUMNS = 128, 512
"""Of a result tile: rows from the stationary operand, columns from the moving one."""

BANKS = 8
"""Results summed at the same time, a PSUM bank each."""

_NAMES = {
    "bf16": "bfloat16", "f16": "float16", "f32": "float32", "i1": "bool_", "pred": "bool_",
    "i8": "int8", "ui8": "uint8", "i16": "int16", "ui16": "uint16", "i32": "int32",
    "ui32": "uint32", "f8E4M3": "float8_e4m3", "f8E4M3FN": "float8_e4m3fn",
    "f8E5M2": "float8_e5m2", "f8E8M0FNU": "uint8",
}  # fmt: skip


def held_as(dtype: str, core: NeuronCore) -> str:
    """The engines' type of the same width, or the next wider one, for a StableHLO element type.

    What has no type of its own is moved as integers: 4-bit and other 8-bit types a byte each,
    64-bit types and complex numbers as several words (`words`).
    """
    name = _NAMES.get(dtype)
    if name == "float8_e4m3fn" and core.generation < DTYPES[name].since:
        return "float8_e4m3"
    if name:
        return name
    if dtype.startswith(("f8", "f4", "i4", "ui4", "i2", "ui2")):
        return "uint8"
    return "uint32"


def words(dtype: str) -> int:
    """Elements of `held_as(dtype)` that hold one of `dtype`."""
    return {"f64": 2, "i64": 2, "ui64": 2, "complex<f32>": 2, "complex<f64>": 4}.get(dtype, 1)


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def size(shape: Sequence[int]) -> int:
    """Elements of a shape."""
    return math.prod(int(n) for n in shape)


def fits(body: Iterable[Node], chip: Chip) -> bool:
    """Whether the tiles of a program's body lie in SBUF side by side."""
    tiles = Program("", tuple(body)).tiles()
    taken = sum(extent(tile, chip.core) + 32 for tile in tiles if tile.memory == "sbuf")
    return taken <= chip.core.sbuf_usable_partition_bytes


@dataclass(frozen=True)
class Rates:
    """What a core moves, for choosing among blockings (the simulator has the last word)."""

    chip: Chip

    def copy_s(self, moved: float, run: float) -> float:
        """Time to move bytes of which `run` lie next to each other."""
        dma = self.chip.core.dma
        run = max(1.0, min(run, dma.packet_bytes))
        engines = moved / run * dma.packet_ns(int(run)) / dma.count * 1e-9
        stack = self.chip.hbm_bandwidth_bytes_per_s / self.chip.num_cores
        return max(engines, moved / stack)

    def transposed_s(self, moved: float) -> float:
        """Time to move bytes out of HBM with a transposition on the way."""
        dma = self.chip.core.dma
        share = dma.transpose_factors["hbm_to_sbuf"]
        return self.copy_s(moved, dma.packet_bytes) / share

    def tensor_s(self, rows: float, passes: float) -> float:
        """Time of matrix instructions that stream so many rows."""
        tensor = self.chip.core.tensor
        return rows * passes / tensor.clock_hz / tensor.sustained_speed
