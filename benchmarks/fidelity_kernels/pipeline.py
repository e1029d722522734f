"""Software pipelining: loads run ahead of the work that needs them.

A queue is served in order. A store that waits for its result would hold up the loads behind it; a
compiler moves the loads before it, as many iterations ahead as there are buffers.
"""

from collections.abc import Callable, Iterable

from jax_trn3.isa import Index
from jax_trn3.simulator import loop
from jax_trn3.simulator.program import Node

Body = Callable[[Index | int], Iterable[Node]]


def pipelined(count: int, load: Body, work: Body, ahead: int) -> list[Node]:
    """`load(i)` and `work(i)` for i < count, each load `ahead` iterations before its work."""
    ahead = min(ahead, count)
    before = [node for i in range(ahead) for node in load(i)]
    after = [node for i in range(count - ahead, count) for node in work(i)]
    if count == ahead:
        return before + after
    steady = loop(count - ahead, lambda i: [*load(i + ahead), *work(i)])
    return [*before, steady, *after]
