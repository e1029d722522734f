"""What a group of rows does, as steps that are an instruction each, and the engine of each."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from jax_trn3.hardware import Chip, NeuronCore
from jax_trn3.isa import Access, Instruction
from jax_trn3.isa.alu import ACTIVATIONS, ALU_OPS
from jax_trn3.isa.gpsimd import iota
from jax_trn3.isa.scalar import activation
from jax_trn3.isa.vector import scalar_tensor_tensor, tensor_scalar, tensor_tensor
from jax_trn3.isa.vector_move import tensor_copy, tensor_copy_predicated
from jax_trn3.isa.vector_reduce import exponential, tensor_reduce

Operand = int | float
"""A number of a value, or (float) a number."""

_BITS = {name for name, op in ALU_OPS.items() if op.kind == "bitvec"}
_FUNCTIONS = {*ACTIVATIONS} - {"square", "abs", "copy"}


@dataclass(frozen=True)
class Value:
    """Something that a step makes or reads."""

    number: int
    every: int
    """Elements of the longest row for one of this: 1 of what goes by whole, a row's length of a
    value a row."""

    dtype: str
    source: str = "step"
    """"hbm", "step", "column" (the same for every row, in SBUF from the start) or "late"."""


@dataclass
class Step:
    """One instruction."""

    op: str
    reads: list[Operand]
    writes: int
    second: str = ""
    """Another operation on the result, in the same instruction."""

    sums: int | None = None
    """A value that gets the sums of its rows on the way."""

    scale: Operand | None = None
    bias: Operand | None = None
    """Of ScalarE's functions: what is done before."""


@dataclass
class Work:
    """The steps of a group and what they work on."""

    values: dict[int, Value] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    uses: dict[int, int] = field(default_factory=dict)

    def new(self, every: int, dtype: str) -> int:
        """A value that only steps know."""
        number = -1 - len(self.values)
        self.values[number] = Value(number, every, dtype)
        return number


def counted(work: Work, kept: Iterable[int]) -> dict[int, int]:
    """How often each value is used."""
    uses: dict[int, int] = {}
    for step in work.steps:
        for read in (*step.reads, step.scale, step.bias):
            if isinstance(read, int):
                uses[read] = uses.get(read, 0) + 1
    for number in kept:
        uses[number] = uses.get(number, 0) + 1
    return uses


def joined(work: Work, kept: Iterable[int], core: NeuronCore, row: int) -> list[Step]:
    """Steps, two in one instruction where the ISA can: a product or sum with a number before a
    function of ScalarE's or before another operation; the sums of a row on the way.

    - `row`: the length of rows of which each fills a partition, or 0.
    """
    uses = counted(work, kept)
    made: dict[int, Step] = {}
    result: list[Step] = []
    for step in work.steps:
        before = _only(step, uses, made)
        if before is not None and _join(before, step, work, core, row):
            made[step.writes] = before
            before.writes = step.writes
            # It stands where the later one did: everything that it reads is there by then.
            result.remove(before)
            result.append(before)
            continue
        source = made.get(step.reads[0]) if isinstance(step.reads[0], int) else None
        if step.op == "reduce add" and source is not None and _sums(source, step, work):
            continue
        result.append(step)
        made[step.writes] = step
    return result


def _only(step: Step, uses: dict[int, int], made: dict[int, Step]) -> Step | None:
    """The step whose result only this one reads."""
    for read in step.reads:
        if isinstance(read, int) and uses.get(read) == 1 and read in made:
            return made[read]
    return None


def _join(before: Step, step: Step, work: Work, core: NeuronCore, row: int) -> bool:
    every = work.values[step.writes].every
    if work.values[before.writes].every != every or before.second or before.sums is not None:
        return False
    if before.scale is not None or before.bias is not None or len(before.reads) != 2:
        return False

    def small(operand: Operand) -> bool:
        """Whether an instruction takes it as a number or as a value a partition."""
        if isinstance(operand, float):
            return True
        value = work.values[operand]
        alone = row > 1 and value.every == row and every < row
        return value.source == "scalar" or (alone and value.dtype in _OPERANDS)

    data, number = before.reads
    arithmetic = before.op not in _BITS and before.op in ALU_OPS
    if not small(number) or not arithmetic or not isinstance(data, int) or small(data):
        return False
    first = step.reads[0] == before.writes
    if step.op in _FUNCTIONS and before.op in ("multiply", "add", "subtract"):
        return _joined_function(before, step, core)
    if step.op not in ALU_OPS or step.op in _BITS or len(step.reads) != 2:
        return False
    other = step.reads[1] if first else step.reads[0]
    wide = isinstance(other, int) and not small(other) and work.values[other].every != every
    if (small(other) and not first) or wide or other == before.writes:
        return False
    if "power" in (step.op, before.op) and not small(other):
        return False
    before.second = step.op
    before.reads = [*before.reads, other]
    return True


_OPERANDS = ("float32", "bfloat16", "float16")


def _joined_function(before: Step, step: Step, core: NeuronCore) -> bool:
    """A function of a product or a sum. (Of a difference its bias is what is subtracted, negated
    where it was reduced.)"""
    number = before.reads[1]
    if before.op == "multiply":
        before.scale = number
    elif core.generation < 3 and isinstance(number, float):
        return False  # its bias is a tile
    else:
        before.bias = number
    before.op, before.reads = step.op, before.reads[:1]
    return True


def _sums(source: Step, step: Step, work: Work) -> bool:
    """Lets a function of ScalarE's add up what it gives."""
    if source.sums is not None or source.second:
        return False
    if work.values[source.writes].every != 1:
        return False
    if source.op == "multiply" and source.reads[0] == source.reads[1]:
        source.op, source.reads = "square", source.reads[:1]
    elif source.op not in _FUNCTIONS:
        return False
    source.sums = step.writes
    return True


# Engines.

Place = Callable[[Operand], Access | float]


@dataclass
class Engines:
    """How long each engine is busy so far with one tile, so that the next step goes to another."""

    chip: Chip
    busy: dict[str, float] = field(default_factory=dict)

    def best(self, candidates: list[Instruction]) -> Instruction:
        """The instruction whose engine is done first."""
        core = self.chip.core
        best, soonest = candidates[0], float("inf")
        for instruction in candidates:
            engine = instruction.engine
            clock = getattr(core, engine).clock_hz
            time = instruction.spec.cost(instruction, core).cycles / clock
            done = self.busy.get(engine, 0.0) + time
            if done < soonest:
                best, soonest = instruction, done
        self.busy[best.engine] = soonest
        return best


def candidates(
    step: Step,
    dst: Access,
    at: Place,
    row: Callable[[Operand], Access | float | None],
    sums: Access | None,
    core: NeuronCore,
) -> list[Instruction]:
    """The instructions that carry out a step, one for each engine that can.

    - `at`: the operand as large as `dst`, or a number.
    - `row`: the operand as a value a partition, if it is one.
    """  # fmt: skip
    name, generation = step.op, core.generation
    first = step.reads[0]
    if name.startswith("reduce "):
        return [_reduction(step, dst, at(first))]
    if name == "iota":
        return [iota(dst, pattern=[[1, dst.free_size]])]
    if name in ("convert", "round"):
        return _copies(dst, at(first), generation)
    if name == "select":
        raise AssertionError("selections are several instructions")
    if name in _FUNCTIONS or (name == "square" and step.sums is not None):
        return _functions(step, dst, at(first), row, sums, core)
    data, others = _ordered(step, row)
    number = row(others[0]) if others else None
    if len(others) < 2 and not step.second:
        if others and number is None:
            return _pairs(name, dst, _access(at(data)), _access(at(others[0])))
        return _with_number(name, dst, _access(at(data)), number, core)
    second = row(others[1]) if len(others) > 1 else None
    if len(others) > 1 and second is None:
        operand = _access(at(others[1]))
        return [
            scalar_tensor_tensor(dst, _access(at(data)), number, operand, op0=name, op1=step.second)
        ]
    found = [tensor_scalar(dst, _access(at(data)), number, second, op0=name, op1=step.second)]
    pair = (name, step.second)
    if pair == ("multiply", "add") and (generation >= 3 or isinstance(second, Access)):
        found.append(activation(dst, _access(at(data)), second, number, op="copy"))
    return found


def _access(value: Access | float) -> Access:
    assert isinstance(value, Access)
    return value


def _ordered(
    step: Step, row: Callable[[Operand], Access | float | None]
) -> tuple[int, list[Operand]]:
    """The operand that goes by, and what is done to it."""
    reads = list(step.reads)
    if step.second:
        return int(reads[0]), reads[1:]
    small = [isinstance(read, float) or row(read) is not None for read in reads]
    if small == [True, False]:
        reads.reverse()
    return int(reads[0]), reads[1:]


def _reduction(step: Step, dst: Access, data: Access | float) -> Instruction:
    data = _access(data)
    axes = tuple(range(len(dst.size), len(data.size)))
    op = step.op.partition(" ")[2]
    return tensor_reduce(dst, data, op=op, axis=axes or (len(data.size) - 1,))


def _copies(dst: Access, src: Access | float, generation: int) -> list[Instruction]:
    src = _access(src)
    found = [tensor_copy(dst, src, engine="vector")]
    found.append(
        tensor_copy(dst, src, engine="scalar")
        if generation >= 3
        else activation(dst, src, op="copy")
    )
    return found


def _functions(
    step: Step,
    dst: Access,
    data: Access | float,
    row: Callable[[Operand], Access | float | None],
    sums: Access | None,
    core: NeuronCore,
) -> list[Instruction]:
    data = _access(data)
    bias = row(step.bias) if step.bias is not None else None
    reduced: dict[str, Any] = {}
    if sums is not None:
        reduced = {"reduce_op": "add", "reduce_cmd": "reset_reduce"}
    scale = row(step.scale) if step.scale is not None else None
    found = [activation(dst, data, bias, scale, sums, op=step.op, **reduced)]
    plain = scale is None and not isinstance(bias, float) and dst.dtype != "float8_e4m3fn"
    if step.op == "exp" and core.generation >= 4 and plain and data.dtype != "float8_e4m3fn":
        command: dict[str, Any] = {"reduce_cmd": "reset_reduce"} if sums is not None else {}
        found.append(exponential(dst, data, bias, sums, **command))
    return found  # fmt: skip


def _pairs(name: str, dst: Access, one: Access, other: Access) -> list[Instruction]:
    words = ("int32", "uint32")
    exact = all(a.dtype in words for a in (dst, one, other)) and name not in _BITS
    if name == "power" or exact:
        return [tensor_tensor(dst, one, other, op=name, engine="gpsimd")]
    found = [tensor_tensor(dst, one, other, op=name, engine="vector")]
    if name in ("add", "subtract", "multiply"):
        found.append(tensor_tensor(dst, one, other, op=name, engine="gpsimd"))
    return found


def _with_number(
    name: str, dst: Access, data: Access, number: Access | float | None, core: NeuronCore
) -> list[Instruction]:
    """One operand and a number, or a value a partition."""
    if name in _BITS and isinstance(number, float):
        return [tensor_scalar(dst, data, int(number), op0=name)]
    if number is None and ALU_OPS[name].arity == 2:
        number = 1.0
    found = [tensor_scalar(dst, data, number, op0=name)]
    if name == "multiply":
        found.append(activation(dst, data, None, number, op="copy"))
    elif name in ("add", "subtract") and core.generation >= 3:
        found.append(activation(dst, data, number, None, op="copy"))
    elif name in ("square", "abs", "relu"):
        found.append(activation(dst, data, op=name))
    return found


def selection(
    dst: Access, predicate: Access, true: Access | float, false: Access | float, core: NeuronCore
) -> list[list[Instruction]]:
    """`dst = true` where the predicate holds, else `false`: a copy, and a copy over it. For each of
    the instructions, what can carry it out."""
    if isinstance(false, Access):
        found = [_copies(dst, false, core.generation)]
    else:
        found = [[tensor_scalar(dst, predicate, 0.0, float(false), op0="multiply", op1="add")]]
    if isinstance(true, Access) and true.dtype != dst.dtype:
        true = replace(dst)
    return [*found, [tensor_copy_predicated(dst, true, predicate)]]
