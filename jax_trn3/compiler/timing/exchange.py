"""Operations that reach over the edges of what a device has: data move without being asked for.

Shardy leaves a concatenation, a padding or a window along a split dimension as it is, and XLA's
partitioner exchanges edges for it. Here each operand is taken to be sent once to a neighbour, and
whole: no less than what is exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .shardings import Axes, Layout


def exchanged_axes(kind: str, attributes: Mapping[str, Any], layout: Layout | None) -> Axes:
    """The mesh axes along which an operation needs its neighbours' data; () if none.

    layout: of the first operand.
    """
    if layout is None or not any(layout):
        return ()
    dims = _REACHING.get(kind, lambda _: ())(attributes)
    return tuple(axis for dim in dims for axis in layout[dim])


def _longer_than_one(attributes: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(dim for dim, size in enumerate(attributes["window_dimensions"]) if size > 1)


def _padded(attributes: Mapping[str, Any]) -> tuple[int, ...]:
    names = "edge_padding_low", "edge_padding_high", "interior_padding"
    amounts = zip(*(attributes[name] for name in names), strict=True)
    # What is added or cut at the end only moves no element from its place.
    return tuple(dim for dim, (low, _, inside) in enumerate(amounts) if low or inside)


def _space(attributes: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(attributes["dimension_numbers"]["input_spatial_dimensions"])


_REACHING = {
    "stablehlo.concatenate": lambda attributes: (attributes["dimension"],),
    "stablehlo.pad": _padded,
    "stablehlo.reverse": lambda attributes: attributes["dimensions"],
    "stablehlo.reduce_window": _longer_than_one,
    "stablehlo.select_and_scatter": _longer_than_one,
    "stablehlo.convolution": _space,
}
