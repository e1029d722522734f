"""Operations that stay whole in the program, each with its meaning attached.

`define` makes a JAX primitive of a JAX function. In the program the operation is a
`stablehlo.composite "trn3.<name>"`, whose decomposition is the function: the compiler of trn3 sees
one operation and its attributes, and every other compiler, of any platform, inlines it. (A module
exported for several platforms or for symbolic shapes has the function inlined.)

The abstract evaluation traces the function, so shapes, shardings of explicit mesh axes and axes
that vary in shard_map are the function's. What JAX cannot derive (batching, derivatives) each
operation registers for itself, with the same primitive in the result where it can stay whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend
from jax import lax
from jax._src import dispatch, util
from jax.extend.core import ClosedJaxpr, Primitive
from jax.interpreters import mlir

from .precision_setting import as_written

PREFIX = "trn3."

# Attributes that MLIR can hold as they are; others are shown as text.
_ATTRIBUTES = (bool, int, float, str)


def define(name: str, function: Callable[..., Sequence[Any]]) -> Primitive:
    """The primitive `trn3.<name>` with the meaning `function(*arrays, **parameters)`.

    `function` returns a tuple of arrays; so does `bind`. Parameters must be hashable; they are the
    composite's attributes, those that are None left out.
    """
    primitive = Primitive(PREFIX + name)
    primitive.multiple_results = True
    primitive.def_impl(functools.partial(dispatch.apply_primitive, primitive))

    def trace(avals: tuple[Any, ...], parameters: tuple[tuple[str, Any], ...]) -> ClosedJaxpr:
        return jax.make_jaxpr(functools.partial(function, **dict(parameters)))(*avals)

    traced = util.cache()(trace)  # by the mesh in context, x64 and so on, too

    def abstract_eval(*avals: Any, **parameters: Any) -> list[Any]:
        return traced(avals, tuple(sorted(parameters.items()))).out_avals

    def inline(*arrays: Any, **parameters: Any) -> Sequence[Any]:
        jaxpr = traced(tuple(map(jax.typeof, arrays)), tuple(sorted(parameters.items())))
        return jax.extend.core.jaxpr_as_fun(jaxpr)(*arrays)

    def composite(*arrays: Any, **parameters: Any) -> Sequence[Any]:
        attributes = {key: _attribute(value) for key, value in parameters.items()}
        whole = lax.composite(lambda *xs, **_: inline(*xs, **parameters), PREFIX + name)
        return whole(*arrays, **attributes)

    primitive.def_abstract_eval(abstract_eval)
    lower_whole = mlir.lower_fun(composite, multiple_results=True)
    lower_inline = mlir.lower_fun(inline, multiple_results=True)

    def lower(context: mlir.LoweringRuleContext, *arrays: Any, **parameters: Any) -> Any:
        module = context.module_context
        # jax.export gives functions of such modules more arguments than a composite passes on.
        is_plain = len(module.platforms) == 1 and not module.shape_poly_state.dim_vars
        # Its products are what it says, not what matmul_precision says of the program's.
        with as_written(context) as inner:
            return (lower_whole if is_plain else lower_inline)(inner, *arrays, **parameters)

    mlir.register_lowering(primitive, lower)
    return primitive


def _attribute(value: Any) -> Any:
    if value is None or isinstance(value, _ATTRIBUTES):
        return value
    return str(value)
