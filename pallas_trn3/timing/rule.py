"""Kernels in estimates and profiles: the rule of the operation that a `pallas_call` is kept as."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from jax_trn3.compiler.timing.graph import Operation
from jax_trn3.compiler.timing.group import Group, Plan
from jax_trn3.compiler.timing.rules import AUTHORED, OPENED, rule
from jax_trn3.hardware import Chip
from jax_trn3.isa import Instruction
from jax_trn3.simulator import Loop, Node

from ..registry import KERNELS, WHOLE
from .grid import TimedKernel, program_of

AUTHORED.add(WHOLE)


@rule(WHOLE)
def kernel(group: Group, chip: Chip) -> Plan:
    """The kernel's own instructions."""
    (operation,) = group.operations
    timed = _timed(operation.attributes["kernel"], chip)
    flops = _flops(timed.program.body, chip, {})
    return Plan(timed.program, 1, flops, timed.assumptions, authored=True)


@functools.lru_cache(maxsize=256)
def _timed(key: str, chip: Chip) -> TimedKernel:
    return program_of(KERNELS[key], chip)


def opened(operation: Operation) -> str:
    """Why a kernel is timed by what it computes; "" if it is not."""
    key = str(operation.attributes.get("kernel", ""))
    if key not in KERNELS:
        return (
            f"kernel {key!r} at {operation.source} was lowered in another process: its operations "
            "are timed as XLA has them"
        )
    kernel = KERNELS[key]
    own = [tuple(block.mapping.array_aval.shape) for block in kernel.blocks]
    inputs = own[: len(own) - len(operation.results)]
    given = [t.shape for t in operation.operands[kernel.scalars :]]
    if given[: len(inputs)] != inputs:
        return (
            f"kernel {kernel.name} at {operation.source} is split over devices without shard_map: "
            "its operations are timed as XLA has them"
        )
    return ""


OPENED[WHOLE] = opened


def _flops(nodes: Sequence[Node], chip: Chip, indices: dict[int, int]) -> int:
    """Operations of the tensor engine that results need (a multiply-add counts as two)."""
    return sum(_of_node(node, chip, indices) for node in nodes)


def _of_node(node: Node, chip: Chip, indices: dict[int, int]) -> int:
    if isinstance(node, Instruction):
        return _of_instruction(node, chip) if node.engine == "tensor" else 0
    count = max(0, node.count.at(indices))
    if _varies(node.body, node.id):
        return sum(_flops(node.body, chip, {**indices, node.id: i}) for i in range(count))
    return count * _flops(node.body, chip, {**indices, node.id: 0}) if count else 0


def _of_instruction(instruction: Instruction, chip: Chip) -> int:
    return int(instruction.spec.cost(instruction, chip.core).flops)


def _varies(nodes: Sequence[Any], loop: int) -> bool:
    inner = [node for node in nodes if isinstance(node, Loop)]
    return any(loop in dict(n.count.terms) or _varies(n.body, loop) for n in inner)
