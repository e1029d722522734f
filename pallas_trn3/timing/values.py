"""Arrays of a kernel's own as instructions: where values come from and where they go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jax_trn3 import isa
from jax_trn3.isa import Access, Semaphore

from .arrays import Array, fill, temporary, whole
from .refs import Ref, element_name, matrix, row_pieces
from .scalars import UNKNOWN
from .walk import Scope, Walker

_QUEUE = "dma:sync"


# ---- between Refs and arrays ----


def load(walker: Walker, ref: Ref, transforms: Sequence[Any], aval: Any) -> Any:
    """What reading a Ref gives: the Ref's own memory, not a copy."""
    shape, dtype = tuple(aval.shape), aval.dtype
    if not shape and ref.memory != "hbm" and _is_count(dtype):
        return UNKNOWN  # an index or a count that data decide
    if ref.memory == "hbm":
        walker.assume(f"{ref.name} lies in HBM and is read as a value: it is loaded first")
        found = temporary(walker, shape, dtype, f"{ref.name} in sbuf")
        source = walker.access(ref, transforms)
        transfer(walker, whole(found), _same_elements(source, whole(found)), _QUEUE)
        return found
    return Array(shape, dtype, pieces_of(walker, ref, transforms, shape), ref=ref)


def pieces_of(walker: Walker, ref: Ref, transforms: Sequence[Any], shape: Any) -> list[Access]:
    """The pieces of a part of a Ref."""
    keys = walker.keys(ref, transforms)
    if ref.rows:
        return row_pieces(ref, keys)
    return [walker.access(ref, transforms)]


def _is_count(dtype: Any) -> bool:
    return getattr(dtype, "kind", "V") in "iub"


def overwritten(walker: Walker, ref: Ref) -> None:
    """Before a Ref is written: values that are read from it later are put aside."""
    scope = walker.scope
    while scope is not None:
        for var, value in scope.env.items():
            if not isinstance(value, Array) or value.ref is not ref or not value.pieces:
                continue
            readers = scope.readers(var)
            if readers and readers[-1] > scope.place:
                kept = temporary(walker, value.shape, value.dtype, f"{ref.name} before")
                for dst, src in zip(kept.pieces, value.pieces):
                    walker.emit(_copy(walker, dst, src))
                value.pieces, value.ref = kept.pieces, None
        scope = scope.around


# ---- transfers ----


def transfer(
    walker: Walker,
    target: Access,
    source: Access,
    queue: str,
    signal: tuple[tuple[Semaphore, int], ...] = (),
) -> None:
    """A copy by DMA."""
    copy = isa.TABLE["dma_copy"](target, source, engine=queue, origin=walker.origin, signal=signal)
    walker.emit(copy)


def move(
    walker: Walker,
    source: tuple[Ref, Sequence[Any]],
    target: tuple[Ref, Sequence[Any]],
    queue: str,
    signal: tuple[tuple[Semaphore, int], ...],
) -> None:
    """A copy by DMA from Ref to Ref, as large as the target."""
    overwritten(walker, target[0])
    near, far = walker.access(*target), walker.access(*source)
    if near.elements != far.elements:
        far = _same_elements(far, near)
    if near.elements != far.elements:
        near = _same_elements(near, far)
    transfer(walker, near, far, queue, signal)


def _same_elements(access: Access, like: Access) -> Access:
    """The access, or one of as many elements as the other in its place."""
    if access.elements == like.elements or access.memory != "hbm":
        return access
    tile = replace(access.tile, shape=(like.elements,), slots=1)
    return Access(tile)


# ---- loops ----


def carried(walker: Walker, value: Any) -> Any:
    """What a loop carries, in memory of its own."""
    if not isinstance(value, Array):
        return UNKNOWN if not isinstance(value, Ref) else value
    held = temporary(walker, value.shape, value.dtype, "carried")
    copied(walker, held, value)
    return held


def carry(walker: Walker, value: Any, held: Any) -> None:
    """The value for the next iteration."""
    if isinstance(held, Array) and value is not held:
        copied(walker, held, value)


def copied(walker: Walker, target: Array, value: Any) -> None:
    """Copies a value into the memory of another."""
    stored = in_memory(walker, value, target)
    for dst, src in zip(target.pieces, stored.pieces):
        walker.emit(_copy(walker, dst, src))


def sliced(walker: Walker, value: Any, at: Any) -> Any:
    """`value[at]`."""
    if not isinstance(value, Array):
        return value
    found = temporary(walker, value.shape[1:], value.dtype, "slice")
    _fallback(walker, found, [])
    return found


def result(walker: Walker, shape: Sequence[int], dtype: Any) -> Array:
    """Memory for what a loop puts together."""
    return temporary(walker, shape, dtype, "stacked")


def put(walker: Walker, stacked: Array, value: Any, at: Any) -> None:
    """`stacked[at] = value`."""
    if isinstance(value, Array):
        copy = temporary(walker, value.shape, value.dtype, "row")
        copied(walker, copy, value)


# ---- operands ----


def in_memory(walker: Walker, value: Any, like: Array | None = None) -> Array:
    """A value with memory of its own, however it is seen."""
    if isinstance(value, Array) and value.pieces:
        return value
    shape = value.shape if isinstance(value, Array) else like.shape if like else ()
    dtype = value.dtype if isinstance(value, Array) else like.dtype if like else "float32"
    number = value.number if isinstance(value, Array) else value
    found = temporary(walker, shape, dtype, "value")
    for piece in found.pieces:
        number = number if isinstance(number, (int, float)) else 0
        walker.emit(isa.TABLE["memset"](piece, value=number, engine="gpsimd", origin=walker.origin))
    return found


def operand(walker: Walker, spec: Any, name: str, value: Any) -> Any:
    """An array as an operand of an instruction."""
    (known,) = (o for o in spec.operands if o.name == name)
    if not isinstance(value, Array):
        if known.scalar:
            return value if isinstance(value, (int, float)) else 1.0
        value = fill(value, (1, 1), "float32")
    return whole(in_memory(walker, value))


def _copy(walker: Walker, dst: Access, src: Access) -> Any:
    psum = "psum" in (dst.memory, src.memory)
    return isa.TABLE["tensor_copy"](
        dst, src, engine="vector" if psum else "gpsimd", origin=walker.origin
    )


# ---- equations ----


def equation(walker: Walker, scope: Scope, eqn: Any, args: list[Any]) -> Sequence[Any]:
    """An equation on arrays."""
    name = eqn.primitive.name
    if name == "get":
        import jax

        ref, *leaves = args
        transforms = jax.tree.unflatten(eqn.params["tree"], leaves)
        return [load(walker, ref, transforms, eqn.outvars[0].aval)]
    walker.assume(f"{name} has no instructions of its own: passes of GpSimdE over its elements")
    found = []
    for var in eqn.outvars:
        out = temporary(walker, var.aval.shape, var.aval.dtype)
        _fallback(walker, out, [a for a in args if isinstance(a, Array)])
        found.append(out)
    if name in ("swap", "addupdate"):
        pass
    return found


def _fallback(walker: Walker, out: Array, inputs: Sequence[Array]) -> None:
    for value in inputs:
        for piece in value.pieces:
            shape = (piece.partitions, piece.free_size)
            scratch = temporary(walker, shape, value.dtype)
            walker.emit(_copy(walker, scratch.pieces[0], piece))
    for piece in out.pieces:
        walker.emit(isa.TABLE["memset"](piece, value=0, engine="gpsimd", origin=walker.origin))


_ = (element_name, matrix)
