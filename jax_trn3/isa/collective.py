"""Collectives as one core sees them: CC-cores move bytes between cores, beside what the engines do.

Not of `nki.isa`: NKI has them in `nki.collectives`. How long the links take depends on the machine
around the core, so an instruction is told (`time_ps`); `jax_trn3.simulator.collectives.in_program`
makes instructions with the time of an algorithm on a topology.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jax_trn3.hardware import NeuronCore

from .dtypes import ANY
from .rules import one_of, same_dtype
from .spec import DmaWork, Instruction, Work, instruction, reads, writes

_REDUCTIONS: dict[str, Callable[..., jax.Array]] = {"add": jnp.sum, "max": jnp.max, "min": jnp.min}


def _reduced(src: jax.Array, op: str) -> jax.Array:
    return _REDUCTIONS[op](src, axis=0).astype(src.dtype)


def _chunks(x: jax.Array, ranks: int) -> jax.Array:
    """The first dimension cut into one piece a rank."""
    return x.reshape(ranks, x.shape[0] // ranks, *x.shape[1:])


def _all_reduce(src: jax.Array, op: str) -> jax.Array:
    return jnp.broadcast_to(_reduced(src, op), src.shape)


def _all_gather(src: jax.Array, op: str) -> jax.Array:
    ranks = src.shape[0]
    whole = src.reshape(ranks * src.shape[1], *src.shape[2:])
    return jnp.broadcast_to(whole, (ranks, *whole.shape))


def _reduce_scatter(src: jax.Array, op: str) -> jax.Array:
    return _chunks(_reduced(src, op), src.shape[0])


def _all_to_all(src: jax.Array, op: str) -> jax.Array:
    ranks = src.shape[0]
    pieces = jnp.stack([_chunks(mine, ranks) for mine in src])  # [from, to, ...]
    return jnp.swapaxes(pieces, 0, 1).reshape(src.shape)


def _broadcast(src: jax.Array, op: str) -> jax.Array:
    return jnp.broadcast_to(src[0], src.shape)


KINDS: dict[str, Callable[[jax.Array, str], jax.Array]] = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
    "broadcast": _broadcast,
}
"""What each kind does to the ranks' arrays, stacked along the first dimension."""


def _work(instruction: Instruction, core: NeuronCore) -> Work:
    """The rank's own share: its DMA engines move whole packets of the collectives' size, all of
    them alike (neuron-runtime/explore/compute-comm-overlap.rst)."""
    dma, moved = core.dma, instruction.get("dma_bytes", 0)
    each = moved / dma.count
    packets = math.ceil(each / dma.collective_packet_bytes)
    busy = packets * dma.packet_overhead_ns * 1000 + each / dma.engine_bytes_per_s * 1e12
    return Work(
        dma=DmaWork(
            engine_ps=(math.ceil(busy),) * dma.count,
            packets=packets * dma.count,
            bytes=moved,
            bytes_read_hbm=instruction.get("hbm_read_bytes", 0),
            bytes_written_hbm=instruction.get("hbm_write_bytes", 0),
            least_ps=instruction.get("time_ps", 0),
        )
    )


def _sizes(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """Times and bytes are not negative; a part is one of its parts."""
    for name in ("time_ps", "dma_bytes", "hbm_read_bytes", "hbm_write_bytes"):
        if instruction.get(name, 0) < 0:
            yield f"{name} is {instruction.get(name)}; at least 0"
    part, parts = instruction.get("part", 0), instruction.get("parts", 1)
    if not 0 <= part < parts:
        yield f"part is {part}; 0 to {parts - 1}, as it has {parts} parts"


@instruction(
    writes("dst", "hbm", "sbuf", dtypes=ANY),
    reads("src", "hbm", "sbuf", dtypes=ANY),
    engines=("collective",),
    cost=_work,
    rules=(one_of("kind", *KINDS, "collective_permute"), one_of("op", *_REDUCTIONS), _sizes,
           same_dtype("dst", "src")),
    source="nki/api/nki.collectives.rst",
)  # fmt: skip
def collective(
    src: jax.Array,
    *,
    kind: str,
    time_ps: int,
    op: str = "add",
    pairs: tuple[tuple[int, int], ...] = (),
    dma_bytes: int = 0,
    hbm_read_bytes: int = 0,
    hbm_write_bytes: int = 0,
    part: int = 0,
    parts: int = 1,
    priority: int | None = None,
) -> Any:
    """What a collective leaves in every rank's `dst`; arrays hold the ranks' along a first
    dimension.

    `time_ps` is what the links take, the bytes what the rank's own memory and DMA engines move. A
    long collective is a chain of parts, so that other transfers get between them; a part has no
    meaning of its own.
    """
    if parts != 1:
        raise ValueError(
            f"part {part} of {parts} of a {kind} has no value of its own; execute it whole, parts=1"
        )
    if kind != "collective_permute":
        return KINDS[kind](src, op)
    out = jnp.zeros_like(src)
    for source, target in pairs:
        out = out.at[target].set(src[source])
    return out
