"""TensorE: matrix products of a stationary and a moving tile into PSUM, and transposes."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_trn3.hardware import NeuronCore
from jax_trn3.numerics import SCALE_DTYPE, dequantize, gather_scales, quads_to_blocks
from jax_trn3.numerics.hardware_layout import QUADRANT, QUADRANT_SCALES, SCALE_OFFSETS

from .cost import engine_cycles
from .dtypes import FLOATS, FP8, FP16, FP32, MX, PLAIN
from .operand import Access
from .rules import one_of
from .spec import Instruction, Operand, Work, instruction, reads, writes

_TRANSPOSED_FP8 = "uint16"  # 16 bits, the upper 8 zero (trainium2_arch.rst, "Transpose")
_RESULTS = ("float32", "bfloat16", "float16", "tfloat32", _TRANSPOSED_FP8)


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
    pairs = _pairs(instruction)
    columns = instruction.free_size("stationary") // pairs
    rows = instruction.free_size("moving") // pairs
    contracted = instruction["stationary"].partitions * pairs
    return _multiply(instruction, core, _kind(instruction), contracted, columns, rows)


def _mx_work(instruction: Instruction, core: NeuronCore) -> Work:
    """As `nc_matmul` of one pass, each row contracting four times as many values: no cost is
    published, but this is the published four times bfloat16's rate (trainium3_arch.rst)."""
    contracted = int(instruction["stationary"].partitions * core.tensor.depth["mx"])
    columns, rows = instruction.free_size("stationary"), instruction.free_size("moving")
    return _multiply(instruction, core, "mx", contracted, columns, rows)


def _pairs(instruction: Instruction) -> int:
    """Values of the contracted axis in each partition."""
    return 2 if instruction.get("perf_mode", "none") == "double_row" else 1


def _sizes(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """stationary [K, M], moving [K, N], dst [M, N]; K and M up to 128, N up to 512, on NeuronCore-v4
    up to 4096 for a dst of 4 bytes and 8192 of 2."""
    stationary, moving, dst = (instruction[name] for name in ("stationary", "moving", "dst"))
    pairs = _pairs(instruction)
    columns = instruction.free_size("stationary") // pairs
    rows = instruction.free_size("moving") // pairs
    if stationary.partitions != moving.partitions:
        yield (
            f"stationary has {stationary.partitions} partitions and moving {moving.partitions}; "
            "both hold the contracted axis and must agree"
        )
    if columns > core.tensor.stationary_fmax:
        yield f"stationary free size {columns} exceeds {core.tensor.stationary_fmax}"
    wide = dst.tile.element.bytes == 4
    limit = core.tensor.max_moving_fmax_float32 if wide else core.tensor.max_moving_fmax_bfloat16
    if rows > limit:
        yield f"moving free size {rows} exceeds {limit}, the limit for a {dst.dtype} dst"
    result = (instruction.shape("dst")[0], instruction.free_size("dst"))
    if result != (columns, rows):
        yield (
            f"dst is [{result[0]}, {result[1]}]; stationary free size {columns} and moving free "
            f"size {rows} give [{columns}, {rows}]"
        )


def _banks(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """Before NeuronCore-v4 a result lies in one PSUM bank."""
    dst = instruction["dst"]
    if core.generation >= 4 or dst.memory != "psum":
        return
    bank = core.psum_bank_bytes
    offset = dst.tile.address[1] if dst.tile.address else 0
    first, last = _span(dst)
    if not dst.slot.terms:
        offset += dst.slot.const % dst.tile.slots * dst.tile.partition_bytes
    if dst.tile.address is None and dst.tile.partition_bytes > bank:
        first, last = 0, last - first
    if (offset + first) // bank != (offset + last) // bank:
        yield (
            f"dst = {dst} covers bytes {offset + first} to {offset + last} of a partition; before "
            f"NeuronCore-v4 a result lies in one PSUM bank of {bank} bytes"
        )


def _span(access: Access) -> tuple[int, int]:
    """First and last byte of an access within one slot of a partition."""
    first = last = 0
    for start, size, step, extent in zip(
        access.start[1:], access.size[1:], access.step[1:], access.tile.shape[1:]
    ):
        first = first * extent + start
        last = last * extent + start + (size - 1) * step
    size = access.tile.element.bytes
    last += (access.slot_count - 1) * access.tile.partition_bytes // size
    return first * size, (last + 1) * size - 1


def _operand_dtypes(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """Both operands 32-bit floats or neither; never legacy float8_e4m3 with OCP float8_e4m3fn."""
    kinds = {instruction[name].dtype for name in ("stationary", "moving")}
    if any(dtype in FP32 for dtype in kinds) and not all(dtype in FP32 for dtype in kinds):
        yield (
            f"stationary is {instruction['stationary'].dtype} and moving "
            f"{instruction['moving'].dtype}; if one is float32 or tfloat32, both must be"
        )
    if kinds == {"float8_e4m3", "float8_e4m3fn"}:
        yield "float8_e4m3 and float8_e4m3fn cannot meet in one matmul"


def _result_dtype(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """float32, from NeuronCore-v4 on also bfloat16; transposes keep their operand's dtype from
    NeuronCore-v3 on, float8 in uint16 with the upper 8 bits zero."""
    dtype, source = instruction["dst"].dtype, instruction["stationary"].dtype
    if instruction.get("is_transpose") and core.generation >= 3:
        allowed: tuple[str, ...] = (_TRANSPOSED_FP8,) if source in FP8 else (source,)
        what = f"a transpose of {source}"
    else:
        allowed, what = core.psum_accumulate_dtypes, f"a matmul on NeuronCore-v{core.generation}"
    if dtype not in allowed:
        yield f"dst is {dtype}; {what} gives {' or '.join(allowed)}"


def _double_row(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """perf_mode "double_row" from NeuronCore-v3 on: float8, first free dimension 2, neither
    transpose nor column tiles."""
    if instruction.get("perf_mode", "none") != "double_row":
        return
    if "float8_double_row" not in core.tensor.passes:
        yield "perf_mode double_row: NeuronCore-v3 is the first to have it"
    for name in ("stationary", "moving"):
        access = instruction[name]
        if access.dtype not in FP8:
            yield f"perf_mode double_row takes float8; {name} is {access.dtype}"
        if instruction.shape(name)[1:2] != (2,):
            yield (
                f"perf_mode double_row contracts the first free dimension, which must be 2; "
                f"{name} has the shape {list(instruction.shape(name))}"
            )
    if instruction.get("is_transpose"):
        yield "perf_mode double_row cannot transpose"
    size = instruction.get("tile_size")
    if size and size[1] != core.tensor.columns:
        yield f"perf_mode double_row cannot have column tiles; tile_size is {size}"


def _transpose_mode(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """A transpose starts no sum that others continue, and its moving operand is not gathered."""
    if not instruction.get("is_transpose"):
        return
    if core.generation >= 3 and instruction.get("accumulate"):
        yield "is_transpose cannot accumulate; write with accumulate=False"
    if instruction.get("moving_index"):
        yield "is_transpose: moving cannot be gathered (moving_index)"


def _indirect(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """Gathered and scattered operands: 16 and 8-bit floats, no tile_position but (0, 0)."""
    names = [n for n in ("dst", "stationary", "moving") if instruction.get(f"{n}_index")]
    for name in names:
        dtype = instruction[name].dtype
        if dtype not in (*FP16, *FP8, *MX):
            yield f"{name} is {dtype} and has an index; {', '.join((*FP16, *FP8))} may have one"
    position = instruction.get("tile_position")
    if names and position and tuple(position) != (0, 0):
        yield f"operands with an index need tile_position (0, 0), not {position}"


def _row_sizes(core: NeuronCore) -> tuple[int, ...]:
    """Tiles the array can be cut into: halves on v2, also quarters later (nki.isa nc_matmul)."""
    rows = core.tensor.rows
    return (rows, rows // 2) if core.generation < 3 else (rows, rows // 2, rows // 4)


def _tiling(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """tile_position and tile_size are given together: a part of the array, in halves or (from
    NeuronCore-v3 on) quarters, that holds the stationary tile."""
    size, position = instruction.get("tile_size"), instruction.get("tile_position")
    if not size and not position:
        return
    if not size or not position:
        yield f"tile_position is {position} and tile_size {size}; both are given or neither"
        return
    whole = instruction.name == "nc_matmul_mx"
    columns_allowed = (core.tensor.columns,) if whole else _row_sizes(core)
    for what, start, count, allowed in (
        ("row", position[0], size[0], _row_sizes(core)),
        ("column", position[1], size[1], columns_allowed),
    ):
        if count not in allowed:
            yield f"tile_size: {what} size {count}; allowed: {', '.join(map(str, allowed))}"
        elif start % count or not 0 <= start < max(_row_sizes(core)):
            yield (
                f"tile_position: start {what} {start} is no multiple of the {what} size {count} "
                f"below {max(_row_sizes(core))}"
            )
    partitions = instruction["stationary"].partitions
    columns = instruction.free_size("stationary") // _pairs(instruction)
    if partitions > size[0] or columns > size[1]:
        yield f"stationary [{partitions}, {columns}] exceeds tile_size {tuple(size)}"


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
        _sizes,
        _banks,
        _operand_dtypes,
        _result_dtype,
        one_of("perf_mode", "none", "double_row"),
        _double_row,
        _transpose_mode,
        _tiling,
        _indirect,
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
    tile_position: tuple[int, int] = (),  # type: ignore[assignment]
    tile_size: tuple[int, int] = (),  # type: ignore[assignment]
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
    return _moved(data.reshape(data.shape[0], -1)[rows].T, out)


def _moved(data: jax.Array, out: jax.ShapeDtypeStruct) -> jax.Array:
    """The same bits; of float8 as 16 bits, if that is what is written."""
    if data.dtype.itemsize == 1 and out.dtype == jnp.uint16:
        return lax.bitcast_convert_type(data, jnp.uint8).astype(jnp.uint16)
    return data


def _mx_sizes(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """K / 4 partitions in whole quadrants, an even stationary free size, scales as many columns as
    their data, in 4 partitions of each quadrant."""
    stationary = instruction["stationary"]
    if stationary.partitions % QUADRANT:
        yield f"stationary has {stationary.partitions} partitions; allowed: multiples of {QUADRANT}"
    if instruction.free_size("stationary") % 2:
        yield f"stationary free size {instruction.free_size('stationary')} is odd; it must be even"
    for name in ("stationary", "moving"):
        data, scale = instruction[name], instruction[f"{name}_scale"]
        if scale.free_size != data.free_size:
            yield f"{name}_scale has {scale.free_size} columns and {name} {data.free_size}"
        fewest = data.partitions - QUADRANT + QUADRANT_SCALES
        if not fewest <= scale.partitions <= data.partitions:
            yield (
                f"{name}_scale has {scale.partitions} partitions; {data.partitions} of {name} need "
                f"{fewest} to {data.partitions}"
            )


def _mx_indirect(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """Data and its scale have the same index or none."""
    for name in ("stationary", "moving"):
        data, scale = (instruction.get(f"{name}{part}_index") for part in ("", "_scale"))
        if data != scale:
            yield f"{name}_index is {data} and {name}_scale_index {scale}; they must be the same"


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
    rules=(_sizes, _mx_sizes, _tiling, _indirect, _mx_indirect),
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
    tile_position: tuple[int, int] = (),  # type: ignore[assignment]
    tile_size: tuple[int, int] = (),  # type: ignore[assignment]
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
    operands = (_dequantized(stationary, stationary_scale), _dequantized(moving, moving_scale))
    return _summed(_product(*operands, (0,)), previous)


@jax.jit
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


def _transpose_sizes(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """TensorE: up to [128, 128], floats from SBUF into PSUM. VectorE: up to [32, 32]. dst is data's
    transpose; on TensorE float8 comes out as uint16."""
    data, dst = instruction["data"], instruction["dst"]
    if instruction.engine == "tensor":
        limit = core.tensor.stationary_fmax
        if (data.memory, dst.memory) != ("sbuf", "psum"):
            yield f"tensor transposes from sbuf into psum, not from {data.memory} into {dst.memory}"
        if data.dtype not in FLOATS:
            yield f"tensor transposes {', '.join(FLOATS)}; data is {data.dtype}: use vector"
    else:
        limit = core.quadrant_partitions
    if data.partitions > limit or data.free_size > limit:
        yield (
            f"data is [{data.partitions}, {data.free_size}]; {instruction.engine} transposes up to "
            f"[{limit}, {limit}]"
        )
    if (dst.partitions, dst.free_size) != (data.free_size, data.partitions):
        yield (
            f"dst is [{dst.partitions}, {dst.free_size}]; the transpose of "
            f"[{data.partitions}, {data.free_size}] is [{data.free_size}, {data.partitions}]"
        )
    narrow = instruction.engine == "tensor" and data.dtype in FP8
    dtype = _TRANSPOSED_FP8 if narrow else data.dtype
    if dst.dtype != dtype:
        yield f"dst is {dst.dtype}; {instruction.engine} transposes {data.dtype} into {dtype}"


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
    rules=(_transpose_sizes, _banks),
    source="nki/api/nki/isa/__init__.py, nc_transpose; trainium2_arch.rst",
)
def nc_transpose(data: jax.Array, *, out: jax.ShapeDtypeStruct) -> Any:
    """`dst[F, P] = data[P, F].T`, free axes taken as one: bits move, NaN and infinities included.

    On TensorE as `nc_matmul(is_transpose=True)` with an identity (on NeuronCore-v2 not exact there
    with NaN or infinities; exact here).
    """
    return _moved(data.reshape(data.shape[0], -1).T, out)
