"""Operations with programs inside: branches, loops, calls, and memory that lives in a scope."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .machine import Machine, Rule, Running, rule
from .storage import Partly, allocate, parts


def _program(program: Any) -> tuple[Any, Sequence[Any]]:
    """JAX 0.10's ClosedJaxpr has a program and constants; 0.12's programs hold their own."""
    return getattr(program, "jaxpr", program), getattr(program, "consts", ())


@rule("cond", waits=True)
def _cond(equation: Any) -> Rule:
    branches = [_program(branch) for branch in equation.params["branches"]]

    def run(machine: Machine, inputs: Sequence[Any]) -> Running:
        index = machine.number(inputs[0], equation, "the condition of a branch")
        jaxpr, consts = branches[min(max(index, 0), len(branches) - 1)]
        return (yield from machine.run(jaxpr, consts, inputs[1:]))

    return run


@rule("while", waits=True)
def _while(equation: Any) -> Rule:
    params = equation.params
    asked, used = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    going, body = _program(params["cond_jaxpr"]), _program(params["body_jaxpr"])

    def run(machine: Machine, inputs: Sequence[Any]) -> Running:
        carry = list(inputs[used:])
        while True:
            (on,) = yield from machine.run(*going, [*inputs[:asked], *carry])
            if not machine.number(on, equation, "the condition of a loop"):
                return carry
            carry = yield from machine.run(*body, [*inputs[asked:used], *carry])

    return run


@rule("scan", waits=True)
def _scan(equation: Any) -> Rule:
    params = equation.params
    body = _program(params["jaxpr"])
    length = params["length"]
    steps = range(length)[::-1] if params["reverse"] else range(length)
    if "ft_in" in params:  # JAX 0.12
        consts, count, _ = (len(part) for part in params["ft_in"].unpack())
    else:
        consts, count = params["num_consts"], params["num_carry"]

    def run(machine: Machine, inputs: Sequence[Any]) -> Running:
        carry, xs = list(inputs[consts : consts + count]), inputs[consts + count :]
        rows: list[list[Any]] = []
        for k in steps:
            here = [_row(x, k) for x in xs]
            results = yield from machine.run(*body, [*inputs[:consts], *carry, *here])
            carry = results[:count]
            rows.append(results[count:])
        avals = [v.aval for v in equation.outvars[count:]]
        ordered = rows[::-1] if params["reverse"] else rows
        return [*carry, *(_stacked([r[k] for r in ordered], a) for k, a in enumerate(avals))]

    return run


def _row(value: Any, k: int) -> Any:
    value, shadow = parts(value)
    row = np.asarray(value)[k]
    return row if shadow is None else Partly.of(row, np.asarray(shadow[k]))


def _stacked(rows: Sequence[Any], aval: Any) -> Any:
    if not rows:
        return np.zeros(aval.shape, aval.dtype)
    values = np.stack([np.asarray(parts(row)[0]) for row in rows])
    if not any(type(row) is Partly for row in rows):
        return values
    shadows = [parts(row)[1] for row in rows]
    return Partly(
        values,
        np.stack([np.zeros(values.shape[1:], np.int32) if s is None else s for s in shadows]),
    )


@rule(
    "jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2",
    "checkpoint", "custom_vjp_call_jaxpr", "core_closed_call", waits=True,
)  # fmt: skip
def _call(equation: Any) -> Rule:
    params = equation.params
    key = next(k for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in params)
    jaxpr, consts = _program(params[key])

    def run(machine: Machine, inputs: Sequence[Any]) -> Running:
        return (yield from machine.run(jaxpr, consts, inputs))

    return run


@rule("run_scoped", waits=True)
def _run_scoped(equation: Any) -> Rule:
    jaxpr = equation.params["jaxpr"]
    if equation.params["collective_axes"]:
        raise NotImplementedError("run_scoped with collective_axes")
    names = getattr(jaxpr.debug_info, "arg_names", None) or ()
    names = [*names, *[""] * len(jaxpr.invars)]

    def run(machine: Machine, inputs: Sequence[Any]) -> Running:
        scoped = []
        for k, variable in enumerate(jaxpr.invars):
            name = names[k] or f"scratch {k}"
            origin = machine.checks.allocated(name, equation) if machine.checks else 0
            scoped.append(allocate(name, variable.aval, origin))
        results = yield from machine.run(jaxpr, inputs, scoped)
        if machine.checks:
            machine.checks.freed(scoped, equation)
        return results

    return run


@rule("program_id")
def _program_id(equation: Any) -> Rule:
    axis = equation.params["axis"]
    return lambda machine, inputs: np.int32(machine.axes[axis].index)


@rule("num_programs")
def _num_programs(equation: Any) -> Rule:
    axis = equation.params["axis"]
    return lambda machine, inputs: np.int32(machine.axes[axis].size)


@rule("multiple_of", "optimization_barrier")
def _as_it_is(equation: Any) -> Rule:
    if equation.primitive.multiple_results:
        return lambda machine, inputs: inputs
    return lambda machine, inputs: inputs[0]


@rule("debug_print", "debug_callback")
def _debug(equation: Any) -> Rule:
    """What a kernel's author wants to see, undefined or not."""

    def run(machine: Machine, inputs: Sequence[Any]) -> Any:
        return equation.primitive.impl(*[parts(x)[0] for x in inputs], **equation.params)

    return run
