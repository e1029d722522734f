"""DMA engines: copies between HBM and SBUF, transposes, sums, exchange between two cores.

The instruction's engine names the queue it is issued on, "dma:sync", "dma:scalar" and so on; what
is behind a dot ("dma:sync.weights") tells several queues of one engine apart.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jax_trn3.hardware import NEURON_CORE_V4, NeuronCore

from .check import first_partition
from .cost import engine_cycles
from .dtypes import ANY, PLAIN
from .operand import Access
from .rules import one_of, same_dtype, same_size
from .spec import DmaWork, Instruction, Rule, Work, instruction, reads, writes

_MODES = ("unknown", "none", "hwdge", "swdge")
_ROWS = ("uint32", "int32")
_UNPACKED = (*PLAIN, "float8_e8m0fnu")
_OOB = one_of("oob_mode", "error", "skip")


def issuing_engine(instruction: Instruction) -> str:
    """The engine on whose queue a transfer is issued."""
    return instruction.engine.partition(":")[2].partition(".")[0]


def _row_indices(instruction: Instruction) -> list[str]:
    """The operands that choose rows of another."""
    return [name for name, _ in instruction.operands if name.endswith("_index")]


def _queue(instruction: Instruction) -> str:
    """The queue where the program names none: that of the engine that can write the descriptors."""
    software = _row_indices(instruction) or instruction.get("dge_mode") == "swdge"
    return "dma:gpsimd" if software else "dma:sync"


def descriptor_mode(instruction: Instruction) -> str:
    """Who writes the descriptors: GpSimdE where rows are chosen at run time; where the program
    leaves it open, the hardware if there is a priority (nki.isa dma_copy has none without it),
    else the host, before the start. What AWS's compiler chooses is not documented."""
    mode: str = instruction.get("dge_mode", "unknown")
    if mode != "unknown":
        return mode
    if _row_indices(instruction):
        return "swdge"
    return "hwdge" if instruction.get("priority") is not None else "none"


# Time


def dma_work(
    instruction: Instruction,
    sources: tuple[str, ...],
    core: NeuronCore,
    *,
    share: float = 1.0,
    gathers_runs: bool = False,
) -> DmaWork:
    """What a transfer of `sources` into "dst" asks of the DMA engines.

    A partition of SBUF is served by the engine of its group of `partitions_per_engine`; what stays
    in HBM is dealt out to all engines packet by packet. A packet is at most `packet_bytes` that
    lie next to each other on both sides and takes `packet_overhead_ns` beside its bytes. A
    transfer that casts counts the wider side; every source passes through the engines once.

    **Arguments:**

    - `share`: Share of full throughput, where it transposes or accumulates.
    - `gathers_runs`: Whether packets are full whatever lies next to each other (transposes).
    """
    dma = core.dma
    elements = math.prod(instruction.shape("dst"))
    widths = {name: instruction[name].tile.element.bytes for name in (*sources, "dst")}
    run = elements if gathers_runs else min(_run_elements(instruction, name) for name in widths)
    wide = [max(widths[source], widths["dst"]) for source in sources]
    sbuf = _sbuf_side(instruction, sources)
    pieces = sbuf.partitions if sbuf else 1
    run = min(run, elements // pieces)
    packets = math.ceil(elements / pieces / run) * sum(
        math.ceil(run * width / dma.packet_bytes) for width in wide
    )
    moved = elements * sum(wide)
    shares = _by_partition(sbuf, core) if sbuf else _by_packet(packets, core)
    total = packets * pieces
    busy = [
        part * (total * dma.packet_overhead_ns + moved / dma.engine_bytes_per_s * 1e9) / share
        for part in shares
    ]
    mode = descriptor_mode(instruction)
    return DmaWork(
        engine_ps=tuple(math.ceil(round(ns * 1000, 6)) for ns in busy),
        packets=total,
        bytes=moved,
        bytes_read_hbm=sum(elements * widths[s] for s in sources if _in_hbm(instruction, s)),
        bytes_written_hbm=elements * widths["dst"] if _in_hbm(instruction, "dst") else 0,
        mode=mode,
        issue_ns=dma.issue_ns.get(mode, 0),
        latency_ns=dma.latency_ns,
    )


def _in_hbm(instruction: Instruction, name: str) -> bool:
    return instruction[name].memory == "hbm"


def _run_elements(instruction: Instruction, name: str) -> int:
    """Elements that lie next to each other; of chosen rows at most one row."""
    access = instruction[name]
    run = access.run_bytes // access.tile.element.bytes
    if instruction.get(f"{name}_index") is None:
        return run
    return min(run, math.prod(access.shape[1:]))


def _sbuf_side(instruction: Instruction, sources: tuple[str, ...]) -> Access | None:
    """The operand whose partitions say which engines work: dst before sources."""
    sides = [instruction[name] for name in ("dst", *sources)]
    return next((access for access in sides if access.memory == "sbuf"), None)


def _by_partition(access: Access, core: NeuronCore) -> list[float]:
    """The share of each DMA engine, by the partitions that it serves."""
    dma = core.dma
    shares = [0] * dma.count
    first = first_partition(access)
    for partition in range(first, first + access.partitions):
        shares[partition // dma.partitions_per_engine % dma.count] += 1
    return [count / access.partitions for count in shares]


def _by_packet(packets: int, core: NeuronCore) -> list[float]:
    """The share of each DMA engine when packets are dealt out one by one."""
    count = core.dma.count
    return [(packets // count + (k < packets % count)) / packets for k in range(count)]


def _copy_work(instruction: Instruction, core: NeuronCore) -> Work:
    """Sums into SBUF pass at the published share of full throughput (all of it on NeuronCore-v4,
    half before); a sum into HBM reads what is there, too."""
    if not instruction.get("accumulate"):
        return Work(dma=dma_work(instruction, ("src",), core))
    if _in_hbm(instruction, "dst"):
        return Work(dma=dma_work(instruction, ("src", "dst"), core))
    share = core.dma.accumulate_factor
    return Work(dma=dma_work(instruction, ("src",), core, share=share))


def _transpose_work(instruction: Instruction, core: NeuronCore) -> Work:
    """Full packets at the published share of full throughput for where the source lies."""
    share = core.dma.transpose_factors[f"{instruction['src'].memory}_to_sbuf"]
    return Work(dma=dma_work(instruction, ("src",), core, share=share, gathers_runs=True))


def _compute_work(instruction: Instruction, core: NeuronCore) -> Work:
    """Every source passes through the engines: two of them take twice as long as a copy, which is
    the published half of full throughput."""
    return Work(dma=dma_work(instruction, _sources(instruction), core))


def _sendrecv_work(instruction: Instruction, core: NeuronCore) -> Work:
    """A copy from SBUF to SBUF; on GpSimdE's own DMA at half its rate, which is both
    directions'."""
    if instruction.engine != "gpsimd":
        return Work(dma=dma_work(instruction, ("src",), core))
    rate = core.dma.gpsimd_bytes_per_s / 2
    cycles = instruction["src"].bytes / rate * core.gpsimd.clock_hz
    return Work(engine_cycles(core.gpsimd, 0, extra=cycles))


# Limits


def _size_rules(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """src and dst have as many elements; rows chosen count once for each index."""
    counts = {name: math.prod(instruction.shape(name)) for name in ("src", "dst")}
    if counts["src"] != counts["dst"]:
        yield f"src has {counts['src']} elements and dst {counts['dst']}; they must agree"


def _cast(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """Packed types (x4) are not cast."""
    src, dst = instruction["src"], instruction["dst"]
    if src.dtype != dst.dtype and max(src.tile.element.packed, dst.tile.element.packed) > 1:
        yield f"src is {src.dtype} and dst {dst.dtype}; packed types are copied, not cast"


def _descriptors(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """dge_mode "hwdge": from NeuronCore-v3 on, issued by sync or scalar, no cast, no index;
    "swdge": issued by gpsimd; "none": no index."""
    mode, issuer = descriptor_mode(instruction), issuing_engine(instruction)
    rows = _row_indices(instruction)
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


def _priority(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
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


def _row_rules(*operands: str) -> Rule:
    def rule(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
        given = [name for name in operands if instruction.get(f"{name}_index") is not None]
        for name in given:
            if instruction[name].memory != "hbm":
                yield f"{name} lies in {instruction[name].memory}; rows are chosen in hbm only"
        if len(given) > 1:
            yield f"{' and '.join(given)} have an index each; one may"

    rule.__doc__ = f"Rows are chosen in HBM, of one of {', '.join(operands)}."
    return rule


def _accumulation(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """accumulate: float32 or bfloat16, src as dst."""
    if not instruction.get("accumulate"):
        return
    src, dst = instruction["src"].dtype, instruction["dst"].dtype
    if src != dst or dst not in ("float32", "bfloat16"):
        yield (
            f"accumulate adds float32 to float32 or bfloat16 to bfloat16, not {src} to {dst}; "
            "dma_compute casts"
        )


# Meaning


def _as_float32(x: jax.Array, dtype: Any) -> jax.Array:
    """Bits as they are where the type stays, else by way of float32."""
    return x if x.dtype == dtype else x.astype(jnp.float32)


def _chosen(index: jax.Array, rows: int, oob_mode: str) -> tuple[jax.Array, jax.Array]:
    """Indices [N], and which of them are inside.

    **Raises:** `ValueError` for one outside under "error" (not while JAX traces: there is no
    value).
    """
    flat = index.reshape(-1).astype(jnp.int32)
    inside = (flat >= 0) & (flat < rows)
    if oob_mode == "error" and not isinstance(inside, jax.core.Tracer) and not inside.all():
        wrong = int(flat[jnp.argmin(inside)])
        raise ValueError(
            f"index {wrong} is outside the {rows} rows; oob_mode 'skip' passes over it"
        )
    return flat, inside


def _gathered(
    src: jax.Array, index: jax.Array, oob_mode: str, previous: jax.Array | None
) -> jax.Array:
    """Rows of src; where the index is outside those of `previous`."""
    flat, inside = _chosen(index, src.shape[0], oob_mode)
    rows = src[jnp.where(inside, flat, 0)]
    if oob_mode == "error":
        return rows
    if previous is None:
        raise ValueError(
            "oob_mode 'skip' leaves rows of dst as they are: what are they? (previous)"
        )
    keep = previous.reshape(rows.shape).astype(rows.dtype)
    return jnp.where(inside.reshape(-1, *[1] * (rows.ndim - 1)), rows, keep)


def _scattered(
    values: jax.Array, index: jax.Array, oob_mode: str, previous: jax.Array | None, add: bool
) -> jax.Array:
    """`previous` with the values in, or added to, its rows."""
    if previous is None:
        raise ValueError("rows of dst are written and the others stay: what are they? (previous)")
    flat, inside = _chosen(index, previous.shape[0], oob_mode)
    values = values.reshape(flat.shape[0], *previous.shape[1:])
    rows = previous.astype(values.dtype).at[jnp.where(inside, flat, previous.shape[0])]
    return rows.add(values, mode="drop") if add else rows.set(values, mode="drop")


@instruction(
    writes("dst", "sbuf", "hbm", dtypes=ANY),
    reads("src", "sbuf", "hbm", dtypes=ANY),
    reads("src_index", "sbuf", dtypes=_ROWS, optional=True),
    reads("dst_index", "sbuf", dtypes=_ROWS, optional=True),
    engines=("dma",),
    chooses=_queue,
    cost=_copy_work,
    rules=(
        _size_rules,
        _cast,
        _descriptors,
        _priority,
        _row_rules("src", "dst"),
        _accumulation,
        _OOB,
    ),
    source="nki/api/nki/isa/__init__.py, dma_copy; trainium3_arch.rst; nki-dge.rst",
)
def dma_copy(
    src: jax.Array,
    src_index: jax.Array | None = None,
    dst_index: jax.Array | None = None,
    *,
    out: jax.ShapeDtypeStruct,
    previous: jax.Array | None = None,
    accumulate: bool = False,
    priority: int | None = None,
    oob_mode: str = "error",
    dge_mode: str = "unknown",
) -> jax.Array:
    """`dst = src`, element by element in order, cast by way of float32 where dtypes differ.

    With `src_index` row i of dst is row `src_index[i]` of src; with `dst_index` row i of src goes
    to row `dst_index[i]` of dst and the others stay. An index outside raises, or with
    `oob_mode="skip"` leaves the row as it is. Which of two rows for one place stays is not
    documented.

    `accumulate` adds to what is in dst, in float32: the hardware's read-add-write
    (trainium3_arch.rst), which `nki.isa` does not offer. `priority` (0 first) and `dge_mode` decide
    when it runs, not what it does.
    """
    values = _as_float32(src, out.dtype)
    if src_index is not None:
        values = _gathered(values, src_index, oob_mode, previous)
    if accumulate:
        values = values.astype(jnp.float32)
    if dst_index is not None:
        return _scattered(values, dst_index, oob_mode, previous, accumulate)
    if accumulate:
        if previous is None:
            raise ValueError("accumulate adds to what is in dst: what is it? (previous)")
        return previous.astype(jnp.float32) + values.reshape(previous.shape)
    return values


_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}


def _transpose_sizes(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """2 to 4 dimensions; axes (1, 0), (2, 1, 0) or (3, 1, 2, 0); dst of the permuted shape."""
    shape, dst = _transposed_shape(instruction), instruction["dst"].shape
    if len(shape) not in _AXES:
        yield f"src has {len(shape)} dimensions; allowed: 2 to 4"
        return
    axes = _AXES[len(shape)]
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


def _hardware_transpose(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
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


def _software_transpose(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
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


def _transpose_modes(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """dge_mode "unknown" or "hwdge"; with src_index "unknown" or "swdge"; skipping with
    src_index."""
    indexed = instruction.get("src_index") is not None
    allowed = ("unknown", "swdge" if indexed else "hwdge")
    if instruction.get("dge_mode", "unknown") not in allowed:
        yield f"dge_mode is {instruction.get('dge_mode')!r}; allowed here: {' or '.join(allowed)}"
    if instruction.get("oob_mode") == "skip" and not indexed:
        yield "oob_mode 'skip' is for chosen rows (src_index)"


@instruction(
    writes("dst", "sbuf", dtypes=_UNPACKED),
    reads("src", "sbuf", "hbm", dtypes=_UNPACKED),
    reads("src_index", "sbuf", dtypes=("uint32",), optional=True),
    engines=("dma",),
    chooses=_queue,
    cost=_transpose_work,
    rules=(
        same_dtype("src", "dst"),
        _transpose_sizes,
        _transpose_modes,
        _hardware_transpose,
        _software_transpose,
        _descriptors,
        _priority,
        _row_rules("src"),
        _OOB,
    ),
    source="nki/api/nki/isa/__init__.py, dma_transpose; trainium2_arch.rst",
)
def dma_transpose(
    src: jax.Array,
    src_index: jax.Array | None = None,
    *,
    out: jax.ShapeDtypeStruct,
    previous: jax.Array | None = None,
    axes: tuple[int, ...] | None = None,
    priority: int | None = None,
    dge_mode: str = "unknown",
    oob_mode: str = "error",
) -> jax.Array:
    """`dst = transpose(src)` by (1, 0), (2, 1, 0) or (3, 1, 2, 0): bits move.

    With `src_index` rows `src_index.T.flatten()` of src are transposed, as many as dst's last
    dimension. A row outside raises, or with `oob_mode="skip"` leaves its column as it is.
    """
    order = axes or _AXES[src.ndim]
    if src_index is not None:
        index = src_index.T.reshape(-1)[: out.shape[-1]]
        before = None if previous is None else previous.transpose(order)  # its own inverse
        src = _gathered(src, index, oob_mode, before)
    return src.transpose(order)


_SOURCES = tuple(f"src{k}" for k in range(NEURON_CORE_V4.dma.max_compute_sources))


def _sources(instruction: Instruction) -> tuple[str, ...]:
    return tuple(name for name, _ in instruction.operands if name in _SOURCES)


def _compute_sizes(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """As many elements in each source as in dst; as many sources as the engines take."""
    names, limit = _sources(instruction), core.dma.max_compute_sources
    if len(names) > limit:
        yield f"{len(names)} sources; at most {limit}"
    if instruction.get("dst_index") is not None or instruction.get("src1_index") is not None:
        return
    count = instruction["dst"].elements
    for name in names:
        if instruction[name].elements != count:
            yield f"{name} has {instruction[name].elements} elements, dst {count}; they must agree"


def _compute_scales(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """reduce_op "add"; scales, if given, 1.0 for each source."""
    scales, count = instruction.get("scales"), len(_sources(instruction))
    if scales is not None and (len(scales) != count or any(scale != 1.0 for scale in scales)):
        yield f"scales is {scales}; allowed: 1.0 for each of the {count} sources"


def _read_modify_write(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """With an index two sources, the first of them dst itself: `dst_index` dst in HBM and src1 in
    SBUF, `src1_index` src1 in HBM and dst in SBUF; unique indices."""
    rows = _row_indices(instruction)
    if not rows:
        return
    if len(rows) > 1:
        yield f"{' and '.join(rows)} are both given; one may be"
    if _sources(instruction) != ("src0", "src1"):
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


def _issued_by_gpsimd(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """Issued by gpsimd where there is an index."""
    issuer = issuing_engine(instruction)
    if _row_indices(instruction) and issuer != "gpsimd":
        yield f"an index is read by gpsimd; the queue is {instruction.engine}"


@instruction(
    writes("dst", "sbuf", "hbm", dtypes=PLAIN),
    *(reads(name, "sbuf", "hbm", dtypes=PLAIN, optional=name != "src0") for name in _SOURCES),
    reads("src1_index", "sbuf", dtypes=_ROWS, optional=True),
    reads("dst_index", "sbuf", dtypes=_ROWS, optional=True),
    engines=("dma",),
    chooses=_queue,
    cost=_compute_work,
    rules=(
        _compute_sizes,
        one_of("reduce_op", "add"),
        _compute_scales,
        _read_modify_write,
        _issued_by_gpsimd,
        _OOB,
    ),
    source="nki/api/nki/isa/__init__.py, dma_compute",
)
def dma_compute(
    *operands: jax.Array | None,
    reduce_op: str,
    previous: jax.Array | None = None,
    scales: tuple[float, ...] | None = None,
    unique_indices: bool = True,
    oob_mode: str = "error",
) -> jax.Array:
    """`dst = src0 + src1 + ...`, in float32 and in this order (the hardware's is not documented).

    With `dst_index` rows of src1 are added to the rows of dst, which src0 is, that it names; with
    `src1_index` the rows of src1 that it names are added to dst, which src0 is. An index outside
    raises, or with `oob_mode="skip"` leaves its row as it is. (NKI's `srcs` are src0 to src15.)
    """
    *sources, src1_index, dst_index = operands
    first, *others = (x.astype(jnp.float32) for x in sources if x is not None)
    if dst_index is not None:
        return _scattered(others[0], dst_index, oob_mode, first, add=True)
    if src1_index is not None:
        nothing = jnp.zeros_like(first)
        return first + _gathered(others[0], src1_index, oob_mode, nothing).reshape(first.shape)
    for other in others:
        first = first + other.reshape(first.shape)
    return first


_GPSIMD_DMA_ELEMENTS = 256  # 1024, 512, 256 bytes of 32, 16, 8 bits (nki.isa sendrecv)


def _ranks(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """send_to_rank and recv_from_rank: 0 or 1, the cores of a logical core."""
    for name in ("send_to_rank", "recv_from_rank"):
        if instruction.get(name) not in (0, 1):
            yield f"{name} is {instruction.get(name)!r}; allowed: 0 or 1"


def _own_dma(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
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


@instruction(
    reads("src", "sbuf", dtypes=ANY),
    writes("dst", "sbuf", dtypes=ANY),
    engines=("dma", "gpsimd"),
    chooses=lambda made: "gpsimd" if made.get("dma_engine") == "gpsimd_dma" else "dma:sync",
    cost=_sendrecv_work,
    rules=(
        same_size("src", "dst"),
        same_dtype("src", "dst"),
        _ranks,
        one_of("dma_engine", "dma", "gpsimd_dma"),
        _own_dma,
    ),
    source="nki/api/nki/isa/__init__.py, sendrecv; trainium2_arch.rst",
    since=3,
)
def sendrecv(
    src: jax.Array,
    *,
    send_to_rank: int,
    recv_from_rank: int,
    pipe_id: int,
    dma_engine: str = "dma",
) -> jax.Array:
    """`dst` here becomes `src` of core `recv_from_rank`, while this core's goes to `send_to_rank`.

    To know what arrives, give the meaning the other core's `src`. Cores meet first: all
    instructions of one `pipe_id` complete together.
    """
    return src
