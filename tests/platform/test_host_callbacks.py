"""Callbacks to the host, on one and on several devices."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from against_cpu import F32, array, devices
from jax import lax
from jax._src import dispatch
from jax.experimental import checkify, io_callback


def test_debug_print_prints_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    @jax.jit
    def program(x: jax.Array) -> None:
        for i in range(5):
            jax.debug.print("{} {}", i, x.sum(), ordered=True)

    program(np.arange(3))
    jax.effects_barrier()
    assert capfd.readouterr().out.split("\n")[:5] == [f"{i} 3" for i in range(5)]


def test_pure_callback_sees_and_gives_values() -> None:
    x = array(3, 4)
    shape = jax.ShapeDtypeStruct((4, 3), F32)
    y = jax.jit(lambda x: jax.pure_callback(lambda x: np.asarray(x).T * 2, shape, x) + 1)(x)
    np.testing.assert_array_equal(np.asarray(y), x.T * 2 + 1)


def test_pure_callback_under_vmap_and_in_a_loop() -> None:
    def double(x: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: x * 2, shape, x, vmap_method="sequential")

    x = np.arange(4.0, dtype=F32)
    np.testing.assert_array_equal(np.asarray(jax.vmap(double)(x)), x * 2)
    looped = jax.jit(lambda x: lax.fori_loop(0, 5, lambda i, x: double(x), x))
    np.testing.assert_array_equal(np.asarray(looped(x)), x * 2**5)


def test_pure_callback_on_each_device_sees_its_part() -> None:
    mesh = jax.sharding.Mesh(devices(*range(4)), "d")
    shape = jax.ShapeDtypeStruct((2,), F32)
    program = jax.shard_map(
        lambda x: jax.pure_callback(lambda x: np.asarray(x) - np.asarray(x).min(), shape, x),
        mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d"),
    )  # fmt: skip
    y = jax.jit(program)(np.array([5, 9, 1, 2, 7, 7, 8, 0], F32))
    np.testing.assert_array_equal(np.asarray(y), [0, 4, 0, 1, 0, 0, 8, 0])


def test_ordered_io_callbacks_come_in_order() -> None:
    seen: list[int] = []

    @jax.jit
    def program(x: jax.Array) -> jax.Array:
        def body(i: int, x: jax.Array) -> jax.Array:
            io_callback(lambda i: seen.append(int(i)), None, i, ordered=True)
            return x + i

        return lax.fori_loop(0, 20, body, x)

    results = [program(np.int32(k)) for k in range(3)]
    jax.effects_barrier()
    assert [int(r) for r in results] == [190, 191, 192]
    assert seen == list(range(20)) * 3


def test_io_callback_gives_values() -> None:
    shape = jax.ShapeDtypeStruct((), np.int32)
    counter = iter(range(100, 200))
    program = jax.jit(lambda: io_callback(lambda: np.int32(next(counter)), shape, ordered=True))
    assert [int(program()) for _ in range(3)] == [100, 101, 102]


@pytest.fixture
def forget_effects() -> Iterator[None]:
    """JAX keeps the error of a failed callback and raises it at every later effects_barrier()."""
    yield
    dispatch.runtime_tokens.clear()


@pytest.mark.usefixtures("forget_effects")
@pytest.mark.parametrize("size", [1, 2])
def test_exception_in_a_callback_reaches_the_user_with_its_text(size: int) -> None:
    def fail(x: Any) -> Any:
        raise ZeroDivisionError("the reason of the callback")

    mesh = jax.sharding.Mesh(devices(*range(size)), "d")
    program = jax.shard_map(
        lambda x: jax.pure_callback(fail, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
        mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d"),
    )  # fmt: skip
    with pytest.raises(jax.errors.JaxRuntimeError, match="the reason of the callback"):
        jax.block_until_ready(jax.jit(program)(np.arange(4.0)))
    assert int(jnp.add(1, 2)) == 3


def test_callback_may_use_the_platform() -> None:
    inner = jax.jit(lambda x: x * 3)
    shape = jax.ShapeDtypeStruct((2,), F32)
    y = jax.jit(lambda x: jax.pure_callback(lambda x: np.asarray(inner(np.asarray(x))), shape, x))(
        np.ones(2, F32)
    )
    np.testing.assert_array_equal(np.asarray(y), [3, 3])


def test_checkify_reports_the_failed_check() -> None:
    def program(x: jax.Array) -> jax.Array:
        checkify.check(x.min() > 0, "not positive: {x}", x=x.min())
        return jnp.log(x)

    error, _ = jax.jit(checkify.checkify(program))(np.array([1.0, -2.0], F32))
    assert "not positive: -2" in error.get()
    error, y = jax.jit(checkify.checkify(program))(np.ones(2, F32))
    assert error.get() is None
    np.testing.assert_array_equal(np.asarray(y), [0, 0])
