"""GpSimdE: gathers along the free axis, within a partition or within 16 of them."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from jax_trn3.hardware import NeuronCore

from .cost import engine_of
from .dtypes import ANY
from .gpsimd import GROUP
from .rules import same_dtype, same_size
from .spec import Instruction, Work, instruction, reads, writes
from .vector import rows

_NISA = "nki/api/nki/isa/__init__.py"


def _local_gather_sizes(instruction: Instruction) -> tuple[int, int]:
    """Indices of a processor, elements for each."""
    every = GROUP * instruction["index"].free_size
    valid = instruction.get("num_valid_indices")
    return every if valid is None else valid, instruction.get("num_elem_per_idx", 1)


def _local_gather_rules(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """Whole groups of 16 partitions; 1 to 4096 indices a group of 1, 2, 4, 8, 16 or 32 elements."""
    dst, src, index = (instruction[name] for name in ("dst", "src_buffer", "index"))
    valid, each = _local_gather_sizes(instruction)
    if len({dst.partitions, src.partitions, index.partitions}) > 1 or src.partitions % GROUP:
        yield (
            f"dst, src_buffer and index have {dst.partitions}, {src.partitions} and "
            f"{index.partitions} partitions; they must agree, a multiple of {GROUP}"
        )
    if each not in (1, 2, 4, 8, 16, 32):
        yield f"num_elem_per_idx is {each}; allowed: 1, 2, 4, 8, 16, 32"
    most = min(4096, GROUP * index.free_size)
    if not 1 <= valid <= most:
        yield f"{valid} indices for {GROUP} partitions; allowed: 1 to {most}"
    if dst.free_size != valid * each:
        yield (
            f"dst has {dst.free_size} elements a partition; {valid} indices of {each} fill "
            f"{valid * each}"
        )


def _local_gather_work(instruction: Instruction, core: NeuronCore) -> Work:
    """`150 + n * e * C`, `C = (28 + 4 e) / (4 e) / min(4 / dtype_size, e)` (SDK 2.26).

    AWS prints `/ C`. Literally, longer runs and smaller types would take longer, against what the
    same page says: that runs improve the throughput. As a factor it is 28 cycles for four indices.
    """
    valid, each = _local_gather_sizes(instruction)
    width = instruction["src_buffer"].tile.element.bytes
    cost_of_one = (28 + 4 * each) / (4 * each) / min(4 / width, each)
    start = engine_of(instruction, core).start_cycles
    return Work(start + math.ceil(valid * each * cost_of_one))


@instruction(
    writes("dst", "sbuf"),
    reads("src_buffer", "sbuf"),
    reads("index", "sbuf", dtypes=("uint16",)),
    engines=("gpsimd",),
    cost=_local_gather_work,
    rules=(_local_gather_rules, same_dtype("dst", "src_buffer")),
    source=f"{_NISA}, local_gather",
)
def local_gather(
    src_buffer: jax.Array,
    index: jax.Array,
    *,
    num_elem_per_idx: int = 1,
    num_valid_indices: int | None = None,
) -> jax.Array:
    """In each group of 16 partitions `num_elem_per_idx` elements from each of its offsets.

    Offsets count elements of a partition of `src_buffer`. They are `index` of the group, partitions
    first, of which the first `num_valid_indices` count. Beyond the end AWS defines nothing; here it
    is the last element.
    """
    groups = rows(index).astype(jnp.int32).reshape(-1, GROUP, rows(index).shape[1])
    offsets = jnp.swapaxes(groups, 1, 2).reshape(groups.shape[0], -1)[:, :num_valid_indices]
    runs = (offsets[:, :, None] + jnp.arange(num_elem_per_idx)).reshape(groups.shape[0], -1)
    return _gathered(rows(src_buffer), jnp.repeat(runs, GROUP, axis=0))


def _gathered(data: jax.Array, at: jax.Array) -> jax.Array:
    return jnp.take_along_axis(data, at.astype(jnp.int32), axis=1, mode="clip")


def _nc_n_gather_work(instruction: Instruction, core: NeuronCore) -> Work:
    """Groups of instructions for 512 elements each; a start each and a cycle an element, since no
    cost is published."""
    elements = instruction["dst"].free_size
    groups = math.ceil(elements / 512)
    return Work(groups * engine_of(instruction, core).start_cycles + elements)


@instruction(
    writes("dst", "sbuf", dtypes=ANY),
    reads("data", "sbuf", dtypes=ANY),
    reads("indices", "sbuf", dtypes=("uint32",)),
    engines=("gpsimd",),
    cost=_nc_n_gather_work,
    rules=(same_size("dst", "indices"), same_dtype("dst", "data")),
    source=f"{_NISA}, nc_n_gather",
)
def nc_n_gather(data: jax.Array, indices: jax.Array, *, out: jax.ShapeDtypeStruct) -> jax.Array:
    """`dst[p, i] = data[p, indices[p, i]]`, free dimensions as one.

    Indices must be inside; here one beyond the end gives the last element.
    """
    packed = out.size // indices.size
    elements = data.reshape(data.shape[0], -1, packed)
    at = jnp.minimum(rows(indices), elements.shape[1] - 1)
    return jax.vmap(lambda row, places: row[places])(elements, at)
