"""How often loops run: counted, and compared with how often they do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jax_trn3.compiler.timing.read import device_program

LINE = jax.ShapeDtypeStruct((8,), jnp.float32)


def counts(function: Any, *arguments: Any) -> list[int | None]:
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("trn3",))
    program = device_program(lowered.compiler_ir("stablehlo"))
    loops = [op for op in program.body.walk() if op.kind == "stablehlo.while"]
    return [program.trip_counts[loop.results[0].id] for loop in loops]


def doubled(_: Any, x: Any) -> Any:
    return x * 2


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: lax.fori_loop(0, 10, doubled, x), 10),
        (lambda x: lax.fori_loop(3, 10, doubled, x), 7),
        (lambda x: lax.fori_loop(0, 10, doubled, x, unroll=5), 2),
        (lambda x: lax.scan(lambda c, y: (c + y, c), 0.0, x), 8),
        (lambda x: lax.scan(lambda c, y: (c + y, c), 0.0, x, reverse=True), 8),
        (lambda x: lax.scan(lambda c, y: (c + y, c), 0.0, x, unroll=3), 2),
        (lambda x: lax.map(jnp.sin, x, batch_size=3), 2),
        (lambda x: jax.grad(lambda x: lax.scan(lambda c, y: (c * y, c), 1.0, x)[0])(x), 8),
        (lambda x: lax.while_loop(lambda c: c[0] < 17, lambda c: (c[0] + 3, c[1] * 2), (2, x)), 5),
        (lambda x: lax.while_loop(lambda c: c[0] > -4, lambda c: (c[0] - 3, c[1] * 2), (9, x)), 5),
        (lambda x: lax.while_loop(lambda c: c[0] <= 17, lambda c: (c[0] + 3, c[1] * 2), (2, x)), 6),
        (lambda x: lax.while_loop(lambda c: c[0] != 6, lambda c: (c[0] + 2, c[1] * 2), (0, x)), 3),
        (
            lambda x: lax.while_loop(lambda c: c[0] < 999, lambda c: (c[0] * 2, c[1] * 2), (1, x)),
            10,
        ),
        (lambda x: lax.while_loop(lambda c: c[0] < 0, lambda c: (c[0] + 1, c[1] * 2), (0, x)), 0),
        (lambda x: lax.fori_loop(0, 2_000_000_000, doubled, x), 2_000_000_000),
    ],
)
def test_known_loops(function: Any, expected: int) -> None:
    assert set(counts(function, LINE)) == {expected}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c * 2, x),
        lambda x: lax.fori_loop(0, x.sum().astype(int), doubled, x),
        # Never ends (in 32 bits): no count is right.
        lambda x: lax.while_loop(lambda c: c[0] != 7, lambda c: (c[0] + 2, c[1] * 2), (0, x)),
        lambda x: lax.while_loop(lambda c: c[0] < 7, lambda c: (c[0] - 1, c[1] * 2), (0, x)),
    ],
)
def test_loops_that_data_decide(function: Any) -> None:
    assert counts(function, LINE) == [None]


def test_loop_in_a_loop() -> None:
    def f(x: Any) -> Any:
        return lax.fori_loop(0, 4, lambda _, y: lax.fori_loop(0, 6, doubled, y), x)

    assert counts(f, LINE) == [4, 6]


def test_loop_that_an_outer_loop_bounds() -> None:
    def f(x: Any) -> Any:
        return lax.fori_loop(0, 11, lambda i, y: lax.fori_loop(0, i, doubled, y), x)

    assert counts(f, LINE) == [11, 5]  # the mean of 0 to 10


def test_loop_that_a_nested_loop_in_branches_bounds() -> None:
    def f(x: Any) -> Any:
        def row(i: Any, y: Any) -> Any:
            blocks = jnp.minimum((i * 128 + 127) // 128 + 1, 4)
            return lax.fori_loop(0, blocks, doubled, y)

        return lax.fori_loop(0, 4, row, x)

    # Blocks of a causal mask: 1 to 4 of 4, rounded up by integer division as Python's.
    every = [min((i * 128 + 127) // 128 + 1, 4) for i in range(4)]
    assert counts(f, LINE) == [4, -(-sum(every) // 4)]


def test_data_in_an_outer_loop_leave_the_inner_one() -> None:
    def f(x: Any) -> Any:
        body = lambda y: lax.fori_loop(0, 6, doubled, y)  # noqa: E731
        return lax.while_loop(lambda y: y.sum() < 9, body, x)

    assert counts(f, LINE) == [None, 6]


@settings(max_examples=25)
@given(
    start=st.integers(-50, 50), end=st.integers(-50, 50), step=st.integers(-7, 7).filter(bool),
    compare=st.sampled_from(["lt", "le", "gt", "ge"]),
)  # fmt: skip
def test_counts_are_how_often_loops_run(start: int, end: int, step: int, compare: str) -> None:
    if (step > 0) != (compare in ("lt", "le")):
        step = -step
    goes_on = getattr(lax, compare)

    def f(x: Any) -> Any:
        return lax.while_loop(
            lambda c: goes_on(c[0], jnp.int32(end)),
            lambda c: (c[0] + step, c[1] + 1),
            (jnp.int32(start), x),
        )[1]

    (counted,) = counts(f, jax.ShapeDtypeStruct((), jnp.int32))
    here, steps = np.int32(start), 0
    python = {"lt": "__lt__", "le": "__le__", "gt": "__gt__", "ge": "__ge__"}[compare]
    while getattr(int(here), python)(end):
        here, steps = here + step, steps + 1
    assert counted == steps
