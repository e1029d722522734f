"""Memory behind a Ref: an array that changes, and which of its elements nothing has written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jax._src.pallas import core as pallas_core
from jax._src.pallas import primitives as pallas_primitives

from ..memory import memory_of

Keys = tuple[Any, ...]
"""NumPy indices, applied one after another; () is the whole."""


@dataclass(frozen=True)
class Partly:
    """A value with undefined elements: `shadow` holds for each element where it comes from (a
    number that the checks know), 0 where it is defined."""

    value: Any
    shadow: np.ndarray

    @classmethod
    def of(cls, value: Any, shadow: np.ndarray | None) -> Any:
        """The value alone if all of it is defined."""
        return value if shadow is None or not shadow.any() else cls(value, shadow)


def parts(value: Any) -> tuple[Any, np.ndarray | None]:
    """A value and its shadow, None if all of it is defined."""
    return (value.value, value.shadow) if type(value) is Partly else (value, None)


class Storage:
    """An array that a kernel reads and writes through a Ref.

    Arrays are handed out and taken over whole without copying: who writes a part copies first what
    others may hold.
    """

    __slots__ = (
        "_array",
        "_own",
        "_own_shadow",
        "_shadow",
        "memory",
        "name",
        "order",
        "output",
        "shape",
        "sums",
        "written",
    )  # fmt: skip

    def __init__(self, name: str, memory: str, array: Any, shadow: np.ndarray | None = None):
        self.name, self.memory, self.shape = name, memory, tuple(array.shape)
        self._array, self._own = array, False
        self._shadow, self._own_shadow = shadow, False
        self.written = False
        self.order: Any = None
        """What the checks remember of accesses."""
        self.sums: Any = None
        """What the checks remember of sums in PSUM."""
        self.output = False

    def read(self, keys: Keys = ()) -> Any:
        """The elements there, as an array that nobody changes; `Partly` if some are undefined."""
        shadow = self.shadow(keys)
        if keys:
            value = np.array(part(self._flat(), keys))
        else:
            value, self._own = self._array, False
        return value if shadow is None else Partly(value, shadow)

    def shadow(self, keys: Keys = ()) -> np.ndarray | None:
        """Of the elements there; None if all are defined."""
        if self._shadow is None:
            return None
        found = part(self._shadow, keys)
        if found.any():
            return np.array(found)
        if not keys:
            self._shadow = None
        return None

    def write(self, value: Any, keys: Keys = ()) -> None:
        """Puts elements there."""
        value, shadow = parts(value)
        self.written = True
        if not keys:
            self._array, self._own = value, False
            self._shadow, self._own_shadow = shadow, False
            return
        if not self._own:
            self._array, self._own = np.array(self._array), True
        part(self._array, keys[:-1])[keys[-1]] = np.asarray(value)
        if shadow is not None or self._shadow is not None:
            self._mark(keys, 0 if shadow is None else shadow)

    def _mark(self, keys: Keys, shadow: Any) -> None:
        if self._shadow is None:
            self._shadow, self._own_shadow = np.zeros(self.shape, np.int32), True
        elif not self._own_shadow:
            self._shadow, self._own_shadow = np.array(self._shadow), True
        part(self._shadow, keys[:-1])[keys[-1]] = shadow

    def _flat(self) -> np.ndarray:
        if not isinstance(self._array, np.ndarray):
            self._array, self._own = np.asarray(self._array), False
        return self._array


def part(array: np.ndarray, keys: Keys) -> Any:
    """What these indices, one after another, leave of an array."""
    for key in keys:
        array = array[key]
    return array


def allocate(name: str, aval: Any, origin: int = 0) -> Storage:
    """New memory for a Ref: PSUM, what engines remember and semaphores begin as zero, the rest as
    anything; `origin` is where the checks say undefined elements come from."""
    memory = memory_of(aval)
    if memory == "semaphore":
        return Storage(name, memory, np.zeros(aval.shape, pallas_core.SEMAPHORE_INTERPRET_DTYPE))
    if memory in ("psum", "state"):
        array = np.zeros(aval.shape, aval.dtype)
    else:
        array = uninitialized(aval.shape, aval.dtype)
    fresh = origin and memory != "state"
    shadow = np.full(aval.shape, origin, np.int32) if fresh else None
    return Storage(name, memory, array, shadow)


def uninitialized(shape: Any, dtype: Any) -> np.ndarray:
    """What memory holds that nothing has written: the values that compiled kernels see."""
    return np.full(shape, np.asarray(pallas_primitives.uninitialized_value((), np.dtype(dtype))))
