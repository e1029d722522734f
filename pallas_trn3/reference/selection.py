"""The part of a Ref that an operation works on, found from its transforms and indices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax._src.state import indexing

from .storage import Keys

Report = Callable[[str], Any]
"""Told what is out of bounds."""


@dataclass(frozen=True)
class _Leaf:
    """Input `number` of the operation."""

    number: int
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Selection:
    """Transforms of a Ref, their indices not known yet."""

    indexers: tuple[Any, ...]
    """JAX's NDIndexers, their dynamic indices being `_Leaf`s."""

    plain: bool
    """Whether there are indexers only; else `transforms` is for JAX to apply."""

    transforms: tuple[Any, ...]

    @classmethod
    def of(cls, transforms: Sequence[Any]) -> Selection:
        """Of transforms whose arrays are `_Leaf`s."""
        plain = all(isinstance(t, indexing.NDIndexer) for t in transforms)
        indexers = tuple(t for t in transforms if not (plain and _everything(t)))
        return cls(indexers if plain else (), plain, tuple(transforms))

    @functools.cached_property
    def numbers(self) -> tuple[int, ...]:
        """Of the inputs that are indices."""
        return tuple(x.number for x in jax.tree.leaves(self.transforms) if isinstance(x, _Leaf))

    def kept(self, rank: int) -> list[int]:
        """Dimensions of the whole that are not dropped by an integer."""
        axes = list(range(rank))
        for indexer in self.indexers:
            axes = [a for a, p in zip(axes, indexer.indices) if isinstance(p, indexing.Slice)]
        return axes

    def keys(self, inputs: Sequence[Any], report: Report | None = None) -> Keys:
        """NumPy's indices. What is out of bounds is reported, or else moved inside as XLA does."""
        return tuple(_key(indexer, inputs, report) for indexer in self.indexers)

    def filled(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """The transforms with their indices."""
        leaves, tree = jax.tree.flatten(self.transforms)
        return tuple(
            jax.tree.unflatten(
                tree, [inputs[x.number] if isinstance(x, _Leaf) else x for x in leaves]
            )
        )


def leaves(count: int, first: int = 0, avals: Sequence[Any] | None = None) -> list[_Leaf]:
    """Stand-ins for inputs `first` on."""
    shapes = [()] * count if avals is None else [getattr(a, "shape", ()) for a in avals]
    return [_Leaf(first + k, shape) for k, shape in enumerate(shapes)]


def _everything(indexer: Any) -> bool:
    return all(
        isinstance(part, indexing.Slice)
        and isinstance(part.start, int)
        and (part.start, part.size, part.stride) == (0, size, 1)
        for part, size in zip(indexer.indices, indexer.shape)
    )


def _key(indexer: Any, inputs: Sequence[Any], report: Report | None) -> tuple[Any, ...]:
    key: list[Any] = []
    for axis, (part, extent) in enumerate(zip(indexer.indices, indexer.shape)):
        if isinstance(part, indexing.Slice):
            key.append(_slice(part, axis, extent, inputs, report))
        elif isinstance(part, _Leaf) and part.shape:
            key.append(_gathered(np.asarray(inputs[part.number]), axis, extent, report))
        elif isinstance(part, np.ndarray) and part.shape:
            key.append(_gathered(part, axis, extent, report))
        else:
            key.append(_start(_number(part, inputs), axis, extent, 1, 1, report))
    return tuple(key)


def _slice(
    part: Any, axis: int, extent: int, inputs: Sequence[Any], report: Report | None
) -> slice:
    if not isinstance(part.size, int):
        raise NotImplementedError("a slice whose size is known at run time only")
    if part.size == 0:
        return slice(0, 0)
    start = _number(part.start, inputs)
    start = _start(start, axis, extent, part.size, part.stride, report)
    return slice(start, start + (part.size - 1) * part.stride + 1, part.stride)


def _start(
    start: int, axis: int, extent: int, count: int, stride: int, report: Report | None
) -> int:
    last = start + (count - 1) * stride
    if start < 0 or last >= extent:
        if report is not None:
            asked = f"index {start}" if count == 1 else f"indices {start} to {last}"
            report(f"{asked} in dimension {axis}, which has {extent} elements")
        return min(max(start, 0), max(extent - 1 - (count - 1) * stride, 0))
    return start


def _gathered(index: np.ndarray, axis: int, extent: int, report: Report | None) -> np.ndarray:
    if index.size and (index.min() < 0 or index.max() >= extent):
        if report is not None:
            wrong = index[(index < 0) | (index >= extent)]
            report(f"index {wrong.flat[0]} in dimension {axis}, which has {extent} elements")
        return np.clip(index, 0, extent - 1)
    return index


def _number(part: Any, inputs: Sequence[Any]) -> int:
    return int(inputs[part.number] if isinstance(part, _Leaf) else part)
