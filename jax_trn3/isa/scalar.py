"""ScalarE: functions of one variable on each element, and sums of their results."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jax_trn3.hardware import NeuronCore

from .alu import ACTIVATIONS, activate, alu_op, compute, reduce
from .cost import engine_cycles
from .dtypes import PLAIN
from .operand import Access
from .rules import one_of, partition_scalars, same_size
from .spec import Instruction, Operand, Work, instruction, reads, writes

_FUNCTIONS = one_of("op", *ACTIVATIONS)
_COMMANDS = ("idle", "reset", "reduce", "reset_reduce")
_BIAS = tuple(dtype for dtype in PLAIN if dtype != "tfloat32")
_PAIRS = (
    ("multiply", "add"),
    ("multiply", "subtract"),
    ("multiply", "bypass"),
    ("add", "bypass"),
    ("subtract", "bypass"),
    ("bypass", "bypass"),
)
_REDUCTIONS = ("add", "maximum", "minimum", "abs_max", "abs_min")


def _activation_work(instruction: Instruction, core: NeuronCore) -> Work:
    """`max(64, N)` cycles, and 64 more where the accumulators are read out (SDK 2.26)."""
    size = instruction.free_size("data")
    read_out = core.scalar.reduce_cycles if instruction.get("reduce_res") else 0
    cycles = engine_cycles(core.scalar, size, extra=read_out)
    return Work(cycles, flops=instruction["data"].partitions * size)


def _bias_operand(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """A number as bias from NeuronCore-v3 on; before, a tile."""
    bias = instruction.get("bias")
    if core.generation < 3 and bias is not None and not isinstance(bias, Access):
        yield f"bias is the number {bias}; before NeuronCore-v3 it must be a tile [N, 1]"


def _accumulators(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """What reduces names how: reduce_op goes with a reduce_cmd other than "idle"."""
    command, op = instruction.get("reduce_cmd", "idle"), instruction.get("reduce_op")
    if command in ("reduce", "reset_reduce") and op is None:
        yield f"reduce_cmd is {command!r}, but no reduce_op is given"
    if command == "idle" and op is not None and not instruction.get("reduce_res"):
        yield f"reduce_op is {op!r}, but reduce_cmd 'idle' reduces nothing; use 'reset_reduce'"


def _scaled(data: jax.Array, bias: Any, scale: Any) -> jax.Array:
    """`data * scale + bias` [P, F] in float32."""
    x = data.astype(jnp.float32).reshape(data.shape[0], -1)
    scale = 1.0 if scale is None else scale
    return x * _column(scale) + _column(0.0 if bias is None else bias)


def _column(value: Any) -> jax.Array:
    """A number, or a tile of one element a partition as [P, 1]."""
    value = jnp.asarray(value).astype(jnp.float32)
    return value.reshape(-1, 1) if value.ndim else value


def _reduced(
    y: jax.Array, op: str | None, command: str, state: jax.Array | None
) -> jax.Array | None:
    """The accumulators [P] after results `y` [P, F]."""
    if command == "idle":
        return state
    name = op or "add"
    empty = jnp.full(y.shape[:1], alu_op(name).identity, jnp.float32)
    if command == "reset":
        return empty
    if command == "reduce" and state is None:
        raise ValueError("reduce_cmd 'reduce' goes on with accumulators that nothing has reset")
    before = empty if command == "reset_reduce" or state is None else state
    return compute(name, before, reduce(name, y, (1,)))


def _read_out(state: jax.Array | None, wanted: jax.ShapeDtypeStruct | None) -> jax.Array | None:
    if wanted is not None and state is None:
        raise ValueError("reduce_res reads accumulators into which nothing was reduced")
    return state


@instruction(
    writes("dst", indirect=True),
    reads("data", indirect=True),
    reads("bias", dtypes=_BIAS, optional=True, scalar=True),
    reads("scale", dtypes=("float32",), optional=True, scalar=True),
    writes("reduce_res", optional=True),
    engines=("scalar",),
    cost=_activation_work,
    rules=(
        same_size("data", "dst"),
        partition_scalars("data", "bias", "scale", "reduce_res"),
        _FUNCTIONS,
        one_of("reduce_op", "add"),
        one_of("reduce_cmd", *_COMMANDS),
        _bias_operand,
        _accumulators,
    ),
    source="nki/api/nki/isa/__init__.py, activation",
    state="accumulators",
)
def activation(
    data: jax.Array,
    bias: jax.Array | float | None = None,
    scale: jax.Array | float | None = None,
    *,
    op: str,
    out: Any,
    state: jax.Array | None = None,
    reduce_op: str | None = None,
    reduce_cmd: str = "idle",
) -> tuple[Any, jax.Array | None]:
    """`dst = op(data * scale + bias)` in float32, and the sum of a partition's results.

    `scale` (1 if left out) and `bias` (0) are numbers, or tiles of one element a partition. One
    accumulator a partition stays from instruction to instruction: `reduce_cmd` "reset" sets it to
    0, "reduce" adds the results to it, "reset_reduce" does both, "idle" leaves it. `reduce_res`
    reads it.

    Functions are exact here; the hardware's piecewise polynomials are not documented, nor is the
    order of the sum, nor whether it adds up what is written or, as here, what was in float32.
    """
    y = activate(op, _scaled(data, bias, scale))
    state = _reduced(y, reduce_op, reduce_cmd, state)
    return (y, _read_out(state, out[1])), state


@instruction(
    writes("dst", indirect=True),
    reads("data", indirect=True),
    writes("reduce_res"),
    reads("bias", dtypes=_BIAS, optional=True, scalar=True),
    reads("scale", dtypes=("float32",), optional=True, scalar=True),
    engines=("scalar",),
    cost=_activation_work,
    rules=(
        same_size("data", "dst"),
        partition_scalars("data", "bias", "scale", "reduce_res"),
        _FUNCTIONS,
        one_of("reduce_op", "add"),
        _bias_operand,
    ),
    source="nki/api/nki/isa/__init__.py, activation_reduce",
    state="accumulators",
)
def activation_reduce(
    data: jax.Array,
    bias: jax.Array | float | None = None,
    scale: jax.Array | float | None = None,
    *,
    op: str,
    reduce_op: str,
    state: jax.Array | None = None,
) -> tuple[Any, jax.Array | None]:
    """`dst = op(data * scale + bias)`, `reduce_res` the sum of each partition's results.

    `activation` with `reduce_cmd="reset_reduce"`: what accumulators held before is gone. Exactness
    as there.
    """
    y = activate(op, _scaled(data, bias, scale))
    state = _reduced(y, reduce_op, "reset_reduce", None)
    return (y, state), state


def _stages(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """(op0, op1) one of six pairs, each with its immediate; what is bypassed is not reversed."""
    pair = (instruction.get("op0"), instruction.get("op1"))
    if pair not in _PAIRS:
        yield f"(op0, op1) is {pair}; allowed: {', '.join(map(str, _PAIRS))}"
    for op, immediate, reverse in (("op0", "imm0", "reverse0"), ("op1", "imm1", "reverse1")):
        if instruction.get(op) != "bypass" and instruction.get(immediate) is None:
            yield f"{op} is {instruction.get(op)!r}, which needs {immediate}"
        if instruction.get(reverse) and instruction.get(op) == "bypass":
            yield f"{reverse} needs an {op}; it is 'bypass'"


def _same_immediates(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """imm0 and imm1 have one dtype where both are tiles."""
    tiles = [instruction.get(name) for name in ("imm0", "imm1")]
    dtypes = [tile.dtype for tile in tiles if isinstance(tile, Access)]
    if len(set(dtypes)) > 1:
        yield f"imm0 is {dtypes[0]} and imm1 {dtypes[1]}; as tiles they must have the same dtype"


@instruction(
    writes("dst", indirect=True),
    reads("data", indirect=True),
    reads("imm0", optional=True, scalar=True),
    reads("imm1", optional=True, scalar=True),
    Operand("relu_param", "read", optional=True, scalar=True),
    writes("reduce_res", optional=True),
    engines=("scalar",),
    cost=_activation_work,
    rules=(
        same_size("data", "dst"),
        partition_scalars("data", "imm0", "imm1", "relu_param", "reduce_res"),
        _FUNCTIONS,
        _stages,
        _same_immediates,
        one_of("reduce_op", *_REDUCTIONS),
        one_of("reduce_cmd", *_COMMANDS),
        _accumulators,
    ),
    source="nki/api/nki/isa/__init__.py, activate2",
    since=4,
    state="accumulators",
)
def activate2(
    data: jax.Array,
    imm0: jax.Array | float | None = None,
    imm1: jax.Array | float | None = None,
    relu_param: jax.Array | float | None = None,
    *,
    op: str,
    op0: str,
    op1: str,
    out: Any,
    state: jax.Array | None = None,
    reverse0: bool = False,
    reverse1: bool = False,
    reduce_op: str | None = None,
    reduce_cmd: str = "idle",
) -> tuple[Any, jax.Array | None]:
    """`dst = op((data op0 imm0) op1 imm1)` in float32, and a reduction of a partition's results.

    `reverse0` swaps the operands of op0, `reverse1` those of op1; "bypass" leaves a stage out.
    `relu_param` is the slope of "prelu" below zero. The accumulators are `activation`'s, with
    `reduce_op` one of add, maximum, minimum, abs_max, abs_min. Exactness as there; no cost is
    published: as `activation`'s.
    """
    x = data.astype(jnp.float32).reshape(data.shape[0], -1)
    for name, immediate, reverse in ((op0, imm0, reverse0), (op1, imm1, reverse1)):
        if name != "bypass":
            x = compute(name, x, _column(immediate), reverse=reverse)
    y = activate(op, x, _column(0.0 if relu_param is None else relu_param))
    state = _reduced(y, reduce_op, reduce_cmd, state)
    return (y, _read_out(state, out[1])), state
