"""Limits of TensorE's instructions (nki/api/nki/isa/__init__.py; architecture guides)."""

from collections.abc import Iterator

from jax_trn3.hardware import NeuronCore
from jax_trn3.numerics.hardware_layout import QUADRANT, QUADRANT_SCALES

from .dtypes import FLOATS, FP8, FP16, FP32, MX
from .operand import Access
from .spec import Instruction

TRANSPOSED_FP8 = "uint16"
"""16 bits, the upper 8 zero (trainium2_arch.rst, "Transpose")."""


def contracted_per_partition(instruction: Instruction) -> int:
    """Values of the contracted axis in each partition."""
    return 2 if instruction.get("perf_mode", "none") == "double_row" else 1


def sizes(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """stationary [K, M], moving [K, N], dst [M, N]; K and M up to 128, N up to 512, on
    NeuronCore-v4 up to 4096 for a dst of 4 bytes and 8192 of 2."""
    stationary, moving, dst = (instruction[name] for name in ("stationary", "moving", "dst"))
    depth = contracted_per_partition(instruction)
    columns = instruction.free_size("stationary") // depth
    rows = instruction.free_size("moving") // depth
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


def one_bank(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
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


def operand_dtypes(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """Both operands 32-bit floats or neither; never legacy float8_e4m3 with OCP float8_e4m3fn."""
    kinds = {instruction[name].dtype for name in ("stationary", "moving")}
    if any(dtype in FP32 for dtype in kinds) and not all(dtype in FP32 for dtype in kinds):
        yield (
            f"stationary is {instruction['stationary'].dtype} and moving "
            f"{instruction['moving'].dtype}; if one is float32 or tfloat32, both must be"
        )
    if kinds == {"float8_e4m3", "float8_e4m3fn"}:
        yield "float8_e4m3 and float8_e4m3fn cannot meet in one matmul"


def result_dtype(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """float32, from NeuronCore-v4 on also bfloat16; transposes keep their operand's dtype from
    NeuronCore-v3 on, float8 in uint16 with the upper 8 bits zero."""
    dtype, source = instruction["dst"].dtype, instruction["stationary"].dtype
    if instruction.get("is_transpose") and core.generation >= 3:
        allowed: tuple[str, ...] = (TRANSPOSED_FP8,) if source in FP8 else (source,)
        what = f"a transpose of {source}"
    else:
        allowed, what = core.psum_accumulate_dtypes, f"a matmul on NeuronCore-v{core.generation}"
    if dtype not in allowed:
        yield f"dst is {dtype}; {what} gives {' or '.join(allowed)}"


def double_row(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
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


def transpose_mode(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """A transpose starts no sum that others continue, and its moving operand is not gathered."""
    if not instruction.get("is_transpose"):
        return
    if core.generation >= 3 and instruction.get("accumulate"):
        yield "is_transpose cannot accumulate; write with accumulate=False"
    if instruction.get("moving_index"):
        yield "is_transpose: moving cannot be gathered (moving_index)"


def indirection(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
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


def tiling(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """tile_position and tile_size are given together: a part of the array, in halves or (from
    NeuronCore-v3 on) quarters, that holds the stationary tile. (nki.isa's prose has columns in
    parts, its parameters whole ones only: the prose counts here.)"""
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
    columns = instruction.free_size("stationary") // contracted_per_partition(instruction)
    if partitions > size[0] or columns > size[1]:
        yield f"stationary [{partitions}, {columns}] exceeds tile_size {tuple(size)}"


# nc_matmul_mx


def mx_sizes(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
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


def mx_indirection(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """Data and its scale have the same index or none."""
    for name in ("stationary", "moving"):
        data, scale = (instruction.get(f"{name}{part}_index") for part in ("", "_scale"))
        if data != scale:
            yield f"{name}_index is {data} and {name}_scale_index {scale}; they must be the same"


# nc_transpose


def transpose_sizes(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
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
    dtype = TRANSPOSED_FP8 if narrow else data.dtype
    if dst.dtype != dtype:
        yield f"dst is {dst.dtype}; {instruction.engine} transposes {data.dtype} into {dtype}"
