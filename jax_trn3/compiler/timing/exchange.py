"""Operations that reach over the edges of what a device has: data move without being asked for.

Shardy leaves a slice, a concatenation, a padding or a window along a split dimension as it is, and
XLA's partitioner exchanges edges for it. Here what such an operation reads (of a slice, what it
yields) is taken to be sent once, all of it: no less than the edges. A window that is longer than
the part on a device (`jnp.cumsum`) reads what all devices have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from .graph import Tensor
from .shardings import Axes, Layout


class Exchange(NamedTuple):
    """What moves along mesh axes: the operands to neighbours, or to all; or the result."""

    what: Literal["operands", "gathered", "result"]
    dims: tuple[tuple[int, Axes], ...]
    """Dimensions, with the axes that split them."""


def exchange(
    kind: str,
    attributes: Mapping[str, Any],
    operands: Sequence[Tensor],
    results: Sequence[Tensor],
    layout: Layout | None,
) -> Exchange | None:
    """What an operation needs of other devices; None if nothing. `layout`: of its first operand."""
    if layout is None or kind not in _REACHING:
        return None
    dims = _REACHING[kind](attributes, operands[0].shape, results[0].shape)
    split = tuple((dim, layout[dim]) for dim in dims if layout[dim])
    if not split:
        return None
    if kind == "stablehlo.slice":
        return Exchange("result", split)
    windows = attributes.get("window_dimensions")
    is_long = windows is not None and any(windows[dim] > operands[0].shape[dim] for dim, _ in split)
    return Exchange("gathered" if is_long else "operands", split)


_Shape = tuple[int, ...]
_Reach = Callable[[Mapping[str, Any], _Shape, _Shape], Iterable[int]]


def _sliced(attributes: Mapping[str, Any], operand: _Shape, result: _Shape) -> Iterable[int]:
    """Every device keeps its own if what is taken of each is the same."""
    starts, strides = attributes["start_indices"], attributes["strides"]
    return (
        dim
        for dim, (start, stride) in enumerate(zip(starts, strides, strict=True))
        if start >= stride or result[dim] * stride != operand[dim]
    )


def _padded(attributes: Mapping[str, Any], operand: _Shape, result: _Shape) -> Iterable[int]:
    """What stands at the end only, and changes no device's part, moves nothing."""
    low, inside = attributes["edge_padding_low"], attributes["interior_padding"]
    return (
        dim for dim in range(len(operand)) if low[dim] or inside[dim] or operand[dim] != result[dim]
    )


def _windows(attributes: Mapping[str, Any], operand: _Shape, result: _Shape) -> Iterable[int]:
    return (dim for dim, size in enumerate(attributes["window_dimensions"]) if size > 1)


_REACHING: dict[str, _Reach] = {
    "stablehlo.slice": _sliced,
    "stablehlo.concatenate": lambda attributes, *_: (attributes["dimension"],),
    "stablehlo.pad": _padded,
    "stablehlo.reverse": lambda attributes, *_: attributes["dimensions"],
    "stablehlo.reduce_window": _windows,
    "stablehlo.select_and_scatter": _windows,
    "stablehlo.convolution": lambda attributes, *_: attributes["dimension_numbers"][
        "input_spatial_dimensions"
    ],
}
