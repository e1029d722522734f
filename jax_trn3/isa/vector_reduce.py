"""VectorE: reductions along the free axes, and the accumulator registers that several share.

The registers hold one float32 a partition. `reduce_cmd` says what becomes of them: "reset_reduce"
starts from the operation's identity, "reduce" goes on, "load_reduce" starts from a given value,
"idle" leaves them in an unknown state, here NaN. What they take in is the float32 result, before it
is cast to the type of `dst`; AWS does not say which of the two it is.
"""

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jax_trn3.hardware import NeuronCore

from .alu import alu_op, compute, reduce
from .cost import engine_of, streaming
from .dtypes import FLOATS, PLAIN
from .performance_modes import two_sources
from .rules import one_of, partition_scalars, same_size
from .spec import Cost, Instruction, Work, instruction, reads, writes
from .vector import rows, vector_or_number
from .vector_rules import (
    ARITHMETIC,
    BITVEC,
    REDUCTIONS,
    dimensions_within,
    not_both_in_psum,
    operation,
    reduce_command,
    second_operand,
)

_NISA = "nki/api/nki/isa/__init__.py"

FP32_MIN = float(jnp.finfo(jnp.float32).min)
"""`nki.language.fp32.min`."""

COMPARISONS = ("equal", "less", "less_equal", "greater", "greater_equal")


def accumulate(
    op: str,
    values: jax.Array,
    command: str,
    state: jax.Array | None,
    load: jax.Array | float | None = None,
) -> jax.Array:
    """The accumulator registers [P] after an instruction with results `values` [P, F]."""
    start = starting_value(op, values.shape[0], command, state, load)
    return start if command == "idle" else compute(op, start, reduce(op, values, (1,)))


def starting_value(
    op: str,
    partitions: int,
    command: str,
    state: jax.Array | None,
    load: jax.Array | float | None = None,
) -> jax.Array:
    """The registers [P] before the first element.

    **Raises:** `ValueError` where they go on with what nobody reduced.
    """
    if command == "reduce":
        if state is None:
            raise ValueError("reduce_cmd 'reduce' goes on with accumulators that nothing has reset")
        return state
    values = {"idle": jnp.nan, "reset_reduce": alu_op(op).identity}
    value = jnp.asarray(load if command == "load_reduce" else values[command], jnp.float32)
    return jnp.broadcast_to(value.reshape(-1), (partitions,))


def _and_read_out(cost: Cost) -> Cost:
    """The cost, and that of reading the registers out where the instruction asks for it."""

    def with_read_out(instruction: Instruction, core: NeuronCore) -> Work:
        work = cost(instruction, core)
        if instruction.get("reduce_res") is None:
            return work
        return replace(work, cycles=work.cycles + engine_of(instruction, core).reduce_cycles)

    return with_read_out


# tensor_reduce


def _reduced_axes(rank: int, axis: int | tuple[int, ...]) -> tuple[int, ...]:
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    return tuple(sorted(a + rank if a < 0 else a for a in axes))


def _tensor_reduce_rules(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """axis: the last free dimensions; dst has the others' elements; negate with arithmetic only."""
    shape, axis = instruction.shape("data"), instruction.get("axis")
    axes = _reduced_axes(len(shape), axis)
    allowed = [tuple(range(first, len(shape))) for first in range(1, len(shape))]
    if axes not in allowed:
        yield f"axis is {axis} of {len(shape)} dimensions; allowed: {', '.join(map(str, allowed))}"
        return
    kept = instruction.free_size("data")
    for a in axes:
        kept //= shape[a]
    dst = (instruction.shape("dst")[0], instruction.free_size("dst"))
    if dst != (shape[0], kept):
        yield (
            f"dst has {dst[0]} partitions of {dst[1]} elements; data of shape {shape} reduced "
            f"along {axes} has {shape[0]} of {kept}"
        )
    if instruction.get("negate", False) and instruction.get("op") in BITVEC:
        yield f"negate goes with arithmetic, op is {instruction.get('op')!r}"


def _tensor_reduce_mode(instruction: Instruction, core: NeuronCore) -> str:
    """Sums and maxima of bfloat16 at twice the rate (SDK 2.26); no later mode is documented."""
    narrow = instruction["data"].dtype == instruction["dst"].dtype == "bfloat16"
    return "2x" if narrow and instruction.get("op") in ("add", "maximum") else "1x"


@instruction(
    writes("dst", indirect=True),
    reads("data", indirect=True),
    engines=("vector",),
    cost=streaming(_tensor_reduce_mode, of="data"),
    rules=(operation("op", REDUCTIONS, "dst", "data"), _tensor_reduce_rules),
    source=f"{_NISA}, tensor_reduce",
)
def tensor_reduce(
    data: jax.Array,
    *,
    op: str,
    axis: int | tuple[int, ...],
    negate: bool = False,
    keepdims: bool = False,
    out: jax.ShapeDtypeStruct,
) -> jax.Array:
    """`dst = <op>` of the elements of `data` along its last dimensions, `axis`.

    **Arguments:**

    - `negate`: Whether an arithmetic result is multiplied by -1.
    - `keepdims`: Whether `dst` keeps the reduced dimensions, of size 1. Its memory is the same.
    """
    result = reduce(op, data, _reduced_axes(data.ndim, axis))
    if op in BITVEC:
        return result.astype(out.dtype)
    return -result if negate else result


# Instructions that use the accumulator registers


@instruction(
    writes("dst", indirect=True),
    reads("data", indirect=True),
    reads("operand0", scalar=True, optional=True, dtypes=("float32",)),
    writes("reduce_res", optional=True),
    reads("reduce_init", scalar=True, optional=True, dtypes=("float32",)),
    engines=("vector",),
    state="accumulators",
    cost=_and_read_out(streaming(of="data", flops=2)),
    rules=(
        operation("op0", ARITHMETIC),
        second_operand("op0", "operand0"),
        operation("reduce_op", ("add", "multiply", "maximum", "minimum")),
        one_of("reverse0", False),
        reduce_command("reset_reduce", "reduce", "load_reduce", init="reduce_init"),
        same_size("dst", "data"),
        partition_scalars("data", "operand0", "reduce_res", "reduce_init"),
    ),
    source=f"{_NISA}, tensor_scalar_reduce",
)
def tensor_scalar_reduce(
    data: jax.Array,
    operand0: jax.Array | float | None,
    reduce_init: jax.Array | float | None,
    *,
    op0: str,
    reduce_op: str,
    reverse0: bool = False,
    reduce_cmd: str = "reset_reduce",
    reduce_res_negate: bool = False,
    state: jax.Array | None,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """`dst = data <op0> operand0`, and `reduce_res = <reduce_op>` of it along all free dimensions.

    **Arguments:**

    - `reverse0`: NKI has the parameter and does not support it.
    - `reduce_res_negate`: Whether `reduce_res`, not the registers, is multiplied by -1.
    """
    values = compute(op0, rows(data), vector_or_number(operand0))
    registers = accumulate(reduce_op, values, reduce_cmd, state, reduce_init)
    return (values, -registers if reduce_res_negate else registers), registers


_CUMULATIVE = tuple(name for name in PLAIN if name not in ("int32", "uint32", "tfloat32", "bool_"))


@instruction(
    writes("dst", dtypes=_CUMULATIVE, indirect=True),
    reads("src", dtypes=_CUMULATIVE, indirect=True),
    reads("imm0", scalar=True, optional=True, dtypes=("float32",)),
    reads("imm1", scalar=True, optional=True, dtypes=("float32",)),
    engines=("vector",),
    state="accumulators",
    cost=streaming(of="src", flops=2),
    rules=(
        operation("op0", ARITHMETIC),
        second_operand("op0", "imm0"),
        operation("op1", ("add", "subtract", "multiply", "maximum", "minimum")),
        reduce_command("reset_reduce", "reduce", "load_reduce", init="imm1"),
        same_size("dst", "src"),
        partition_scalars("src", "imm0", "imm1"),
    ),
    source=f"{_NISA}, tensor_scalar_cumulative",
)
def tensor_scalar_cumulative(
    src: jax.Array,
    imm0: jax.Array | float | None,
    imm1: jax.Array | float | None,
    *,
    op0: str,
    op1: str,
    reduce_cmd: str = "reset_reduce",
    state: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """`dst[i] = (src[i] <op0> imm0) <op1> dst[i - 1]`, from what is in the registers, in float32.

    `imm1` is what "load_reduce" puts there. The last element stays in the registers. The cost is
    not published; here one pass, since only one operation waits for the element before.
    """
    values = compute(op0, rows(src), vector_or_number(imm0))

    def step(before: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        result = compute(op1, value, before)
        return result, result

    start = starting_value(op1, values.shape[0], reduce_cmd, state, imm1)
    last, results = jax.lax.scan(step, start, values.T)
    return results.T, last


_EXPONENTIAL = ("float8_e4m3", "float8_e5m2", "float16", "bfloat16", "float32")
_EXPONENTIAL_INTEGERS = ("int8", "int16", "int32", "uint8", "uint16")


@instruction(
    writes("dst", dtypes=(*_EXPONENTIAL, "tfloat32", *_EXPONENTIAL_INTEGERS), indirect=True),
    reads("src", dtypes=(*_EXPONENTIAL, *_EXPONENTIAL_INTEGERS, "uint32"), indirect=True),
    reads("max_value", scalar=True, optional=True, dtypes=("float32",)),
    writes("reduce_res", optional=True, dtypes=(*_EXPONENTIAL, "tfloat32")),
    reads("reduce_init", scalar=True, optional=True, dtypes=("float32",)),
    engines=("vector",),
    since=4,
    state="accumulators",
    cost=_and_read_out(streaming("exponential", of="src", flops=2)),
    rules=(
        reduce_command("idle", "reset_reduce", "reduce", "load_reduce", init="reduce_init"),
        same_size("dst", "src"),
        partition_scalars("src", "max_value", "reduce_res", "reduce_init"),
        dimensions_within(4, "dst", "src"),
    ),
    source=f"{_NISA}, exponential; nki/guides/architecture/trainium3_arch.rst",
)
def exponential(
    src: jax.Array,
    max_value: jax.Array | float | None,
    reduce_init: jax.Array | float | None,
    *,
    reduce_cmd: str = "idle",
    state: jax.Array | None,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """`dst = exp(src - max_value)`, and `reduce_res` the sum of it along all free dimensions.

    `max_value` left out is 0. Reading the registers out costs what it costs `tensor_scalar_reduce`.
    """
    largest = vector_or_number(0.0 if max_value is None else max_value)
    values = jnp.exp(compute("subtract", rows(src), largest))
    registers = accumulate("add", values, reduce_cmd, state, reduce_init)
    return (values, registers), registers


_SELECTED = tuple(name for name in PLAIN if name not in ("tfloat32", "int32", "uint32"))


@instruction(
    writes("dst"),
    reads("predicate", dtypes=("int8", "uint8", "int16", "uint16")),
    reads("on_true", dtypes=_SELECTED),
    reads("on_false", scalar=True),
    writes("reduce_res", optional=True, dtypes=FLOATS),
    engines=("vector",),
    state="accumulators",
    cost=_and_read_out(streaming(two_sources("on_true", "predicate"), flops=0)),
    rules=(
        one_of("reduce_op", "maximum"),
        reduce_command("idle", "reset_reduce", "reduce"),
        same_size("dst", "predicate", "on_true"),
        partition_scalars("on_true", "on_false", "reduce_res"),
        not_both_in_psum("on_true", "predicate"),
    ),
    source=f"{_NISA}, select_reduce",
)
def select_reduce(
    predicate: jax.Array,
    on_true: jax.Array,
    on_false: jax.Array | float,
    *,
    reduce_cmd: str = "idle",
    reduce_op: str = "maximum",
    reverse_pred: bool = False,
    state: jax.Array | None,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """`dst = on_true` where `predicate` is not 0, else `on_false`; `reduce_res` the largest of it.

    The cost is not published; here that of `tensor_copy_predicated` and reading the registers out.
    """
    wanted = (rows(predicate) != 0) ^ reverse_pred
    other = jnp.asarray(vector_or_number(on_false)).astype(jnp.float32)
    values = jnp.where(wanted, rows(on_true).astype(jnp.float32), other)
    registers = accumulate(reduce_op, values, reduce_cmd, state)
    return (values, registers), registers


def _range_select_rules(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """Indices below 2**24, where float32 is exact; on_false_value is fp32.min."""
    start = instruction.get("range_start", 0)
    last = start + instruction.free_size("on_true_tile") - 1
    if not isinstance(start, int) or start <= -(2**24) or last >= 2**24:
        yield f"indices {start} to {last}; they must be integers below {2**24} in magnitude"
    other = instruction.get("on_false_value", FP32_MIN)
    if np.float32(other) != np.float32(FP32_MIN):
        yield f"on_false_value is {other!r}; it must be {FP32_MIN!r}, float32's least number"


@instruction(
    writes("dst"),
    reads("on_true_tile", dtypes=FLOATS),
    reads("bound0", dtypes=("float32",)),
    reads("bound1", dtypes=("float32",)),
    writes("reduce_res", optional=True),
    engines=("vector",),
    since=3,
    state="accumulators",
    cost=streaming(of="on_true_tile", flops=0),
    rules=(
        one_of("comp_op0", *COMPARISONS),
        one_of("comp_op1", *COMPARISONS),
        one_of("reduce_op", "maximum"),
        reduce_command("reset_reduce", "reduce", "idle"),
        same_size("dst", "on_true_tile"),
        partition_scalars("on_true_tile", "bound0", "bound1", "reduce_res"),
        _range_select_rules,
    ),
    source=f"{_NISA}, range_select",
)
def range_select(
    on_true_tile: jax.Array,
    bound0: jax.Array,
    bound1: jax.Array,
    *,
    comp_op0: str,
    comp_op1: str,
    reduce_cmd: str = "reset_reduce",
    reduce_op: str = "maximum",
    range_start: int = 0,
    on_false_value: float = FP32_MIN,
    state: jax.Array | None,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """`dst[i] = on_true_tile[i]` where `i + range_start` is within both bounds, else FP32_MIN.

    `reduce_res` is the largest of `dst`. Reading it out is not in the published cost.
    """
    values = rows(on_true_tile).astype(jnp.float32)
    index = jnp.arange(values.shape[1])[None, :] + range_start
    inside = compute(comp_op0, index, rows(bound0)) * compute(comp_op1, index, rows(bound1))
    values = jnp.where(inside != 0, values, jnp.float32(on_false_value))
    registers = accumulate(reduce_op, values, reduce_cmd, state)
    return (values, registers), registers
