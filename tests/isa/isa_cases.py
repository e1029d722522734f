"""Tiles, values and errors for the tests of instructions."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_trn3.hardware import NEURON_CORE_V2, NEURON_CORE_V3, NEURON_CORE_V4, NeuronCore
from jax_trn3.isa import DTYPES, Access, Instruction, Tile, execute
from jax_trn3.isa.check import violations

V2, V3, V4 = NEURON_CORE_V2, NEURON_CORE_V3, NEURON_CORE_V4
CORES = (V2, V3, V4)

_names: Iterator[int] = count()


def tile(memory: Any, shape: tuple[int, ...], dtype: str = "float32", start: int = 0) -> Access:
    """A whole new tile; `start` is its first partition."""
    address = None if memory == "hbm" else (start, 0)
    return Tile(f"t{next(_names)}", memory, shape, dtype, address=address).all


def sbuf(*shape: int, dtype: str = "float32", start: int = 0) -> Access:
    return tile("sbuf", shape, dtype, start)


def psum(*shape: int, dtype: str = "float32", start: int = 0) -> Access:
    return tile("psum", shape, dtype, start)


def hbm(*shape: int, dtype: str = "float32") -> Access:
    return tile("hbm", shape, dtype)


def problems(instruction: Instruction, core: NeuronCore = V4) -> str:
    """Everything that is wrong with it; "" if nothing is."""
    return "; ".join(violations(instruction, core))


def values(access: Access, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Normal numbers, or all integers, in the shape and dtype of an access."""
    element = DTYPES[access.dtype]
    random = np.random.default_rng(seed)
    shape = (*access.shape, element.packed) if element.packed > 1 else access.shape
    if np.issubdtype(element.numpy, np.integer):
        limits = np.iinfo(element.numpy)
        return random.integers(limits.min, limits.max, shape, element.numpy, endpoint=True)
    drawn = (random.standard_normal(shape) * scale).astype(np.float32)
    if access.dtype == "tfloat32":  # 10 bits of mantissa
        drawn = (drawn.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    return drawn.astype(element.numpy)


def float64(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def bits(x: Any) -> np.ndarray:
    x = np.asarray(jnp.asarray(x))
    return x.view(f"u{x.dtype.itemsize}")


def run(instruction: Instruction, arrays: Any, previous: Any = None) -> dict[str, Any]:
    """`execute`, compiled as one program: several times faster than one for each operation."""
    return jax.jit(lambda a, p: execute(instruction, a, p))(arrays, previous)
