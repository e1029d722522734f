"""Programs (jaxprs) with some of their equations replaced, also in loops and branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax._src import core as jax_core

Rule = Callable[[Any], Sequence[Any] | None]
"""What takes an equation's place; None: itself, with what is in it rewritten."""


def rewritten(jaxpr: jax_core.Jaxpr, rule: Rule) -> jax_core.Jaxpr:
    """The program with each equation replaced by what the rule says."""
    equations: list[Any] = []
    for equation in jaxpr.eqns:
        found = rule(equation)
        equations += [_within(equation, rule)] if found is None else found
    return jaxpr.replace(eqns=equations)


def programs(equation: Any) -> list[Any]:
    """The programs in an equation's parameters, closed ones opened."""
    found = []
    for value in equation.params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, jax_core.Jaxpr):
                found.append(one)
            elif _is_closed(one):
                found.append(one.jaxpr)
    return found


def _is_closed(value: Any) -> bool:  # JAX 0.12 has no ClosedJaxpr
    return hasattr(value, "jaxpr") and hasattr(value, "consts")


def _within(equation: Any, rule: Rule) -> Any:
    inner = {key: _replaced(value, rule) for key, value in equation.params.items()}
    if all(inner[key] is value for key, value in equation.params.items()):
        return equation
    return equation.replace(params=inner)


def _replaced(value: Any, rule: Rule) -> Any:
    if isinstance(value, jax_core.Jaxpr):
        return rewritten(value, rule)
    if _is_closed(value):
        return value.replace(jaxpr=rewritten(value.jaxpr, rule))
    if isinstance(value, (tuple, list)) and value:
        inner = [_replaced(one, rule) for one in value]
        return type(value)(inner) if any(a is not b for a, b in zip(inner, value)) else value
    return value
