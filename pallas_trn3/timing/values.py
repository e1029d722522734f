"""Arrays of a kernel's own as instructions: where values come from and where they go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax

from jax_trn3 import isa
from jax_trn3.isa import Access, Semaphore

from . import choices, elementwise, movement, products, reductions
from .arrays import Array, fill, temporary, whole
from .emission import built, copy, evacuated, issue, legal, moved, passes, redirected
from .refs import Ref, row_pieces
from .scalars import UNKNOWN
from .views import laid, stored
from .walk import Scope, Walker

_QUEUE = "dma:sync"

Rule = Callable[[Walker, Scope, Any, list[Any]], list[Any]]

_RULES: dict[str, Rule] = {
    **dict.fromkeys(elementwise.UNARY, elementwise.unary),
    **dict.fromkeys(elementwise.BINARY, elementwise.binary),
    **dict.fromkeys(reductions.REDUCTIONS, reductions.reduce),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), movement.reshape),
    **dict.fromkeys(("slice", "dynamic_slice"), movement.cut),
    **dict.fromkeys(("dynamic_update_slice", "pad"), movement.update),
    **dict.fromkeys(("broadcast_in_dim", "broadcast_to"), movement.broadcast),
    "convert_element_type": choices.cast,
    "select_n": choices.select,
    "clamp": choices.clamp,
    "concatenate": movement.concatenate,
    "roll": movement.roll,
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin"), movement.running),
    **dict.fromkeys(("sort", "top_k"), movement.sort),
    "iota": movement.iota,
    "dot_general": products.dot_general,
    "transpose": products.transpose,
}


def equation(walker: Walker, scope: Scope, eqn: Any, args: list[Any]) -> Sequence[Any]:
    """An equation on arrays."""
    name = eqn.primitive.name
    if name in _REFS:
        return _REFS[name](walker, scope, eqn, args)
    rule = _RULES.get(name)
    if rule is not None:
        return rule(walker, scope, eqn, args)
    return _unknown(walker, eqn, args)


def _unknown(walker: Walker, eqn: Any, args: Sequence[Any]) -> list[Any]:
    sources = [p for a in args if isinstance(a, Array) for p in stored(walker, a).pieces]
    found: list[Any] = []
    for var in eqn.outvars:
        shape = getattr(var.aval, "shape", None)
        if shape is None:
            found.append(UNKNOWN)
            continue
        out = temporary(walker, shape, var.aval.dtype)
        for number, dst in enumerate(out.pieces):
            passes(walker, dst, () if number else sources)
        found.append(out if shape else UNKNOWN)
    return found


# ---- Refs ----


def _get(walker: Walker, scope: Scope, eqn: Any, args: list[Any]) -> list[Any]:
    ref, *leaves = args
    transforms = jax.tree.unflatten(eqn.params["tree"], leaves)
    return [load(walker, ref, transforms, eqn.outvars[0].aval)]


def _masked_load(walker: Walker, scope: Scope, eqn: Any, args: list[Any]) -> list[Any]:
    ref, transforms, mask, beside = eqn.params["args_tree"].unflatten(args)
    (var,) = eqn.outvars
    found = load(walker, ref, transforms, var.aval)
    if not isinstance(mask, Array) or not isinstance(found, Array) or beside is None:
        return [found]
    out = temporary(walker, found.shape, found.dtype, layout=found.layout)
    mask = laid(walker, stored(walker, mask), found.layout)
    for dst, src, chosen in zip(out.pieces, found.pieces, mask.pieces):
        issue(walker, "select_reduce", dst, chosen, src, 0.0, engine="vector")
    return [out]


def _swap(walker: Walker, scope: Scope, eqn: Any, args: list[Any]) -> list[Any]:
    ref, value, *leaves = args
    transforms = jax.tree.unflatten(eqn.params["tree"], leaves)
    return _stored_to(walker, scope, eqn, ref, transforms, value)


def _masked_swap(walker: Walker, scope: Scope, eqn: Any, args: list[Any]) -> list[Any]:
    ref, transforms, value, mask = eqn.params["args_tree"].unflatten(args)
    return _stored_to(walker, scope, eqn, ref, transforms, value, mask)


def _addupdate(walker: Walker, scope: Scope, eqn: Any, args: list[Any]) -> list[Any]:
    ref, value, *leaves = args
    if isinstance(value, Array) and value.ref is ref and value.number == "summed":
        return []
    transforms = jax.tree.unflatten(eqn.params["tree"], leaves)
    aval = eqn.invars[1].aval
    before = load(walker, ref, transforms, aval)
    total = elementwise.combined(walker, "add", before, value, aval.shape, aval.dtype)
    store(walker, ref, transforms, total, aval)
    return []


def _stored_to(
    walker: Walker, scope: Scope, eqn: Any, ref: Ref, transforms: Any, value: Any, mask: Any = None
) -> list[Any]:
    (var,) = eqn.outvars
    aval = var.aval
    used = bool(scope.readers(var))
    before: Any = UNKNOWN
    if used:
        old = load(walker, ref, transforms, aval)
        before = temporary(walker, aval.shape, aval.dtype, f"{ref.name} before")
        if isinstance(old, Array):
            copied(walker, before, old)
    store(walker, ref, transforms, value, aval, mask)
    return [before]


_REFS: dict[str, Rule] = {
    "get": _get, "masked_load": _masked_load, "swap": _swap, "masked_swap": _masked_swap,
    "addupdate": _addupdate,
}  # fmt: skip


def load(walker: Walker, ref: Ref, transforms: Sequence[Any], aval: Any) -> Any:
    """What reading a Ref gives: the Ref's own memory, not a copy."""
    shape, dtype = tuple(aval.shape), aval.dtype
    if ref.tile is None:
        return UNKNOWN
    if not shape and dtype.kind in "iub":
        _to_register(walker, ref)
        return UNKNOWN  # an index or a count that data decide
    if 0 in shape:
        return fill(0, shape, dtype)
    if ref.memory == "hbm":
        walker.assume(f"{ref.name} lies in HBM and is read as a value: it is loaded first")
        found = temporary(walker, shape, dtype, f"{ref.name} in sbuf")
        for dst in found.pieces:
            transfer(walker, dst, _same_elements(walker.access(ref, transforms), dst), _QUEUE)
        return found
    return Array(shape, dtype, pieces_of(walker, ref, transforms), ref=ref)


def _to_register(walker: Walker, ref: Ref) -> None:
    """A number that the sequencers need: one element, to a register of SyncE."""
    tile = ref.tile
    if tile is None or tile.memory != "sbuf" or tile.element.bytes > 4:
        return
    rank = len(tile.shape)
    element = Access(tile, ref.turn, 1, (0,) * rank, (1,) * rank, (1,) * rank)
    made = built(walker, "register_load", element, dst=isa.Register(ref.name), engine="sync")
    if made is not None:
        walker.emit(made)


def pieces_of(walker: Walker, ref: Ref, transforms: Sequence[Any]) -> list[Access]:
    """The pieces of a part of a Ref."""
    if ref.rows:
        return row_pieces(ref, walker.keys(ref, transforms))
    return [walker.access(ref, transforms)]


def store(
    walker: Walker, ref: Ref, transforms: Sequence[Any], value: Any, aval: Any, mask: Any = None
) -> None:
    """Writes a value to a Ref: what made it writes there at once, if it can."""
    if isinstance(value, Array) and value.ref is ref and value.number == "summed":
        return
    shape, dtype = tuple(aval.shape), aval.dtype
    if ref.tile is None or 0 in shape:
        return
    if ref.memory == "hbm":
        walker.assume(f"{ref.name} lies in HBM and is written as a value: it is stored after")
        source = stored(walker, value, shape, dtype)
        for src in evacuated(walker, source).pieces:
            transfer(walker, _same_elements(walker.access(ref, transforms), src), src, _QUEUE)
        return
    overwritten(walker, ref)
    targets = pieces_of(walker, ref, transforms)
    array = value if isinstance(value, Array) else fill(value, shape, dtype)
    if array.view == "fill":
        for dst in targets:
            number = array.number if isinstance(array.number, (int, float)) else 0
            issue(walker, "memset", dst, value=_in_range(number, dst), engine=_filler(dst))
        return
    source = stored(walker, array)
    if mask is None and redirected(walker, source, targets):
        source.pieces, source.ref, source.made = list(targets), ref, None
        return
    place(walker, targets, source)


def _in_range(number: float, dst: Access) -> float:
    if dst.dtype.startswith(("int", "uint", "bool")):
        return min(max(int(number), 0), 127) if number == number and abs(number) < 1e9 else 0
    return number


def _filler(dst: Access) -> str:
    return "vector" if dst.memory == "psum" else "gpsimd"


def place(walker: Walker, targets: Sequence[Access], source: Array) -> None:
    """Copies the pieces of a value to where they belong."""
    sizes = [(t.partitions, t.free_size) for t in targets]
    if list(source.layout) == sizes:
        for dst, src in zip(targets, source.pieces):
            if dst != src:
                copy(walker, dst, src)
        return
    for number, dst in enumerate(targets):
        src = source.pieces[min(number, len(source.pieces) - 1)]
        if src.elements == dst.elements:
            moved(walker, dst, src)
        else:
            passes(walker, dst, [src])


def overwritten(walker: Walker, ref: Ref) -> None:
    """Before a Ref is written: values that are read from it later are put aside."""
    scope = walker.scope
    while scope is not None:
        for var, value in list(scope.env.items()):
            if not isinstance(value, Array):
                continue
            readers = scope.readers(var)
            if readers and readers[-1] > scope.place:
                _put_aside(walker, value, ref)
        scope = scope.around


def _put_aside(walker: Walker, value: Array, ref: Ref) -> None:
    for inner in (value.base, value.scale, value.bias):
        if isinstance(inner, Array):
            _put_aside(walker, inner, ref)
    if value.ref is not ref or not value.pieces:
        return
    kept = temporary(walker, value.shape, value.dtype, f"{ref.name} before", layout=value.layout)
    for dst, src in zip(kept.pieces, value.pieces):
        copy(walker, dst, src)
    value.pieces, value.ref = kept.pieces, None


# ---- transfers ----


def transfer(
    walker: Walker,
    target: Access,
    source: Access,
    queue: str,
    signal: tuple[tuple[Semaphore, int], ...] = (),
) -> None:
    """A copy by DMA."""
    target, source = legal(walker, target), legal(walker, source)
    made = isa.TABLE["dma_copy"](target, source, engine=queue, origin=walker.origin, signal=signal)
    walker.emit(made)


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
    return Access(replace(access.tile, shape=(like.elements,), slots=1))


# ---- loops ----


def carried(walker: Walker, value: Any, aval: Any) -> Any:
    """What a loop carries, in memory of its own."""
    if not isinstance(value, Array):
        if not getattr(aval, "shape", ()):
            return value if isinstance(value, Ref) else UNKNOWN
        value = fill(value, aval.shape, aval.dtype)
    source = stored(walker, value)
    held = temporary(walker, value.shape, value.dtype, "carried", layout=source.layout)
    copied(walker, held, source)
    held.made = None
    return held


def carry(walker: Walker, value: Any, held: Any) -> None:
    """The value for the next iteration."""
    if isinstance(held, Array) and value is not held:
        array = value if isinstance(value, Array) else fill(value, held.shape, held.dtype)
        copied(walker, held, array)


def copied(walker: Walker, target: Array, value: Array) -> None:
    """Copies a value into the memory of another; what made it writes there at once, if it can."""
    source = stored(walker, value)
    if not redirected(walker, source, target.pieces):
        place(walker, target.pieces, source)


def sliced(walker: Walker, value: Any, at: Any) -> Any:
    """`value[at]`."""
    if not isinstance(value, Array):
        return value
    shape = value.shape[1:]
    found = temporary(walker, shape, value.dtype, "slice")
    source = stored(walker, value)
    for number, dst in enumerate(found.pieces):
        src = source.pieces[min(number, len(source.pieces) - 1)]
        if src.elements == dst.elements:
            moved(walker, dst, src)
        elif (
            len(src.size) == 2
            and src.partitions >= dst.partitions
            and (src.free_size >= dst.free_size)
        ):
            copy(walker, dst, src[0 : dst.partitions, 0 : dst.free_size])
        else:
            passes(walker, dst, [src])
    return found


def result(walker: Walker, shape: Sequence[int], dtype: Any) -> Array:
    """Memory for what a loop puts together."""
    return temporary(walker, shape, dtype, "stacked")


def put(walker: Walker, stacked: Array, value: Any, at: Any) -> None:
    """`stacked[at] = value`."""
    array = value if isinstance(value, Array) else fill(value, stacked.shape[1:], stacked.dtype)
    source = stored(walker, array)
    dst = stacked.pieces[0]
    for src in source.pieces:
        fits = dst.partitions >= src.partitions and dst.free_size >= src.free_size
        if fits and len(dst.size) == 2:
            copy(walker, dst[0 : src.partitions, 0 : src.free_size], src)
        else:
            passes(walker, dst, [src])


# ---- operands ----


def operand(walker: Walker, spec: Any, name: str, value: Any, aval: Any) -> Any:
    """An array as an operand of an instruction."""
    (known,) = (o for o in spec.operands if o.name == name)
    if not isinstance(value, Array):
        if known.scalar:
            return value if isinstance(value, (int, float)) else 1.0
        value = fill(value, aval.shape or (1, 1), aval.dtype)
    found = stored(walker, value)
    if "psum" not in known.memories:
        found = evacuated(walker, found)
    return whole(found)
