"""Several processes with jax.distributed.initialize(): one platform over all their devices."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PREAMBLE = """
import sys
index, count, port = map(int, sys.argv[1:4])
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
jax.distributed.initialize(f"localhost:{port}", count, index)
mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

def sharded(array, *spec):
    sharding = NamedSharding(mesh, P(*spec))
    return jax.make_array_from_callback(array.shape, sharding, lambda i: array[i])
"""

Start = Callable[..., list["subprocess.Popen[str]"]]


@pytest.fixture
def start() -> Iterator[Start]:
    """start(code, count, **environment): so many processes, after PREAMBLE."""
    processes: list[subprocess.Popen[str]] = []

    def run(code: str, count: int, **environment: str) -> list[subprocess.Popen[str]]:
        with socket.create_server(("", 0)) as probe:
            port = probe.getsockname()[1]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
        for index in range(count):
            arguments = [str(index), str(count), str(port)]
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", PREAMBLE + textwrap.dedent(code), *arguments],
                    env=clean | {"JAX_PLATFORMS": "trn3,cpu"} | environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return processes

    yield run
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def outputs(processes: list[subprocess.Popen[str]], timeout: float = 120) -> list[list[str]]:
    """The words that each printed after "result:"; fails if one did not end well."""
    words = []
    for process in processes:
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == 0, err[-3000:]
        words.append(out.rpartition("result:")[2].split())
    return words


def wait_for_start(process: subprocess.Popen[str]) -> None:
    """Until it prints "started"; gloo prints lines of its own."""
    assert process.stdout is not None
    while not (line := process.stdout.readline()).endswith("started\n"):
        assert line, process.communicate()


@pytest.mark.parametrize("count", [2, 4])
def test_one_platform_over_all_devices(start: Start, count: int) -> None:
    code = """
        ids = [device.id for device in jax.local_devices()]
        owners = [device.process_index for device in jax.devices()]
        print("result:", jax.process_index(), jax.process_count(), ids, owners)
    """
    share = 8 // count
    for index, words in enumerate(outputs(start(code, count))):
        ids = list(range(index * share, (index + 1) * share))
        owners = [i // share for i in range(8)]
        assert " ".join(words) == f"{index} {count} {ids} {owners}"


@pytest.mark.parametrize("count", [2, 4])
def test_collectives_and_sharded_jit(start: Start, count: int) -> None:
    code = """
        from jax import lax
        from jax.experimental import multihost_utils

        values = np.arange(8 * 8 * 4, dtype=np.float32).reshape(64, 4)
        x = sharded(values, "x")
        each = lambda f, out: jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("x"), out_specs=out))

        def check(actual, expected):
            for shard in actual.addressable_shards:
                np.testing.assert_allclose(shard.data, expected[shard.index], rtol=1e-6)

        blocks = values.reshape(8, 8, 4)
        check(each(lambda x: lax.psum(x, "x"), P())(x), blocks.sum(0))
        check(each(lambda x: lax.ppermute(x, "x", [(i, (i + 1) % 8) for i in range(8)]), P("x"))(x),
              np.roll(blocks, 1, 0).reshape(64, 4))
        check(each(lambda x: lax.all_to_all(x, "x", 0, 0, tiled=True), P("x"))(x),
              blocks.swapaxes(0, 1).reshape(64, 4))
        check(each(lambda x: lax.psum_scatter(x, "x", tiled=True), P("x"))(x), blocks.sum(0))
        check(each(lambda x: lax.all_gather(x, "x", tiled=True), P("x"))(x), np.tile(values, (8, 1)))

        # A training step of a linear model, rows of the data and columns of the weights sharded.
        w = np.linspace(-1, 1, 4 * 16, dtype=np.float32).reshape(4, 16)
        loss = lambda w, x: ((x @ w) ** 2).mean()
        step = jax.jit(lambda w, x: w - 1e-4 * jax.grad(loss)(w, x), donate_argnums=0)
        new = step(sharded(w, None, "x"), x)
        gradient = 2 * values.T @ (values @ w) / (64 * 16)
        check(new, w - 1e-4 * gradient)

        everything = multihost_utils.process_allgather(np.array([index * 10]))
        multihost_utils.sync_global_devices("the end")
        print("result:", everything.ravel().tolist())
    """
    expected = str([10 * i for i in range(count)]).split()
    assert outputs(start(code, count)) == [expected] * count


def test_programs_of_one_process_alone(start: Start) -> None:
    code = """
        x = jnp.ones((4, 4)) * index
        print("result:", float((x @ x).sum()), next(iter(x.devices())).id)
    """
    assert outputs(start(code, 2)) == [["0.0", "0"], ["64.0", "4"]]


def test_a_checkpoint_with_orbax(start: Start, tmp_path: Path) -> None:
    code = """
        import os
        import orbax.checkpoint as ocp

        values = np.arange(32, dtype=np.float32).reshape(8, 4)
        tree = {"w": sharded(values, "x"), "step": 3}
        with ocp.StandardCheckpointer() as checkpointer:
            path = os.environ["CHECKPOINT"]
            checkpointer.save(path, tree)
            checkpointer.wait_until_finished()
            shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
            restored = checkpointer.restore(path, shapes)
        assert restored["w"].sharding == tree["w"].sharding
        for shard in restored["w"].addressable_shards:
            np.testing.assert_array_equal(shard.data, values[shard.index])
        print("result:", restored["step"])
    """
    processes = start(code, 2, CHECKPOINT=str(tmp_path / "checkpoint"))
    assert outputs(processes) == [["3"], ["3"]]


LOOP = """
    import time
    x = sharded(np.ones((8, 4), np.float32), "x")
    total = jax.jit(lambda x: x.sum())
    local = jnp.arange(4.0)
    print("started", flush=True)
    began = time.monotonic()
    try:
        while True:
            if index == count - 1 and time.monotonic() > began + 1:
                {end}
            assert float(total(x)) == 32
    except Exception as error:
        failure = error
    # What needs nobody else still works, and is not lost.
    assert float((local + 1).sum()) == 10
    try:
        total(x)
    except Exception as error:
        again = error
    print("result:", str(failure), "|", str(again))
"""


def survivors_of(start: Start, count: int, end: str) -> list[str]:
    """What all but the last process print when the last one ends in the middle of a loop."""
    processes = start(LOOP.replace("{end}", end), count)
    for process in processes:
        wait_for_start(process)
    processes[-1].wait(timeout=60)
    began = time.monotonic()
    results = [" ".join(words) for words in outputs(processes[:-1], timeout=60)]
    # Long before JAX's own heartbeats tell, and abort the process (100 s).
    assert time.monotonic() - began < 30
    return results


@pytest.mark.parametrize("count", [2, 4])
def test_a_killed_process_is_an_error_in_the_others(start: Start, count: int) -> None:
    for result in survivors_of(start, count, "import os; os.kill(os.getpid(), 9)"):
        first, second = result.split(" | ")
        assert "gone" in first or "Gloo" in first or "closed" in first, result
        assert f"UNAVAILABLE: process {count - 1} of the {count} that share" in second


def test_an_exception_in_one_process_is_an_error_in_the_others(start: Start) -> None:
    # BaseException: the loop catches what the platform raises, and this is not that.
    (result,) = survivors_of(start, 2, "raise BaseException('a bug')")
    assert "UNAVAILABLE: process 1 of the 2" in result.split(" | ")[1]


def test_a_killed_process_ends_a_wait_that_has_begun(start: Start) -> None:
    code = """
        import time
        x = sharded(np.ones((8, 4), np.float32), "x")
        total = jax.jit(lambda x: x.sum())
        assert float(total(x)) == 32
        print("started", flush=True)
        if index == 1:
            time.sleep(60)  # until it is killed
        try:
            float(total(x))
        except Exception as error:
            print("result:", error)
    """
    waiting, victim = start(code, 2)
    for process in (waiting, victim):
        wait_for_start(process)
    time.sleep(1)
    victim.send_signal(signal.SIGKILL)
    (words,) = outputs([waiting], timeout=30)
    assert "UNAVAILABLE:" in words or "Gloo" in " ".join(words)


def test_devices_that_cannot_be_shared_equally(start: Start) -> None:
    for process in start("jax.devices()", 3):
        out, err = process.communicate(timeout=60)
        assert process.returncode != 0
        assert "3 processes cannot share the 8 devices of topology 'trn3-chip' equally" in err + out
