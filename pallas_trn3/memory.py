"""The memories of a NeuronCore, as Pallas' memory spaces.

`SBUF((128, 512), jnp.bfloat16)` is a scratch shape, `BlockSpec(..., memory_space=PSUM)` a block's
place. A tile has partitions first: element [p, ...] lies in partition p, the other dimensions side
by side in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import core as jax_core
from jax._src.pallas import core as pallas_core

from jax_trn3.hardware import TRAINIUM3
from jax_trn3.isa import DTYPES

Memory = Literal["sbuf", "psum", "hbm", "state", "semaphore"]


@dataclass(frozen=True)
class MemorySpace:
    """A memory, and where in it a tile lies if the kernel says so."""

    name: Memory
    address: tuple[int, int] | None = None
    """First partition, and first byte in each partition; None: ours to choose."""

    buffers: int = 1
    """Equal tiles, one after another: the first dimension of the shape."""

    def __call__(
        self,
        shape: Sequence[int],
        dtype: Any,
        *,
        address: tuple[int, int] | None = None,
        bank: int | None = None,
        buffers: int = 1,
    ) -> pallas_core.MemoryRef:
        """A scratch shape.

        **Arguments:**

        - `shape`: Partitions first; `buffers` > 1 puts another dimension before them, for the
          kernel to index: `tile.at[i % buffers]`.
        - `dtype`: NumPy's or JAX's.
        - `address`: First partition and first byte in a partition, to allocate directly.
        - `bank`: Of PSUM, in place of an address: 2 KiB each.
        - `buffers`: How many such tiles, used in rotation.

        **Raises:** `ValueError` for a bank of SBUF, a bank and an address, fewer than one buffer,
        or an address of HBM.
        """
        if buffers < 1:
            raise ValueError(f"{self}: {buffers} buffers; at least 1")
        if bank is not None:
            banks = TRAINIUM3.core.psum_banks
            if self.name != "psum" or address is not None or not 0 <= bank < banks:
                raise ValueError(
                    f"{self}: bank={bank} with address={address}; PSUM alone has banks, "
                    f"0 to {banks - 1}, and takes a bank or an address"
                )
            address = (0, bank * TRAINIUM3.core.psum_bank_bytes)
        if address is not None and self.name not in ("sbuf", "psum"):
            raise ValueError(f"{self}: address={address}; only tiles in SBUF and PSUM have one")
        whole = (buffers, *shape) if buffers > 1 else tuple(shape)
        space = replace(self, address=address, buffers=buffers)
        return pallas_core.MemoryRef(jax_core.ShapedArray(whole, jnp.dtype(dtype)), space)

    def from_type(self, type: Any) -> pallas_core.MemoryRef:
        """As JAX's memory spaces have it: a scratch shape of an abstract value."""
        return pallas_core.MemoryRef(type, self)

    def __str__(self) -> str:
        return self.name

    def __lt__(self, other: MemorySpace) -> bool:
        return str(self) < str(other)


HBM = MemorySpace("hbm")
"""Memory of the chip: what a kernel moves with `dma_copy` and `async_copy`."""

SBUF = MemorySpace("sbuf")
"""A core's own memory, 128 partitions, where engines work; blocks lie here by default."""

PSUM = MemorySpace("psum")
"""Where the tensor engine writes, and adds: 128 partitions of 8 banks of 2 KiB."""

_STATE = MemorySpace("state")


def engine_state(engine: Literal["vector", "scalar", "gpsimd"], kind: str) -> pallas_core.MemoryRef:
    """A scratch shape for what an engine remembers between instructions, for `state=`.

    **Arguments:**

    - `kind`: "accumulators" (float32, one a partition) or "prng" (uint32, a row a partition: 24
      words on VectorE, 6 on GpSimdE).

    **Raises:** `ValueError` for another kind.
    """
    from jax_trn3.isa.random import GENERATORS, WORDS

    if kind == "accumulators":
        return _STATE((128,), jnp.float32)
    if kind == "prng" and engine in GENERATORS:
        return _STATE((128, GENERATORS[engine] * WORDS), jnp.uint32)
    raise ValueError(
        f"engine_state({engine!r}, {kind!r}): there are 'accumulators', and 'prng' of vector and "
        "gpsimd"
    )


_NAMES: dict[str, Memory] = {
    "sbuf": "sbuf", "psum": "psum", "hbm": "hbm", "state": "state",
    # JAX's own: blocks are loaded to SBUF, the rest stays where it is.
    "default": "sbuf", "any": "hbm", "index": "sbuf", "error": "sbuf", "key": "sbuf", "host": "hbm",
    "vmem": "sbuf", "smem": "sbuf", "cmem": "sbuf", "vmem_shared": "sbuf",
    "semaphore_mem": "semaphore", "device": "sbuf",
}  # fmt: skip


def memory_of(aval: Any) -> Memory:
    """The memory of a Ref's abstract value; JAX's spaces by what they mean here (VMEM is SBUF).

    **Raises:** `ValueError` for a space of another platform's.
    """
    if jnp.issubdtype(aval.dtype, pallas_core.semaphore_dtype):
        return "semaphore"
    space = getattr(aval, "memory_space", None)
    name = "default" if space is None else str(getattr(space, "value", space)).lower()
    if name not in _NAMES:
        raise ValueError(
            f"a Ref in memory {space}, which a NeuronCore does not have; use pltrn.SBUF, "
            "pltrn.PSUM or pltrn.HBM"
        )
    return _NAMES[name]


def dtype_name(dtype: Any) -> str:
    """NKI's name of an element type; "" for one that engines do not know (float64, int64)."""
    name = str(np.dtype(dtype)) if not jax.dtypes.issubdtype(dtype, jax.dtypes.extended) else ""
    name = "bool_" if name == "bool" else name
    return name if name in DTYPES else ""
