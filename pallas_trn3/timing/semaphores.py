"""Semaphores of programs in which data decide who signals."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from jax_trn3.isa import Semaphore
from jax_trn3.simulator import Loop, Node, Program
from jax_trn3.simulator.walk import instances


def balanced(program: Program) -> bool:
    """Whether nobody waits for what is not signalled before, and nothing is left in the end."""
    text = list(program.instructions())
    if not any(i.wait or i.signal for i in text):
        return True
    held: Counter[Semaphore] = Counter()
    for number, _ in instances(program):
        for semaphore, count in text[number].wait:
            held[semaphore] -= count
            if held[semaphore] < 0:
                return False
        for semaphore, count in text[number].signal:
            held[semaphore] += count
    return not any(held.values())


def without_semaphores(program: Program) -> Program:
    """The program, its instructions waiting for data alone."""
    return Program(program.name, tuple(map(_without, program.body)))


def _without(node: Node) -> Node:
    if isinstance(node, Loop):
        return replace(node, body=tuple(map(_without, node.body)))
    return replace(node, wait=(), signal=())
