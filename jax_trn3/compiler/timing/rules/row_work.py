"""A group of rows read into steps: what goes by whole, what is one a row, what comes at the end."""

from jax_trn3.hardware import NeuronCore
from jax_trn3.isa import DTYPES
from jax_trn3.isa.alu import ALU_OPS

from ..draft import reduced_columns
from ..graph import Operation, Tensor
from ..group import Group
from .elementwise import recipe
from .row_values import Reading, Share
from .steps import Operand, Step, Value
from .tiles import held_as

_COLUMN_LIMIT = 1 << 14
"""Elements of a row that stays in SBUF for all rows; longer ones are loaded piece by piece."""

_ONE_ROW = 1 << 16
_BITS = {name for name, op in ALU_OPS.items() if op.kind == "bitvec"}
_REDUCTIONS = {
    "add": "add", "maximum": "maximum", "minimum": "minimum", "multiply": "multiply",
    "and": "minimum", "or": "maximum", "xor": "add",
}  # fmt: skip
_PASSES = {"f64": 20, "i64": 6, "ui64": 6, "complex<f32>": 4, "complex<f64>": 80}
"""Instructions for one on a type that engines do not have: error-free sums and products in pairs
of float32 (Dekker 1971: 20 operations and fewer), words with carries, complex products."""


def reading(group: Group, core: NeuronCore) -> Reading:
    """Reads a group."""
    kinds = [op.kind.partition(".")[2] for op in group.operations]
    name = f"{kinds[0]} ... {kinds[-1]}" if len(kinds) > 1 else kinds[0]
    read = Reading(name, _elements(group), core)
    outputs = {t.id for t in group.outputs}
    inputs = {(t.id, t.shape): t for t in group.inputs}
    names: dict[tuple[int, tuple[int, ...]], int] = {}
    for place, operation in enumerate(group.operations):
        _read(read, operation, inputs, names, outputs, group.operations[place + 1 :])
    for tensor in group.outputs:
        number = names.get((tensor.id, ()))
        if number is not None and number not in read.kept:
            read.far[number] = tensor.dtype
            read.sizes[number] = tensor.size
            read.kept.append(_kept(read, number, tensor))
    _typed(read)
    _widen(read)
    worst = max(
        (_PASSES.get(t.dtype, 1) for op in group.operations for t in (*op.operands, *op.results)),
        default=1,
    )
    if worst > 1:
        dtypes = {t.dtype for op in group.operations for t in op.results if t.dtype in _PASSES}
        read.passes = worst
        read.lacks = (
            f"no engine computes in {', '.join(sorted(dtypes)) or '64 bits'}: {worst} instructions "
            "for one, on pairs of 32-bit words"
        )
    return read


def _elements(group: Group) -> int:
    sizes = [t.size for op in group.operations for t in op.results]
    sizes += [op.operands[0].size for op in group.operations if op.kind == "stablehlo.reduce"]
    for op in group.operations:
        repeats = op.attributes.get("repeats", ())
        sizes += [t.size for t, n in zip(op.operands, repeats) if n == 1]
    return max([*sizes, 1])


def _kept(read: Reading, number: int, tensor: Tensor) -> int:
    """What is stored for a result: itself, or a copy of what came from elsewhere."""
    value = read.work.values[number]
    if value.source in ("step", "late"):
        return number
    copy = read.work.new(value.every if value.every else 1, held_as(tensor.dtype, read.core))
    read.work.steps.append(Step("convert", [number], copy))
    read.far[copy], read.sizes[copy] = tensor.dtype, tensor.size
    return copy


def _read(
    read: Reading,
    operation: Operation,
    inputs: dict[tuple[int, tuple[int, ...]], Tensor],
    names: dict[tuple[int, tuple[int, ...]], int],
    outputs: set[int],
    later: tuple[Operation, ...],
) -> None:
    kind = operation.kind
    result = operation.results[0]
    if kind.endswith("iota") and 1 < result.size < read.elements and _is_a_row_each(result, later):
        # A number a row: made for each tile.
        every = max(1, read.elements // result.size)
        read.lengths.add(every)
        number = names[result.id, ()] = _value(read, result, every, "step")
        read.work.steps.append(Step("iota", [0.0], number))
        return
    if kind.endswith("iota"):
        number = _value(read, result, 1, "column" if result.size > 1 else "scalar")
        read.made[number] = "iota" if result.size > 1 else "number"
        names[result.id, ()] = number
        _materialize(read, names, result, outputs)
        return
    repeats = operation.attributes.get("repeats") or tuple(1 for _ in operation.operands)
    operands: list[Operand] = [
        _operand(read, t, int(n), inputs, names) for t, n in zip(operation.operands, repeats)
    ]
    if any(isinstance(o, int) and read.work.values[o].source == "late" for o in operands):
        if kind not in ("stablehlo.map", "stablehlo.convert"):  # stores convert
            read.tail += len(recipe(operation, tuple(isinstance(o, float) for o in operands)))
        read.flops += result.size
        for tensor in operation.results:
            names[tensor.id, ()] = _value(read, tensor, 0, "late")
        return
    if "broadcast" in kind and kind.startswith("stablehlo."):
        _broadcast(read, operation, operands[0] if operands else 0.0, names)
    elif kind == "stablehlo.reduce":
        _reduce(read, operation, operands, names)
    elif kind == "stablehlo.map":
        _mapped(read, operation, operands, names)
    else:
        _compute(read, operation, operands, names, outputs, later)


def _is_a_row_each(value: Tensor, readers: tuple[Operation, ...]) -> bool:
    """Whether a value's elements stand for a row each, not for a column."""
    for operation in readers:
        repeats = operation.attributes.get("repeats") or [1] * len(operation.operands)
        for tensor, repeat in zip(operation.operands, repeats):
            if tensor.id == value.id:
                return int(repeat) >= 1 or operation.results[0].size == value.size
    return False


def _value(read: Reading, tensor: Tensor, every: int, source: str) -> int:
    number = read.work.new(every, held_as(tensor.dtype, read.core))
    value = read.work.values[number]
    read.work.values[number] = Value(number, every, value.dtype, source)
    read.far[number], read.sizes[number] = tensor.dtype, tensor.size
    return number


def _materialize(
    read: Reading, names: dict[tuple[int, tuple[int, ...]], int], result: Tensor, outputs: set[int]
) -> None:
    """An iota that goes to HBM is one tile written again and again."""
    if result.id in outputs:
        source = names[result.id, ()]
        number = read.work.new(1, read.work.values[source].dtype)
        read.work.steps.append(Step("convert", [source], number))
        names[result.id, ()] = number


def _operand(
    read: Reading,
    tensor: Tensor,
    repeat: int,
    inputs: dict[tuple[int, tuple[int, ...]], Tensor],
    names: dict[tuple[int, tuple[int, ...]], int],
) -> Operand:
    """The value that an operand is, or a number."""
    if (tensor.id, ()) in names:
        return names[tensor.id, ()]
    key = (tensor.id, tensor.shape)
    if key in names:
        return names[key]
    if key not in inputs:
        return 1.5  # a number of the program's
    size = tensor.size
    if size == 1 and read.elements > 1:
        names[key] = _value(read, tensor, read.elements, "scalar")
    elif repeat >= 1 and read.elements % size == 0:
        every = read.elements // size
        read.lengths.add(every)
        names[key] = _value(read, tensor, every, "hbm")
    else:
        names[key] = _value(read, tensor, 1, "column")
        if size > _COLUMN_LIMIT:
            read.shares.append(Share(names[key], size / read.elements))
    return names[key]


def _broadcast(
    read: Reading,
    operation: Operation,
    operand: Operand,
    names: dict[tuple[int, tuple[int, ...]], int],
) -> None:
    result = operation.results[0]
    number = _value(read, result, 1, "step")
    names[result.id, ()] = number
    if isinstance(operand, float):
        source = _value(read, result, 1, "column")
        read.made[source] = "number"
        operand = source
    read.work.steps.append(Step("convert", [operand], number))


def _reduce(
    read: Reading,
    operation: Operation,
    operands: list[Operand],
    names: dict[tuple[int, tuple[int, ...]], int],
) -> None:
    count = len(operation.results)
    source, size = operands[0], operation.operands[0].size
    name = _REDUCTIONS.get(_region(operation), "maximum")
    read.flops += sum(t.size for t in operation.operands[:count])
    if isinstance(source, float):
        source = _value(read, operation.operands[0], 1, "column")
        read.made[source] = "number"
    columns = reduced_columns(operation)
    whole = operation.results[0].size == 1
    if columns or (whole and (read.elements > size or size > _ONE_ROW)):
        columns = max(1, columns)
        if 1 < columns <= _COLUMN_LIMIT and read.elements % columns == 0:
            read.lengths.add(columns)
        for tensor in operation.results:
            late = _value(read, tensor, 0, "late")
            names[tensor.id, ()] = late
            for operand in operands[: 2 * count - 1 if count > 1 else 1]:
                if isinstance(operand, int):
                    read.work.steps.append(Step(f"reduce {name}", [operand], late))
            read.late_size = max(read.late_size, tensor.size)
        return
    if size == operation.results[0].size:
        names[operation.results[0].id, ()] = source
        return
    every = read.elements // operation.results[0].size
    read.lengths.add(every)
    for tensor in operation.results:
        number = _value(read, tensor, every, "step")
        names[tensor.id, ()] = number
        largest = _largest(read, source, name, every)
        if largest is None:
            read.work.steps.append(Step(f"reduce {name}", [source], number))
        else:
            read.work.steps.append(Step("convert", [largest], number))


def _largest(read: Reading, source: int, name: str, every: int) -> int | None:
    """A maximum is exact in bfloat16, which VectorE reduces at twice the rate."""
    if name != "maximum" or read.work.values[source].dtype != "bfloat16":
        return None
    number = read.work.new(every, "bfloat16")
    read.narrow.add(number)
    read.work.steps.append(Step("reduce maximum", [source], number))
    return number


def _region(operation: Operation) -> str:
    """What a reduction does: the operation of its region; of several results a choice."""
    if not operation.regions or len(operation.results) > 1:
        return "maximum" if len(operation.results) > 1 else "add"
    kinds = [op.kind.partition(".")[2] for op in operation.regions[0].operations]
    return next((kind for kind in kinds if kind in _REDUCTIONS), "add")


def _mapped(
    read: Reading,
    operation: Operation,
    operands: list[Operand],
    names: dict[tuple[int, tuple[int, ...]], int],
) -> None:
    """The operations of a region, on every element."""
    result = operation.results[0]
    number: Operand = operands[0]
    for _ in operation.regions[0].operations if operation.regions else ():
        number = _step(read, "multiply", [number, 1.5], 1, held_as(result.dtype, read.core))
    assert isinstance(number, int)
    names[result.id, ()] = number
    read.flops += result.size


def _compute(
    read: Reading,
    operation: Operation,
    operands: list[Operand],
    names: dict[tuple[int, tuple[int, ...]], int],
    outputs: set[int],
    later: tuple[Operation, ...],
) -> None:
    """The steps of an elementwise operation."""
    result = operation.results[0]
    dtype = held_as(result.dtype, read.core)
    every = max(1, read.elements // result.size)
    read.lengths.add(every)
    read.flops += result.size
    if _free_convert(read, operation, operands, names, outputs, later):
        return
    numbers = tuple(isinstance(o, float) for o in operands)
    made: list[Operand] = []
    steps = recipe(operation, numbers)
    for place, (name, *places) in enumerate(steps):
        reads = [_place(p, operands, made) for p in places]
        if all(isinstance(o, float) for o in reads) and name != "select":
            made.append(1.5)
            continue
        last = place == len(steps) - 1
        kind = dtype if last or name != "round" else "int32"
        if last or name in _BITS or kind == "int32":
            step_dtype = kind
        else:
            step_dtype = dtype if DTYPES[dtype].bytes >= 2 else "float32"
        used = [read.work.values[o].every for o in reads if isinstance(o, int)]
        own = every if last else max(every, min([e for e in used if e] or [every]))
        made.append(_step(read, str(name), reads, own, step_dtype))
    final = made[-1]
    if isinstance(final, float):
        source = _value(read, result, 1, "column")
        read.made[source] = "number"
        final = source
    names[result.id, ()] = final


def _free_convert(
    read: Reading,
    operation: Operation,
    operands: list[Operand],
    names: dict[tuple[int, tuple[int, ...]], int],
    outputs: set[int],
    later: tuple[Operation, ...],
) -> bool:
    """Engines read any type and write any: a conversion costs nothing but where what was loaded is
    stored, or both sides of it are."""
    if operation.kind not in ("stablehlo.convert", "stablehlo.reduce_precision"):
        return False
    (source,), (result,) = operands[:1], operation.results
    if not isinstance(source, int):
        return False
    value = read.work.values[source]
    stored = result.id in outputs
    before = operation.operands[0]
    if value.source == "step":
        others = before.id in outputs or any(t.id == before.id for op in later for t in op.operands)
        if not others:
            dtype = held_as(result.dtype, read.core)
            read.work.values[source] = Value(source, value.every, dtype, "step")
            names[result.id, ()] = source
            return True
    if stored or value.source not in ("hbm", "step"):
        return False
    if result.dtype.lstrip("usi").isdigit() or before.dtype.lstrip("usi").isdigit():
        return False
    names[result.id, ()] = source
    return True


def _place(place: object, operands: list[Operand], made: list[Operand]) -> Operand:
    if isinstance(place, float):
        return place
    assert isinstance(place, int)
    return operands[place] if place >= 0 else made[place]


def _step(read: Reading, name: str, reads: list[Operand], every: int, dtype: str) -> int:
    number = read.work.new(every, dtype)
    first = reads[0] if reads else 0.0
    if isinstance(first, float) and name != "select" and len(reads) > 1:
        reads = [reads[1], first]
    read.work.steps.append(Step(name, reads, number))
    return number


def _widen(read: Reading) -> None:
    """Values of one a row that whole rows need as often as they are long: a value a partition will
    do where a row fills a partition."""
    for step in read.work.steps:
        into = read.work.values[step.writes]
        if into.source == "late":
            continue
        for number in (*step.reads, step.scale, step.bias):
            if isinstance(number, int):
                value = read.work.values[number]
                if value.source in ("hbm", "step") and value.every > max(1, into.every):
                    read.wide.add(number)


def _typed(read: Reading) -> None:
    """Values of one a row are float32, as operands of a partition must be, but for those whose bits
    count."""
    bits = {
        n
        for step in read.work.steps
        if step.op in _BITS
        for n in (*step.reads, step.writes)
        if isinstance(n, int)
    }
    chosen = {step.reads[0] for step in read.work.steps if step.op == "select"}
    for number, value in list(read.work.values.items()):
        if value.source in ("column", "late") or number in bits | chosen | read.narrow:
            continue
        if value.every > 1 or value.source == "scalar":
            read.work.values[number] = Value(number, value.every, "float32", value.source)
    for number in sorted(bits):
        value = read.work.values[number]
        if value.dtype in ("float32", "bfloat16", "float16"):
            dtype = "int32" if value.dtype == "float32" else "int16"
            read.work.values[number] = Value(number, value.every, dtype, value.source)
