"""An engine's instruction, by the meaning that compiled kernels use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jax_trn3 import isa

from ..instruction import Operands
from ..kernel import needed
from ..meaning import meaning
from .machine import Machine, Rule, Running, rule
from .references import load, store
from .selection import leaves
from .semaphores import Place, signal, wait
from .storage import Partly, parts


@rule("trn3_instruction", waits=True)
def _instruction(equation: Any) -> Rule:
    return Issued(equation)


class Issued:
    """An instruction of a kernel; called, it runs."""

    def __init__(self, equation: Any):
        params = equation.params
        avals = [atom.aval for atom in equation.invars]
        marked: Operands = jax.tree.unflatten(params["tree"], leaves(len(avals), 0, avals))
        self.equation, self.name = equation, params["name"]
        self.engine, self.params = params["engine"], params["params"]
        self.spec = isa.TABLE[self.name]
        self.roles = {o.name: o.role for o in self.spec.operands}
        self.refs = {k: Place.of(*pair) for k, pair in marked.refs.items()}
        self.values = {k: v.number for k, v in marked.values.items()}
        self.waits = [(Place.of(ref, t), n) for ref, t, n in marked.wait]
        self.signals = [(Place.of(ref, t), n) for ref, t, n in marked.signal]
        self.state = None if marked.state is None else marked.state.number
        self.accumulate = None if marked.accumulate is None else marked.accumulate.number
        self.function: Any = None
        self.traced: Any = None
        self.legal: set[Any] = set()
        """Dynamic starts that were found legal."""

    def __call__(self, machine: Machine, inputs: Sequence[Any]) -> Running:
        """Waits, reads, computes, writes, signals."""
        equation, checks = self.equation, machine.checks
        for place, count in self.waits:
            ref = inputs[place.number]
            yield from wait(machine, equation, ref, place.selection, inputs, count, self.engine)
        if checks:
            checks.issued(self, inputs)
        arrays = {
            k: load(machine, equation, inputs[place.number], place.selection, inputs)
            for k, place in self.refs.items()
            if checks is None or self.roles[k] != "write"
        }
        arrays |= {k: inputs[number] for k, number in self.values.items()}
        if checks:
            arrays |= checks.underneath(self, inputs)
        self._finish(machine, inputs, arrays)
        for place, count in self.signals:
            ref = inputs[place.number]
            signal(machine, equation, ref, place.selection, inputs, count, self.engine)
        return []

    def _finish(self, machine: Machine, inputs: Sequence[Any], arrays: dict[str, Any]) -> None:
        plain = {k: parts(v)[0] for k, v in arrays.items()}
        if self.function is None:
            self.function = meaning(self.name, self.engine, self.params, plain)
        state = None if self.state is None else inputs[self.state].read()
        going_on = None if self.accumulate is None else inputs[self.accumulate]
        given = [self._split(arrays), state, going_on]
        if machine.checks:
            writes, after = machine.checks.applied(machine, self, given)
        else:
            writes, after = self.apply(given)
        for key, value in writes.items():
            place = self.refs[key]
            shape = np.shape(plain[key])
            value, shadow = parts(value)
            value = value if np.shape(value) == shape else np.asarray(value).reshape(shape)
            whole = Partly.of(value, None if shadow is None else shadow.reshape(shape))
            store(machine, self.equation, inputs[place.number], place.selection, inputs, whole)
        if after is not None and self.state is not None:
            inputs[self.state].write(after)
        if machine.checks:
            machine.checks.finished(self, inputs)

    def apply(self, given: list[Any]) -> Any:
        """The instruction on values."""
        (reads, previous), state, accumulate = given
        return self.function(reads, previous, state, accumulate)

    def followed(self, given: list[Any]) -> Any:
        """The meaning as a program, to follow undefined values through it: program, constants, and
        numbers of the inputs that it uses."""
        if self.traced is None:
            (reads, previous), state, accumulate = given
            closed = jax.make_jaxpr(self.function)(reads, previous, state, accumulate)
            program = getattr(closed, "jaxpr", closed), closed.consts
            (call,) = program[0].eqns
            inner = call.params["jaxpr"]
            inside = needed(getattr(inner, "jaxpr", inner))
            arguments = {v: k for k, v in enumerate(program[0].invars)}
            places = zip(getattr(inner, "jaxpr", inner).invars, call.invars)
            used = {arguments[outer] for v, outer in places if v in inside and outer in arguments}
            self.traced = program, used
        return self.traced

    def _split(self, arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is read, [partitions, ...] at least, and what lies under what is written."""
        reads = {k: _at_least_2d(v) for k, v in arrays.items() if self.roles[k] == "read"}
        return reads, {k: v for k, v in arrays.items() if self.roles[k] != "read"}


def _at_least_2d(value: Any) -> Any:
    value, shadow = parts(value)
    if np.ndim(value) > 1:
        return value if shadow is None else Partly(value, shadow)
    shape = (*(np.shape(value) or (1,)), 1)
    return Partly.of(np.reshape(value, shape), None if shadow is None else shadow.reshape(shape))
