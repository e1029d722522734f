"""What instructions cost: cycles in which an engine can take no other one.

Cost formulas are published for Trainium1 (`nki/api/nki/isa/__init__.py` as of SDK 2.26);
performance modes and new instructions for Trainium2 and 3 (architecture guides). What an engine
can do in a cycle is in `jax_trn3.hardware`; here is how much of it an instruction takes.
"""

import math
from collections.abc import Callable

from jax_trn3.hardware import ComputeEngine, NeuronCore

from .spec import Cost, Instruction, Work


def engine_of(instruction: Instruction, core: NeuronCore) -> ComputeEngine:
    """The vector, scalar or GpSimd engine that runs the instruction."""
    engine: ComputeEngine = getattr(core, instruction.engine)
    return engine


def engine_cycles(
    engine: ComputeEngine, elements: float, mode: str = "1x", extra: float = 0.0
) -> float:
    """Cycles for `elements` a partition at the rate of `mode`, and `extra` ones after them."""
    streaming = math.ceil(elements / engine.elements_per_cycle[mode])
    return engine.start_cycles + max(streaming, engine.min_issue_cycles) + extra


def streaming(
    mode: Callable[[Instruction, NeuronCore], str] | str = "1x",
    *,
    of: str = "dst",
    factor: float = 1.0,
    flops: int = 1,
) -> Cost:
    """Cost of an instruction that takes the elements of operand `of` one after another.

    **Arguments:**

    - `mode`: The engine's rate, or a function that chooses it.
    - `of`: The operand whose free size counts.
    - `factor`: Passes over it.
    - `flops`: Operations an element.
    """

    def cost(instruction: Instruction, core: NeuronCore) -> Work:
        free_size, engine = instruction.free_size(of), engine_of(instruction, core)
        rate = mode if isinstance(mode, str) else mode(instruction, core)
        elements = free_size * factor
        if _far_apart(instruction, core):
            elements = max(elements, 2 * free_size * min(engine.elements_per_cycle[rate], 1))
        cycles = engine_cycles(engine, elements, rate)
        return Work(cycles, flops=flops * instruction[of].partitions * free_size, mode=rate)

    return cost


def _far_apart(instruction: Instruction, core: NeuronCore) -> bool:
    """Whether an operand's neighbours lie so far apart that SBUF and PSUM supply half as many
    (trainium_inferentia2_arch.rst, "Access pattern").
    An engine that needs 2 cycles for each anyway does not notice."""
    return any(
        access.memory != "hbm"
        and access.stride * access.tile.element.bytes > core.slow_stride_bytes
        for _, access in instruction.operands
    )


def sequencer_step(instruction: Instruction, core: NeuronCore) -> Work:
    """An instruction that an engine's sequencer carries out alone. No cost is published; a profile
    shows about 30 ns for each set-up instruction, whatever the engine."""
    engine = getattr(core, instruction.engine)
    sync = core.sync
    return Work(sync.min_issue_cycles * engine.clock_hz / sync.clock_hz)
