"""Who waits for whom: what a kernel's text says about a semaphore that nobody has signalled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax._src import core as jax_core

from ..rewrite import programs
from ..source import line
from .order import KERNEL


@dataclass(frozen=True)
class Use:
    """A signal of a semaphore, or a wait."""

    semaphore: str
    agent: str
    equation: Any
    signal: bool


def chain(kernel: Any, semaphore: str, agent: str, equation: Any, separate: bool) -> str:
    """From a wait to whoever would have to signal, to what that one waits for, and so on.

    **Arguments:**

    - `separate`: Whether engines run beside each other (explicit synchronization).
    """
    names = getattr(kernel.jaxpr.debug_info, "arg_names", None) or ()
    known = dict(zip(kernel.jaxpr.invars, names))
    uses = list(_uses(kernel.jaxpr, known, separate))
    links: list[str] = []
    seen: set[int] = set()
    while True:
        seen.add(id(equation))
        givers = [u for u in uses if u.signal and u.semaphore == semaphore]
        if not givers:
            return "; ".join([*links, f"no line of the kernel signals {semaphore}"])
        behind = uses.index(next(u for u in uses if u.equation is equation))
        giver = next((u for u in givers if uses.index(u) > behind), givers[0])
        links.append(f"{semaphore} is signalled by {giver.agent}, {line(giver.equation)}")
        if agent in (KERNEL, giver.agent) and uses.index(giver) > behind:
            return "; ".join([*links, f"which comes behind the wait, {line(equation)}"])
        before = uses[: uses.index(giver) + 1]
        own = [u for u in before if not u.signal and u.agent in (giver.agent, KERNEL)]
        if not own:
            return "; ".join(links)
        wait = own[-1]
        links.append(f"{wait.agent} waits for {wait.semaphore} before, {line(wait.equation)}")
        if id(wait.equation) in seen:
            return "; ".join([*links, "a circle"])
        semaphore, agent, equation = wait.semaphore, wait.agent, wait.equation


def _uses(jaxpr: Any, known: dict[Any, str], separate: bool) -> Iterator[Use]:
    """In the order of the text; of one instruction waits before signals."""
    for equation in jaxpr.eqns:
        yield from _of(equation, known, separate)
        for inner in programs(equation):
            names = dict(zip(reversed(inner.invars), reversed(_names(equation, known))))
            if equation.primitive.name == "run_scoped":
                own = getattr(inner.debug_info, "arg_names", None) or ()
                names = dict(zip(inner.constvars, _names(equation, known)))
                names |= dict(zip(inner.invars, own))
            yield from _uses(inner, names, separate)


def _names(equation: Any, known: dict[Any, str]) -> list[str]:
    return [
        known.get(atom, "") if isinstance(atom, jax_core.Var) else "" for atom in equation.invars
    ]


def _of(equation: Any, known: dict[Any, str], separate: bool) -> Iterator[Use]:
    name, params = equation.primitive.name, equation.params
    held = _names(equation, known)
    if name in ("semaphore_signal", "semaphore_wait"):
        yield Use(held[0], KERNEL, equation, name == "semaphore_signal")
    elif name in ("dma_start", "dma_wait"):
        _, _, arrived, *_ = params["tree"].unflatten(held)
        ref = getattr(arrived, "ref", arrived)
        yield Use(ref, "a copy" if name == "dma_start" else KERNEL, equation, name == "dma_start")
    elif name == "trn3_instruction":
        operands = jax.tree.unflatten(params["tree"], held)
        agent = params["engine"] if separate else KERNEL
        for ref, _, _ in operands.wait:
            yield Use(ref, agent, equation, False)
        for ref, _, _ in operands.signal:
            yield Use(ref, agent, equation, True)
