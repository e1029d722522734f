"""What each of JAX's primitives on Refs, loops and semaphores puts down."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax._src import core as jax_core

from jax_trn3 import isa
from jax_trn3.isa import Semaphore, as_index

from ..instruction import Operands
from . import values
from .refs import At, Ref, keys_of
from .scalars import UNKNOWN, AtLeastZero, Both, is_integer, plain
from .survey import parts, transfer
from .walk import Scope, Walker

Rule = Callable[[Walker, Scope, Any, list[Any]], Sequence[Any]]

RULES: dict[str, Rule] = {}
"""By the primitive's name."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def other(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> Sequence[Any]:
    """An equation on arrays."""
    return values.equation(walker, scope, equation, args)


# ---- where in the grid ----


@rule("program_id")
def _program_id(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> Sequence[Any]:
    return [walker.ids[equation.params["axis"]]]


@rule("num_programs")
def _num_programs(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> Sequence[Any]:
    return [walker.grid[equation.params["axis"]]]


@rule("axis_index", "get_barrier_semaphore", "semaphore_read")
def _of_a_device(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> Sequence[Any]:
    return [UNKNOWN]


@rule("debug_print", "debug_callback", "delay", "check", "touch", "add_dependency", "trace_value")
def _nothing(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> Sequence[Any]:
    return args[: len(equation.outvars)]


# ---- instructions ----


@rule("trn3_instruction")
def _instruction(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> Sequence[Any]:
    params = equation.params
    operands: Operands = jax.tree.unflatten(params["tree"], args)
    avals = jax.tree.unflatten(params["tree"], [atom.aval for atom in equation.invars])
    spec = isa.TABLE[params["name"]]
    given: dict[str, Any] = {
        name: walker.access(ref, transforms) for name, (ref, transforms) in operands.refs.items()
    }
    for name, value in operands.values.items():
        given[name] = values.operand(walker, spec, name, value, avals.values[name])
    named = dict(params["params"])
    if operands.accumulate is not None:
        named["accumulate"] = walker.ranges.known(operands.accumulate)
    made = spec(
        **given,
        **named,
        engine=params["engine"],
        origin=isa.Origin(walker.origin.file, walker.origin.line, params["name"]),
        wait=_counts(walker, operands.wait),
        signal=_counts(walker, operands.signal),
    )
    for operand in spec.operands:
        if operand.role != "read" and operand.name in operands.refs:
            values.overwritten(walker, operands.refs[operand.name][0])
    walker.emit(made)
    walker.written += 1
    return []


def _counts(walker: Walker, semaphores: Any) -> tuple[tuple[Semaphore, int], ...]:
    return tuple((semaphore(ref, transforms), count) for ref, transforms, count in semaphores)


def semaphore(ref: Ref, transforms: Sequence[Any]) -> Semaphore:
    """A semaphore of a Ref to several: by its number, unless loops decide that somewhere."""
    every = [key for use in ref.uses for key in use.keys]
    keys = keys_of(ref.shape, transforms) or ()
    fixed = all(isinstance(key, At) and isinstance(key.index, int) for key in (*every, *keys))
    if not keys or not fixed:
        return Semaphore(ref.name)
    return Semaphore(f"{ref.name}{[plain(key.index) for key in keys if isinstance(key, At)]}")


# ---- transfers and semaphores ----


@rule("dma_start")
def _dma_start(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> Sequence[Any]:
    source, target, there, here, device = (*transfer(equation, args), None, None)[:5]
    if device is not None:
        walker.assume("a copy to another device takes as long as one within this one")
    ref, transforms = parts(target)
    signal = [(semaphore(*parts(s)), 1) for s in (there, here) if s is not None]
    values.move(walker, parts(source), (ref, transforms), f"dma:sync.{ref.name}", tuple(signal))
    return []


@rule("dma_wait")
def _dma_wait(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> Sequence[Any]:
    _source, _target, there, *_ = transfer(equation, args)
    _nop(walker, wait=((semaphore(*parts(there)), 1),))
    return []


@rule("semaphore_signal")
def _signal(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> Sequence[Any]:
    ref, transforms, count, device, *_ = equation.params["args_tree"].unflatten(args)
    if device is not None:
        walker.assume("a signal to another device is one to this one")
    _nop(walker, signal=_counted(walker, ref, transforms, count))
    return []


@rule("semaphore_wait")
def _wait(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> Sequence[Any]:
    ref, transforms, count, *_ = equation.params["args_tree"].unflatten(args)
    _nop(walker, wait=_counted(walker, ref, transforms, count))
    return []


def _counted(
    walker: Walker, ref: Any, transforms: Any, count: Any
) -> tuple[tuple[Semaphore, int], ...]:
    if not isinstance(count, int) or not isinstance(ref, Ref):
        walker.assume("a semaphore's count that the kernel's text does not say is taken as 1")
        count = 1
    return ((semaphore(ref, transforms), count),) if isinstance(ref, Ref) and count else ()


def _nop(walker: Walker, **semaphores: Any) -> None:
    walker.emit(isa.TABLE["nop"](engine="sync", origin=walker.origin, **semaphores))
    walker.written += 1


@rule("run_scoped")
def _run_scoped(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> Sequence[Any]:
    program = equation.params["jaxpr"]
    jaxpr = getattr(program, "jaxpr", program)
    refs = [walker.names[var] for var in jaxpr.invars]
    return walker.run(jaxpr, args, refs)


# ---- control flow ----


@rule("cond")
def _cond(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> Sequence[Any]:
    which, *inputs = args
    branches = equation.params["branches"]
    number = _which(walker, which, len(branches))
    if number is not None:
        return walker.closed(branches[number], inputs)
    walker.assume("of branches that data decide, the one that takes longest is taken")
    state = dict(walker.state)
    taken = []
    for branch in branches:
        walker.state = dict(state)
        nodes, results = walker.aside(functools.partial(walker.closed, branch, inputs))
        taken.append((walker.weight(nodes), nodes, results))
    _, nodes, results = max(taken, key=lambda t: t[0])
    walker.nodes += nodes
    return results


def _which(walker: Walker, which: Any, branches: int) -> int | None:
    if isinstance(which, int):
        return min(max(int(which), 0), branches - 1)
    if branches == 2 and not is_integer(which):
        answer = walker.ranges.decided(which)
        return None if answer is None else int(answer)
    if not is_integer(which):
        return None
    for number in range(branches):
        apart = as_index(which) - number
        same = Both(AtLeastZero(apart), AtLeastZero(apart * -1))
        if walker.ranges.decided(same):
            return number
    return None


@rule("pjit", "jit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call",
      "custom_vjp_call", "custom_vjp_call_jaxpr", "jaxpr_call")  # fmt: skip
def _call(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> Sequence[Any]:
    params = equation.params
    program = next(params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in params)
    name = params.get("name", "")
    if name in ("floor_divide", "remainder") and all(is_integer(a) for a in args):
        by = plain(args[1])
        if isinstance(by, int) and by > 0:
            divide = walker.ranges.quotient if name == "floor_divide" else walker.ranges.remainder
            return [plain(divide(as_index(args[0]), by))]
    return walker.closed(program, args)


@rule("scan")
def _scan(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> Sequence[Any]:
    params = equation.params
    program = params["jaxpr"]
    jaxpr, length = getattr(program, "jaxpr", program), params["length"]
    ranks = [len(getattr(v.aval, "shape", ())) for v in equation.invars]
    inside = [len(getattr(v.aval, "shape", ())) for v in jaxpr.invars]
    sequences = sum(a > b for a, b in zip(ranks, inside))
    stacked = sum(
        len(a.aval.shape) > len(b.aval.shape) for a, b in zip(equation.outvars, jaxpr.outvars)
    )
    carried = len(equation.outvars) - stacked
    first = len(args) - sequences - carried
    consts, carry = args[:first], args[first : first + carried]
    xs = args[first + carried :]
    ys = [values.result(walker, v.aval.shape, v.aval.dtype) for v in equation.outvars[carried:]]

    def step(i: Any, now: Sequence[Any]) -> Sequence[Any]:
        at = as_index(length - 1) - as_index(i) if params["reverse"] else i
        slices = [values.sliced(walker, x, at) for x in xs]
        results = walker.run(jaxpr, getattr(program, "consts", ()), [*consts, *now, *slices])
        for y, result in zip(ys, results[carried:]):
            values.put(walker, y, result, at)
        return results[:carried]

    avals = [v.aval for v in equation.outvars]
    return [*_carry(walker, length, carry, _steps(jaxpr, first, carried), avals, step), *ys]


def _carry(
    walker: Walker,
    count: Any,
    carry: Sequence[Any],
    steps: Sequence[int | None],
    avals: Sequence[Any],
    step: Callable[[Any, Sequence[Any]], Sequence[Any]],
) -> Sequence[Any]:
    """Walks a loop that carries something; what it carries in the end.

    Where that are numbers which grow by no constant, one iteration after another, if there are few.
    """
    if isinstance(count, int) and any(s is None and is_integer(c) for c, s in zip(carry, steps)):
        found = walker.attempt(lambda: _one_by_one(count, carry, step))
        if found is not None:
            return list(found)
    held = [
        c if s is not None else values.carried(walker, c, aval)
        for c, s, aval in zip(carry, steps, avals)
    ]

    def body(i: Any) -> None:
        now = [h if s is None else _moved(c, s, i) for c, s, h in zip(carry, steps, held)]
        for result, s, h in zip(step(i, now), steps, held):
            if s is None:
                values.carry(walker, result, h)

    walker.loop(count, body)
    return [h if s is None else _moved(c, s, count) for c, s, h in zip(carry, steps, held)]


def _one_by_one(
    count: int, carry: Sequence[Any], step: Callable[[Any, Sequence[Any]], Sequence[Any]]
) -> Sequence[Any]:
    now = carry
    for i in range(count):
        now = step(i, now)
    return now


def _steps(jaxpr: Any, first: int, count: int) -> list[int | None]:
    """By how much each number that a loop carries grows each time; None if not by a constant."""
    made = {v: e for e in jaxpr.eqns for v in e.outvars}
    found: list[int | None] = []
    for before, after in zip(jaxpr.invars[first : first + count], jaxpr.outvars[:count]):
        step = None
        equation = made.get(after) if isinstance(after, jax_core.Var) else None
        if after is before:
            step = 0
        elif equation is not None and equation.primitive.name == "add":
            one, by = equation.invars
            if one is before and isinstance(by, jax_core.Literal):
                step = plain(by.val)
        found.append(step if isinstance(step, int) else None)
    return found


def _moved(start: Any, step: int | None, times: Any) -> Any:
    if step == 0:
        return start
    if not is_integer(start) or not is_integer(times):
        return UNKNOWN
    return plain(as_index(start) + as_index(times) * (step or 0))


@rule("while")
def _while(walker: Walker, scope: Scope, equation: Any, args: list[Any]) -> Sequence[Any]:
    params = equation.params
    asked, used = params["cond_nconsts"], params["body_nconsts"]
    consts, carry = args[asked : asked + used], args[asked + used :]
    condition, body = params["cond_jaxpr"], params["body_jaxpr"]
    jaxpr = getattr(body, "jaxpr", body)
    steps = _steps(jaxpr, used, len(carry))
    count = _iterations(condition, [*args[:asked], *carry], steps, asked)
    if count is None:
        walker.assume("a loop whose end data decide runs once")
        count = 1

    def step(i: Any, now: Sequence[Any]) -> Sequence[Any]:
        return walker.closed(body, [*consts, *now])

    return _carry(walker, count, carry, steps, [v.aval for v in equation.outvars], step)


def _iterations(condition: Any, inputs: list[Any], steps: list[int | None], asked: int) -> Any:
    """How often a loop `while i < end` runs; None if it is another."""
    jaxpr = getattr(condition, "jaxpr", condition)
    if len(jaxpr.eqns) != 1 or jaxpr.eqns[0].primitive.name not in ("lt", "gt"):
        return None
    low, high = jaxpr.eqns[0].invars
    if jaxpr.eqns[0].primitive.name == "gt":
        low, high = high, low
    known = dict(zip(jaxpr.invars, inputs))
    growth = dict(zip(jaxpr.invars[asked:], steps))
    ends = [plain(x.val) if isinstance(x, jax_core.Literal) else known[x] for x in (low, high)]
    moves = [0 if isinstance(x, jax_core.Literal) else growth.get(x, 0) for x in (low, high)]
    if None in moves or not all(is_integer(e) for e in ends):
        return None
    nearer = moves[0] - moves[1]
    apart = as_index(ends[1]) - ends[0]
    if nearer == 1:
        return plain(apart)
    if nearer > 1 and not apart.terms:
        return -(-apart.const // nearer)
    return None
