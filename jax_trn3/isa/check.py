"""Holds an instruction against its line of the table."""

import math
from collections.abc import Iterator

from jax_trn3.hardware import NeuronCore

from .operand import Access
from .spec import Instruction, Operand


class IllegalInstruction(ValueError):
    """An instruction that the hardware cannot carry out."""


def check(instruction: Instruction, core: NeuronCore) -> None:
    """Refuses what the table does not allow on this core.

    **Raises:** `IllegalInstruction` naming the instruction, its origin and everything that is wrong
    with it, each with the numbers and the limit.
    """
    problems = list(violations(instruction, core))
    if problems:
        raise IllegalInstruction(
            f"{instruction.name} from {instruction.origin} cannot run on {core.name}: "
            + "; ".join(problems)
        )


def violations(instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """What is wrong with an instruction, a sentence each."""
    spec = instruction.spec
    engine = instruction.engine.partition(":")[0]
    if core.generation < spec.since:
        yield f"NeuronCore-v{spec.since} is the first to have it"
        return
    if engine not in spec.engines:
        yield f"engine {engine} does not run it; {' or '.join(spec.engines)} does"
        return
    for operand in spec.operands:
        access = instruction.get(operand.name)
        if isinstance(access, Access):
            yield from _operand(operand, access, engine, core)
    for rule in spec.rules:
        yield from rule(instruction, core)


def _operand(operand: Operand, access: Access, engine: str, core: NeuronCore) -> Iterator[str]:
    name = f"{operand.name} = {access}"
    if access.memory not in operand.memories:
        yield f"{name} lies in {access.memory}; it must lie in {' or '.join(operand.memories)}"
        return
    if access.dtype not in operand.dtypes:
        yield f"{name} has dtype {access.dtype}; allowed: {', '.join(operand.dtypes)}"
    if access.memory == "hbm":
        return
    if access.memory == "psum" and engine in ("gpsimd", "dma"):
        yield f"{name}: {engine} cannot access psum; copy it to sbuf with vector or scalar first"
    yield from _partitions(name, access, core)
    yield from _free(name, access, core)


def _partitions(name: str, access: Access, core: NeuronCore) -> Iterator[str]:
    """65 to 128 partitions start at 0, 33 to 64 at 0 or 64, fewer at a multiple of 32
    (nki/guides/architecture/trainium_inferentia2_arch.rst)."""
    count = access.partitions
    first = access.start[0] + (access.tile.address[0] if access.tile.address else 0)
    if count > core.partitions:
        yield f"{name} has {count} partitions; at most {core.partitions}"
    elif access.step[0] != 1 and count > 1:
        yield f"{name} takes every {access.step[0]}th partition; partitions have no stride"
    else:
        step = next(size for size in (32, 64, 128) if count <= size)
        if first % step:
            starts = ", ".join(map(str, range(0, core.partitions, step)))
            yield f"{name} starts at partition {first}; {count} partitions may start at {starts}"


def _free(name: str, access: Access, core: NeuronCore) -> Iterator[str]:
    dimensions = sum(size > 1 for size in access.shape[1:])
    if dimensions > 4:
        yield f"{name} has {dimensions} free dimensions; an access pattern has at most 4"
    limit = core.max_free_elements[access.memory]
    if math.prod(access.shape[1:]) > limit:
        yield (
            f"{name} has {access.free_size} elements a partition; one instruction reaches {limit} "
            f"in {access.memory}"
        )
