"""Walks a kernel's program, and puts instructions and loops down for the simulator.

What loops decide is known (`scalars.py`); a loop in which a branch is taken sometimes only is
walked again, split or unrolled. What data decide is assumed, and the assumption stated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jax._src import core as jax_core

from jax_trn3.hardware import Chip
from jax_trn3.isa import Access, Index, Instruction, Origin, Tile, as_index, new_loop_index
from jax_trn3.simulator import Loop, Node

from ..source import origin_of
from .pipelining import staged
from .refs import At, Ref, Span, access, keys_of, turns
from .scalars import LoopRequest, Mod, Nest, Ranges, Split, Unroll, plain, scalar

UNROLLED = 4096
"""Instructions that loops may grow to when they are unrolled."""


Room = Literal["stages", "turns", "once"]
"""How much memory values may take: as stages of loops need (`pipelining.py`), two places in loops,
used in turn, or one."""


class _TooMuch(Exception):
    """An unrolled loop has more instructions than `UNROLLED`."""


@dataclass
class Scope:
    """One program of the kernel's, while it is walked."""

    jaxpr: Any
    env: dict[Any, Any]
    place: int = 0
    """Which equation it is at."""

    around: Scope | None = None

    def value(self, atom: Any) -> Any:
        """What a variable or literal stands for."""
        if isinstance(atom, jax_core.Literal):
            return plain(atom.val)
        return self.env[atom]

    def readers(self, var: Any) -> Sequence[int]:
        """The equations that use a variable, by number; as many as there are for a result."""
        return readers(self.jaxpr).get(var, ())


@functools.lru_cache(maxsize=4096)
def readers(jaxpr: Any) -> dict[Any, tuple[int, ...]]:
    """The equations that use each variable, by number; as many as there are for a result."""
    found: dict[Any, list[int]] = {}
    ends = [*(e.invars for e in jaxpr.eqns), jaxpr.outvars]
    for place, atoms in enumerate(ends):
        for atom in atoms:
            if isinstance(atom, jax_core.Var):
                found.setdefault(atom, []).append(place)
    return {var: tuple(places) for var, places in found.items()}


@dataclass
class Walker:
    """What a walk knows, and what it has put down."""

    chip: Chip
    names: dict[Any, Ref]
    grid: tuple[Any, ...] = ()
    ids: tuple[Any, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    ranges: Ranges = field(default_factory=Ranges)
    assumptions: dict[str, None] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)
    room: Room = "stages"

    written: int = 0
    """Instructions that the kernel's author wrote as such."""

    slots: dict[Tile, int] = field(default_factory=dict)
    """Slots that tiles need beyond those that they were made with."""

    scope: Scope | None = None
    text: int = 0
    limit: float = float("inf")
    state: dict[Any, Any] = field(default_factory=dict)
    """What rules remember from one equation to the next."""

    def emit(self, instruction: Instruction) -> None:
        """Puts an instruction down."""
        self.nodes.append(instruction)
        self.text += 1
        if self.text > self.limit:
            raise _TooMuch

    def assume(self, sentence: str) -> None:
        """Notes what the program does not say."""
        self.assumptions[f"{sentence} ({self.origin})"] = None

    # Programs.

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        """Walks a program; what its results stand for."""
        env = dict(zip(jaxpr.constvars, consts)) | dict(zip(jaxpr.invars, args))
        scope = Scope(jaxpr, env, around=self.scope)
        outer, origin, self.scope = self.scope, self.origin, scope
        try:
            for place, equation in enumerate(jaxpr.eqns):
                scope.place = place
                self.origin = self._line(equation, origin)
                results = self._equation(scope, equation)
                env.update(zip(equation.outvars, results))
            return [scope.value(atom) for atom in jaxpr.outvars]
        finally:
            self.scope, self.origin = outer, origin

    def closed(self, program: Any, args: Sequence[Any]) -> list[Any]:
        """The same, of a closed program."""
        return self.run(getattr(program, "jaxpr", program), getattr(program, "consts", ()), args)

    def _line(self, equation: Any, around: Origin) -> Origin:
        """Where an equation was written; of one of JAX's own, where it was called."""
        found = origin_of(equation.source_info, equation.primitive.name)
        return found if found.line else Origin(around.file, around.line, found.operation)

    def _equation(self, scope: Scope, equation: Any) -> Sequence[Any]:
        from . import collectives  # noqa: F401 - enters its rule
        from .equations import RULES, other

        name = equation.primitive.name
        args = [scope.value(atom) for atom in equation.invars]
        rule = RULES.get(name)
        if rule is not None:
            return rule(self, scope, equation, args)
        if _on_scalars(equation, args):
            return [scalar(name, equation.params, args, self.ranges)]
        return other(self, scope, equation, args)

    # Memory.

    def access(self, ref: Ref, transforms: Sequence[Any] = ()) -> Access:
        """The part of a Ref's tile that its transforms leave."""
        return access(ref, self.keys(ref, transforms))

    def keys(self, ref: Ref, transforms: Sequence[Any] = ()) -> tuple[Span | At, ...]:
        """What transforms leave of each dimension; of what is not indexed plainly, everything."""
        keys = keys_of(ref.shape, transforms)
        if keys is None:
            self.assume(f"{ref.name} is gathered, or seen in another shape: all of it counts")
            keys = keys_of(ref.shape, ())
            assert keys is not None
        return tuple(self._settled(ref, axis, key) for axis, key in enumerate(keys))

    def _settled(self, ref: Ref, axis: int, key: Span | At) -> Span | At:
        """A place as slots take it; loops change where they cannot."""
        place = key.index if isinstance(key, At) else key.start
        if not isinstance(place, Mod) or turns(ref, axis, place):
            return key
        known = self.ranges.settled(place)
        return At(known) if isinstance(key, At) else Span(known, key.size, key.step)

    # Loops.

    def loop(self, count: Any, body: Callable[[Any], None]) -> None:
        """Walks `body` for every index below `count`."""
        self._range(as_index(0), count, body)

    def _range(
        self, first: Index, count: Any, body: Callable[[Any], None], fixed: bool = False
    ) -> None:
        count = plain(count)
        if isinstance(count, int) and count <= 1:
            if count == 1:
                body(plain(first))
            return
        index = new_loop_index()
        ((number, _),) = index.terms
        self.ranges.counts[number] = as_index(count)
        if fixed:
            self.ranges.fixed.add(number)
        kept = dict(self.assumptions), dict(self.state), self.text
        outer, self.nodes, written = self.nodes, [], self.written
        try:
            body(plain(first + index))
            if self.nodes:
                outer += self._put_down(Loop(index, as_index(count), tuple(self.nodes)), written)
            return
        except LoopRequest as request:
            if request.loop != number:
                raise
            asked = request
        finally:
            self.nodes = outer
            del self.ranges.counts[number]
        self.assumptions, self.state, self.text = kept
        self._otherwise(asked, first, count, body)

    def _put_down(self, loop: Loop, written: int) -> list[Node]:
        """A loop: in stages, unless its author has put instructions in an order."""
        if self.room != "stages" or self.written > written:
            return [loop]
        return staged(loop, self.ranges.least(loop.count), self.slots)

    def _otherwise(
        self, asked: LoopRequest, first: Index, count: Any, body: Callable[[Any], None]
    ) -> None:
        """A loop, as it was asked for."""
        if isinstance(asked, Split):
            self._range(first, asked.at, body)
            self._range(first + asked.at, as_index(count) - asked.at, body)
        elif isinstance(asked, Nest):
            by = asked.by
            self.loop(count // by, lambda k: self._range(first + as_index(k) * by, by, body))
        elif isinstance(count, Index):
            outer = [k for k, _ in count.terms if k not in self.ranges.fixed]
            if outer:
                raise Unroll(min(outer))
            self._range(first, count, body, fixed=True)
        else:
            self._unrolled(first, count, body)

    def _unrolled(self, first: Index, count: int, body: Callable[[Any], None]) -> None:
        def all_of_them() -> bool:
            for k in range(count):
                body(plain(first + k))
            return True

        if not self.attempt(all_of_them):
            self._range(first, count, body, fixed=True)

    def attempt(self, unrolled: Callable[[], Any]) -> Any:
        """What a function returns that puts a loop down one iteration after another; None, and
        nothing put down, if that is too much."""
        kept = list(self.nodes), dict(self.assumptions), dict(self.state), self.text
        limit, self.limit = self.limit, min(self.limit, self.text + UNROLLED)
        mine = self.limit < limit
        try:
            return unrolled()
        except _TooMuch:
            if not mine:
                raise
        finally:
            self.limit = limit
        self.nodes[:], self.assumptions, self.state, self.text = kept
        return None

    def aside(self, body: Callable[[], Any]) -> tuple[list[Node], Any]:
        """What `body` puts down, without putting it down; and what it returns."""
        outer, self.nodes = self.nodes, []
        try:
            result = body()
            return self.nodes, result
        finally:
            self.nodes = outer

    def weight(self, nodes: Sequence[Node]) -> float:
        """About how long these take if nothing overlaps, s."""
        return sum(self._weight(node) for node in nodes)

    def _weight(self, node: Node) -> float:
        if isinstance(node, Loop):
            return self.ranges.greatest(node.count) * self.weight(node.body)
        work = node.spec.cost(node, self.chip.core)
        if work.dma is not None:
            return max(work.dma.engine_ps, default=0) / 1e12
        return work.cycles / getattr(self.chip.core, node.engine).clock_hz


def _on_scalars(equation: Any, args: Sequence[Any]) -> bool:
    from .arrays import Array

    if len(equation.outvars) != 1 or any(isinstance(a, (Array, Ref)) for a in args):
        return False
    return not getattr(equation.outvars[0].aval, "shape", (1,))


def instructions(nodes: Sequence[Node]) -> Iterator[Instruction]:
    """The instructions of a text."""
    for node in nodes:
        if isinstance(node, Loop):
            yield from instructions(node.body)
        else:
            yield node
