"""VectorE: copies, constants, shuffles and dropout, some of them also on ScalarE and GpSimdE."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jax_trn3.hardware import NeuronCore

from .check import first_partition
from .cost import streaming
from .dtypes import ANY, FLOATS, FP16, INTEGERS, MX
from .operand import Access
from .performance_modes import one_source, two_sources
from .random import random_bits
from .rules import engine_since, partition_scalars, same_dtype, same_size
from .spec import Instruction, Operand, instruction, reads, writes
from .vector import constant, rows, vector_or_number
from .vector_rules import not_both_in_psum

_NISA = "nki/api/nki/isa/__init__.py"
_PREDICATES = ("uint8", "uint16", "uint32")

KEEP = 255
"""An entry of a shuffle mask that leaves the partition as it is."""


def undefined(out: jax.ShapeDtypeStruct) -> jax.Array:
    """What nobody wrote: NaN, of integers 4, as in nki.simulate (nki/guides/nki_simulator.rst)."""
    inexact = jnp.issubdtype(out.dtype, jnp.inexact)
    return jnp.full(out.shape, jnp.nan if inexact else 4).astype(out.dtype)


def converted(values: jax.Array, out: jax.ShapeDtypeStruct) -> jax.Array:
    """Bit for bit where the type stays, else by way of float32."""
    return values if values.dtype == out.dtype else values.astype(jnp.float32)


def _packed_stay_packed(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """A packed type is copied into the same type only."""
    src, dst = instruction["src"].dtype, instruction["dst"].dtype
    if src != dst and (src in MX or dst in MX):
        yield f"src is {src} and dst {dst}; packed types are copied as they are, not converted"


@instruction(
    writes("dst", dtypes=ANY, indirect=True),
    reads("src", dtypes=ANY, indirect=True),
    engines=("vector", "scalar", "gpsimd"),
    cost=streaming(one_source("src"), flops=0),
    rules=(same_size("dst", "src"), _packed_stay_packed, engine_since("scalar", 3)),
    source=f"{_NISA}, tensor_copy",
)
def tensor_copy(src: jax.Array, *, out: jax.ShapeDtypeStruct) -> jax.Array:
    """`dst = src`: bit for bit where the type stays, by way of float32 where it changes."""
    return converted(src, out)


@instruction(
    Operand("dst", "accumulate", indirect=True),
    reads("src", scalar=True),
    reads("predicate", dtypes=_PREDICATES, indirect=True),
    engines=("vector",),
    cost=streaming(two_sources("src", "predicate"), flops=0),
    rules=(
        same_size("dst", "src", "predicate"),
        same_dtype("dst", "src"),
        not_both_in_psum("src", "predicate"),
    ),
    source=f"{_NISA}, tensor_copy_predicated",
)
def tensor_copy_predicated(
    src: jax.Array | float,
    predicate: jax.Array,
    *,
    reverse_pred: bool = False,
    previous: jax.Array | None,
    out: jax.ShapeDtypeStruct,
) -> jax.Array:
    """`dst = src` where `predicate` is not 0 (where it is, if reversed); the rest stays."""
    before = rows(undefined(out) if previous is None else previous)
    value = rows(src) if isinstance(src, jax.Array) else constant(src, out.dtype)
    return jnp.where((rows(predicate) != 0) ^ reverse_pred, value, before)


# memset


def _memset_mode(instruction: Instruction, core: NeuronCore) -> str:
    """Zeros of 16 bits at twice the rate (SDK 2.26)."""
    fast = instruction["dst"].dtype in FP16 and instruction.get("value") == 0
    return "2x" if fast and instruction.engine == "vector" else "1x"


def _memset_rules(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """value: of a packed type 0; of an integer type one of its numbers."""
    dst, value = instruction["dst"], instruction.get("value")
    if dst.dtype in MX and value != 0:
        yield f"value is {value!r} and dst {dst.dtype}; a packed type can be set to 0 only"
    if dst.dtype in INTEGERS and dst.dtype != "bool_":
        limits = np.iinfo(dst.tile.element.numpy)
        if value != value or not limits.min <= value <= limits.max or value != int(value):
            yield f"value is {value!r}; {dst.dtype} has the integers {limits.min} to {limits.max}"


@instruction(
    writes("dst", dtypes=ANY),
    engines=("vector", "gpsimd"),
    cost=streaming(_memset_mode, flops=0),
    rules=(_memset_rules,),
    source=f"{_NISA}, memset",
)
def memset(*, value: float, out: jax.ShapeDtypeStruct) -> jax.Array:
    """`dst = value` everywhere."""
    if jnp.issubdtype(out.dtype, jnp.integer):
        return jnp.full(out.shape, int(value), out.dtype)
    return jnp.full(out.shape, value, jnp.float32)


# nc_stream_shuffle


def _shuffle_rules(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """shuffle_mask: 32 partitions of a quadrant, or 255; src has those that dst asks for; both
    start where as many quadrants as the larger one covers may start."""
    src, dst = instruction["src"], instruction["dst"]
    mask, quadrant = tuple(instruction.get("shuffle_mask")), core.quadrant_partitions
    if src.free_size != dst.free_size:
        yield (
            f"src has {src.free_size} elements a partition and dst {dst.free_size}; they must agree"
        )
    if len(mask) != quadrant:
        yield f"shuffle_mask has {len(mask)} entries; it must have {quadrant}"
        return
    for i, source in enumerate(mask):
        if source != KEEP and not 0 <= source < quadrant:
            yield f"shuffle_mask[{i}] is {source}; allowed: 0 to {quadrant - 1}, or {KEEP} to keep"
            return
    for partition in range(min(dst.partitions, core.partitions)):
        source = mask[partition % quadrant]
        wanted = partition // quadrant * quadrant + source
        if source != KEEP and wanted >= src.partitions:
            yield (
                f"shuffle_mask fills partition {partition} of dst from partition {wanted} of src, "
                f"which has {src.partitions}"
            )
            break
    active = -(-max(src.partitions, dst.partitions) // quadrant) * quadrant
    starts = core.partition_starts(min(active, core.partitions))
    for name, access in (("src", src), ("dst", dst)):
        if first_partition(access) not in starts:
            yield (
                f"{name} starts at partition {first_partition(access)}; a shuffle of {active} "
                f"partitions may start at {', '.join(map(str, starts))}"
            )


@instruction(
    Operand("dst", "accumulate"),
    reads("src"),
    engines=("vector",),
    cost=streaming(flops=0),
    rules=(same_dtype("dst", "src"), _shuffle_rules),
    source=f"{_NISA}, nc_stream_shuffle",
)
def nc_stream_shuffle(
    src: jax.Array,
    *,
    shuffle_mask: tuple[int, ...],
    previous: jax.Array | None,
    out: jax.ShapeDtypeStruct,
) -> jax.Array:
    """Partition `i` of each quadrant of `dst` becomes partition `shuffle_mask[i]` of that quadrant
    of `src`; with 255 it stays as it is."""
    partitions = np.arange(out.shape[0])
    mask = np.asarray(shuffle_mask)[partitions % len(shuffle_mask)]
    sources = np.where(mask == KEEP, 0, partitions - partitions % len(shuffle_mask) + mask)
    before = rows(undefined(out) if previous is None else previous)
    return jnp.where((mask == KEEP)[:, None], before, rows(src)[sources])


# dropout


def _dropout_rules(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """prob: float32 beside integers, any float beside floats; a number from 0 to 1."""
    prob, data = instruction.get("prob"), instruction["data"].dtype
    if isinstance(prob, Access):
        allowed = ("float32",) if data in INTEGERS else FLOATS
        if prob.dtype not in allowed:
            yield f"prob is {prob.dtype} beside data of {data}; allowed: {', '.join(allowed)}"
    elif not 0 <= prob <= 1:
        yield f"prob is {prob}; a probability is from 0 to 1"


@instruction(
    writes("dst"),
    reads("data"),
    reads("prob", dtypes=FLOATS, scalar=True),
    engines=("vector",),
    state="prng",
    cost=streaming(flops=0),
    rules=(
        same_size("dst", "data"),
        same_dtype("dst", "data"),
        partition_scalars("data", "prob"),
        _dropout_rules,
    ),
    source=f"{_NISA}, dropout",
)
def dropout(
    data: jax.Array, prob: jax.Array | float, *, state: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """`dst = data`, but 0 with probability `prob`, a number or a value a partition.

    Undocumented and chosen here: an element falls where the top 24 of the generator's next 32 bits,
    as a fraction, are below `prob`.
    """
    values = rows(data)
    bits, state = random_bits(state, jax.ShapeDtypeStruct(values.shape, jnp.uint32))
    fraction = (bits >> 8).astype(jnp.float32) * jnp.float32(2**-24)
    falls = fraction < jnp.asarray(vector_or_number(prob)).astype(jnp.float32)
    return jnp.where(falls, jnp.zeros((), values.dtype), values), state
