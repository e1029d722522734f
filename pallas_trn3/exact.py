"""Programs whose compiled values are those of their operations, one after another.

XLA fuses operations and then computes otherwise than they say: a product and a sum become one
fused multiply-add, a cast to bfloat16 and back disappears. `exact` puts `as_rounded` behind every
operation whose float result could differ that way. Operations that only move values stay as they
are. (JAX's optimization_barrier does not do: XLA of JAX 0.10 drops it before it fuses.)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src import core as jax_core
from jax._src import source_info_util
from jax._src.interpreters import mlir
from jax._src.lib.mlir.dialects import hlo
from jax.extend.core import Primitive

from .meaning import MEANING
from .rewrite import programs, rewritten

as_rounded_p = Primitive("trn3_as_rounded")
"""Of a float array: the same, and XLA does not see that. What made it is not fused arithmetically
with what uses it, though both may run in one loop."""

in_order_p = Primitive("trn3_in_order")
"""Of an array: the same, its elements in memory as its shape says."""

_replica_id_p = Primitive("trn3_replica_id")

_MOVES = frozenset(
    [
        "broadcast_in_dim", "reshape", "slice", "dynamic_slice", "dynamic_update_slice", "copy",
        "transpose", "squeeze", "select_n", "copy_p", "concatenate", "pad", "rev", "gather", "neg",
        "abs", "sign", "max", "min", "clamp", "iota", "expand_dims", "bitcast_convert_type", "real",
        "scatter", "stop_gradient", "split", "sort", "imag", "empty", "device_put", "ref",
        "optimization_barrier", "reduce_max", "reduce_min", "cummax", "cummin",
        "select_and_gather_add",
    ]
)  # fmt: skip
"""Operations whose results have the bits of an operand's."""

_APART = frozenset(["dot_general", "ragged_dot", "conv_general_dilated", "reduce_sum", "cumsum"])
"""Operations that end in a sum, or in code of their own: nothing is contracted with them."""

_UNHARMED = frozenset(
    [
        "exp",
        "exp2",
        "log",
        "log1p",
        "expm1",
        "tanh",
        "logistic",
        "erf",
        "sqrt",
        "rsqrt",
        "mul",
        "sin",
    ]
)
"""Of a sum, what uses it without XLA changing either."""

_COMPARISONS = frozenset(["eq", "ne", "lt", "le", "gt", "ge", "is_finite", "dot_general"])


def exact(jaxpr: jax_core.Jaxpr) -> jax_core.Jaxpr:
    """The same program, no float operation fused arithmetically with another, also in loops and
    branches."""
    uses: dict[Any, frozenset[str]] = {}
    _note_uses(jaxpr, uses, inlined=False)
    turned: set[Any] = set()
    _note_turned(jaxpr, turned)
    return rewritten(jaxpr, functools.partial(_behind_barriers, uses, turned))


def _note_turned(jaxpr: Any, turned: set[Any]) -> None:
    """Variables whose elements are those of others in another order, or computed from such. XLA
    sums them in the old one."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        given = [isinstance(v, jax_core.Var) and v in turned for v in equation.invars]
        for inner in programs(equation):
            if name in ("jit", "pjit", "closed_call"):
                turned.update(v for v, is_turned in zip(inner.invars, given) if is_turned)
            _note_turned(inner, turned)
        if name in ("transpose", "rev") or (any(given) and name not in _APART):
            turned.update(equation.outvars)


def _note_uses(jaxpr: Any, uses: dict[Any, frozenset[str]], inlined: bool) -> None:
    """By variable the operations that use it, seen through those that only move values. A result of
    a function that is inlined is used by "anything", one of a loop's body is in memory."""
    for variable in jaxpr.outvars if inlined else ():
        if isinstance(variable, jax_core.Var):
            uses[variable] = frozenset(["anything"])
    for equation in reversed(jaxpr.eqns):
        for inner in programs(equation):
            _note_uses(inner, uses, equation.primitive.name in ("jit", "pjit", "closed_call"))
        name = equation.primitive.name
        if name in _MOVES:
            found = frozenset().union(*(uses.get(v, frozenset()) for v in equation.outvars))
        elif programs(equation):
            found = frozenset(["anything"])
        else:
            found = frozenset([name])
        for variable in equation.invars:
            if isinstance(variable, jax_core.Var):
                uses[variable] = uses.get(variable, frozenset()) | found


def _behind_barriers(
    uses: dict[Any, frozenset[str]], turned: set[Any], equation: Any
) -> Sequence[Any] | None:
    name = equation.params.get("name", "")
    instruction = isinstance(name, str) and name.startswith(MEANING)
    if programs(equation) and not instruction:
        return None
    outputs = [v for v in equation.outvars if not isinstance(v, jax_core.DropVar)]
    floats = [v for v in outputs if jnp.issubdtype(v.aval.dtype, jnp.inexact)]
    if not instruction:
        floats = [v for v in floats if _harmed(equation, v, uses.get(v, frozenset()))]
    first: list[Any] = []
    if equation.primitive.name in _APART:
        equation, first = _in_order(equation, turned)
    if not floats or equation.effects or _keeps_bits(equation):
        return [*first, equation]
    before = [jax_core.Var(v.aval) for v in floats]
    renamed = dict(zip(floats, before))
    fresh = [renamed.get(v, v) for v in equation.outvars]
    rounded = [_fence(as_rounded_p, source, target) for source, target in zip(before, floats)]
    return [*first, equation.replace(outvars=fresh), *rounded]


def _in_order(equation: Any, turned: set[Any]) -> tuple[Any, list[Any]]:
    """A sum whose operands lie in memory in their own order, and what sees to that."""
    inputs, first = list(equation.invars), []
    for k, variable in enumerate(inputs):
        is_turned = isinstance(variable, jax_core.Var) and variable in turned
        if is_turned and jnp.issubdtype(variable.aval.dtype, jnp.floating):
            inputs[k] = jax_core.Var(variable.aval)
            first.append(_fence(in_order_p, variable, inputs[k]))
    return equation.replace(invars=inputs), first


def _fence(primitive: Primitive, source: Any, target: Any) -> Any:
    nowhere = source_info_util.new_source_info()
    return jax_core.new_jaxpr_eqn([source], [target], primitive, {}, jax_core.no_effects, nowhere)


def _harmed(equation: Any, result: Any, users: frozenset[str]) -> bool:
    """Whether XLA may compute a result and what uses it otherwise than one after the other."""
    if result.aval.dtype.itemsize < 4:  # kept in float32 where it can be
        return True
    name = equation.primitive.name
    if name in _APART:
        return False
    users -= _COMPARISONS
    return bool(users - _UNHARMED if name in ("add", "sub", "add_any") else users)


@as_rounded_p.def_abstract_eval
@in_order_p.def_abstract_eval
def _same(x: Any) -> Any:
    return jax_core.ShapedArray(x.shape, x.dtype)


@_replica_id_p.def_abstract_eval
def _number() -> Any:
    return jax_core.ShapedArray((), np.dtype(np.uint32))


def _as_rounded(x: Any) -> Any:
    """Its bits, or'ed with a zero of which neither XLA nor LLVM know that it is one. (Exclusively
    or'ed with the same twice they would be themselves.)"""
    bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}.get(x.dtype.itemsize)
    if bits is None or "float4" in str(x.dtype) or not jnp.issubdtype(x.dtype, jnp.floating):
        return lax.optimization_barrier(x)
    zero = _never().astype(bits)
    return lax.bitcast_convert_type(lax.bitcast_convert_type(x, bits) | zero, x.dtype)


def _in_memory(x: Any) -> Any:
    """What comes out of a branch that is always taken: XLA does not look through it."""
    return lax.cond(_never(), jnp.zeros_like, lambda x: x, x)


def _never() -> Any:
    """Whether, for a number known at run time only, 7 n^2 - 1 is a square. It is 3, 6 or 7 modulo
    8, a square 0, 1 or 4."""
    n = _replica_id_p.bind()
    return 7 * n * n - 1 == (n + 5) * (n + 5)


mlir.register_lowering(as_rounded_p, mlir.lower_fun(_as_rounded, multiple_results=False))
mlir.register_lowering(in_order_p, mlir.lower_fun(_in_memory, multiple_results=False))
mlir.register_lowering(_replica_id_p, lambda ctx: [hlo.ReplicaIdOp().result])


def _keeps_bits(equation: Any) -> bool:
    name = equation.primitive.name
    if name == "convert_element_type":
        source, target = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
        return bool(target.itemsize >= source.itemsize) and jnp.issubdtype(source, jnp.inexact)
    return name in _MOVES
