"""The equations of a program as JAX traced it, with the places where they were written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax._src import core

from . import place
from .place import Place

# The kernels inside are no programs of arrays.
_NOT_ENTERED = {"pallas_call"}
_CALLS = ("jit", "pjit")
# What indices are made of before they are used.
_PLAIN = {
    *_CALLS, "add", "broadcast_in_dim", "concatenate", "convert_element_type", "iota", "lt", "mul",
    "reshape", "select_n", "squeeze", "sub",
}  # fmt: skip


@dataclass(frozen=True)
class Equation:
    """An equation of the jaxpr, at any depth."""

    eqn: Any
    where: Place

    initializes: bool
    """Whether the program takes no array of floats: it makes numbers and changes none."""

    static: tuple[bool, ...]
    """Which of its inputs follow from constants alone (as far as that is plain)."""

    @property
    def name(self) -> str:
        """The primitive's."""
        return str(self.eqn.primitive.name)

    @property
    def params(self) -> dict[str, Any]:
        """The primitive's parameters."""
        return self.eqn.params

    @property
    def literals(self) -> list[Any]:
        """The numbers that are written in it."""
        return [var.val for var in self.eqn.invars if isinstance(var, core.Literal)]

    @property
    def inputs(self) -> list[Any]:
        """What arrays it takes (abstract values)."""
        return [var.aval for var in self.eqn.invars]

    @property
    def outputs(self) -> list[Any]:
        """What arrays it makes (abstract values)."""
        return [var.aval for var in self.eqn.outvars]


@dataclass(frozen=True)
class Value:
    """An array where a dtype appears first: an argument, or a result of what had none of it."""

    aval: Any
    origin: str
    """What it is: "argument `x`", "result of `convert_element_type`"."""

    where: Place

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its element type."""
        return np.dtype(self.aval.dtype)

    @property
    def text(self) -> str:
        """Its dtype and shape."""
        return text(self.aval)


def equations(closed: Any) -> Iterator[Equation]:
    """Every equation of a traced program, once for each call of what it is in."""
    floats = any(_is_float(var.aval) for var in closed.jaxpr.invars)
    start = place.of_function(closed.jaxpr.debug_info)
    static = (False,) * len(closed.jaxpr.invars)
    yield from _equations(closed.jaxpr, start, static, pinned=False, initializes=not floats)


def _equations(
    jaxpr: Any, within: Place, static: tuple[bool, ...], *, pinned: bool, initializes: bool
) -> Iterator[Equation]:
    known = {*jaxpr.constvars, *itertools.compress(jaxpr.invars, static)}
    for eqn in jaxpr.eqns:
        where = place.of_equation(eqn, within, pinned=pinned)
        inputs = tuple(isinstance(var, core.Literal) or var in known for var in eqn.invars)
        yield Equation(eqn, where, initializes, inputs)
        if all(inputs) and eqn.primitive.name in _PLAIN:
            known.update(eqn.outvars)
        if eqn.primitive.name in _NOT_ENTERED:
            continue
        is_call = eqn.primitive.name in _CALLS
        for inner in core.jaxprs_in_params(eqn.params):
            held = _is_of_library(inner) if is_call else pinned
            passed = inputs if is_call else (False,) * len(inner.invars)
            yield from _equations(inner, where, passed, pinned=held, initializes=initializes)


def _is_of_library(jaxpr: Any) -> bool:
    file = place.of_function(jaxpr.debug_info).file
    return file is None or place.is_library(file)


def users_functions(closed: Any) -> set[str]:
    """Names of jitted functions that are not a library's; nor is anything else in the program
    named like them (JAX makes functions of primitives, too, with their names)."""
    users: set[str] = set()
    others: set[str] = set()
    for equation in equations(closed):
        others.add(equation.name)
        if equation.name in _CALLS:
            (jaxpr,) = core.jaxprs_in_params(equation.params)
            (others if _is_of_library(jaxpr) else users).add(str(equation.params["name"]))
    return users - others


def values(closed: Any) -> Iterator[tuple[Value, list[Any]]]:
    """Arguments, constants and results of a program; with each, what it was made from."""
    start = place.of_function(closed.jaxpr.debug_info)
    names = getattr(closed.jaxpr.debug_info, "arg_names", None) or ()
    for at, var in enumerate(closed.jaxpr.invars):
        name = names[at] if at < len(names) else str(at)
        if _has_numbers(var.aval):
            yield Value(var.aval, f"argument `{name}`", start), []
    for var in closed.jaxpr.constvars:
        if _has_numbers(var.aval):
            yield Value(var.aval, "constant that the function closes over", start), []
    for equation in equations(closed):
        inputs = [aval for aval in equation.inputs if _has_numbers(aval)]
        for aval in equation.outputs:
            if _has_numbers(aval):
                yield Value(aval, f"result of `{equation.name}`", equation.where), inputs


def _has_numbers(aval: Any) -> bool:
    return isinstance(getattr(aval, "dtype", None), np.dtype)


def _is_float(aval: Any) -> bool:
    return (_has_numbers(aval) and bool(np.issubdtype(aval.dtype, np.inexact))) or _is_small(aval)


def _is_small(aval: Any) -> bool:
    """bfloat16 and its smaller kin are no np.inexact."""
    return _has_numbers(aval) and aval.dtype.kind == "V"


def text(aval: Any) -> str:
    """dtype and shape, as JAX writes them: "float32[4,8]"."""
    return str(aval.str_short(short_dtypes=True))


def texts(avals: list[Any]) -> str:
    """Several, with commas."""
    return ", ".join(map(text, avals))
