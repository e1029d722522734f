"""Evaluates a kernel on values, within the loops of its grid.

JAX knows the grid's indices while it traces, not in programs that are traced already: operations
that ask for `program_id` inside are traced anew. A branch that only moves values is no branch: both
sides and a select take a third of the time on XLA:CPU. All else is taken as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from jax import lax
from jax._src import core as jax_core
from jax._src import source_info_util

from .rewrite import programs

_QUESTIONS = ("program_id", "num_programs")


def evaluate(jaxpr: Any, consts: Sequence[Any], *values: Any) -> list[Any]:
    """The results of a program on these values, within a `grid_env`."""
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, consts)) | dict(zip(jaxpr.invars, values))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jax_core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        stack = source_info_util.current_name_stack() + equation.source_info.name_stack
        traceback = equation.source_info.traceback
        with source_info_util.user_context(traceback, name_stack=stack), equation.ctx.manager:
            results = _result(equation, inputs)
        if not equation.primitive.multiple_results:
            results = [results]
        known.update(zip(equation.outvars, results))
    return [read(atom) for atom in jaxpr.outvars]


def _result(equation: Any, inputs: list[Any]) -> Any:
    if any(map(_asks, programs(equation))):
        rule = _ANEW.get(equation.primitive.name)
        if rule is None:
            raise NotImplementedError(
                f"program_id inside of {equation.primitive.name}; call pl.program_id before it"
            )
        return rule(inputs, **equation.params)
    if equation.primitive.name == "cond" and _is_select(equation.params["branches"]):
        return _select(inputs, **equation.params)
    return equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))


@functools.cache
def _asks(jaxpr: Any) -> bool:
    return any(
        equation.primitive.name in _QUESTIONS or any(map(_asks, programs(equation)))
        for equation in jaxpr.eqns
    )


def _function(program: Any) -> Callable[..., list[Any]]:
    jaxpr = getattr(program, "jaxpr", program)
    return functools.partial(evaluate, jaxpr, getattr(program, "consts", ()))


def _cond(inputs: Sequence[Any], *, branches: Any, **_: Any) -> list[Any]:
    index, *operands = inputs
    return lax.switch(index, [_function(branch) for branch in branches], *operands)


_CHEAP = frozenset(
    ["broadcast_in_dim", "reshape", "squeeze", "convert_element_type", "copy", "jit", "pjit"]
)


def _is_select(branches: Any) -> bool:
    """Whether there are two sides, which do next to nothing."""
    return len(branches) == 2 and all(_is_cheap(branch.jaxpr) for branch in branches)


def _is_cheap(jaxpr: Any) -> bool:
    inside = all(e.primitive.name in _CHEAP and not e.effects for e in jaxpr.eqns)
    return inside and all(_is_cheap(p) for e in jaxpr.eqns for p in programs(e))


def _select(inputs: Sequence[Any], *, branches: Any, **_: Any) -> list[Any]:
    index, *operands = inputs
    sides = [_function(branch)(*operands) for branch in branches]
    return [a if a is b else lax.select_n(index != 0, a, b) for a, b in zip(*sides)]


def _while(
    inputs: Sequence[Any],
    *,
    cond_nconsts: int,
    body_nconsts: int,
    cond_jaxpr: Any,
    body_jaxpr: Any,
    **_: Any,
) -> list[Any]:
    asked, used = inputs[:cond_nconsts], inputs[cond_nconsts : cond_nconsts + body_nconsts]
    first = list(inputs[cond_nconsts + body_nconsts :])
    going, body = _function(cond_jaxpr), _function(body_jaxpr)
    return lax.while_loop(lambda c: going(*asked, *c)[0], lambda c: body(*used, *c), first)


def _scan(
    inputs: Sequence[Any], *, jaxpr: Any, num_consts: int, num_carry: int, length: int,
    reverse: bool, unroll: Any, **_: Any,
) -> list[Any]:  # fmt: skip
    consts, rest = inputs[:num_consts], inputs[num_consts:]
    body = _function(jaxpr)

    def step(carry: Any, xs: Any) -> Any:
        results = body(*consts, *carry, *xs)
        return results[:num_carry], results[num_carry:]

    first, xs = list(rest[:num_carry]), list(rest[num_carry:])
    last, ys = lax.scan(step, first, xs, length=length, reverse=reverse, unroll=unroll)
    return [*last, *ys]


def _call(inputs: Sequence[Any], **params: Any) -> list[Any]:
    program = params.get("jaxpr", params.get("call_jaxpr"))
    return _function(program)(*inputs)


_ANEW: dict[str, Callable[..., list[Any]]] = {"cond": _cond, "while": _while, "scan": _scan}
_ANEW |= dict.fromkeys(
    [
        "jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2",
        "checkpoint",
    ],
    _call,
)  # fmt: skip
