"""VectorE: arithmetic, element by element.

Every engine reads integers as float32 and casts its float32 result to the type of `dst`; operations
on bits leave integers as they are (nki/api/nki.api.shared.rst).
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from jax_trn3.hardware import NeuronCore
from jax_trn3.numerics import (
    blocks_to_quads,
    quads_to_blocks,
    quantize,
    scatter_scales,
)

from .alu import ALU_OPS, compute, compute_exactly
from .cost import streaming
from .dtypes import DTYPES, FP16, cast
from .operand import Access
from .performance_modes import one_source, tensor_tensor_mode
from .rules import one_of, partition_scalars, same_size
from .spec import Engine, Instruction, Operand, Work, instruction, reads, writes
from .vector_rules import (
    ARITHMETIC,
    BINARY,
    BINARY_ARITHMETIC,
    BITVEC,
    not_both_in_psum,
    operation,
    second_operand,
)

_NISA = "nki/api/nki/isa/__init__.py"


def rows(x: jax.Array) -> jax.Array:
    """[P, ...] -> [P, F]: the free dimensions as one."""
    return x.reshape(x.shape[0], -1)


def vector_or_number(value: jax.Array | float | None) -> jax.Array | float | None:
    """An operand of one element a partition as [P, 1]; a number as it is."""
    return rows(value) if isinstance(value, jax.Array) else value


def constant(value: float, dtype: jax.typing.DTypeLike) -> jax.Array:
    """A float32 number in another type, as engines write it."""
    element = next(d for d in DTYPES.values() if d.numpy == dtype and d.packed == 1)
    return cast(jnp.float32(value), element)


# tensor_tensor


def _integers_in_sbuf(instruction: Instruction) -> bool:
    accesses = [instruction[name] for name in ("dst", "data1", "data2")]
    return all(a.dtype in ("int32", "uint32") and a.memory == "sbuf" for a in accesses)


def _tensor_tensor_engine(instruction: Instruction) -> Engine:
    """`power` and exact sums of 32-bit integers are GpSimdE's."""
    op = instruction.get("op")
    exact = _integers_in_sbuf(instruction) and op not in BITVEC
    return "gpsimd" if op == "power" or exact else "vector"


def _tensor_tensor_rules(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """power runs on gpsimd, operations on bits on vector."""
    op, engine = instruction.get("op"), instruction.engine
    if op == "power" and engine != "gpsimd":
        yield f"op is 'power', which engine {engine} does not have; gpsimd has it"
    if op in BITVEC and engine != "vector":
        yield f"op is {op!r}, which engine {engine} does not have; vector has it"


@instruction(
    writes("dst", indirect=True),
    reads("data1", indirect=True),
    reads("data2"),
    engines=("vector", "gpsimd"),
    chooses=_tensor_tensor_engine,
    cost=streaming(tensor_tensor_mode),
    rules=(
        operation("op", BINARY, "dst", "data1", "data2"),
        _tensor_tensor_rules,
        same_size("dst", "data1", "data2"),
        not_both_in_psum("data1", "data2"),
    ),
    source=f"{_NISA}, tensor_tensor",
)
def tensor_tensor(
    data1: jax.Array, data2: jax.Array, *, op: str, out: jax.ShapeDtypeStruct, engine: str
) -> jax.Array:
    """`dst = data1 <op> data2`, element by element.

    In float32, but for operations on bits; on GpSimdE in 32-bit integers where all three tiles are
    int32 or uint32, for which that engine is the default.
    """
    tiles = (data1, data2, out)
    exact = engine == "gpsimd" and all(t.dtype in (jnp.int32, jnp.uint32) for t in tiles)
    if exact and op not in BITVEC:
        return compute_exactly(op, rows(data1), rows(data2))
    return _bits_of(op, compute(op, rows(data1), rows(data2)), out)


def _bits_of(op: str, result: jax.Array, out: jax.ShapeDtypeStruct) -> jax.Array:
    """Of an operation on bits the low ones that `out` has room for."""
    return result.astype(out.dtype) if op in BITVEC else result


# tensor_scalar


def _tensor_scalar_ops(instruction: Instruction) -> tuple[object, object]:
    return instruction.get("op0"), instruction.get("op1")


def _tensor_scalar_engine(instruction: Instruction) -> Engine:
    return "gpsimd" if "rsqrt" in _tensor_scalar_ops(instruction) else "vector"


_SCALAR_ENGINE_OPS = (("multiply", "add"), ("multiply", None), ("add", None))


def _tensor_scalar_rules(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """gpsimd for rsqrt only, rsqrt on gpsimd only; operations on bits on vector, and not beside
    arithmetic; scalar before v4: multiply and add, multiply, add; tiles beside arithmetic: float32.
    """
    ops, engine = _tensor_scalar_ops(instruction), instruction.engine
    named = " and ".join(repr(op) for op in ops if op is not None)
    kinds = {ALU_OPS[str(op)].kind for op in ops if op in ALU_OPS}
    if len(kinds) == 2:
        yield f"op0 and op1 are {named}; both must work on bits, or neither"
    if ("rsqrt" in ops) != (engine == "gpsimd"):
        yield f"op0 and op1 are {named} on {engine}; gpsimd, and it alone, is for rsqrt"
    elif "bitvec" in kinds and engine != "vector":
        yield f"op0 and op1 are {named}, which engine {engine} does not have; vector has them"
    elif engine == "scalar" and core.generation < 4 and ops not in _SCALAR_ENGINE_OPS:
        yield (
            f"op0 and op1 are {named}; before NeuronCore-v4 scalar has 'multiply' and 'add', "
            "'multiply', 'add'"
        )
    for name in ("operand0", "operand1") if "arithmetic" in kinds else ():
        access = instruction.get(name)
        if isinstance(access, Access) and access.dtype != "float32":
            yield f"{name} is {access.dtype}; beside arithmetic it must be float32"


def _tensor_scalar_work(instruction: Instruction, core: NeuronCore) -> Work:
    """Two operations cost as much as one; rsqrt on GpSimdE is 4 times slower than on ScalarE."""
    slow = 4.0 if "rsqrt" in _tensor_scalar_ops(instruction) else 1.0
    count = sum(op is not None for op in _tensor_scalar_ops(instruction))
    return streaming(one_source("data"), factor=slow, flops=count)(instruction, core)


@instruction(
    writes("dst", indirect=True),
    reads("data", indirect=True),
    reads("operand0", scalar=True, optional=True),
    reads("operand1", scalar=True, optional=True),
    engines=("vector", "scalar", "gpsimd"),
    chooses=_tensor_scalar_engine,
    cost=_tensor_scalar_work,
    rules=(
        operation("op0", (*BITVEC, *ARITHMETIC), "dst", "data", "operand0"),
        operation("op1", (*BITVEC, *ARITHMETIC), "dst", "data", "operand1"),
        second_operand("op0", "operand0"),
        second_operand("op1", "operand1"),
        _tensor_scalar_rules,
        same_size("dst", "data"),
        partition_scalars("data", "operand0", "operand1"),
    ),
    source=f"{_NISA}, tensor_scalar",
)
def tensor_scalar(
    data: jax.Array,
    operand0: jax.Array | float | None,
    operand1: jax.Array | float | None,
    *,
    op0: str,
    reverse0: bool = False,
    op1: str | None = None,
    reverse1: bool = False,
    out: jax.ShapeDtypeStruct,
) -> jax.Array:
    """`dst = (data <op0> operand0) <op1> operand1`, a number or a value a partition each.

    `reverse0`, `reverse1`: The operand stands on the left: `operand0 <op0> data`.
    """
    result = compute(op0, rows(data), vector_or_number(operand0), reverse=reverse0)
    if op1 is not None:
        result = compute(op1, result, vector_or_number(operand1), reverse=reverse1)
    return _bits_of(op0, result, out)


# scalar_tensor_tensor


def _scalar_tensor_tensor_mode(instruction: Instruction, core: NeuronCore) -> str:
    """v2 has one fast case, (bfloat16 - scalar) * bfloat16; v3 and later one rate."""
    fast = (
        (instruction.get("op0"), instruction.get("op1")) == ("subtract", "multiply")
        and instruction["data"].dtype == instruction["operand1"].dtype == "bfloat16"
        and instruction["data"].free_size % 2 == 0
    )
    return "1x" if fast or core.generation >= 3 else "0.5x"


@instruction(
    writes("dst"),
    reads("data"),
    reads("operand0", scalar=True, optional=True),
    reads("operand1"),
    engines=("vector",),
    cost=streaming(_scalar_tensor_tensor_mode, flops=2),
    rules=(
        operation("op0", ARITHMETIC),
        operation("op1", BINARY_ARITHMETIC),
        second_operand("op0", "operand0"),
        same_size("dst", "data", "operand1"),
        partition_scalars("data", "operand0"),
        not_both_in_psum("data", "operand1"),
    ),
    source=f"{_NISA}, scalar_tensor_tensor",
)
def scalar_tensor_tensor(
    data: jax.Array,
    operand0: jax.Array | float | None,
    operand1: jax.Array,
    *,
    op0: str,
    op1: str,
    reverse0: bool = False,
    reverse1: bool = False,
) -> jax.Array:
    """`dst = (data <op0> operand0) <op1> operand1` with a scalar and then a tile, in float32."""
    result = compute(op0, rows(data), vector_or_number(operand0), reverse=reverse0)
    return compute(op1, result, rows(operand1), reverse=reverse1)


@instruction(
    writes("dst"),
    reads("data"),
    engines=("vector",),
    cost=streaming("reciprocal"),
    rules=(same_size("dst", "data"),),
    source=f"{_NISA}, reciprocal; nki/api/nki.api.shared.rst",
)
def reciprocal(data: jax.Array) -> jax.Array:
    """`dst = 1 / data` in float32."""
    return compute("reciprocal", rows(data))


# tensor_tensor_scan


def _scan_work(instruction: Instruction, core: NeuronCore) -> Work:
    """Two passes whatever the memories: each element waits for the one before (SDK 2.26)."""
    return streaming(of="data0", factor=2.0, flops=2)(instruction, core)


@instruction(
    writes("dst"),
    reads("data0"),
    reads("data1"),
    reads("initial", scalar=True),
    engines=("vector",),
    cost=_scan_work,
    rules=(
        operation("op0", BINARY_ARITHMETIC),
        operation("op1", BINARY_ARITHMETIC),
        same_size("dst", "data0", "data1"),
        partition_scalars("data0", "initial"),
        not_both_in_psum("data0", "data1"),
    ),
    source=f"{_NISA}, tensor_tensor_scan",
)
def tensor_tensor_scan(
    data0: jax.Array,
    data1: jax.Array,
    initial: jax.Array | float,
    *,
    op0: str,
    op1: str,
    reverse0: bool = False,
    reverse1: bool = False,
) -> jax.Array:
    """`dst[i] = (data0[i] <op0> dst[i - 1]) <op1> data1[i]`, from `dst[-1] = initial`, in float32.

    `reverse0`, `reverse1`: The operands of the operation change sides.
    """

    def step(before: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        result = compute(op0, at[0], before, reverse=reverse0)
        result = compute(op1, result, at[1], reverse=reverse1)
        return result, result

    start = jnp.broadcast_to(vector_or_number(initial), (data0.shape[0], 1))
    start = start.astype(jnp.float32)[:, 0]
    _, results = jax.lax.scan(step, start, (rows(data0).T, rows(data1).T))
    return results.T


# quantize_mx


def _quantize_mx_rules(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """src: a multiple of 32 partitions, a free size that is a multiple of 4; dst: a quarter of it;
    dst_scale: as wide as dst, 4 partitions of the last quadrant at least."""
    src, dst, scale = (instruction[name] for name in ("src", "dst", "dst_scale"))
    quadrant = core.quadrant_partitions
    if src.partitions % quadrant:
        yield f"src has {src.partitions} partitions; it must have a multiple of {quadrant}"
        return
    if src.free_size % 4:
        yield f"src has {src.free_size} elements a partition; it must have a multiple of 4"
    if (dst.partitions, 4 * dst.free_size) != (src.partitions, src.free_size):
        yield (
            f"dst has {dst.partitions} partitions of {dst.free_size} packed elements; src of "
            f"{src.partitions} and {src.free_size} fills {src.partitions} of {src.free_size / 4:g}"
        )
    least = src.partitions - quadrant + 4
    if not least <= scale.partitions <= src.partitions or scale.free_size != dst.free_size:
        yield (
            f"dst_scale has {scale.partitions} partitions of {scale.free_size} elements; allowed: "
            f"{least} to {src.partitions} of {dst.free_size}"
        )


@instruction(
    writes("dst", "sbuf", dtypes=("float8_e5m2_x4", "float8_e4m3fn_x4")),
    reads("src", "sbuf", dtypes=FP16),
    Operand(
        "dst_scale",
        "accumulate",
        ("sbuf",),
        ("float8_e8m0fnu", "uint8"),
        quadrant_starts=(0, 4, 8, 12),
    ),
    engines=("vector",),
    since=4,
    cost=streaming("quantize_mx", of="src"),
    rules=(_quantize_mx_rules, one_of("scale_rule", "neuron", "ocp")),
    source=f"{_NISA}, quantize_mx; nki/guides/architecture/trainium3_arch.rst",
)
def quantize_mx(
    src: jax.Array,
    *,
    scale_rule: str = "neuron",
    previous: jax.Array | None,
    out: tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct],
) -> tuple[jax.Array, jax.Array]:
    """MXFP8 elements and scales of `src`; 8 partitions of 4 neighbours share a scale.

    **Arguments:**

    - `src`: [P, 4F]. `dst` is [P, F] of four elements each.
    - `scale_rule`: "neuron" as the documentation of the instruction says, "ocp" as AWS's own golden
      models compute it, half of that (`jax_trn3.numerics.SCALE_RULES`). Not a parameter of NKI's.

    Scale `j` of quadrant `Q` goes to partition `32 Q + j` of `dst_scale`, the other 28 stay as they
    are. How the hardware rounds and what it does with NaN is not published: as numerics.quantize.
    """
    data_out, scale_out = out
    blocks = quads_to_blocks(rows(src))
    # One program instead of a hundred operations.
    quantized = jax.jit(lambda x: quantize(x, 0, data_out.dtype, scale_rule=scale_rule))
    data, scale = quantized(blocks)
    scale = jax.lax.bitcast_convert_type(scale, jnp.uint8)
    partitions, free = src.shape[0], scale.shape[1]
    kept = jnp.zeros((partitions, free), jnp.uint8)
    if previous is not None:
        before = jax.lax.bitcast_convert_type(rows(previous), jnp.uint8)
        kept = kept.at[: before.shape[0]].set(before)
    tile = scatter_scales(scale, into=kept)[: scale_out.shape[0]]
    quads = blocks_to_quads(data).reshape(partitions, free, 4)
    return quads, jax.lax.bitcast_convert_type(tile, scale_out.dtype)
