"""Programs whose compiled values are those of their operations, one after another.

XLA fuses operations and then computes otherwise than they say: a product and a sum become one
fused multiply-add, a cast to bfloat16 and back disappears. `exact` puts a barrier behind every
operation whose float result could differ that way. Operations that only move values stay fused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax._src import core as jax_core
from jax._src import source_info_util
from jax._src.lax import lax as lax_internal

from .instruction import MEANING
from .rewrite import programs, rewritten

_MOVES = frozenset(
    """broadcast_in_dim reshape slice dynamic_slice dynamic_update_slice transpose squeeze select_n
    copy concatenate pad rev gather neg abs max min optimization_barrier iota expand_dims
    bitcast_convert_type sign copy_p stop_gradient reduce_max reduce_min split select_and_gather_add
    scatter sort real imag empty device_put ref clamp cummax cummin""".split()
)


def exact(jaxpr: jax_core.Jaxpr) -> jax_core.Jaxpr:
    """The same program with barriers, also in loops and branches."""
    return rewritten(jaxpr, _behind_barriers)


def _behind_barriers(equation: Any) -> Sequence[Any] | None:
    name = equation.params.get("name", "")
    instruction = isinstance(name, str) and name.startswith(MEANING)
    if programs(equation) and not instruction:
        return None
    outputs = [v for v in equation.outvars if not isinstance(v, jax_core.DropVar)]
    floats = [v for v in outputs if jnp.issubdtype(v.aval.dtype, jnp.inexact)]
    if not floats or equation.effects or _keeps_bits(equation):
        return [equation]
    before = [jax_core.Var(v.aval) for v in floats]
    renamed = dict(zip(floats, before))
    fresh = [renamed.get(v, v) for v in equation.outvars]
    barrier = jax_core.new_jaxpr_eqn(
        before,
        floats,
        lax_internal.optimization_barrier_p,
        {},
        jax_core.no_effects,
        source_info_util.new_source_info(),
    )
    return [equation.replace(outvars=fresh), barrier]


def _keeps_bits(equation: Any) -> bool:
    name = equation.primitive.name
    if name == "convert_element_type":
        source, target = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
        return bool(target.itemsize >= source.itemsize) and jnp.issubdtype(source, jnp.inexact)
    return name in _MOVES
