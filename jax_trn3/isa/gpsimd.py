"""GpSimdE: patterns, selections and gathers, by eight processors of 16 partitions each.

It reaches SBUF only. An instruction costs a start (`ComputeEngine.start_cycles`) and a cycle an
element of a partition where AWS publishes nothing else.
"""

import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_trn3.hardware import NeuronCore

from .alu import compute, reduce
from .cost import engine_of
from .dtypes import PLAIN
from .rules import one_of, same_size
from .spec import Cost, Instruction, Operand, Work, instruction, reads, writes
from .vector import constant, rows
from .vector_move import converted, undefined
from .vector_rules import operation

_NISA = "nki/api/nki/isa/__init__.py"
_COMPARISONS = ("equal", "not_equal", "greater_equal", "greater", "less_equal", "less")
_INT32 = np.iinfo(np.int32)

GROUP = 16
"""Partitions that one of the eight processors reaches."""


def _started(of: str, *, passes: float = 1.0, flops: int = 0) -> Cost:
    """The start and the elements of operand `of`: `150 + N` (SDK 2.26, iota)."""

    def cost(instruction: Instruction, core: NeuronCore) -> Work:
        engine = engine_of(instruction, core)
        elements = math.ceil(passes * instruction[of].free_size / engine.elements_per_cycle["1x"])
        return Work(engine.start_cycles + elements, flops=flops * instruction[of].elements)

    return cost


# Affine patterns

Pattern = Sequence[Sequence[int]]


def _pattern_rules(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """pattern: 1 to 4 pairs [step, number], as many values as dst has in a partition; int32 all."""
    pattern = instruction.get("pattern")
    if not 1 <= len(pattern) <= 4 or any(len(pair) != 2 or pair[1] < 1 for pair in pattern):
        yield f"pattern is {pattern}; it must be 1 to 4 pairs [step, number >= 1]"
        return
    count, free_size = math.prod(number for _, number in pattern), instruction["dst"].free_size
    if count != free_size:
        yield f"pattern has {count} values, a partition of dst {free_size}; they must agree"
    for name in ("offset", "channel_multiplier"):
        value = instruction.get(name, 0)
        if not _INT32.min <= value <= _INT32.max:
            yield f"{name} is {value}; it must be an int32"


def affine(partitions: int, pattern: Pattern, offset: int, channel_multiplier: int) -> jax.Array:
    """int32 [P, F]: `offset + partition * channel_multiplier + sum(step * index)`, wrapping."""
    steps = np.array([step for step, _ in pattern], np.int32)
    indices = np.indices([number for _, number in pattern], np.int32).reshape(len(pattern), -1)
    with np.errstate(over="ignore"):
        row = (steps[:, None] * indices).sum(axis=0, dtype=np.int32)
    channel = jnp.arange(partitions, dtype=jnp.int32) * jnp.int32(channel_multiplier)
    return channel[:, None] + row[None, :] + jnp.int32(offset)


@instruction(
    writes("dst", "sbuf"),
    engines=("gpsimd",),
    cost=_started("dst"),
    rules=(_pattern_rules,),
    source=f"{_NISA}, iota",
)
def iota(
    *,
    pattern: Pattern,
    offset: int = 0,
    channel_multiplier: int = 0,
    out: jax.ShapeDtypeStruct,
) -> jax.Array:
    """The values of an affine pattern, computed in int32.

    **Arguments:**

    - `pattern`: Up to four pairs [step, number], the outermost first.
    - `channel_multiplier`: Step from one partition of `dst` to the next.
    """
    return affine(out.shape[0], pattern, offset, channel_multiplier)


@instruction(
    writes("dst", "sbuf"),
    reads("on_true_tile", "sbuf"),
    engines=("gpsimd",),
    cost=_started("dst"),
    rules=(_pattern_rules, one_of("cmp_op", *_COMPARISONS), same_size("dst", "on_true_tile")),
    source=f"{_NISA}, affine_select",
)
def affine_select(
    on_true_tile: jax.Array,
    *,
    pattern: Pattern,
    channel_multiplier: int,
    on_false_value: float,
    cmp_op: str = "equal",
    offset: int = 0,
    out: jax.ShapeDtypeStruct,
) -> jax.Array:
    """`dst = on_true_tile` where iota's pattern `<cmp_op> 0`, else `on_false_value`."""
    values = affine(out.shape[0], pattern, offset, channel_multiplier)
    chosen = converted(rows(on_true_tile), out)
    compare = getattr(jnp, cmp_op)  # in int32, which float32 does not hold exactly
    return jnp.where(compare(values, 0), chosen, constant(on_false_value, chosen.dtype))


# Searches


def _nonzero_rules(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """dst has one element more than src; index_offset and padding_val are int32."""
    dst, src = instruction["dst"], instruction["src"]
    if (dst.partitions, dst.free_size) != (src.partitions, src.free_size + 1):
        yield (
            f"dst has {dst.partitions} partitions of {dst.free_size} elements; src of "
            f"{src.partitions} and {src.free_size} needs {src.partitions} of {src.free_size + 1}"
        )
    for name in ("index_offset", "padding_val"):
        value = instruction.get(name, 0)
        if not _INT32.min <= value <= _INT32.max:
            yield f"{name} is {value}; it must be an int32"


@instruction(
    Operand("dst", "accumulate", ("sbuf",), ("int32",)),
    reads("src", "sbuf", dtypes=("float32", "int32")),
    engines=("gpsimd",),
    since=3,
    cost=_started("src"),
    rules=(_nonzero_rules,),
    source=f"{_NISA}, nonzero_with_count",
)
def nonzero_with_count(
    src: jax.Array,
    *,
    index_offset: int = 0,
    padding_val: int = -1,
    previous: jax.Array | None,
    out: jax.ShapeDtypeStruct,
) -> jax.Array:
    """In partitions 0, 16, 32, ...: where `src` is not 0, padding, and how often; the others stay.

    The places count from `index_offset`.
    """
    found = rows(src)[::GROUP] != 0
    count = jnp.sum(found, axis=1, dtype=jnp.int32)[:, None]
    places = jnp.argsort(~found, axis=1, stable=True).astype(jnp.int32) + index_offset
    inside = jnp.arange(found.shape[1])[None, :] < count
    lines = jnp.concatenate([jnp.where(inside, places, padding_val), count], axis=1)
    before = rows(undefined(out) if previous is None else previous)
    return before.at[::GROUP].set(lines)


def _sequence_bounds_rules(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """One partition; dst has two values for each of segment_ids."""
    dst, ids = instruction["dst"], instruction["segment_ids"]
    if ids.partitions != 1:
        yield f"segment_ids has {ids.partitions} partitions; it must have 1"
    if (dst.partitions, dst.free_size) != (ids.partitions, 2 * ids.free_size):
        yield (
            f"dst has {dst.partitions} partitions of {dst.free_size} elements; segment_ids needs "
            f"{ids.partitions} of {2 * ids.free_size}"
        )


@instruction(
    writes("dst", "sbuf", dtypes=("float32", "int32")),
    reads("segment_ids", "sbuf", dtypes=("float32", "int32")),
    engines=("gpsimd",),
    cost=_started("segment_ids", passes=2),
    rules=(_sequence_bounds_rules,),
    source=f"{_NISA}, sequence_bounds",
)
def sequence_bounds(segment_ids: jax.Array) -> jax.Array:
    """[1, N] -> [1, 2, N]: where each element's run of equal ids starts and where it ends.

    An end is the index behind the last one. Elements of id 0 are padding: start N, end -1. The cost
    is not published; here two passes.
    """
    ids = rows(segment_ids)
    size = ids.shape[1]
    index = jnp.arange(size, dtype=jnp.int32)[None, :]
    changes = ids[:, 1:] != ids[:, :-1]
    edge = jnp.ones((ids.shape[0], 1), jnp.bool_)
    first = jnp.concatenate([edge, changes], axis=1)
    last = jnp.concatenate([changes, edge], axis=1)
    starts = lax.cummax(jnp.where(first, index, 0), axis=1)
    ends = lax.cummin(jnp.where(last, index + 1, size), axis=1, reverse=True)
    padding = ids == 0
    starts, ends = jnp.where(padding, size, starts), jnp.where(padding, -1, ends)
    return jnp.stack([starts, ends], axis=1)


def _topk_rules(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """8 <= n < 65536; 1 <= K < 32768, K <= n; src has n elements in 16 partitions; whole groups."""
    val, src = instruction["val_dst"], instruction["src"]
    n, k = instruction.get("n"), val.free_size
    if not 8 <= n < 65536:
        yield f"n is {n}; allowed: 8 to 65535"
    if not 1 <= k <= min(n, 32767):
        yield f"val_dst has {k} elements a partition; allowed: 1 to {min(n, 32767)}"
    if src.free_size < math.ceil(n / GROUP):
        yield (
            f"src has {src.free_size} elements a partition; n = {n} in {GROUP} partitions needs "
            f"{math.ceil(n / GROUP)}"
        )
    if src.partitions % GROUP or val.partitions != src.partitions:
        yield (
            f"src has {src.partitions} partitions and val_dst {val.partitions}; they must agree, a "
            f"multiple of {GROUP}"
        )


def _topk_work(instruction: Instruction, core: NeuronCore) -> Work:
    """`4 n + K` cycles, the groups side by side (SDK 2.32)."""
    return Work(4 * instruction.get("n") + instruction["val_dst"].free_size)


@instruction(
    writes("val_dst", "sbuf", dtypes=("bfloat16",)),
    writes("idx_dst", "sbuf", dtypes=("uint32",)),
    reads("src", "sbuf", dtypes=("bfloat16",)),
    engines=("gpsimd",),
    cost=_topk_work,
    rules=(_topk_rules, same_size("val_dst", "idx_dst")),
    source=f"{_NISA}, topk; aws-neuron/nki-library, gpsimd top-k (layout of the result)",
)
def topk(
    src: jax.Array, *, n: int, out: tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]
) -> tuple[jax.Array, jax.Array]:
    """The K largest of `n` values in each group of 16 partitions, ascending, and where they are.

    Value `i` of a group lies in its partition `i % 16`, column `i // 16`, and so do the results; K
    is the free size of `val_dst`. What lies behind the K results the hardware does not write: NaN
    and all ones here. Of equal values the earlier one is the larger, which is not documented.
    """
    groups, k = src.shape[0] // GROUP, out[0].size // out[0].shape[0]
    columns = rows(src).shape[1]
    snake = jnp.swapaxes(rows(src).reshape(groups, GROUP, columns), 1, 2).reshape(groups, -1)
    values, places = lax.top_k(snake[:, :n].astype(jnp.float32), k)
    return (
        _as_snake(values[:, ::-1], k, jnp.nan),
        _as_snake(places[:, ::-1].astype(jnp.uint32), k, np.uint32(0xFFFFFFFF)),
    )


def _as_snake(results: jax.Array, columns: int, filling: float | np.uint32) -> jax.Array:
    """[groups, K] -> [16 groups, columns], the first 16 results in the first column."""
    groups, count = results.shape
    filled = jnp.full((groups, GROUP * columns), filling, results.dtype).at[:, :count].set(results)
    return jnp.swapaxes(filled.reshape(groups, columns, GROUP), 1, 2).reshape(-1, columns)


# Reduction over partitions

_PARTITION_REDUCTIONS = ("add", "average", "maximum", "bitwise_or", "bitwise_and")


def _partition_reduce_rules(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """op: add, average, maximum, bitwise_or, bitwise_and; dst: one partition."""
    dst, data, op = instruction["dst"], instruction["data"], instruction.get("op")
    if op not in _PARTITION_REDUCTIONS:
        yield f"op is {op!r}; allowed: {', '.join(_PARTITION_REDUCTIONS)}"
    elif op != "average":
        yield from operation("op", _PARTITION_REDUCTIONS, "dst", "data")(instruction, core)
    if (dst.partitions, dst.free_size) != (1, data.free_size):
        yield (
            f"dst has {dst.partitions} partitions of {dst.free_size} elements; data of "
            f"{data.free_size} needs 1 of {data.free_size}"
        )


@instruction(
    writes("dst", "sbuf", dtypes=PLAIN),
    reads("data", "sbuf", dtypes=PLAIN),
    engines=("gpsimd",),
    cost=_started("data", flops=1),
    rules=(_partition_reduce_rules,),
    source=f"{_NISA}, tensor_partition_reduce",
)
def tensor_partition_reduce(data: jax.Array, *, op: str, out: jax.ShapeDtypeStruct) -> jax.Array:
    """`dst = <op>` of all partitions of `data`; the cost is not published."""
    if op == "average":
        return compute("multiply", reduce("add", rows(data), (0,)), 1 / data.shape[0])[None]
    result = reduce(op, rows(data), (0,))[None]
    return result.astype(out.dtype) if op.startswith("bitwise") else result
