"""Software pipelines in a kernel's text: what one step begins, the next ones carry on.

Engines take their instructions in the order of the text, so that a step of which TensorE waits for
ScalarE holds up TensorE. In a pipeline the text of a step works for several: it begins with step n,
while it carries on with n - 1, n - 2 and so on, whose inputs are there already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jax import lax

LAGS = 3
"""Steps between a step's first stage and its last, in all attention kernels here."""


@dataclass(frozen=True)
class Run:
    """Steps with the same text: `step(i)` describes the i-th."""

    count: Any
    """A traced one is at least as large as the pipeline's lags."""

    step: Callable[[Any], Any]

    before: Callable[[], None] | None = None
    """What goes before the first one."""


@dataclass(frozen=True)
class Repeat:
    """Runs that go by `count` times, a number or a traced one; `runs(i)` are the i-th ones.

    The steps under way at its begin must have the text of those at its end."""

    count: Any
    runs: Callable[[Any], Sequence[Run]]


def pipeline(
    work: Sequence[Run | Repeat], lags: int, emit: Callable[[tuple[Any, ...]], None]
) -> None:
    """Emits the steps of all runs, those of one overlapping those of the next.

    **Arguments:**

    - `lags`: Steps back that are still under way.
    - `emit`: Emits the text of a step: it gets the step that begins, and those from 1 to `lags`
      before it; None where there is none.
    """
    under_way: tuple[Any, ...] = (None,) * lags
    for item in work:
        if isinstance(item, Repeat):
            under_way = _repeated(item, under_way, emit)
        else:
            under_way = _run(item, under_way, emit)
    for _ in range(lags):
        emit((None, *under_way))
        under_way = (None, *under_way[:-1])


def _run(
    run: Run, under_way: tuple[Any, ...], emit: Callable[[tuple[Any, ...]], None]
) -> tuple[Any, ...]:
    lags = len(under_way)
    if run.before is not None:
        run.before()
    static = isinstance(run.count, int)
    alone = min(run.count, lags) if static else lags
    for number in range(alone):
        step = run.step(number)
        emit((step, *under_way))
        under_way = (step, *under_way)[:lags]
    if static and run.count <= lags:
        return under_way

    def body(number: Any, carry: Any) -> Any:
        emit(tuple(run.step(number - lag) for lag in range(lags + 1)))
        return carry

    lax.fori_loop(alone, run.count, body, None)
    return tuple(run.step(run.count - 1 - lag) for lag in range(lags))


def _repeated(
    item: Repeat, under_way: tuple[Any, ...], emit: Callable[[tuple[Any, ...]], None]
) -> tuple[Any, ...]:
    lags = len(under_way)

    def last_of(number: Any) -> tuple[Any, ...]:
        steps = [run.step(k) for run in item.runs(number) for k in range(run.count)]
        return tuple(reversed(steps[-lags:]))

    def body(number: Any, carry: Any) -> Any:
        before = last_of(number - 1)
        for run in item.runs(number):
            before = _run(run, before, emit)
        return carry

    lax.fori_loop(0, item.count, body, None)
    return last_of(item.count - 1)
