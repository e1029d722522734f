"""`run_scoped` on values: the body's own Refs become values of the body.

JAX discharges them only when it lowers, too late for the barriers of `exact.py`, and without a
beginning for PSUM. So a kernel's `run_scoped` is replaced by `trn3_scope` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax._src import core as jax_core
from jax._src.interpreters import partial_eval
from jax._src.pallas import primitives as pallas_primitives
from jax._src.state import discharge as state_discharge
from jax._src.state import types as state_types
from jax.extend.core import Primitive

from .memory import memory_of
from .rewrite import rewritten


class _Scope(Primitive):  # type: ignore[misc]
    """`trn3_scope`; one that uses no Refs from around it is its results."""

    def bind(self, *values: Any, jaxpr: Any) -> list[Any]:
        return _discharge(*values, jaxpr=jaxpr)[1]


scope_p = _Scope("trn3_scope")
scope_p.multiple_results = True


@scope_p.def_effectful_abstract_eval
def _abstract_eval(*avals: Any, jaxpr: Any) -> Any:
    run_scoped = pallas_primitives.run_scoped_p
    return run_scoped.abstract_eval(*avals, jaxpr=jaxpr, collective_axes=())


def with_scopes(jaxpr: Any) -> Any:
    """The kernel with `trn3_scope` in place of `run_scoped`."""

    def rule(equation: Any) -> Sequence[Any] | None:
        if equation.primitive is not pallas_primitives.run_scoped_p:
            return None
        if equation.params["collective_axes"]:
            raise NotImplementedError("run_scoped with collective_axes: a core has no threads")
        inner = with_scopes(equation.params["jaxpr"])
        return [equation.replace(primitive=scope_p, params={"jaxpr": inner})]

    return rewritten(jaxpr, rule)


def beginning(aval: Any, held: Any = None) -> Any:
    """What a new Ref holds: PSUM a sum of nothing, semaphores and states zero, others anything.

    **Arguments:**

    - `held`: Abstract value of what stands for it, where that has another type (semaphores).
    """
    held = held or aval
    if memory_of(aval) in ("psum", "state", "semaphore"):
        return jnp.zeros(held.shape, held.dtype)
    return pallas_primitives.uninitialized_value(held.shape, held.dtype)


@state_discharge.register_discharge_rule(scope_p)
def _discharge(*inputs: Any, jaxpr: Any, **_: Any) -> tuple[list[Any], list[Any]]:
    # JAX 0.10 hands over abstract values of inputs and outputs, 0.12 one context.
    outside = len(jaxpr.constvars)
    values = inputs[len(inputs) - outside :] if outside else ()
    closed = partial_eval.convert_constvars_jaxpr(jaxpr)
    inner, consts = discharged(closed, ())
    own = [beginning(v.aval) for v in jaxpr.invars]
    results = jax_core.eval_jaxpr(inner, consts, *values, *own)
    after = iter(results[len(jaxpr.outvars) :])
    refs = [isinstance(v.aval, state_types.AbstractRef) for v in closed.invars[:outside]]
    return [next(after) if ref else None for ref in refs], results[: len(jaxpr.outvars)]


def discharged(jaxpr: Any, consts: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """A program on values, its Refs' last values behind its results."""
    if hasattr(jax_core, "ClosedJaxpr"):
        closed = state_discharge.discharge_state(jax_core.ClosedJaxpr(jaxpr, consts))
        return closed.jaxpr, closed.consts
    open_ = state_discharge.discharge_state(jaxpr.with_consts(consts), strip_memory_space=True)
    return open_, open_.consts
