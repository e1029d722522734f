"""The rates at which VectorE and ScalarE take an instruction: keys of `elements_per_cycle`.

NeuronCore-v2 takes two operands from SBUF through one port (cost formulas, SDK 2.26). From v3 on
the hardware finds by itself where it may go at twice or four times the rate (trainium2_arch.rst,
"Vector Engine Performance Mode"; trainium3_arch.rst extends them to FP8 and gives ScalarE the 2x).
"""

from collections.abc import Callable

from jax_trn3.hardware import NeuronCore

from .dtypes import FP8, FP16
from .operand import Access
from .spec import Instruction

Mode = Callable[[Instruction, NeuronCore], str]
"""Chooses the rate of an instruction."""


def one_source(source: str) -> Mode:
    """Rate of `tensor_copy` and `tensor_scalar`, which read operand `source` and write `dst`."""

    def mode(instruction: Instruction, core: NeuronCore) -> str:
        accesses = (instruction[source], instruction["dst"])
        if not _narrow(accesses, core):
            return "1x"
        contiguous = all(_contiguous(instruction, name) for name in (source, "dst"))
        in_psum = sum(access.memory == "psum" for access in accesses)
        if instruction.engine == "vector" and core.generation >= 3:
            if not in_psum:
                return "4x" if contiguous else "2x"
            return "2x" if contiguous and in_psum == 1 else "1x"
        if instruction.engine == "scalar" and core.generation >= 4:
            return "2x" if not in_psum or (contiguous and in_psum == 1) else "1x"
        return "1x"

    return mode


def two_sources(one: str, other: str) -> Mode:
    """Rate of an instruction that reads two tiles: the port of v2, nothing of v3 and later."""

    def mode(instruction: Instruction, core: NeuronCore) -> str:
        if instruction.engine != "vector" or core.generation >= 3:
            return "1x"
        return "0.5x" if _both_in_sbuf(instruction, one, other) else "1x"

    return mode


def tensor_tensor_mode(instruction: Instruction, core: NeuronCore) -> str:
    """v2: half the rate when both are in SBUF, but for sums and products of bfloat16; v3 and later:
    twice the rate for 16 bits (v4: also 8) when both are in SBUF."""
    accesses = tuple(instruction[name] for name in ("data1", "data2", "dst"))
    in_sbuf = _both_in_sbuf(instruction, "data1", "data2")
    if instruction.engine != "vector" or not in_sbuf:
        return "1x"
    if core.generation >= 3:
        return "2x" if _narrow(accesses, core) else "1x"
    fast = (
        instruction.get("op") in ("add", "multiply", "subtract")
        and all(access.dtype == "bfloat16" for access in accesses)
        and all(_contiguous(instruction, name) for name in ("data1", "data2", "dst"))
    )
    return "1x" if fast else "0.5x"


def _narrow(accesses: tuple[Access, ...], core: NeuronCore) -> bool:
    dtypes = (*FP16, *FP8) if core.generation >= 4 else FP16
    return all(access.dtype in dtypes for access in accesses)


def _contiguous(instruction: Instruction, name: str) -> bool:
    """Whether the innermost elements lie next to each other."""
    return instruction.get(f"{name}_index") is None and instruction[name].stride == 1


def _both_in_sbuf(instruction: Instruction, one: str, other: str) -> bool:
    accesses = (instruction.get(one), instruction.get(other))
    return all(isinstance(access, Access) and access.memory == "sbuf" for access in accesses)
