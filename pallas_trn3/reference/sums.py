"""Sums in PSUM: which elements the tensor engine is adding to, and who else wrote there."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import BrokenSum
from ..source import line
from .storage import Keys, Storage, part

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

    def goes_on(self, kernel: str, equation: Any, ref: Storage, keys: Keys, told: Any) -> None:
        """A product is added there; `told`: by `accumulate=True`, not as the engine finds it.

        **Raises:** `BrokenSum` if there is no sum, or it is not the tensor engine's any more.
        """
        here = f"kernel {kernel}, {line(equation)}"
        fresh = self.fresh(keys) if told else 0
        if fresh:
            raise BrokenSum(
                f"{here}: accumulate=True adds to {ref.name}, of which {fresh} of "
                f"{np.size(part(self.state, keys))} elements hold no sum of the tensor engine's; "
                "start it with accumulate=False"
            )
        broken = self.broken(keys)
        if broken is not None:
            raise BrokenSum(
                f"{here}: it continues a sum in {ref.name} into which {line(broken)} has written "
                "meanwhile; start a new sum with accumulate=False, and add the two in SBUF"
            )

    def written(self, equation: Any, keys: Keys, agent: str) -> None:
        """Somebody has written there; if it was the tensor engine, `summed` follows."""
        here = part(self.state, keys)
        if np.any(here == _SUM):
            self.by = equation
            _assign(self.state, keys, np.where(here == 0, 0, _BROKEN).astype(np.int8))

    def fresh(self, keys: Keys) -> int:
        """How many of the elements there are in no sum."""
        return int(np.sum(part(self.state, keys) == 0))

    def broken(self, keys: Keys) -> Any:
        """The equation that wrote into the sums there, if one did."""
        return self.by if np.any(part(self.state, keys) == _BROKEN) else None


def _assign(array: np.ndarray, keys: Keys, value: Any) -> None:
    if not keys:
        array[...] = value
        return
    part(array, keys[:-1])[keys[-1]] = value
