"""Threads that compile and dispatch at once get the same values as one thread."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

THREADS, PROGRAMS, DISPATCHES = 16, 3, 40
LIMIT_S = 60


def at_once(work: Callable[[int], None]) -> None:
    """work(k) in thread k of 16, all begun together."""
    barrier = threading.Barrier(THREADS)

    def begin(k: int) -> None:
        barrier.wait(LIMIT_S)
        work(k)

    with ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(begin, k) for k in range(THREADS)]:
            future.result(timeout=LIMIT_S)


def test_distinct_programs_on_all_devices() -> None:
    def work(k: int) -> None:
        device = jax.devices()[k % len(jax.devices())]
        for i in range(PROGRAMS):
            n = 3 + k * PROGRAMS + i  # a shape, and so a program, of its own
            program = jax.jit(lambda x, y, c=k: x * y - c)
            x = np.arange(n, dtype=np.float32)
            y = jax.device_put(x, device)
            expected = x
            for _ in range(DISPATCHES):
                y = program(y, 0.5)
                expected = expected * np.float32(0.5) - np.float32(k)
            assert y.devices() == {device}
            np.testing.assert_array_equal(np.asarray(y), expected)

    at_once(work)


def test_one_program_and_one_argument_of_all() -> None:
    x = np.arange(1000, dtype=np.int32)
    shared = jnp.asarray(x)
    program = jax.jit(lambda x, k: x * k + 1)

    def work(k: int) -> None:
        results = [program(shared, k + i) for i in range(DISPATCHES)]
        for i, result in enumerate(results):
            np.testing.assert_array_equal(np.asarray(result), x * (k + i) + 1)

    at_once(work)


def test_programs_over_the_same_devices() -> None:
    """With collectives: no thread may come between the devices' parts of another's program."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("d"))

    def work(k: int) -> None:
        x = np.arange(16, dtype=np.float32) + k
        program = jax.jit(lambda x, c=k: x - jnp.sum(x) / 16 + c)
        y = jax.device_put(x, sharding)
        for _ in range(5):
            y = program(y)
        expected = x
        for _ in range(5):
            expected = expected - np.sum(expected) / 16 + np.float32(k)
        np.testing.assert_allclose(np.asarray(y), expected, rtol=1e-5)

    at_once(work)


def test_buffers_come_and_go() -> None:
    def work(k: int) -> None:
        for i in range(DISPATCHES):
            x = np.full((k + 1, 64), i, np.float32)
            y = jax.device_put(x, jax.devices()[(k + i) % 8])
            z = jax.device_put(y, jax.devices()[k % 8])
            del y
            np.testing.assert_array_equal(np.asarray(z), x)
            z.delete()

    at_once(work)
