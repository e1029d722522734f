"""Values that need no work of their own: the same bytes under another shape, or read several times.

A reader of a view reads what is behind it. `Tensor.id` of what a group reads is therefore the id of
the memory, its shape the part of it that is read, as the reader sees it.
"""

from dataclasses import dataclass, replace

from .graph import Body, Operation, Tensor, bits
from .kinds import FREE, VIEWS, is_elementwise, stays_whole

_RUN_BYTES = 512
"""Shortest run of a slice that is read from where it lies; others go through HBM once more."""

_SHORT_RUN = 64
"""The same for what rows of elementwise operations read: parts of rows that are loaded whole, as
halves of heads are."""


@dataclass(frozen=True)
class View:
    """What is behind a value."""

    tensor: Tensor
    """Memory and the shape in which it is read, before anything is repeated."""

    repeat: int = 1
    """How often each element stands, one after the other; 0 where it is repeated otherwise, as the
    columns of a bias are."""

    window: bool = False
    """Whether it is a part of the memory: then it must lie in HBM."""

    needs: tuple[int, ...] = ()
    """Ids of values that say which part."""

    made: Operation | None = None
    """The iota that engines carry out themselves."""

    constant: bool = False
    """Whether it is part of the program."""

    @property
    def plain(self) -> bool:
        """Whether it is memory as it lies."""
        return self.repeat == 1 and not self.window and self.made is None


def views(body: Body) -> dict[int, View]:
    """For each value that is a view, by its id, what is behind it."""
    found: dict[int, View] = {}
    read_by_rows = _read_by_elementwise_alone(body)
    for operation in body.operations:
        if is_elementwise(operation) or operation.kind == "stablehlo.reduce":
            view = _folded(operation, found)
            if view is not None:
                found[operation.results[0].id] = view
            continue
        if operation.kind == "stablehlo.transpose" and _in_place(operation):
            operand, result = operation.operands[0], operation.results[0]
            found[result.id] = _reshaped(operand, result, behind(operand, found))
            continue
        if operation.kind not in FREE and operation.kind not in VIEWS:
            continue
        if operation.kind in ("stablehlo.return", "func.return", "sdy.return"):
            continue
        for place, result in enumerate(operation.results):
            least = _SHORT_RUN if result.id in read_by_rows else _RUN_BYTES
            view = _view(operation, place, result, found, least)
            if view is not None:
                found[result.id] = view
    return found


def behind(tensor: Tensor, known: dict[int, View]) -> View:
    """What is behind a value; itself if it is no view."""
    return known.get(tensor.id) or View(tensor)


def _in_place(transpose: Operation) -> bool:
    """Whether only dimensions of size 1 change places."""
    shape = transpose.operands[0].shape
    order = [int(a) for a in transpose.attributes["permutation"] if shape[int(a)] > 1]
    return order == sorted(order)


def _read_by_elementwise_alone(body: Body) -> set[int]:
    """Values that only rows of elementwise operations read, as they are or under another shape."""
    others: set[int] = {t.id for t in body.results}
    for operation in reversed(body.operations):
        same = operation.kind in ("stablehlo.reshape", "stablehlo.convert")
        if is_elementwise(operation) or (same and operation.results[0].id not in others):
            continue
        others |= {t.id for t in operation.used}
    return {t.id for op in body.operations for t in op.results} - others


def _view(
    operation: Operation, place: int, result: Tensor, known: dict[int, View], least: int
) -> View | None:
    kind = operation.kind.partition(".")[2]
    if kind in ("iota", "dynamic_iota"):
        return View(result, repeat=0, made=operation)
    if not operation.operands or kind in ("constant_like", "partition_id", "replica_id"):
        return _number(operation, result)
    operand = operation.operands[min(place, len(operation.operands) - 1)]
    before = behind(operand, known)
    if kind == "constant_like" or kind == "get_dimension_size":
        return View(result, constant=True)
    if "broadcast" in kind:
        return _broadcast(operation, operand, result, before)
    if kind in ("slice", "dynamic_slice"):
        return _window(operation, operand, result, before, least)
    return _reshaped(operand, result, before)


def _number(operation: Operation, result: Tensor) -> View:
    """A constant; one number over and over is in no memory."""
    values = operation.attributes.get("value")
    splat = values is not None and getattr(values, "size", 2) == 1
    if result.size > 1 and (splat or operation.attributes.get("splat") is not None):
        return View(Tensor(result.id, (), result.dtype), repeat=result.size, constant=True)
    return View(result, constant=True)


def _folded(operation: Operation, known: dict[int, View]) -> View | None:
    """A number that the compiler computes, if it does not need anybody's values."""
    if not operation.operands or len(operation.results) != 1:
        return None
    seen = [known.get(tensor.id) for tensor in operation.operands]
    result = operation.results[0]
    if not all(view is not None and view.constant and view.tensor.size == 1 for view in seen):
        return None
    return View(Tensor(result.id, (), result.dtype), repeat=result.size, constant=True)


def _reshaped(operand: Tensor, result: Tensor, before: View) -> View:
    if not before.plain and not (before.window and before.repeat == 1):
        return before if _width(operand) == _width(result) else View(result)
    return replace(before, tensor=Tensor(before.tensor.id, result.shape, result.dtype))


def _width(tensor: Tensor) -> int:
    try:
        return bits(tensor.dtype)
    except ValueError:  # a token
        return 0


def _broadcast(operation: Operation, operand: Tensor, result: Tensor, before: View) -> View:
    times = result.size // max(1, operand.size)
    if times == 1:
        return _reshaped(operand, result, before)
    dimensions = operation.attributes.get("broadcast_dimensions")
    if operand.size == 1:
        trailing = True
    elif dimensions is None:
        trailing = False
    else:
        # Dimensions of the operand that count, and whether those of the result before them are all.
        counting = [int(d) for d, n in zip(dimensions, operand.shape) if n > 1]
        last = counting[-1] if counting else -1
        before_it = [d for d in range(last + 1) if result.shape[d] > 1]
        trailing = counting == before_it
    repeat = before.repeat * times if trailing else 0
    return replace(before, repeat=repeat)


def _window(
    operation: Operation, operand: Tensor, result: Tensor, before: View, least: int
) -> View | None:
    """A slice of memory, if what it reads lies in long runs."""
    if result.size == operand.size:
        return _reshaped(operand, result, before)
    if before.repeat != 1 or before.made or before.constant:
        return None
    strides = operation.attributes.get("strides") or (1,) * len(result.shape)
    run = 1
    for part, whole, stride in reversed(list(zip(result.shape, operand.shape, strides))):
        run *= part
        if part != whole or int(stride) != 1:
            run = 1 if int(stride) != 1 else run
            break
    if run * bits(result.dtype) // 8 < least and result.size > 64:
        return None
    # A scalar out of a small table is read from where it lies, too: its transfer is all there is.
    tensor = Tensor(before.tensor.id, result.shape, result.dtype)
    needs = (*before.needs, *(t.id for t in operation.operands[1:]))
    return replace(before, tensor=tensor, window=True, needs=needs)


def uses(body: Body) -> dict[int, int]:
    """How often each value is used, results of the body included."""
    count: dict[int, int] = {}
    for operation in body.operations:
        tensors = operation.used if operation.regions else operation.operands
        for tensor in tensors:
            count[tensor.id] = count.get(tensor.id, 0) + 1
    for tensor in body.results:
        count[tensor.id] = count.get(tensor.id, 0) + 1
    return count


def reads_memory_only(operation: Operation) -> bool:
    """Whether an operation needs its operands written out as they are, not as views."""
    return stays_whole(operation) or operation.kind.startswith(
        ("stablehlo.custom_call", "custom_call:", "stablehlo.sort", "stablehlo.fft")
    )
