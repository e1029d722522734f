"""How much of something there is over time: bytes a second, transfers in flight, bytes in use."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Level:
    """A function of time that is constant between steps."""

    times: np.ndarray
    """int64[n]: when it steps, ps, ascending."""

    values: np.ndarray
    """[n]: its value from then on. Before the first step it is 0."""

    @property
    def peak(self) -> float:
        """Its largest value."""
        return self.values.max(initial=0).item()

    @property
    def integral(self) -> float:
        """Its sum over time, in units of the value times ps."""
        return float((self.values[:-1] * np.diff(self.times)).sum())


def level(begin: np.ndarray, end: np.ndarray, amount: np.ndarray) -> Level:
    """What is there while `begin <= t < end`, summed: `amount` of each."""
    times = np.concatenate([begin, end])
    times, place = np.unique(times, return_inverse=True)
    change = np.zeros(len(times), amount.dtype)
    np.add.at(change, place, np.concatenate([amount, -amount]))
    return Level(times, np.cumsum(change))


def rate(begin: np.ndarray, end: np.ndarray, amount: np.ndarray) -> Level:
    """Amounts a second, where each is spread evenly over its time (at least 1 ps)."""
    end = np.maximum(end, begin + 1)
    there = amount > 0
    speed = amount[there] / (end[there] - begin[there]) * 1e12
    found = level(begin[there], end[there], speed)
    # What is added and taken away again leaves a rounding error; where nothing moves is nothing.
    moving = level(begin[there], end[there], np.ones(len(speed), np.int64)).values
    return Level(found.times, np.where(moving > 0, found.values, 0.0))
