"""Holds an instruction against its line of the table."""

import math
from collections.abc import Iterator

import numpy as np

from jax_trn3.hardware import NeuronCore

from .indirect import group_partitions
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
        if operand.index_of and isinstance(access, Access):
            yield from _index(operand.index_of, access, instruction, core)
    for rule in spec.rules:
        yield from rule(instruction, core)


def _operand(operand: Operand, access: Access, engine: str, core: NeuronCore) -> Iterator[str]:
    name = f"{operand.name} = {access}"
    if access.memory not in operand.memories:
        yield f"{name} lies in {access.memory}; it must lie in {' or '.join(operand.memories)}"
        return
    if access.dtype not in operand.dtypes:
        yield f"{name} has dtype {access.dtype}; allowed: {', '.join(operand.dtypes)}"
    elif access.tile.element.since > core.generation:
        first = access.tile.element.since
        yield f"{name}: NeuronCore-v{first} is the first to know {access.dtype}"
    if access.memory == "hbm":
        return
    if access.memory == "psum" and not _reaches_psum(engine, core):
        yield f"{name}: {engine} cannot access psum; copy it to sbuf with vector or scalar first"
    if operand.quadrant_starts:
        yield from _quadrant_start(name, operand, access, core)
    else:
        yield from _partitions(name, access, core)
    yield from _free(name, access, engine, core)


def _reaches_psum(engine: str, core: NeuronCore) -> bool:
    if engine in ("tensor", "vector", "scalar", "gpsimd"):
        return bool(getattr(getattr(core, engine), "psum_access", True))
    return False


def first_partition(access: Access) -> int:
    """Where an access starts, as far as the program says."""
    return access.start[0] + (access.tile.address[0] if access.tile.address else 0)


def _partitions(name: str, access: Access, core: NeuronCore) -> Iterator[str]:
    """65 to 128 partitions start at 0, 33 to 64 at 0 or 64, fewer at a multiple of 32
    (nki/guides/architecture/trainium_inferentia2_arch.rst)."""
    count, first = access.partitions, first_partition(access)
    if count > core.partitions:
        yield f"{name} has {count} partitions; at most {core.partitions}"
    elif access.step[0] != 1 and count > 1:
        yield f"{name} takes every {access.step[0]}th partition; partitions have no stride"
    elif first not in core.partition_starts(count):
        starts = ", ".join(map(str, core.partition_starts(count)))
        yield f"{name} starts at partition {first}; {count} partitions may start at {starts}"


def _quadrant_start(name: str, operand: Operand, access: Access, core: NeuronCore) -> Iterator[str]:
    """Scales of MX tiles lie beside each other in a quadrant (nki/deep-dives/mxfp-matmul.rst)."""
    first = first_partition(access) % core.quadrant_partitions
    if first not in operand.quadrant_starts:
        starts = ", ".join(map(str, operand.quadrant_starts))
        yield f"{name} starts at partition {first} of a quadrant; it may start at {starts}"
    if first_partition(access) + access.partitions > core.partitions:
        yield f"{name} ends behind partition {core.partitions - 1}, the last one"


def _free(name: str, access: Access, engine: str, core: NeuronCore) -> Iterator[str]:
    """Free patterns: at most 4-D, sizes in 16 bits, strides in 16 bits with sign, in elements
    (nki/deep-dives/nki-aps.rst)."""
    pattern = _free_pattern(access)
    if len(pattern) > core.max_free_dims:
        yield (
            f"{name} has {len(pattern)} free dimensions that are not next to each other; an access "
            f"pattern has at most {core.max_free_dims}"
        )
    for size, stride in pattern:
        if stride > np.iinfo(np.int16).max:
            yield (
                f"{name}: {size} elements lie {stride} elements apart; a stride is at most "
                f"{np.iinfo(np.int16).max}"
            )
    limit = core.max_free_elements[access.memory]
    if engine == "tensor":  # a bfloat16 result may fill all of PSUM (nki.isa nc_matmul)
        limit = max(limit, core.tensor.max_moving_fmax_bfloat16)
    if access.free_size > limit:
        yield (
            f"{name} has {access.free_size} elements a partition; one instruction reaches {limit} "
            f"in {access.memory}"
        )


def _free_pattern(access: Access) -> list[tuple[int, int]]:
    """(size, stride in elements) of the free dimensions, outermost first, as few as will do."""
    shape = access.tile.shape[1:]
    sizes = [access.slot_count, *access.size[1:]]
    strides = [math.prod(shape)]
    strides += [access.step[i] * math.prod(shape[i:]) for i in range(1, len(access.size))]
    pattern: list[tuple[int, int]] = []
    for size, stride in zip(sizes, strides):
        if size == 1:
            continue
        if pattern and pattern[-1][1] == size * stride:
            pattern[-1] = (pattern[-1][0] * size, stride)
        else:
            pattern.append((size, stride))
    return pattern


def _index(of: str, index: Access, instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """Where the offsets of an indirect operand may lie (nki.isa docstrings, "Tensor
    indirection"). Scales of MX tiles share the index of their data, but not its place."""
    engine, access = instruction.engine, instruction[of]
    operand = next(o for o in instruction.spec.operands if o.name == of)
    if core.generation < 4:
        yield f"{of}_index: NeuronCore-v4 is the first to gather and scatter along the free axis"
        return
    if index.partitions != access.partitions and not operand.quadrant_starts:
        yield (
            f"{of}_index has {index.partitions} partitions and {of} {access.partitions}; "
            "they must agree"
        )
    group = group_partitions(engine)
    if index.partitions > group and index.partitions % group:
        yield f"{of}_index has {index.partitions} partitions; allowed: up to {group}, or multiples"
    start = first_partition(index)
    if start % core.quadrant_partitions:
        yield (
            f"{of}_index starts at partition {start}; it must start at a quadrant, "
            f"a multiple of {core.quadrant_partitions}"
        )
    if operand.role != "read":
        yield from _scattered(of, start, instruction, core)
    elif first_partition(access) != start and not operand.quadrant_starts:
        yield (
            f"{of} starts at partition {first_partition(access)} and {of}_index at {start}; "
            "an operand that is gathered starts where its index does"
        )


def _scattered(of: str, start: int, instruction: Instruction, core: NeuronCore) -> Iterator[str]:
    """The index of what is scattered starts where the source does; if that lies in PSUM, where the
    source's own index does."""
    name = next(o.name for o in instruction.spec.operands if o.role == "read" and not o.index_of)
    if instruction[name].memory == "psum":
        name = f"{name}_index"
    source = instruction.get(name)
    if isinstance(source, Access) and first_partition(source) != start:
        yield (
            f"{of}_index starts at partition {start} and {name} at {first_partition(source)}; "
            "they must agree"
        )
    if instruction.engine == "scalar" and instruction[of].memory == "psum":
        yield f"{of} is scattered in psum; scalar scatters in sbuf only"
