"""Rules that many instructions share. Each is made for the operands or parameters of one of
them."""

from collections.abc import Iterator

from jax_trn3.hardware import NeuronCore

from .operand import Access
from .spec import Instruction, Rule


def _named(rule: Rule, text: str) -> Rule:
    rule.__doc__ = text
    return rule


def _present(instruction: Instruction, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if isinstance(instruction.get(name), Access)]


def same_size(*names: str) -> Rule:
    """Operands of as many partitions, and as many elements in each, as the first."""

    def rule(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
        first, *others = _present(instruction, names)
        size = (instruction.shape(first)[0], instruction.free_size(first))
        for name in others:
            other = (instruction.shape(name)[0], instruction.free_size(name))
            if other != size:
                yield (
                    f"{name} has {other[0]} partitions of {other[1]} elements, {first} has "
                    f"{size[0]} of {size[1]}; they must agree"
                )

    return _named(rule, f"{_list(names)} have equal numbers of partitions and of elements in each.")


def same_dtype(*names: str) -> Rule:
    """Operands of the first one's dtype."""

    def rule(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
        first, *others = _present(instruction, names)
        for name in others:
            if instruction[name].dtype != instruction[first].dtype:
                yield (
                    f"{name} is {instruction[name].dtype} and {first} {instruction[first].dtype}; "
                    "they must have the same dtype"
                )

    return _named(rule, f"{_list(names)} have the same dtype.")


def partition_scalars(of: str, *names: str) -> Rule:
    """Operands of one element for each partition of `of`."""

    def rule(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
        partitions = instruction[of].partitions
        for name in _present(instruction, names):
            access = instruction[name]
            if (access.partitions, access.free_size) != (partitions, 1):
                yield (
                    f"{name} has {access.partitions} partitions of {access.free_size} elements; "
                    f"allowed: {partitions} of 1, one for each partition of {of}"
                )

    return _named(rule, f"{_list(names)}: one element for each partition of {of}.")


def one_of(param: str, *allowed: object) -> Rule:
    """A parameter that is one of `allowed`, where it is given."""

    def rule(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
        value = instruction.get(param)
        if value is not None and value not in allowed:
            yield f"{param} is {value!r}; allowed: {', '.join(map(repr, allowed))}"

    return _named(rule, f"{param}: {', '.join(map(repr, allowed))}.")


def engine_since(engine: str, generation: int) -> Rule:
    """An engine that runs the instruction from a generation on only."""

    def rule(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
        if instruction.engine == engine and core.generation < generation:
            yield f"engine {engine} runs it from NeuronCore-v{generation} on"

    return _named(rule, f"On {engine} from NeuronCore-v{generation} on.")


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names)
