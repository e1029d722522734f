"""TensorE: matrix products of a stationary and a moving tile into PSUM."""

import jax
import jax.numpy as jnp
from jax import lax

from jax_trn3.hardware import NeuronCore

from .dtypes import FLOATS, FP8, FP32
from .spec import Instruction, Operand, Work, instruction, reads


def _kind(instruction: Instruction) -> str:
    """How the array takes the operands: a key of `TensorEngine.passes`."""
    dtype = instruction["moving"].dtype
    if instruction.get("perf_mode", "none") == "double_row":
        return "float8_double_row"
    if instruction.get("is_transpose"):
        return "transpose_float32" if dtype in FP32 else "transpose"
    if dtype in FP8:
        return "float8"
    if dtype == "float32" and instruction.get("is_moving_onezero"):
        return "float32_onezero"
    return dtype


def _matmul_work(instruction: Instruction, core: NeuronCore) -> Work:
    """`max(N, 64)` cycles a pass (SDK 2.26), and the stationary columns loaded behind the last one."""
    tensor, kind = core.tensor, _kind(instruction)
    stationary, moving = instruction["stationary"], instruction["moving"]
    rows, passes = moving.free_size, tensor.passes[kind]
    depth = tensor.depth[kind]
    if instruction.get("perf_mode", "none") == "double_row":
        rows //= 2
    columns = stationary.free_size // (moving.free_size // rows)
    flops = int(2 * stationary.partitions * depth * columns * rows)
    return Work(
        cycles=max(rows, tensor.min_moving_cycles) * passes,
        load_cycles=columns / tensor.load_columns_per_cycle,
        flops=0 if instruction.get("is_transpose") else flops,
        hardware_flops=int(flops * passes),
    )


def _matmul_rules(instruction: Instruction, core: NeuronCore):
    stationary, moving, dst = (instruction[name] for name in ("stationary", "moving", "dst"))
    if stationary.partitions != moving.partitions:
        yield (
            f"stationary has {stationary.partitions} partitions and moving {moving.partitions}; "
            "both hold the contracted axis and must agree"
        )
    if stationary.free_size > core.tensor.stationary_fmax:
        yield f"stationary free size {stationary.free_size} exceeds {core.tensor.stationary_fmax}"


@instruction(
    Operand("dst", "accumulate", ("psum",), ("float32", "bfloat16")),
    reads("stationary", "sbuf", dtypes=FLOATS),
    reads("moving", "sbuf", dtypes=FLOATS),
    engines=("tensor",),
    cost=_matmul_work,
    rules=(_matmul_rules,),
    source="nki/api/nki/isa/__init__.py, nc_matmul",
)
def nc_matmul(
    stationary: jax.Array,
    moving: jax.Array,
    *,
    previous: jax.Array | None = None,
    is_transpose: bool = False,
    accumulate: bool | None = None,
    perf_mode: str = "none",
) -> jax.Array:
    """`dst[M, N] (+)= stationary[K, M].T @ moving[K, N]`, products and sum in float32."""
    product = lax.dot_general(
        stationary, moving, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    return product if previous is None else previous + product
