"""A program: a tree of loops and instructions, in an order in which one after another would do.

The order is what defines the result, as in NKI (nki/deep-dives/nki-compiler.rst): an instruction
waits for those before it whose tiles it needs, and for nothing else.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from jax_trn3.isa import Index, Instruction, Tile, as_index, new_loop_index


@dataclass(frozen=True)
class Loop:
    """A body that runs `count` times, its index going up from 0."""

    index: Index
    """The loop's own index, for slots of tiles in the body."""

    count: Index
    """Iterations; may depend on the loops around it."""

    body: tuple["Node", ...]

    @property
    def id(self) -> int:
        """What the loop is called in an `Index`."""
        return self.index.terms[0][0]


Node = Instruction | Loop


@dataclass(frozen=True)
class Program:
    """What the engines of one core, or of several that work together, are to do."""

    name: str
    body: tuple[Node, ...]

    def instructions(self) -> Iterator[Instruction]:
        """The instructions of the text, in its order; those of a loop once."""
        return _instructions(self.body)

    def tiles(self) -> tuple[Tile, ...]:
        """The tiles that its instructions work on, in the order of their first use."""
        operands = (access for i in self.instructions() for _, access in i.operands)
        return tuple(dict.fromkeys(access.tile for access in operands))


def program(name: str, body: Iterable[Node]) -> Program:
    """A program of these instructions and loops."""
    return Program(name, tuple(body))


def loop(count: int | Index, body: Callable[[Index], Iterable[Node]]) -> Loop:
    """A loop whose body is made by a function of its index.

    >>> loop(8, lambda i: [tensor_copy(out[i], tile[i])])
    """
    index = new_loop_index()
    return Loop(index, as_index(count), tuple(body(index)))


def _instructions(nodes: Iterable[Node]) -> Iterator[Instruction]:
    for node in nodes:
        if isinstance(node, Loop):
            yield from _instructions(node.body)
        else:
            yield node
