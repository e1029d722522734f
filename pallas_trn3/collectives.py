"""Collectives in kernels, by NKI's names, over an axis of `shard_map`'s mesh.

>>> def kernel(x_ref, y_ref):
...     pltrn.all_reduce(y_ref, x_ref, "model")

Every device runs the kernel; CC-cores and DMA engines move the data beside what the engines do.
Operands lie in HBM, or both in SBUF (nki/api/nki.collectives.rst).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax._src import source_info_util
from jax._src.state import discharge as state_discharge
from jax._src.state import types as state_types
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from jax_trn3 import isa

from .instruction import is_ref, ref_and_transforms
from .memory import memory_of
from .source import here

collective_p = Primitive("trn3_collective")
collective_p.multiple_results = True

Axes = Any
"""A name of an axis, or a tuple of names."""

REDUCTIONS: dict[str, tuple[Any, Any]] = {
    "add": (lax.psum, jnp.sum),
    "max": (lax.pmax, jnp.max),
    "min": (lax.pmin, jnp.min),
}


def all_reduce(
    dst: Any, src: Any, axis_name: Axes, *, op: str = "add", priority: int | None = None
) -> None:
    """`dst` of every device becomes the sum ("add"), "max" or "min" of all devices' `src`.

    **Arguments:**

    - `dst`, `src`: Refs, or parts of them, of the same shape and dtype.
    - `axis_name`: As of `jax.lax.psum`.
    - `priority`: Traffic class, 0 to 3, lower first (NeuronCore-v4).

    **Raises:** `IllegalInstruction` for operands that do not fit, with the kernel's line;
    `NameError` for an axis that is not bound.
    """
    _issue("all_reduce", dst, src, axis_name, op=op, priority=priority)


def all_gather(
    dst: Any, src: Any, axis_name: Axes, *, axis: int = 0, priority: int | None = None
) -> None:
    """`dst` becomes all devices' `src`, one after another along dimension `axis`.

    As `all_reduce` otherwise.
    """
    _issue("all_gather", dst, src, axis_name, axis=axis, priority=priority)


def reduce_scatter(
    dst: Any,
    src: Any,
    axis_name: Axes,
    *,
    op: str = "add",
    axis: int = 0,
    priority: int | None = None,
) -> None:
    """`dst` becomes this device's piece, along dimension `axis`, of the devices' reduced `src`.

    As `all_reduce` otherwise.
    """
    _issue("reduce_scatter", dst, src, axis_name, op=op, axis=axis, priority=priority)


def all_to_all(
    dst: Any, src: Any, axis_name: Axes, *, axis: int = 0, priority: int | None = None
) -> None:
    """`dst` becomes the pieces, along dimension `axis`, that all devices' `src` has for this one.

    In HBM only. As `all_reduce` otherwise.
    """
    _issue("all_to_all", dst, src, axis_name, axis=axis, priority=priority)


def collective_permute(
    dst: Any,
    src: Any,
    axis_name: Axes,
    pairs: Sequence[tuple[int, int]],
    *,
    priority: int | None = None,
) -> None:
    """`dst` of device `target` becomes `src` of device `source`, for each of `pairs`; zeros where
    nothing comes.

    In HBM only. As `all_reduce` otherwise.
    """
    fixed = tuple((int(source), int(target)) for source, target in pairs)
    _issue("collective_permute", dst, src, axis_name, pairs=fixed, priority=priority)


def sendrecv(dst: Any, src: Any, axis_name: Axes, *, dma_engine: str = "dma") -> None:
    """The two cores of a logical core exchange tiles in SBUF: devices 2 k and 2 k + 1.

    **Arguments:**

    - `dma_engine`: "dma", or "gpsimd_dma" for GpSimdE's own, up to 256 elements a partition.
    """
    _issue("sendrecv", dst, src, axis_name, dma_engine=dma_engine)


def _issue(kind: str, dst: Any, src: Any, axis_name: Axes, **params: Any) -> None:
    names = tuple(axis_name) if isinstance(axis_name, (tuple, list)) else (axis_name,)
    size = math.prod(lax.axis_size(name) for name in names)
    if not is_ref(dst) or not is_ref(src):
        raise TypeError(f"{kind}: dst and src must be Refs, or parts of them")
    if problems := list(_problems(kind, dst, src, size, params)):
        raise isa.IllegalInstruction(
            f"{kind} from {here(kind)} over {', '.join(map(str, names))} (of {size} devices): "
            + "; ".join(problems)
        )
    leaves, tree = jax.tree.flatten((ref_and_transforms(dst), ref_and_transforms(src)))
    collective_p.bind(
        *leaves, tree=tree, kind=kind, axes=names, size=size, params=tuple(sorted(params.items()))
    )


def _problems(kind: str, dst: Any, src: Any, size: int, params: dict[str, Any]) -> Any:
    memories = [memory_of(ref_and_transforms(ref)[0].aval) for ref in (dst, src)]
    if memories not in (["hbm", "hbm"], ["sbuf", "sbuf"]):
        yield f"dst is in {memories[0]} and src in {memories[1]}; both must lie in hbm, or in sbuf"
    elif memories[0] == "sbuf" and kind in ("all_to_all", "collective_permute"):
        yield f"operands lie in sbuf; {kind} works in hbm"
    elif memories[0] == "hbm" and kind == "sendrecv":
        yield "operands lie in hbm; sendrecv works in sbuf, collective_permute in hbm"
    if dst.dtype != src.dtype:
        yield f"dst is {dst.dtype} and src {src.dtype}; they must have the same dtype"
    if params.get("op", "add") not in REDUCTIONS:
        yield f"op is {params['op']!r}; allowed: {', '.join(REDUCTIONS)}"
    if params.get("priority") not in (None, 0, 1, 2, 3):
        yield f"priority is {params['priority']!r}; allowed: 0 to 3"
    if kind == "sendrecv" and size % 2:
        yield "sendrecv needs an even number of them"
    if kind == "sendrecv" and params["dma_engine"] not in ("dma", "gpsimd_dma"):
        yield f"dma_engine is {params['dma_engine']!r}; allowed: 'dma', 'gpsimd_dma'"
    yield from _shapes(kind, tuple(dst.shape), tuple(src.shape), size, params.get("axis", 0))
    yield from _pairs(params.get("pairs", ()), size)


def _shapes(kind: str, dst: tuple[int, ...], src: tuple[int, ...], size: int, axis: int) -> Any:
    if not 0 <= axis < len(src):
        yield f"axis is {axis} of {len(src)} dimensions"
        return
    wanted = list(src)
    if kind == "all_gather":
        wanted[axis] *= size
    elif kind in ("reduce_scatter", "all_to_all") and src[axis] % size:
        yield f"dimension {axis} of src is {src[axis]}; it must be a multiple of {size}"
        return
    elif kind == "reduce_scatter":
        wanted[axis] //= size
    if dst != tuple(wanted):
        yield f"dst has shape {dst}; with src of {src} it must be {tuple(wanted)}"


def _pairs(pairs: Sequence[tuple[int, int]], size: int) -> Any:
    for which, ranks in (("source", [s for s, _ in pairs]), ("target", [t for _, t in pairs])):
        if len(set(ranks)) < len(ranks):
            yield f"pairs {pairs} name a {which} twice"
        if any(not 0 <= rank < size for rank in ranks):
            yield f"pairs {pairs} name a {which} outside of 0 to {size - 1}"


# ---- the primitive ----


@collective_p.def_effectful_abstract_eval
def _abstract_eval(*avals: Any, tree: Any, **_: Any) -> tuple[list[Any], set[Any]]:
    (dst, _dst), (src, _src) = jax.tree.unflatten(tree, range(len(avals)))
    return [], {state_types.WriteEffect(dst), state_types.ReadEffect(src)}


def _underivable(primals: Any, tangents: Any, *, kind: str, **_: Any) -> Any:
    raise NotImplementedError(
        f"{kind} of a kernel has no derivative; give the kernel one with jax.custom_vjp"
    )


def _unbatched(args: Any, dims: Any, *, kind: str, **_: Any) -> Any:
    raise NotImplementedError(f"{kind} in a vmap inside of a kernel; vmap the pallas_call")


ad.primitive_jvps[collective_p] = _underivable
batching.primitive_batchers[collective_p] = _unbatched


def value(kind: str, axes: tuple[Any, ...], size: int, params: dict[str, Any], x: Any) -> Any:
    """What a device receives, given its own array: JAX's collective."""
    op, axis = params.get("op", "add"), params.get("axis", 0)
    if kind == "all_reduce":
        return REDUCTIONS[op][0](x, axes)
    if kind == "all_gather":
        return lax.all_gather(x, axes, axis=axis, tiled=True)
    if kind == "all_to_all":
        return lax.all_to_all(x, axes, axis, axis, tiled=True)
    if kind == "reduce_scatter" and op == "add":
        return lax.psum_scatter(x, axes, scatter_dimension=axis, tiled=True)
    if kind == "reduce_scatter":
        pieces = jnp.stack(jnp.split(x, size, axis))
        return REDUCTIONS[op][1](lax.all_to_all(pieces, axes, 0, 0), axis=0)
    pairs = params.get("pairs", ())
    if kind == "sendrecv":
        pairs = tuple((rank, rank ^ 1) for rank in range(size))
    return lax.ppermute(x, axes, pairs)


@state_discharge.register_discharge_rule(collective_p)
def _discharge(
    *inputs: Any, tree: Any, kind: str, axes: tuple[Any, ...], size: int, params: Any
) -> Any:
    # JAX 0.10 hands over abstract values of inputs and outputs, 0.12 one context.
    args = inputs[len(inputs) - tree.num_leaves :]
    (dst, into), (src, out_of) = jax.tree.unflatten(tree, args)
    (number, _into), _src = jax.tree.unflatten(tree, range(len(args)))
    own = state_discharge.transform_array(src, out_of)
    received = value(kind, axes, size, dict(params), own)
    new: list[Any] = [None] * len(args)
    _, new[number] = state_discharge.transform_swap_array(dst, into, received.astype(dst.dtype))
    return new, []


source_info_util.register_exclusion(__file__)
