"""Loops that kernels share: over tiles of a length that they need not divide, and ahead of use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

Body = Callable[[Any, Any, int], None]
"""Takes a tile's number, its first element, and its size, which is a Python number."""


def tiled(total: int, step: int, body: Body) -> None:
    """The body for every tile of `step` elements, and for what is left of `total` behind them."""
    full, rest = divmod(total, step)
    repeated(0, full, lambda i: body(i, i * step, step))
    if rest:
        body(full, full * step, rest)


def loaded_ahead(
    total: int,
    step: int,
    load: Body,
    use: Body,
    use_last: Body | None = None,
    *,
    loaded: bool = False,
) -> None:
    """As `tiled` with `use`, each tile loaded before the one before it is used.

    Engines work in the program's order: what prepares a tile stands before the work that it hides
    behind.

    **Arguments:**

    - `use_last`: The last use, if it is another.
    - `loaded`: Whether the first tile is there.
    """
    full, rest = divmod(total, step)
    if not loaded:
        load(0, 0, min(step, total))

    def both(i: Any) -> None:
        load(i + 1, (i + 1) * step, step)
        use(i, i * step, step)

    repeated(0, full - 1, both)
    if rest and full:
        load(full, full * step, rest)
        use(full - 1, (full - 1) * step, step)
    number, size = (full, rest) if rest else (full - 1, step)
    (use_last or use)(number, number * step, size)


def repeated(first: int, last: int, body: Callable[[Any], None]) -> None:
    """The body for first <= i < last: a loop, or written out if it runs once."""
    if last - first == 1:
        body(first)
    elif last > first:
        lax.fori_loop(first, last, lambda i, none: body(i), None)


def turn(count: Any, buffers: int) -> Any:
    """Which of so many buffers in rotation it is that many steps on."""
    if isinstance(count, int):
        return count % buffers
    return lax.rem(count, jnp.int32(buffers))


def pieces(size: int, step: int) -> list[tuple[int, int]]:
    """(start, size) of the parts of `step` elements, the last one maybe smaller."""
    return [(start, min(step, size - start)) for start in range(0, size, step)]
