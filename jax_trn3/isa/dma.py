"""DMA engines: copies between HBM and SBUF, transposes, sums, exchange between two cores.

The instruction's engine names the queue it is issued on, "dma:sync", "dma:scalar" and so on; what
is behind a dot ("dma:sync.weights") tells several queues of one engine apart.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .dma_rules import (
    AXES,
    OOB,
    accumulation,
    compute_scales,
    compute_sizes,
    descriptors,
    equal_elements,
    hardware_transpose,
    issued_by_gpsimd,
    no_cast_of_packed,
    own_dma,
    priorities,
    ranks,
    read_modify_write,
    rows_in_hbm,
    software_transpose,
    transpose_modes,
    transpose_sizes,
)
from .dma_work import (
    SOURCES,
    compute_work,
    copy_work,
    default_queue,
    sendrecv_work,
    transpose_work,
)
from .dtypes import ANY, PLAIN, as_bits, from_bits
from .rules import one_of, same_dtype, same_size
from .spec import instruction, reads, writes

_ROWS = ("uint32", "int32")
_UNPACKED = (*PLAIN, "float8_e8m0fnu")


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
    rows = from_bits(as_bits(src)[jnp.where(inside, flat, 0)], src.dtype)
    if oob_mode == "error":
        return rows
    if previous is None:
        raise ValueError(
            "oob_mode 'skip' leaves rows of dst as they are: what are they? (previous)"
        )
    keep = as_bits(previous.reshape(rows.shape).astype(rows.dtype))
    inside = inside.reshape(-1, *[1] * (rows.ndim - 1))
    return from_bits(jnp.where(inside, as_bits(rows), keep), rows.dtype)


def _scattered(
    values: jax.Array, index: jax.Array, oob_mode: str, previous: jax.Array | None, add: bool
) -> jax.Array:
    """`previous` with the values in, or added to, its rows."""
    if previous is None:
        raise ValueError("rows of dst are written and the others stay: what are they? (previous)")
    flat, inside = _chosen(index, previous.shape[0], oob_mode)
    values = values.reshape(flat.shape[0], *previous.shape[1:])
    where = jnp.where(inside, flat, previous.shape[0])
    before = previous.astype(values.dtype)
    if add:
        return before.at[where].add(values, mode="drop")
    bits = as_bits(before).at[where].set(as_bits(values), mode="drop")
    return from_bits(bits, values.dtype)


@instruction(
    writes("dst", "sbuf", "hbm", dtypes=ANY),
    reads("src", "sbuf", "hbm", dtypes=ANY),
    reads("src_index", "sbuf", dtypes=_ROWS, optional=True),
    reads("dst_index", "sbuf", dtypes=_ROWS, optional=True),
    engines=("dma",),
    chooses=default_queue,
    cost=copy_work,
    rules=(
        equal_elements,
        no_cast_of_packed,
        descriptors,
        priorities,
        rows_in_hbm("src", "dst"),
        accumulation,
        OOB,
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


@instruction(
    writes("dst", "sbuf", dtypes=_UNPACKED),
    reads("src", "sbuf", "hbm", dtypes=_UNPACKED),
    reads("src_index", "sbuf", dtypes=("uint32",), optional=True),
    engines=("dma",),
    chooses=default_queue,
    cost=transpose_work,
    rules=(
        same_dtype("src", "dst"),
        transpose_sizes,
        transpose_modes,
        hardware_transpose,
        software_transpose,
        descriptors,
        priorities,
        rows_in_hbm("src"),
        OOB,
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
    order = axes or AXES[src.ndim]
    if src_index is not None:
        index = src_index.T.reshape(-1)[: out.shape[-1]]
        before = None if previous is None else previous.transpose(order)  # its own inverse
        src = _gathered(src, index, oob_mode, before)
    return from_bits(as_bits(src).transpose(order), src.dtype)


@instruction(
    writes("dst", "sbuf", "hbm", dtypes=PLAIN),
    *(reads(name, "sbuf", "hbm", dtypes=PLAIN, optional=name != "src0") for name in SOURCES),
    reads("src1_index", "sbuf", dtypes=_ROWS, optional=True),
    reads("dst_index", "sbuf", dtypes=_ROWS, optional=True),
    engines=("dma",),
    chooses=default_queue,
    cost=compute_work,
    rules=(
        compute_sizes,
        one_of("reduce_op", "add"),
        compute_scales,
        read_modify_write,
        issued_by_gpsimd,
        OOB,
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


@instruction(
    reads("src", "sbuf", dtypes=ANY),
    writes("dst", "sbuf", dtypes=ANY),
    engines=("dma", "gpsimd"),
    chooses=lambda made: "gpsimd" if made.get("dma_engine") == "gpsimd_dma" else "dma:sync",
    cost=sendrecv_work,
    rules=(
        same_size("src", "dst"),
        same_dtype("src", "dst"),
        ranks,
        one_of("dma_engine", "dma", "gpsimd_dma"),
        own_dma,
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
