"""Rules of the engines that compute with ALUs: operations, accumulator registers, PSUM."""

from collections.abc import Iterator

from jax_trn3.hardware import NeuronCore

from .alu import ALU_OPS
from .dtypes import INTEGERS
from .operand import Access
from .spec import Instruction, Rule

ARITHMETIC = tuple(name for name, op in ALU_OPS.items() if op.kind == "arithmetic")
BITVEC = tuple(name for name, op in ALU_OPS.items() if op.kind == "bitvec")
BINARY_ARITHMETIC = tuple(name for name in ARITHMETIC if ALU_OPS[name].arity == 2)
BINARY = tuple(name for name, op in ALU_OPS.items() if op.arity == 2)
REDUCTIONS = tuple(name for name, op in ALU_OPS.items() if op.reduces)


def _named(rule: Rule, text: str) -> Rule:
    rule.__doc__ = text
    return rule


def operation(param: str, allowed: tuple[str, ...], *operands: str) -> Rule:
    """An ALU operation out of `allowed` that the generation has; one on bits needs integers in
    `operands`."""

    def rule(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
        name = instruction.get(param)
        if name is None:
            return
        if name not in allowed:
            yield f"{param} is {name!r}; allowed: {', '.join(allowed)}"
            return
        op = ALU_OPS[name]
        if core.generation < op.since:
            yield f"{param} is {name!r}; NeuronCore-v{op.since} is the first to have it"
        for operand in operands if op.kind == "bitvec" else ():
            access = instruction.get(operand)
            if isinstance(access, Access) and access.dtype not in INTEGERS:
                yield (
                    f"{param} is {name!r}, which works on bits, and {operand} is {access.dtype}; "
                    f"allowed: {', '.join(INTEGERS)}"
                )
            elif isinstance(access, float):
                yield f"{param} is {name!r}, which works on bits, and {operand} is {access!r}"

    return _named(rule, f"{param}: {', '.join(allowed)}.")


def second_operand(param: str, operand: str) -> Rule:
    """The operand beside an operation: there if it takes two, None or 0 if it takes one."""

    def rule(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
        op, value = ALU_OPS.get(instruction.get(param)), instruction.get(operand)
        if op is None:
            if value is not None:
                yield f"{operand} is given without {param}"
        elif op.arity == 2 and value is None:
            yield f"{param} is {op.name!r}, which needs {operand}"
        elif op.arity == 1 and (isinstance(value, Access) or value not in (None, 0)):
            yield f"{param} is {op.name!r}, which takes no {operand}; leave it out or let it be 0"

    return _named(rule, f"{operand} goes with {param}; None or 0 if that is unary.")


def not_both_in_psum(one: str, other: str) -> Rule:
    """Two operands of which at least one is read from SBUF."""

    def rule(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
        accesses = (instruction.get(one), instruction.get(other))
        if all(isinstance(access, Access) and access.memory == "psum" for access in accesses):
            yield f"{one} and {other} both lie in psum; one of them must lie in sbuf"

    return _named(rule, f"{one} and {other} are not both in PSUM.")


def reduce_command(*allowed: str, init: str | None = None) -> Rule:
    """`reduce_cmd` out of `allowed` (the first one is the default), what it needs and what it rules
    out: `init` is what "load_reduce" loads."""

    def rule(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
        command = instruction.get("reduce_cmd", allowed[0])
        if command not in allowed:
            yield f"reduce_cmd is {command!r}; allowed: {', '.join(allowed)}"
        if command == "idle" and instruction.get("reduce_res") is not None:
            yield "reduce_res is given, but nothing is reduced: reduce_cmd is 'idle'"
        loaded = init and instruction.get(init)
        if command == "load_reduce" and init and loaded is None:
            yield f"reduce_cmd is 'load_reduce', which needs {init}"
        if command != "load_reduce" and (isinstance(loaded, Access) or loaded):
            yield f"{init} is given, but reduce_cmd is {command!r}; 'load_reduce' takes it"

    return _named(rule, f"reduce_cmd: {', '.join(allowed)}.")


def elements_within(operand: str, low: int, high: int, *, like: str | None = None) -> Rule:
    """An operand of `low` to `high` elements a partition, and of as many partitions as `like`."""
    span = f"{low} to {high}" if low != high else f"{low}"

    def rule(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
        if not isinstance(instruction.get(operand), Access):
            return
        count = instruction.free_size(operand)
        if not low <= count <= high:
            yield f"{operand} has {count} elements a partition; allowed: {span}"
        if like and instruction.shape(operand)[0] != instruction.shape(like)[0]:
            yield (
                f"{operand} has {instruction.shape(operand)[0]} partitions and {like} "
                f"{instruction.shape(like)[0]}; they must agree"
            )

    return _named(rule, f"{operand} has {span} elements a partition.")


def dimensions_within(most: int, *operands: str) -> Rule:
    """Operands of at most `most` dimensions, partitions among them."""

    def rule(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
        for name in operands:
            if isinstance(instruction.get(name), Access) and len(instruction.shape(name)) > most:
                shape = instruction.shape(name)
                yield f"{name} of shape {shape} has {len(shape)} dimensions; allowed: {most}"

    return _named(rule, f"{', '.join(operands)}: at most {most} dimensions.")
