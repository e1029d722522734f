"""TensorE: matrix products of a stationary and a moving tile into PSUM, and transposes."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_trn3.hardware import NeuronCore
from jax_trn3.numerics import SCALE_DTYPE, dequantize, gather_scales, quads_to_blocks
from jax_trn3.numerics.hardware_layout import SCALE_OFFSETS

from .cost import engine_cycles
from .dtypes import FLOATS, FP8, FP32, MX, PLAIN, as_bits, from_bits
from .rules import one_of
from .spec import Instruction, Operand, Work, instruction, reads, writes
from .tensor_rules import (
    TRANSPOSED_FP8,
    contracted_per_partition,
    double_row,
    indirection,
    mx_indirection,
    mx_sizes,
    one_bank,
    operand_dtypes,
    result_dtype,
    sizes,
    tiling,
    transpose_mode,
    transpose_sizes,
)

_RESULTS = ("float32", "bfloat16", "float16", "tfloat32", TRANSPOSED_FP8)


def _kind(instruction: Instruction) -> str:
    """How the array takes the operands: a key of `TensorEngine.passes`."""
    dtype = instruction["moving"].dtype
    if instruction.get("perf_mode", "none") == "double_row":
        return "float8_double_row"
    if instruction.get("is_transpose"):
        return "transpose_float32" if dtype in FP32 else "transpose"
    if dtype in FP8:
        return "float8"
    hints = ("is_stationary_onezero", "is_moving_onezero")
    if dtype == "float32" and any(instruction.get(hint) for hint in hints):
        return "float32_onezero"
    return dtype


def _multiply(
    instruction: Instruction, core: NeuronCore, kind: str, contracted: int, columns: int, rows: int
) -> Work:
    """`max(N, 64)` cycles a pass (nki_perf_guide.rst), and the load of the stationary columns.

    SDK 2.26 gave `max(min(64, columns), N)`: less for a stationary tile of fewer than 64 columns.
    """
    tensor = core.tensor
    transposes = kind.startswith("transpose")
    passes = tensor.passes[kind]
    flops = 2 * contracted * columns * rows
    return Work(
        cycles=max(rows, tensor.min_moving_cycles) * passes,
        load_cycles=columns / tensor.load_columns_per_cycle,
        flops=0 if transposes else flops,
        # Profiles count a float32 transpose of [128, 128] as 2 * 128^3, whatever its passes.
        hardware_flops=flops if transposes else int(flops * passes),
        array_tile=_array_tile(instruction),
        background=bool(transposes and tensor.background_transpose),
    )


def _array_tile(instruction: Instruction) -> tuple[int, ...]:
    size = instruction.get("tile_size") or ()
    return (*instruction.get("tile_position"), *size) if size else ()


def _matmul_work(instruction: Instruction, core: NeuronCore) -> Work:
    depth = contracted_per_partition(instruction)
    columns = instruction.free_size("stationary") // depth
    rows = instruction.free_size("moving") // depth
    contracted = instruction["stationary"].partitions * depth
    return _multiply(instruction, core, _kind(instruction), contracted, columns, rows)


def _mx_work(instruction: Instruction, core: NeuronCore) -> Work:
    """As `nc_matmul` of one pass, each row contracting four times as many values: no cost is
    published, but this is the published four times bfloat16's rate (trainium3_arch.rst)."""
    contracted = int(instruction["stationary"].partitions * core.tensor.depth["mx"])
    columns, rows = instruction.free_size("stationary"), instruction.free_size("moving")
    return _multiply(instruction, core, "mx", contracted, columns, rows)


def _product(stationary: jax.Array, moving: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """[..., M], [..., N] -> [M, N], `axes` contracted, in float32."""
    operands = (stationary.astype(jnp.float32), moving.astype(jnp.float32))
    return lax.dot_general(
        *operands,
        ((axes, axes), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _summed(product: jax.Array, previous: jax.Array | None) -> jax.Array:
    if previous is None:
        return product
    return previous.astype(jnp.float32).reshape(product.shape) + product


@instruction(
    Operand("dst", "accumulate", ("psum",), _RESULTS, indirect=True),
    reads("stationary", "sbuf", dtypes=FLOATS, indirect=True),
    reads("moving", "sbuf", dtypes=FLOATS, indirect=True),
    engines=("tensor",),
    cost=_matmul_work,
    rules=(
        sizes,
        one_bank,
        operand_dtypes,
        result_dtype,
        one_of("perf_mode", "none", "double_row"),
        double_row,
        transpose_mode,
        tiling,
        indirection,
    ),
    source="nki/api/nki/isa/__init__.py, nc_matmul",
)
def nc_matmul(
    stationary: jax.Array,
    moving: jax.Array,
    *,
    out: jax.ShapeDtypeStruct,
    previous: jax.Array | None = None,
    is_stationary_onezero: bool = False,
    is_moving_onezero: bool = False,
    is_transpose: bool = False,
    accumulate: bool | None = None,
    tile_position: tuple[int, ...] = (),
    tile_size: tuple[int, ...] = (),
    perf_mode: str = "none",
) -> jax.Array:
    """`dst[M, N] (+)= stationary[K, M].T @ moving[K, N]`, products and sum in float32.

    A bfloat16 dst (NeuronCore-v4) is read, added to in float32 and rounded to nearest even. With
    `perf_mode="double_row"` operands are [K, 2, M] and [K, 2, N] and both first axes are
    contracted.

    `accumulate` None continues the sum that is there, if one is. `is_transpose`, moving being an
    identity, moves bits: `dst[n] = stationary[:, n]`, NaN and infinities included, float8 into the
    lower half of 16 bits. (On NeuronCore-v2 a transpose is a product, in float32, and not exact
    with NaN or infinities; what comes out of these is not documented, and exact here.)

    The hints `is_stationary_onezero` and `is_moving_onezero` make a float32 product cheaper;
    `tile_position` and `tile_size` name the part of the array to use, so that others can run beside
    it. Neither changes the result. The order of the sum over K is not documented: here XLA's.
    """
    if is_transpose:
        return _transposed_by(stationary, moving, out)
    if perf_mode == "double_row":
        stationary, moving = (x.reshape(x.shape[0], 2, -1) for x in (stationary, moving))
        return _summed(_product(stationary, moving, (0, 1)), previous)
    stationary, moving = (x.reshape(x.shape[0], -1) for x in (stationary, moving))
    return _summed(_product(stationary, moving, (0,)), previous)


def _transposed_by(data: jax.Array, identity: jax.Array, out: jax.ShapeDtypeStruct) -> jax.Array:
    """Row n of the moving operand's transpose says which row of `data` comes out as column n."""
    identity = identity.reshape(identity.shape[0], -1)
    rows = jnp.argmax(identity.astype(jnp.float32) != 0, axis=0)
    return _transposed(data, out, rows)


def _transposed(
    data: jax.Array, out: jax.ShapeDtypeStruct, rows: jax.Array | slice = slice(None)
) -> jax.Array:
    """The bits of (these rows of) `data`, transposed; of float8 in 16 bits where `out` has them."""
    bits = as_bits(data.reshape(data.shape[0], -1))[rows].T
    return bits if out.dtype == jnp.uint16 else from_bits(bits, data.dtype)


def _scale(name: str) -> Operand:
    return reads(
        name,
        "sbuf",
        dtypes=("float8_e8m0fnu", "uint8"),
        indirect=True,
        quadrant_starts=SCALE_OFFSETS,
    )


@instruction(
    Operand("dst", "accumulate", ("psum",), ("float32", "bfloat16"), indirect=True),
    reads("stationary", "sbuf", dtypes=MX, indirect=True),
    reads("moving", "sbuf", dtypes=MX, indirect=True),
    _scale("stationary_scale"),
    _scale("moving_scale"),
    engines=("tensor",),
    cost=_mx_work,
    rules=(sizes, mx_sizes, tiling, indirection, mx_indirection),
    source="nki/api/nki/isa/__init__.py, nc_matmul_mx; trainium3_arch.rst",
    since=4,
)
def nc_matmul_mx(
    stationary: jax.Array,
    moving: jax.Array,
    stationary_scale: jax.Array,
    moving_scale: jax.Array,
    *,
    previous: jax.Array | None = None,
    tile_position: tuple[int, ...] = (),
    tile_size: tuple[int, ...] = (),
    accumulate: bool | None = None,
) -> jax.Array:
    """`dst[M, N] (+)= sum over p, q of stationary[p, M, q] * moving[p, N, q]`, each times its
    scale.

    Operands are [P, F] words of four values; the 8 partitions from 8g on share the scales of a row:
    partition `32 (g // 4) + g % 4` of the scale operand, which may start at partition 0, 4, 8 or 12
    of a quadrant (`numerics.hardware_layout`). Operands may mix formats. A scale of 255 is NaN.

    Sum and bfloat16 dst as in `nc_matmul`. The order of the sum, and when scales are applied, is
    not documented: here products of dequantized float32 values.
    """
    dequantized = jax.jit(_dequantized)  # one program instead of a hundred operations
    operands = (dequantized(stationary, stationary_scale), dequantized(moving, moving_scale))
    return _summed(_product(*operands, (0,)), previous)


def _dequantized(data: jax.Array, scale: jax.Array) -> jax.Array:
    """Data [P, ..., 4] and its scales -> [4P, F] float32."""
    partitions = data.shape[0]
    blocks = quads_to_blocks(data.reshape(partitions, -1))
    scale = scale.reshape(scale.shape[0], -1)
    if scale.dtype == jnp.uint8:
        scale = lax.bitcast_convert_type(scale, SCALE_DTYPE)
    rows = jnp.pad(
        lax.bitcast_convert_type(scale, jnp.uint8), ((0, partitions - scale.shape[0]), (0, 0))
    )
    groups = gather_scales(lax.bitcast_convert_type(rows, SCALE_DTYPE))
    return dequantize(blocks, groups, axis=0)


def _transpose_work(instruction: Instruction, core: NeuronCore) -> Work:
    """TensorE: a product with an identity moving, one row for each partition of data. VectorE:
    `max(64, N)` cycles (SDK 2.26)."""
    data = instruction["data"]
    if instruction.engine == "vector":
        return Work(engine_cycles(core.vector, data.free_size))
    kind = "transpose_float32" if data.dtype in FP32 else "transpose"
    return _multiply(instruction, core, kind, data.partitions, data.free_size, data.partitions)


def _transpose_engine(instruction: Instruction) -> str:
    """TensorE where it can, from SBUF into PSUM, floats; else VectorE."""
    data, dst = instruction["data"], instruction["dst"]
    tensor = (data.memory, dst.memory) == ("sbuf", "psum") and data.dtype in FLOATS
    return "tensor" if tensor else "vector"


@instruction(
    writes("dst", dtypes=PLAIN),
    reads("data", dtypes=PLAIN),
    engines=("tensor", "vector"),
    chooses=_transpose_engine,
    cost=_transpose_work,
    rules=(transpose_sizes, one_bank),
    source="nki/api/nki/isa/__init__.py, nc_transpose; trainium2_arch.rst",
)
def nc_transpose(data: jax.Array, *, out: jax.ShapeDtypeStruct) -> Any:
    """`dst[F, P] = data[P, F].T`, free axes taken as one: bits move, NaN and infinities included.

    On TensorE as `nc_matmul(is_transpose=True)` with an identity (on NeuronCore-v2 not exact there
    with NaN or infinities; exact here).
    """
    return _transposed(data, out)
