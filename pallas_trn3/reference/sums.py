"""Sums in PSUM: which elements the tensor engine is adding to, and who else wrote there."""

from __future__ import annotations

from typing import Any

import numpy as np

from .storage import Keys

_SUM, _BROKEN = 1, 2


class Sums:
    """Of one tile."""

    def __init__(self, shape: tuple[int, ...]):
        self.state = np.zeros(shape, np.int8)
        self.by: Any = None
        """The equation that last wrote into a sum."""

    def summed(self, keys: Keys) -> None:
        """The tensor engine has added there, or started to."""
        _assign(self.state, keys, _SUM)

    def written(self, equation: Any, keys: Keys, agent: str) -> None:
        """Somebody has written there; if it was the tensor engine, `summed` follows."""
        here = self.state
        for key in keys:
            here = here[key]
        if np.any(here == _SUM):
            self.by = equation
            _assign(self.state, keys, np.where(here == 0, 0, _BROKEN).astype(np.int8))

    def fresh(self, keys: Keys) -> int:
        """How many of the elements there are in no sum."""
        here = self.state
        for key in keys:
            here = here[key]
        return int(np.sum(here == 0))

    def broken(self, keys: Keys) -> Any:
        """The equation that wrote into the sums there, if one did."""
        here = self.state
        for key in keys:
            here = here[key]
        return self.by if np.any(here == _BROKEN) else None


def _assign(array: np.ndarray, keys: Keys, value: Any) -> None:
    if not keys:
        array[...] = value
        return
    for key in keys[:-1]:
        array = array[key]
    array[keys[-1]] = value
