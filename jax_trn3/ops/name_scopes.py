"""Name scopes of an operation where it is lowered, and patterns for them.

jax.named_scope (and Flax, for its modules) give an operation the names of what it is part of; the
operations of its backward pass have the same names. JAX forgets them in two places: equal
operations are lowered once, and so are functions (inner jit), whoever calls them. `keep` ends that.
"""

from __future__ import annotations

import contextlib
import contextvars
import fnmatch
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax import lax
from jax._src import ad_checkpoint, custom_derivatives, pjit, shard_map, source_info_util
from jax._src.interpreters import mlir
from jax._src.lax import lax as lax_internal
from jax._src.lax.control_flow import conditionals, loops, solves

# Products, and what may contain some; JAX lowers equal ones once.
_SHARED = (
    lax.dot_general_p,
    lax_internal.ragged_dot_general_p,
    lax.conv_general_dilated_p,
    lax_internal.composite_p,
    shard_map.shard_map_p,
    ad_checkpoint.remat_p,
    custom_derivatives.custom_jvp_call_p,
    custom_derivatives.linear_call_p,
    conditionals.cond_p,
    loops.scan_p,
    loops.while_p,
    solves.linear_solve_p,
)

ANY_SCOPE = "jax_trn3.ops.name_scopes.ANY_SCOPE"
"""The key for `separate_caches` of what is lowered alike in all scopes."""

_callers: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("callers", default=())


def scopes(context: mlir.LoweringRuleContext) -> tuple[str, ...]:
    """The names of the operation's scopes, the outermost first; after `keep` also its callers'."""
    names = [
        name
        for entry in context.name_stack.stack
        if isinstance(entry, source_info_util.Scope)
        for name in entry.name.split("/")
        if not name.startswith("jit(")  # the name of the whole program
    ]
    return (*_callers.get(), *names)


def matches(pattern: str, names: Sequence[str]) -> bool:
    """Whether the pattern's parts, separated by "/", are names in this order.

    A part is a shell pattern (fnmatch: *, ?, [abc]) of a whole name, upper and lower case distinct.
    Other names may lie between, as JAX's own do (those of loops and rematerialization).
    """
    remaining = iter(names)
    return all(
        any(fnmatch.fnmatchcase(name, part) for name in remaining) for part in pattern.split("/")
    )


def keep(wanted: Callable[[mlir.LoweringRuleContext], bool]) -> None:
    """From now on products and loops are lowered where they are used, in the whole process.

    So are functions, if `wanted` of the call. The meaning of programs is the same. To be called
    again when lowering rules were registered since.
    """
    if not are_kept():
        mlir._uncacheable_primitives.update(_SHARED)
        for primitive in _calls():
            rule = functools.partial(_lower_call, wanted, mlir._lowerings[primitive].rule)
            mlir.register_lowering(primitive, rule, cacheable=False)
    for primitive in _SHARED:
        _join_rules(primitive)


def are_kept() -> bool:
    """Whether `keep` was called."""
    return lax.dot_general_p in mlir._uncacheable_primitives


def _join_rules(primitive: Any) -> None:
    """Makes one rule for all platforms of the rules of each.

    JAX (0.10, 0.12) cannot choose between them in a module for several platforms if the primitive
    is not cacheable: it adds a list and a tuple, avals_out.
    """
    tables = [t for t in mlir._platform_specific_lowerings.items() if primitive in t[1]]
    if tables:
        rules = {platform: table[primitive].rule for platform, table in tables}
        joined = functools.partial(_lower_joined, primitive, rules, mlir._lowerings[primitive].rule)
        mlir.register_lowering(primitive, joined, cacheable=False)
        for _, table in tables:
            del table[primitive]


def _lower_joined(
    primitive: Any,
    rules: dict[str, Callable[..., Any]],
    default: Callable[..., Any],
    context: mlir.LoweringRuleContext,
    *args: Any,
    **params: Any,
) -> Any:
    effects = {e for branch in params.get("branches", ()) for e in branch.effects}  # cond's
    inner = context.replace(avals_out=list(context.avals_out))
    results = mlir.lower_per_platform(
        inner, str(primitive), rules, default, effects, *args, **params
    )
    if inner.tokens_out is not None:
        context.set_tokens_out(inner.tokens_out)
    return results


def _calls() -> list[Any]:
    """The primitives that are lowered to a call of a function, which starts without names."""
    # core.call_p, core.closed_call_p, and in jax 0.12 others.
    simple = [
        primitive
        for primitive, entry in mlir._lowerings.items()
        if getattr(entry.rule, "func", None) is mlir.core_call_lowering
    ]
    return [*simple, pjit.jit_p, shard_map.shard_map_p, lax_internal.composite_p]


def _lower_call(
    wanted: Callable[[mlir.LoweringRuleContext], bool],
    rule: Callable[..., Any],
    context: mlir.LoweringRuleContext,
    *args: Any,
    **params: Any,
) -> Any:
    if not wanted(context):
        return rule(context, *args, **params)
    names = scopes(context)
    token = _callers.set(names)
    try:
        with separate_caches(context, names) as inner:
            return rule(inner, *args, **params)
    finally:
        _callers.reset(token)


@contextlib.contextmanager
def separate_caches(
    context: mlir.LoweringRuleContext, key: Any
) -> Iterator[mlir.LoweringRuleContext]:
    """What is lowered with the inner context is shared only with what has an equal key."""
    module = context.module_context
    caches = module.cached_primitive_lowerings
    everywhere = caches.setdefault(ANY_SCOPE, ({}, {}))
    if key == ANY_SCOPE:
        operations, functions = everywhere
    else:
        operations, functions = caches.setdefault(
            (separate_caches, key), ({}, {ANY_SCOPE: everywhere})
        )
    inner = context.replace(
        module_context=module.replace(
            lowering_cache=operations, cached_primitive_lowerings=functions
        )
    )
    yield inner
    if inner.tokens_out is not None:
        context.set_tokens_out(inner.tokens_out)
