"""Numbers of a kernel that depend on its loops: what is known of them without running it.

A scalar is a Python number, an `Index` (affine in loop indices, `jax_trn3.isa`), a `Mod`, a
predicate, or `UNKNOWN`. What cannot be said for all iterations of a loop at once is asked by an
exception: the loop is to be split (`Split`), nested (`Nest`) or unrolled (`Unroll`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jax_trn3.isa import Index, as_index

_PERIODS = 8
"""Times that a number may start again for a loop to be split there."""


class _Unknown:
    """A number that data decide."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()


@dataclass(frozen=True)
class Mod:
    """`index % by * scale + offset`."""

    index: Index
    by: int
    scale: int = 1
    offset: Index = field(default_factory=Index)


@dataclass(frozen=True)
class AtLeastZero:
    """Whether `index >= 0`."""

    index: Index


@dataclass(frozen=True)
class Equal:
    """Whether `mod == value`."""

    mod: Mod
    value: int


@dataclass(frozen=True)
class Not:
    """The contrary of a predicate."""

    of: Any


@dataclass(frozen=True)
class Both:
    """Whether both hold."""

    one: Any
    other: Any


Predicate = AtLeastZero | Equal | Not | Both


class LoopRequest(Exception):
    """A loop is to be walked otherwise."""

    def __init__(self, loop: int) -> None:
        super().__init__(loop)
        self.loop = loop


class Split(LoopRequest):
    """In two: iterations before `at`, and from it on."""

    def __init__(self, loop: int, at: Index) -> None:
        super().__init__(loop)
        self.at = at


class Unroll(LoopRequest):
    """One iteration after another."""


class Nest(LoopRequest):
    """As two loops, the inner one of `by` iterations."""

    def __init__(self, loop: int, by: int) -> None:
        super().__init__(loop)
        self.by = by


@dataclass
class Ranges:
    """The loops that are being walked, and what follows for numbers that depend on them."""

    counts: dict[int, Index] = field(default_factory=dict)
    """Iterations of each, by the loop's id; inner loops have higher ids."""

    fixed: set[int] = field(default_factory=set)
    """Loops that cannot be split or unrolled any more."""

    def least(self, index: Index) -> int:
        """The smallest value it takes."""
        return self._extreme(index, lowest=True)

    def greatest(self, index: Index) -> int:
        """The largest value it takes."""
        return self._extreme(index, lowest=False)

    def _extreme(self, index: Index, lowest: bool) -> int:
        while index.terms:
            loop, coefficient = max(index.terms)
            index -= Index(0, ((loop, coefficient),))
            if (coefficient < 0) == lowest:
                index += (self.counts[loop] - 1) * coefficient
        return index.const

    def known(self, predicate: Any) -> bool | None:
        """Whether it holds in all iterations (True), in none (False), or in some (None)."""
        if isinstance(predicate, (bool, int, float)):
            return bool(predicate)
        if isinstance(predicate, AtLeastZero):
            if self.least(predicate.index) >= 0:
                return True
            return False if self.greatest(predicate.index) < 0 else None
        if isinstance(predicate, Not):
            inside = self.known(predicate.of)
            return None if inside is None else not inside
        if isinstance(predicate, Both):
            answers = (self.known(predicate.one), self.known(predicate.other))
            if False in answers:
                return False
            return True if answers == (True, True) else None
        return None

    def decided(self, predicate: Any) -> bool | None:
        """The same, by asking for other loops where that helps; None where data decide.

        **Raises:** `LoopRequest`.
        """
        answer = self.known(predicate)
        if answer is not None or predicate is UNKNOWN:
            return answer
        if isinstance(predicate, Not):
            return _not(self.decided(predicate.of))
        if isinstance(predicate, Both):
            one = self.decided(predicate.one)
            return one if one is False else _and(one, self.decided(predicate.other))
        if isinstance(predicate, AtLeastZero):
            self._ask(predicate.index)
        if isinstance(predicate, Equal):
            self.settled(predicate.mod)
        return None

    def _ask(self, index: Index) -> None:
        """Asks for loops in which the sign of `index` is known."""
        loop, coefficient = max(index.terms)
        if loop in self.fixed:
            return
        rest = index - Index(0, ((loop, coefficient),))
        if not rest.terms or abs(coefficient) == 1:
            at = _first_change(rest, coefficient)
            for margin in (at, self.counts[loop] - at):
                if self.least(margin) < 0 and self.greatest(margin) >= 0:
                    self._ask(margin)
                    return
            if self.least(at) >= 0 and self.least(self.counts[loop] - at) >= 0:
                raise Split(loop, at)
        outer = min(k for k, _ in index.terms)
        if outer not in self.fixed:
            raise Unroll(outer)

    def settled(self, value: Mod) -> Any:
        """An `Index` of the same value.

        **Raises:** `LoopRequest` where loops must change for that.
        """
        index, by = value.index, value.by
        first, last = self.least(index) // by, self.greatest(index) // by
        for loop, coefficient in sorted(index.terms, reverse=True):
            if loop not in self.fixed:
                count = self.counts[loop]
                nests = coefficient == 1 and not count.terms and count.const > value.by
                if nests and count.const % by == 0:
                    raise Nest(loop, by)
                if last - first < _PERIODS:
                    self._ask(index - (first + 1) * by)
                raise Unroll(loop)
        return UNKNOWN

    # Arithmetic.

    def remainder(self, index: Index, by: int) -> Any:
        """`index % by`."""
        if by <= 0:
            return UNKNOWN
        terms = tuple((k, c % by) for k, c in index.terms if c % by)
        reduced = Index(index.const % by, terms)
        low, high = self.least(reduced), self.greatest(reduced)
        if low // by == high // by:
            return reduced - low // by * by
        return Mod(reduced, by)

    def quotient(self, index: Index, by: int) -> Any:
        """`index // by`.

        **Raises:** `LoopRequest` where it is not affine.
        """
        if by <= 0:
            return UNKNOWN
        whole = Index(index.const // by, tuple((k, c // by) for k, c in index.terms if c // by))
        rest = index - whole * by
        low, high = self.least(rest), self.greatest(rest)
        if low // by == high // by:
            return whole + low // by
        return self.settled(Mod(rest, by))


def _first_change(rest: Index, coefficient: int) -> Index:
    """The first iteration j at which the sign of `coefficient * j + rest` is another."""
    if coefficient == 1:
        return rest * -1
    if coefficient == -1:
        return rest + 1
    if coefficient > 0:
        return as_index(-(rest.const // coefficient))
    return as_index(rest.const // -coefficient + 1)


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _and(one: bool | None, other: bool | None) -> bool | None:
    if other is False:
        return False
    return True if one and other else None


# ---- primitives ----


def plain(value: Any) -> Any:
    """A number of numpy's or a constant `Index` as Python's own."""
    if isinstance(value, Index) and not value.terms:
        return value.const
    if isinstance(value, (np.generic, np.ndarray)) and np.ndim(value) == 0:
        return value.item()
    if isinstance(value, (int, float)) and type(value) not in (bool, int, float):
        return int(value) if isinstance(value, int) else float(value)  # JAX's literals
    return value


def is_integer(value: Any) -> bool:
    """Whether it is a known integer, or one that loops decide."""
    return isinstance(value, (int, Index)) and not isinstance(value, bool)


def scalar(name: str, params: Mapping[str, Any], args: Sequence[Any], ranges: Ranges) -> Any:
    """The result of a primitive on scalars.

    **Raises:** `LoopRequest`.
    """
    args = [plain(a) for a in args]
    if name in _SAME:
        dtype = params.get("new_dtype")
        return _cast(args[0], dtype) if dtype is not None else args[0]
    if any(a is UNKNOWN for a in args) and name not in ("select_n", "and", "or"):
        return UNKNOWN
    if all(isinstance(a, (bool, int, float)) for a in args) and name in _PYTHON:
        return _computed(_PYTHON[name], args)
    rule = _RULES.get(name)
    found = UNKNOWN if rule is None else rule(ranges, *args)
    return plain(found)


_SAME = frozenset(
    [
        "convert_element_type",
        "multiple_of",
        "stop_gradient",
        "copy",
        "optimization_barrier",
        "copy_p",
        "reduce_precision",
        "squeeze",
        "reshape",
        "broadcast_in_dim",
    ]
)


def _cast(value: Any, dtype: Any) -> Any:
    if isinstance(value, float) and np.issubdtype(dtype, np.integer):
        return int(value)
    if isinstance(value, int) and np.issubdtype(dtype, np.floating):
        return float(value)
    return value


def _computed(function: Callable[..., Any], args: Sequence[Any]) -> Any:
    try:
        return plain(function(*args))
    except (ArithmeticError, ValueError, TypeError):
        return UNKNOWN


def _divided(a: Any, b: Any) -> Any:
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    return int(math.copysign(1, a) * math.copysign(1, b)) * (abs(a) // abs(b))


_PYTHON: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": _divided,
    "rem": lambda a, b: type(a)(math.fmod(a, b)),
    "max": max, "min": min, "neg": operator.neg, "abs": abs,
    "sign": lambda a: (a > 0) - (a < 0), "eq": operator.eq, "ne": operator.ne,
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "pow": operator.pow, "integer_pow": operator.pow, "exp": math.exp, "log": math.log,
    "sqrt": math.sqrt, "floor": math.floor, "ceil": math.ceil,
    "shift_left": operator.lshift, "shift_right_arithmetic": operator.rshift,
    "shift_right_logical": operator.rshift,
    "clamp": lambda low, x, high: min(max(low, x), high),
}  # fmt: skip


def _integers(function: Callable[..., Any]) -> Callable[..., Any]:
    """A rule for integers alone; of `Mod`, loops are changed until it is an `Index`."""

    def rule(ranges: Ranges, *args: Any) -> Any:
        args = tuple(ranges.settled(a) if isinstance(a, Mod) else a for a in args)
        if not all(is_integer(a) for a in args):
            return UNKNOWN
        return function(ranges, *(as_index(a) for a in args))

    return rule


def _of_mod(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A rule that lets a `Mod` be scaled and shifted."""
    plainly = _integers(function)

    def rule(ranges: Ranges, a: Any, b: Any) -> Any:
        mods = [isinstance(x, Mod) for x in (a, b)]
        mod, other = (a, b) if mods[0] else (b, a)
        if sum(mods) != 1 or not is_integer(other) or (mods[1] and name == "sub"):
            return plainly(ranges, a, b)
        if name == "mul":
            known = isinstance(other, int) and other > 0
            scaled = (
                Mod(mod.index, mod.by, mod.scale * other, mod.offset * other) if known else None
            )
            return scaled or plainly(ranges, a, b)
        shift = as_index(other) * (-1 if name == "sub" else 1)
        return Mod(mod.index, mod.by, mod.scale, mod.offset + shift)

    return rule


def _product(ranges: Ranges, a: Index, b: Index) -> Any:
    if a.terms and b.terms:
        return UNKNOWN
    return a * b.const if a.terms else b * a.const


def _larger(ranges: Ranges, a: Index, b: Index) -> Any:
    over = ranges.decided(AtLeastZero(a - b))
    return UNKNOWN if over is None else a if over else b


def _smaller(ranges: Ranges, a: Index, b: Index) -> Any:
    over = ranges.decided(AtLeastZero(a - b))
    return UNKNOWN if over is None else b if over else a


def _equal(ranges: Ranges, a: Any, b: Any) -> Any:
    if isinstance(a, Mod) and isinstance(b, int) and a == Mod(a.index, a.by):
        return Equal(a, b)
    if not (is_integer(a) and is_integer(b)):
        return UNKNOWN
    apart = as_index(a) - b
    return Both(AtLeastZero(apart), AtLeastZero(apart * -1))


def _negated(ranges: Ranges, a: Any) -> Any:
    return (not a) if isinstance(a, (bool, int)) else UNKNOWN if a is UNKNOWN else Not(a)


def _conjunction(ranges: Ranges, a: Any, b: Any) -> Any:
    if a is UNKNOWN or b is UNKNOWN:
        return False if False in (a, b) else UNKNOWN
    known = isinstance(a, int) and isinstance(b, int)
    return a & b if known else Both(a, b)


def _disjunction(ranges: Ranges, a: Any, b: Any) -> Any:
    if a is UNKNOWN or b is UNKNOWN:
        return True if True in (a, b) else UNKNOWN
    known = isinstance(a, int) and isinstance(b, int)
    return a | b if known else Not(Both(Not(a), Not(b)))


def _chosen(ranges: Ranges, which: Any, *cases: Any) -> Any:
    if all(case == cases[0] for case in cases):
        return cases[0]
    if isinstance(which, int) and not isinstance(which, bool):
        return cases[which]
    answer = ranges.decided(which)
    return UNKNOWN if answer is None else cases[bool(answer)]


def _clamped(ranges: Ranges, low: Index, x: Index, high: Index) -> Any:
    above = _larger(ranges, low, x)
    return above if above is UNKNOWN else _smaller(ranges, above, high)


_RULES: dict[str, Callable[..., Any]] = {
    "add": _of_mod("add", lambda r, a, b: a + b),
    "sub": _of_mod("sub", lambda r, a, b: a - b),
    "mul": _of_mod("mul", _product),
    "neg": _integers(lambda r, a: a * -1),
    "max": _integers(_larger),
    "min": _integers(_smaller),
    "clamp": _integers(_clamped),
    "div": _integers(lambda r, a, b: UNKNOWN if b.terms else r.quotient(a, b.const)),
    "rem": _integers(lambda r, a, b: UNKNOWN if b.terms else r.remainder(a, b.const)),
    "shift_right_arithmetic": _integers(
        lambda r, a, b: UNKNOWN if b.terms else r.quotient(a, 1 << b.const)
    ),
    "shift_left": _integers(lambda r, a, b: UNKNOWN if b.terms else a * (1 << b.const)),
    "ge": _integers(lambda r, a, b: AtLeastZero(a - b)),
    "gt": _integers(lambda r, a, b: AtLeastZero(a - b - 1)),
    "le": _integers(lambda r, a, b: AtLeastZero(b - a)),
    "lt": _integers(lambda r, a, b: AtLeastZero(b - a - 1)),
    "eq": _equal,
    "ne": lambda r, a, b: _negated(r, _equal(r, a, b)),
    "not": _negated,
    "and": _conjunction,
    "or": _disjunction,
    "select_n": _chosen,
}
