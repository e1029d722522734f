"""Runs the programs in a kernel, equation by equation.

Every rule is a function of the machine and an equation's inputs. What waits, or has programs inside
of it, is a generator: it yields where it cannot go on, and is resumed when it perhaps can.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax._src import core as jax_core

from . import numbers
from .storage import Partly, parts

Rule = Callable[["Machine", Sequence[Any]], Any]
Running = Generator[Any, None, list[Any]]

RULES: dict[str, Callable[[Any], Rule]] = {}
"""By primitive: a function that makes an equation's rule."""

PROGRAMS: dict[str, Callable[[Any], Rule]] = {}
"""The same, of those whose rules are generators."""


def rule(*names: str, waits: bool = False) -> Callable[[Any], Any]:
    """Enters a function that makes rules."""

    def enter(make: Any) -> Any:
        (PROGRAMS if waits else RULES).update(dict.fromkeys(names, make))
        return make

    return enter


class Machine:
    """A kernel that is being run."""

    def __init__(self, kernel: Any, checks: Any = None):
        self.kernel = kernel
        self.checks = checks
        """None: nothing is checked."""
        self.axes: Sequence[Any] = ()
        """Index and size in each dimension of the grid that the kernel sees."""
        self.ranks: Any = None
        """All devices that run the kernel together."""
        self.rank = 0
        self.turns: dict[int, int] = {}
        """How often each collective was reached."""

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> Running:
        """A program's results."""
        plan = plan_of(jaxpr)
        held = plan.first.copy()
        for slot, value in zip(plan.given, (*consts, *inputs), strict=True):
            held[slot] = value
        for step in plan.steps:
            results = step.rule(self, [held[slot] for slot in step.ins])
            if step.waits:
                results = yield from results
            if step.single:
                held[step.outs[0]] = results
            else:
                for slot, value in zip(step.outs, results):
                    held[slot] = value
        return [held[slot] for slot in plan.outs]

    def number(self, value: Any, equation: Any, used_as: str) -> int:
        """A scalar that decides what happens next."""
        if type(value) is Partly:
            self.checks.undefined(value, equation, used_as)
        return int(value)


@dataclass(frozen=True)
class Step:
    """An equation: where its inputs are and where its results go."""

    rule: Rule
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    single: bool
    waits: bool


@dataclass(frozen=True)
class Plan:
    """A program, its variables in places of a list."""

    first: list[Any]
    """The list before: constants in their places."""

    given: tuple[int, ...]
    steps: tuple[Step, ...]
    outs: tuple[int, ...]


@functools.lru_cache(maxsize=256)
def plan_of(jaxpr: Any) -> Plan:
    """How a program is run; made once."""
    first: list[Any] = []
    places: dict[Any, int] = {}

    def place(atom: Any) -> int:
        if isinstance(atom, jax_core.Literal):
            first.append(np.asarray(atom.val, atom.aval.dtype)[()])
            return len(first) - 1
        if atom not in places:
            first.append(None)
            places[atom] = len(first) - 1
        return places[atom]

    given = tuple(map(place, (*jaxpr.constvars, *jaxpr.invars)))
    steps = tuple(_step(equation, place) for equation in jaxpr.eqns)
    return Plan(first, given, steps, tuple(map(place, jaxpr.outvars)))


def _step(equation: Any, place: Callable[[Any], int]) -> Step:
    name = equation.primitive.name
    waits = name in PROGRAMS
    make = PROGRAMS.get(name) or RULES.get(name) or _computed
    ins, outs = tuple(map(place, equation.invars)), tuple(map(place, equation.outvars))
    return Step(make(equation), ins, outs, not equation.primitive.multiple_results, waits)


def _computed(equation: Any) -> Rule:
    """An operation on values."""
    if equation.effects:
        raise NotImplementedError(f"{equation.primitive.name} in a kernel")
    function = numbers.operation(equation) or compiled(equation)

    def run(machine: Machine, inputs: Sequence[Any]) -> Any:
        for value in inputs:
            if type(value) is Partly:
                results = function(*[parts(value)[0] for value in inputs])
                return machine.checks.shadowed(equation, inputs, results)
        return function(*inputs)

    return run


def compiled(equation: Any) -> Callable[..., Any]:
    """The equation alone as a compiled function of all its inputs.

    Literals are constants of the program, as they are in the kernel's: XLA simplifies with them.
    """
    literals = tuple(
        (k, np.asarray(atom.val, atom.aval.dtype).tobytes(), np.dtype(atom.aval.dtype))
        for k, atom in enumerate(equation.invars)
        if isinstance(atom, jax_core.Literal)
    )
    params = tuple(sorted(equation.primitive.get_bind_params(equation.params).items()))
    try:
        function = _compiled(equation.primitive, params, literals)
    except TypeError:  # parameters that cannot be compared
        function = _compiled.__wrapped__(equation.primitive, params, literals)
    if not literals:
        return function
    given = [k for k, a in enumerate(equation.invars) if not isinstance(a, jax_core.Literal)]
    return lambda *inputs: function(*[inputs[k] for k in given])


def apply(primitive: Any, params: dict[str, Any], inputs: Sequence[Any]) -> Any:
    """An operation on other values than the kernel's, all of them inputs of the program."""
    key = tuple(sorted(params.items()))
    try:
        function = _compiled(primitive, key, ())
    except TypeError:
        function = _compiled.__wrapped__(primitive, key, ())
    return function(*inputs)


@functools.lru_cache(maxsize=4096)
def _compiled(primitive: Any, params: Any, literals: Any) -> Callable[..., Any]:
    fixed = {k: np.frombuffer(text, dtype)[0] for k, text, dtype in literals}

    def alone(*given: Any) -> Any:
        rest = iter(given)
        count = len(given) + len(fixed)
        inputs = [fixed[k] if k in fixed else next(rest) for k in range(count)]
        return primitive.bind(*inputs, **dict(params))

    return jax.jit(alone)
