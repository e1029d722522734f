"""Limits of transfers (nki/api/nki/isa/__init__.py; nki/deep-dives/nki-dge.rst)."""

import math
from collections.abc import Iterator

from jax_trn3.hardware import NeuronCore

from .dma_work import descriptor_mode, issuing_engine, row_indices, sources_of
from .operand import Access
from .rules import one_of
from .spec import Instruction, Rule

_MODES = ("unknown", "none", "hwdge", "swdge")
OOB = one_of("oob_mode", "error", "skip")


def equal_elements(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """src and dst have as many elements; rows chosen count once for each index."""
    counts = {name: math.prod(instruction.shape(name)) for name in ("src", "dst")}
    if counts["src"] != counts["dst"]:
        yield f"src has {counts['src']} elements and dst {counts['dst']}; they must agree"


def no_cast_of_packed(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """Packed types (x4) are not cast."""
    src, dst = instruction["src"], instruction["dst"]
    if src.dtype != dst.dtype and max(src.tile.element.packed, dst.tile.element.packed) > 1:
        yield f"src is {src.dtype} and dst {dst.dtype}; packed types are copied, not cast"


def descriptors(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """dge_mode "hwdge": from NeuronCore-v3 on, issued by sync or scalar, no cast, no index;
    "swdge": issued by gpsimd; "none": no index."""
    mode, issuer = descriptor_mode(instruction), issuing_engine(instruction)
    rows = row_indices(instruction)
    if mode not in _MODES:
        yield f"dge_mode is {mode!r}; allowed: {', '.join(_MODES)}"
    if mode == "hwdge":
        if not core.dma.hwdge_instances:
            yield "dge_mode hwdge: NeuronCore-v3 is the first to have it"
        if issuer not in ("sync", "scalar"):
            yield f"dge_mode hwdge is issued by sync or scalar, not on {instruction.engine}"
        dtypes = {access.dtype for name, access in instruction.operands if name in ("src", "dst")}
        if len(dtypes) > 1:
            yield f"dge_mode hwdge does not cast: src and dst are {' and '.join(sorted(dtypes))}"
    if mode == "swdge" and issuer != "gpsimd":
        yield f"dge_mode swdge is issued by gpsimd, not on {instruction.engine}"
    if rows and mode != "swdge":
        yield f"{', '.join(rows)} needs dge_mode swdge, not {mode}"


def priorities(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """priority: from NeuronCore-v4 on one of its traffic classes, 0 first; not with dge_mode
    "none"."""
    priority, classes = instruction.get("priority"), core.dma.traffic_classes
    if priority is None:
        return
    if classes == 1:
        yield f"priority is {priority}; NeuronCore-v4 is the first to have priorities"
    elif priority not in range(classes):
        yield f"priority is {priority}; allowed: 0 to {classes - 1}"
    if descriptor_mode(instruction) == "none":
        yield "priority needs descriptors written at run time; dge_mode is none"


def rows_in_hbm(*operands: str) -> Rule:
    def rule(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
        given = [name for name in operands if instruction.get(f"{name}_index") is not None]
        for name in given:
            if instruction[name].memory != "hbm":
                yield f"{name} lies in {instruction[name].memory}; rows are chosen in hbm only"
        if len(given) > 1:
            yield f"{' and '.join(given)} have an index each; one may"

    rule.__doc__ = f"Rows are chosen in HBM, of one of {', '.join(operands)}."
    return rule


def accumulation(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """accumulate: float32 or bfloat16, src as dst."""
    if not instruction.get("accumulate"):
        return
    src, dst = instruction["src"].dtype, instruction["dst"].dtype
    if src != dst or dst not in ("float32", "bfloat16"):
        yield (
            f"accumulate adds float32 to float32 or bfloat16 to bfloat16, not {src} to {dst}; "
            "dma_compute casts"
        )


# dma_transpose

AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}


def transpose_sizes(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """2 to 4 dimensions; axes (1, 0), (2, 1, 0) or (3, 1, 2, 0); dst of the permuted shape."""
    shape, dst = _transposed_shape(instruction), instruction["dst"].shape
    if len(shape) not in AXES:
        yield f"src has {len(shape)} dimensions; allowed: 2 to 4"
        return
    axes = AXES[len(shape)]
    if tuple(instruction.get("axes") or axes) != axes:
        yield f"axes is {instruction.get('axes')}; {len(shape)} dimensions allow {axes}"
    permuted = tuple(shape[axis] for axis in axes)
    if dst != permuted:
        yield f"dst is {list(dst)}; src {list(shape)} transposed is {list(permuted)}"


def _transposed_shape(instruction: Instruction) -> tuple[int, ...]:
    """src's shape; where rows are chosen, as many as dst has room for, at most one for each
    index."""
    shape = instruction.shape("src")
    if instruction.get("src_index") is None:
        return shape
    return (min(shape[0], instruction["dst"].shape[-1]), *shape[1:])


def hardware_transpose(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """dge_mode "hwdge": 2 bytes, last dimension at most 128, and first dimension 16 in 2-D, or 1,
    2, 4, 8 or 16 with shape[0] * shape[-2] a multiple of 16."""
    if instruction.get("dge_mode", "unknown") not in ("unknown", "hwdge"):
        return
    if descriptor_mode(instruction) != "hwdge":
        return
    src = instruction["src"]
    shape = src.shape
    yield from _narrow_rows(src)
    if len(shape) == 2 and shape[0] != 16:
        yield f"dge_mode hwdge transposes 16 rows; src is {list(shape)}"
    if len(shape) > 2 and (shape[0] not in (1, 2, 4, 8, 16) or shape[0] * shape[-2] % 16):
        yield (
            f"dge_mode hwdge: src is {list(shape)}; its first dimension may be 1, 2, 4, 8 or 16, "
            f"and that times shape[-2] a multiple of 16, not {shape[0] * shape[-2]}"
        )


def _narrow_rows(src: Access) -> Iterator[str]:
    if src.tile.element.bytes != 2:
        yield f"src is {src.dtype}; this transpose moves elements of 2 bytes"
    if src.shape[-1] > 128:
        yield f"src has a last dimension of {src.shape[-1]}; at most 128"


def software_transpose(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """With src_index: from NeuronCore-v3 on, 2 bytes, last dimension at most 128; rows a multiple
    of 16; index [16 to 128 by 16, 1], or [128, n], of uint32; in 4-D src.shape[1] or [2] is 1."""
    index = instruction.get("src_index")
    if index is None:
        return
    src, rows = instruction["src"], _transposed_shape(instruction)[0]
    if core.generation < 3:
        yield "src_index: NeuronCore-v3 is the first to transpose chosen rows"
    yield from _narrow_rows(src)
    if rows % 16:
        yield f"{rows} rows are chosen; allowed: multiples of 16"
    if len(index.shape) != 2 or index.shape[0] not in range(16, 129, 16):
        yield f"src_index is {list(index.shape)}; allowed: [16 to 128 by 16, n]"
    elif index.shape[1] > 1 and index.shape[0] != 128:
        yield f"src_index is {list(index.shape)}; of several columns 128 partitions are needed"
    if len(src.shape) == 4 and 1 not in src.shape[1:3]:
        yield f"src is {list(src.shape)}; dimension 1 or 2 must be 1"


def transpose_modes(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """dge_mode "unknown" or "hwdge"; with src_index "unknown" or "swdge"; skipping with
    src_index."""
    indexed = instruction.get("src_index") is not None
    allowed = ("unknown", "swdge" if indexed else "hwdge")
    if instruction.get("dge_mode", "unknown") not in allowed:
        yield f"dge_mode is {instruction.get('dge_mode')!r}; allowed here: {' or '.join(allowed)}"
    if instruction.get("oob_mode") == "skip" and not indexed:
        yield "oob_mode 'skip' is for chosen rows (src_index)"


# dma_compute


def compute_sizes(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """As many elements in each source as in dst; as many sources as the engines take."""
    names, limit = sources_of(instruction), core.dma.max_compute_sources
    if len(names) > limit:
        yield f"{len(names)} sources; at most {limit}"
    if instruction.get("dst_index") is not None or instruction.get("src1_index") is not None:
        return
    count = instruction["dst"].elements
    for name in names:
        if instruction[name].elements != count:
            yield f"{name} has {instruction[name].elements} elements, dst {count}; they must agree"


def compute_scales(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """reduce_op "add"; scales, if given, 1.0 for each source."""
    scales, count = instruction.get("scales"), len(sources_of(instruction))
    if scales is not None and (len(scales) != count or any(scale != 1.0 for scale in scales)):
        yield f"scales is {scales}; allowed: 1.0 for each of the {count} sources"


def read_modify_write(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """With an index two sources, the first of them dst itself: `dst_index` dst in HBM and src1 in
    SBUF, `src1_index` src1 in HBM and dst in SBUF; unique indices."""
    rows = row_indices(instruction)
    if not rows:
        return
    if len(rows) > 1:
        yield f"{' and '.join(rows)} are both given; one may be"
    if sources_of(instruction) != ("src0", "src1"):
        yield f"{rows[0]} needs exactly two sources, src0 and src1"
        return
    dst, src0, src1 = (instruction[name] for name in ("dst", "src0", "src1"))
    if src0 != dst:
        yield f"with {rows[0]} src0 is dst itself; it is {src0} and dst {dst}"
    wanted = ("hbm", "sbuf") if rows[0] == "dst_index" else ("sbuf", "hbm")
    if (dst.memory, src1.memory) != wanted:
        yield (
            f"with {rows[0]} dst lies in {wanted[0]} and src1 in {wanted[1]}, not in "
            f"{dst.memory} and {src1.memory}"
        )
    pair = ("dst", "src1")
    counts = [math.prod(instruction.shape(name)) for name in pair]
    if counts[0] != counts[1]:
        yield f"{rows[0]} makes {counts[0]} elements of dst, {counts[1]} of src1; they must agree"
    if instruction.get("unique_indices") is False:
        yield "unique_indices is False; indices that occur twice are not supported"


def issued_by_gpsimd(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """Issued by gpsimd where there is an index."""
    issuer = issuing_engine(instruction)
    if row_indices(instruction) and issuer != "gpsimd":
        yield f"an index is read by gpsimd; the queue is {instruction.engine}"


# sendrecv

_GPSIMD_DMA_ELEMENTS = 256  # 1024, 512, 256 bytes of 32, 16, 8 bits (nki.isa sendrecv)


def ranks(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """send_to_rank and recv_from_rank: 0 or 1, the cores of a logical core."""
    for name in ("send_to_rank", "recv_from_rank"):
        if instruction.get(name) not in (0, 1):
            yield f"{name} is {instruction.get(name)!r}; allowed: 0 or 1"


def own_dma(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """dma_engine "gpsimd_dma": on engine gpsimd, at most 256 elements a partition of 8 to 32
    bits."""
    own, src = instruction.get("dma_engine") == "gpsimd_dma", instruction["src"]
    if own != (instruction.engine == "gpsimd"):
        yield (
            f"dma_engine is {instruction.get('dma_engine', 'dma')!r} on {instruction.engine}; "
            "'gpsimd_dma' runs on gpsimd, 'dma' on a queue of the DMA engines"
        )
    if own and src.free_size > _GPSIMD_DMA_ELEMENTS:
        size = src.tile.element.bytes
        yield (
            f"src has {src.free_size * size} bytes a partition; gpsimd_dma moves at most "
            f"{_GPSIMD_DMA_ELEMENTS * size} of {src.dtype}"
        )
