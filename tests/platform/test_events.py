"""Readiness tells the truth: an array is ready when its values are there, and not before."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from subprocess import CompletedProcess
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import dispatch

F32 = np.float32

Program = Callable[[jax.Array], jax.Array]
RunPython = Callable[..., CompletedProcess[str]]


def on_two_devices(callback: Callable[..., Any]) -> tuple[Program, jax.Array]:
    """A compiled program that calls back to Python, and an argument.

    Two devices, because XLA:CPU runs a small program of one device before the call returns.
    """
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), "d")
    x = jax.device_put(np.zeros(2, F32), jax.NamedSharding(mesh, jax.P("d")))

    def call(x: jax.Array) -> jax.Array:
        return jax.pure_callback(callback, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    program = jax.jit(jax.shard_map(call, mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d")))
    return program.lower(x).compile(), x


class Slow:
    """A program that adds 1, once it is let go; `done` says when."""

    def __init__(self) -> None:
        self.go, self.done = threading.Event(), threading.Event()
        self.program, self.x = on_two_devices(self._callback)

    def _callback(self, x: jax.Array) -> np.ndarray[Any, Any]:
        assert self.go.wait(timeout=30)
        time.sleep(0.05)
        self.done.set()
        return np.asarray(x) + 1

    def start(self) -> jax.Array:
        return self.program(self.x)

    def let_go_soon(self) -> None:
        threading.Timer(0.05, self.go.set).start()


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.go.set()


def test_shard_is_read_while_another_has_been_donated(slow: Slow) -> None:
    first, second = (shard.data for shard in slow.start().addressable_shards)
    jax.jit(lambda x: x * 2, donate_argnums=0)(first)
    slow.let_go_soon()
    np.testing.assert_array_equal(np.asarray(second), [1])


def test_array_is_not_ready_before_the_program_is_done(slow: Slow) -> None:
    y = slow.start()
    assert not y.is_ready()
    time.sleep(0.1)
    assert not y.is_ready()
    slow.go.set()
    y.block_until_ready()
    assert slow.done.is_set()
    assert y.is_ready()


def test_block_until_ready_waits_until_a_sleeping_program_is_done() -> None:
    flags: list[float] = []

    def sleep(x: jax.Array) -> np.ndarray[Any, Any]:
        time.sleep(0.3)
        flags.append(time.perf_counter())
        return np.asarray(x)

    program, x = on_two_devices(sleep)
    start = time.perf_counter()
    program(x).block_until_ready()
    assert len(flags) == 2
    assert 0.3 <= max(flags) - start <= time.perf_counter() - start


@pytest.mark.parametrize(
    "read",
    [np.asarray, lambda y: y[0], lambda y: y.addressable_shards[0].data.tolist(), jax.device_get],
    ids=["asarray", "index", "shard", "device_get"],
)
def test_reading_waits_for_the_values(slow: Slow, read: Callable[..., Any]) -> None:
    y = slow.start()
    slow.let_go_soon()
    assert np.all(np.asarray(read(y)) == 1)
    assert slow.done.is_set()


@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_copy_to_the_host_may_start_before_the_values_are_there(slow: Slow, dtype: str) -> None:
    y = jax.jit(lambda y: y.astype(dtype))(slow.start())
    y.copy_to_host_async()
    assert not y.is_ready()
    slow.go.set()
    assert np.asarray(y).astype(F32).tolist() == [1, 1]


def test_transfer_of_an_array_that_is_not_ready_waits_for_it(slow: Slow) -> None:
    y = slow.start().addressable_shards[0].data
    slow.let_go_soon()
    assert np.asarray(jax.device_put(y, jax.devices()[5])).tolist() == [1]
    assert slow.done.is_set()


def test_program_waits_for_the_arguments_that_are_not_ready(slow: Slow) -> None:
    z = jax.jit(lambda y: y * 10)(slow.start())
    assert not z.is_ready()
    slow.go.set()
    assert np.asarray(z).tolist() == [10, 10]


def test_results_in_a_chain_of_unfinished_programs_are_in_order(slow: Slow) -> None:
    step = jax.jit(lambda y: y + 1)
    y = slow.start()
    chain = [y := step(y) for _ in range(20)]
    assert not any(y.is_ready() for y in chain)
    slow.go.set()
    assert [np.asarray(y)[0] for y in chain] == list(range(2, 22))


def test_unfinished_program_leaves_other_devices_alone(slow: Slow) -> None:
    y = slow.start()
    x = jax.device_put(np.zeros(2, F32), jax.devices()[6])
    assert np.asarray(jnp.cos(x)).tolist() == [1, 1]
    assert not y.is_ready()


def test_more_unfinished_programs_than_there_are_waiting_threads(slow: Slow) -> None:
    step = jax.jit(lambda y: y + 1)
    part = slow.start().addressable_shards[0].data
    copies = [jax.device_put(part, device) for device in jax.devices()]
    # No more on one device: XLA:CPU makes the caller wait when 32 programs are unfinished.
    results = [step(y) for y in copies for _ in range(20)]
    assert not any(y.is_ready() for y in results)
    slow.go.set()
    assert all(np.asarray(y).tolist() == [2] for y in results)


def test_other_python_threads_run_while_one_waits(slow: Slow) -> None:
    thread = threading.Timer(0.1, slow.go.set)  # would never fire, were the GIL held
    thread.start()
    slow.start().block_until_ready()
    assert slow.done.is_set()


@pytest.mark.parametrize("ordered", [False, True])
def test_effects_barrier_waits_for_programs_without_outputs(ordered: bool) -> None:
    seen: list[int] = []

    def callback(x: jax.Array) -> None:
        time.sleep(0.1)
        seen.append(int(x))

    jax.jit(lambda x: jax.debug.callback(callback, x, ordered=ordered))(3)
    jax.effects_barrier()
    assert seen == [3]


@pytest.mark.parametrize("donate", [(), (0,)], ids=["deleted", "donated"])
def test_argument_that_goes_away_is_still_read_by_an_unfinished_program(
    slow: Slow, donate: tuple[int, ...]
) -> None:
    y = slow.start()
    z = jax.jit(lambda y: y * 2, donate_argnums=donate)(y)
    slow.x.delete()
    y.delete()
    slow.go.set()
    assert np.asarray(z).tolist() == [2, 2]


@pytest.fixture
def forget_effects() -> Iterator[None]:
    """JAX keeps the error of a failed callback and raises it at every later effects_barrier()."""
    yield
    dispatch.runtime_tokens.clear()


@pytest.mark.usefixtures("forget_effects")
def test_error_of_an_unfinished_program_is_raised_by_whoever_waits() -> None:
    go = threading.Event()

    def fail(x: jax.Array) -> np.ndarray[Any, Any]:
        assert go.wait(timeout=30)
        raise ValueError("too late")

    program, x = on_two_devices(fail)
    y = program(x)
    z = jax.jit(lambda y: y + 1)(y)
    assert not y.is_ready()
    go.set()
    for array in (y, z):
        with pytest.raises(jax.errors.JaxRuntimeError, match="too late"):
            array.block_until_ready()
        with pytest.raises(jax.errors.JaxRuntimeError, match="too late"):
            np.asarray(array)


# ---- Threads -------------------------------------------------------------------------------------


step = jax.jit(lambda x, k: jnp.tanh(x @ x.T / 16) + k)
give = jax.jit(lambda x: x - 0.5, donate_argnums=0)


def work(seed: int) -> list[Any]:
    """Transfers, programs on different devices, donation, reading."""
    host = np.random.default_rng(seed).normal(size=(16, 16)).astype(F32)
    x = jax.device_put(host, jax.devices()[seed % 4])
    out = []
    for k in range(20):
        x = give(step(x, k))
        if k % 5 == 0:
            out.append(np.array(x))
            x = jax.device_put(x, jax.devices()[(seed + k) % 4])
    return out


def test_sixteen_threads_give_what_one_gives() -> None:
    alone = [work(seed) for seed in range(16)]
    barrier = threading.Barrier(16)

    def together(seed: int) -> list[Any]:
        barrier.wait()
        return work(seed)

    with ThreadPoolExecutor(16) as pool:
        crowded = list(pool.map(together, range(16)))
    np.testing.assert_array_equal(np.array(crowded), np.array(alone))


def test_threads_may_share_an_array_that_has_to_be_put_together() -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "d")
    program = jax.jit(lambda x: x * 2)
    for _ in range(10):
        singles = [jax.device_put(np.full(2, i, F32), d) for i, d in enumerate(jax.devices())]
        x = jax.make_array_from_single_device_arrays(
            (16,), jax.NamedSharding(mesh, jax.P("d")), singles
        )
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _, x=x: np.asarray(program(x)), range(8)))
        for result in results:
            np.testing.assert_array_equal(result, np.repeat(np.arange(8), 2) * 2)


def test_compilations_in_threads_give_their_own_programs() -> None:
    def compile_and_run(k: int) -> int:
        return int(jax.jit(lambda x: x * k + k)(np.int32(k)))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(compile_and_run, range(24))) == [k * k + k for k in range(24)]


def test_callbacks_of_programs_compiled_in_threads_are_their_own() -> None:
    def compile_and_run(k: int) -> int:
        shape = jax.ShapeDtypeStruct((), np.int32)
        return int(jax.jit(lambda: jax.pure_callback(lambda: np.int32(k), shape))())

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(compile_and_run, range(24))) == list(range(24))


COLLECTIVES = """
import threading
import jax, numpy as np

def program(devices):
    mesh = jax.sharding.Mesh(np.array(devices), "d")
    spec = jax.P("d")
    body = lambda x: jax.lax.psum(x, "d") + 0 * jax.lax.all_gather(x, "d").sum()
    run = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec))
    x = jax.device_put(np.arange(8, dtype=np.float32), jax.NamedSharding(mesh, spec))
    return lambda: run(x)

devices = jax.devices()
programs = [program(devices), program(devices[::-1]), program(devices[2:6])]
results = [run() for _ in range(100) for run in programs]
threads = [
    threading.Thread(target=lambda run=run: results.extend(run() for _ in range(50)))
    for run in programs * 2
]
for thread in threads: thread.start()
for thread in threads: thread.join()
sums = [float(r.sum()) for r in results]
print(len(sums), *sorted(set(sums)))
"""


def test_many_collectives_in_flight_from_many_threads_do_not_wait_for_each_other(
    run_python: RunPython,
) -> None:
    process = run_python(COLLECTIVES, timeout=60)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["600", "112.0", "224.0"]
