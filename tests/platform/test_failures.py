"""What goes wrong is a Python exception, and the process lives; or it exits as it should."""

import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from subprocess import CompletedProcess
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXITS = 20  # processes that end with work in flight, over all the ways to do so
AT_ONCE = 2

CRASHES = ("Fatal", "FATAL", "terminate", "Aborted", "Segmentation", "core dumped")

RunPython = Callable[..., CompletedProcess[str]]


def succeed(process: CompletedProcess[str]) -> str:
    assert process.returncode == 0, process.stderr
    assert not [word for word in CRASHES if word in process.stderr], process.stderr
    return process.stdout.strip()


# ---- Errors are exceptions -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def matmul() -> jax.stages.Compiled:
    shape = jax.ShapeDtypeStruct((4, 4), np.float32)
    return jax.jit(jnp.matmul).lower(shape, shape).compile()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([np.ones((4, 4), np.float32)], "length"),
        ([np.ones((4, 4), np.float32)] * 3, "length"),
        ([np.ones((4, 4), np.float32), np.ones((4, 5), np.float32)], r"float32\[4,5\]"),
        ([np.ones((4, 4), np.float32), np.ones((4, 4), np.int32)], r"int32\[4,4\]"),
    ],
    ids=["too few", "too many", "shape", "dtype"],
)
def test_wrong_arguments_of_a_compiled_program(
    matmul: jax.stages.Compiled, arguments: list[Any], reason: str
) -> None:
    with pytest.raises(TypeError, match=reason):
        matmul(*arguments)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (lambda x: [x], "takes 2 arguments, 1 were given"),
        (lambda x: [x, x, x], "takes 2 arguments, 3 were given"),
        (lambda x: [x, x[:, :3]], r"INVALID_ARGUMENT.*size 64.*size 48"),
        (
            lambda x: [x, jax.device_put(x, jax.devices()[1])],
            r"INVALID_ARGUMENT.*is on NeuronCore\(id=1",
        ),
    ],
    ids=["too few", "too many", "shape", "device"],
)
def test_wrong_arguments_below_the_checks_of_jax(
    matmul: jax.stages.Compiled, arguments: Callable[[jax.Array], list[jax.Array]], reason: str
) -> None:
    executable = matmul.runtime_executable()
    with pytest.raises(jax.errors.JaxRuntimeError, match=rf"(?s){reason}"):
        executable.execute_sharded(arguments(jnp.ones((4, 4))))


def test_shards_of_the_wrong_size_are_an_error() -> None:
    """XLA:CPU itself ends the process."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "d")
    sharding = jax.NamedSharding(mesh, jax.P("d"))
    x = jax.device_put(np.zeros(16, np.float32), sharding)
    y = jax.device_put(np.zeros(8, np.float32), sharding)
    program = jax.jit(jnp.sum).lower(x).compile().runtime_executable()
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT.*size 8 .*size 4"):
        program.execute_sharded([y])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"no_such_option": 1}, "No such compile option: 'no_such_option'"),
        ({"xla_embed_ir_in_executable": "maybe"}, "not a valid bool"),
    ],
    ids=["unknown", "bad value"],
)
def test_compiler_options_that_cannot_be(options: dict[str, Any], reason: str) -> None:
    program = jax.jit(lambda x: x + 1, compiler_options=options)
    with pytest.raises(jax.errors.JaxRuntimeError, match=reason):
        program(1.0)


def test_compiler_option_is_taken() -> None:
    program = jax.jit(lambda x: x + 1, compiler_options={"xla_embed_ir_in_executable": True})
    assert float(program(1.0)) == 2


def unknown_call(x: jax.Array) -> jax.Array:
    return jax.ffi.ffi_call("no_such_target", jax.ShapeDtypeStruct((), np.float32))(x)


def test_error_of_the_compiler_is_an_exception_every_time() -> None:
    for _ in range(20):
        with pytest.raises(jax.errors.JaxRuntimeError, match="NOT_FOUND.*no_such_target"):
            jax.jit(unknown_call)(1.0)
    assert float(jax.jit(lambda x: x + 1)(1.0)) == 2


def test_errors_of_the_compiler_in_many_threads_are_their_own() -> None:
    def compile_and_run(k: int) -> str:
        options = {f"option_{k}": 1} if k % 2 else {}
        try:
            return str(jax.jit(lambda x: x * k, compiler_options=options)(np.int32(1)))
        except jax.errors.JaxRuntimeError as error:
            return str(error).splitlines()[0]

    with ThreadPoolExecutor(8) as pool:
        for k, text in enumerate(pool.map(compile_and_run, range(16))):
            assert text.endswith(f"option_{k}'" if k % 2 else str(k))


def test_exception_of_the_engine_while_compiling_is_an_exception_of_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any) -> Any:
        raise PermissionError("this engine compiles nothing")

    monkeypatch.setattr("jax_trn3.compiler.compile_values", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="PermissionError: this engine compiles"):
        jax.jit(lambda x: x - 17)(1.0)
    monkeypatch.undo()
    assert float(jax.jit(lambda x: x - 17)(1.0)) == -16


@pytest.mark.parametrize("text", ["", "é λ 😀", "%s %n %d", "x" * 100_000])
def test_any_text_of_an_exception_arrives(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    def fail(*arguments: Any) -> Any:
        raise ValueError(f"<{text}>")

    monkeypatch.setattr("jax_trn3.compiler.compile_values", fail)
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jax.jit(lambda x: x - 18)(1.0)
    assert f"INVALID_ARGUMENT: <{text}>" in str(error.value)


def test_array_with_more_dimensions_than_numpy_has_is_an_error_or_works() -> None:
    x = jnp.ones((1,) * 40)
    assert float(x.sum()) == 1
    assert np.asarray(x).shape == (1,) * 40


def test_buffers_may_die_while_exceptions_fly(run_python: RunPython) -> None:
    code = textwrap.dedent("""
        import jax, jax.numpy as jnp

        x = jnp.ones((2, 3))

        def fail(i):
            y = x + i
            z = jax.device_put(y, jax.devices()[i % 8])
            raise ValueError(i)

        class Finalizer:
            def __init__(self, value): self.value = value
            def __del__(self): self.value = None

        caught = 0
        for i in range(4000):
            held = Finalizer(x + i)
            try:
                fail(i)
            except ValueError as error:
                caught += error.args[0] == i
        del held
        print(caught, sum(d.memory_stats()["bytes_in_use"] for d in jax.devices()))
    """)
    caught, bytes_in_use = map(int, succeed(run_python(code, timeout=120)).split())
    assert caught == 4000
    assert bytes_in_use < 10_000


# ---- Interrupts ----------------------------------------------------------------------------------

INTERRUPT = """
import os, signal, threading, time
import jax, jax.numpy as jnp

def body(c):
    i, x = c
    return i + 1, {body}

@jax.jit
def run(n, x):
    return jax.lax.while_loop(lambda c: c[0] < n, body, (0, x))[1]

x = jnp.ones((16, 16))
run(1, x).block_until_ready()
start = time.perf_counter()
run(5000, x).block_until_ready()
n = int(5000 / (time.perf_counter() - start))  # about a second

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" has it ignored
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    run(n, x).block_until_ready()
    time.sleep(1)
    print("not interrupted")
except KeyboardInterrupt:
    print("interrupted")

for device in jax.devices():
    assert float(jnp.sum(jax.device_put(x, device) + 1)) == 512
print(float(run(3, 0 * x).sum()))
"""


@pytest.mark.parametrize(
    "body",
    ["jnp.sin(x @ x)", "jnp.sin(x)"],
    ids=["while waiting for the program", "while the program runs in the caller"],
)
def test_keyboard_interrupt_in_a_long_run_leaves_a_usable_process(
    run_python: RunPython, body: str
) -> None:
    process = run_python(INTERRUPT.replace("{body}", body))
    assert succeed(process).split("\n") == ["interrupted", "0.0"]


# ---- Exits ---------------------------------------------------------------------------------------

PREPARE = """
import threading, time
import jax, jax.numpy as jnp, numpy as np

mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), "d")
step = jax.jit(lambda x: x * 2 + 1)

@jax.jit
def loop(n, x):
    return jax.lax.fori_loop(0, n, lambda i, x: jnp.sin(x @ x), x)

def long(x):
    step(loop(1, x)).block_until_ready()  # compiled
    y = loop(100_000, x)
    assert not y.is_ready()
    return y

def slowly(x):
    time.sleep(0.2)
    return np.asarray(x)

def call(x):
    return jax.pure_callback(slowly, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

callbacks = jax.jit(jax.shard_map(call, mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d")))
x = jnp.ones((16, 16))
"""

WAYS_TO_EXIT = {
    "long program": """
        y = long(x)
        z = step(y)
        assert not z.is_ready()
    """,
    "long program on all devices": """
        everywhere = jax.sharding.Mesh(np.array(jax.devices()), "d")
        xs = jax.device_put(np.ones((8, 16, 16)), jax.NamedSharding(everywhere, jax.P("d")))
        y = long(xs)
        z = np.asarray(xs), step(y)
    """,
    "callbacks": """
        step(callbacks(jnp.ones(2))).block_until_ready()  # compiled
        y = callbacks(jnp.ones(2))
        z = step(y)
        assert not z.is_ready()
    """,
    "callbacks and effects": """
        jax.jit(lambda x: jax.debug.callback(slowly, x, ordered=True))(x)
        y = callbacks(jnp.ones(2))
    """,
    "daemon threads that dispatch": """
        def forever(x):
            while True:
                x = step(x)
                np.asarray(jax.device_put(x, jax.devices()[1]))
        for _ in range(3):
            threading.Thread(target=forever, args=(x,), daemon=True).start()
        time.sleep(0.2)
    """,
    "daemon thread that compiles": """
        def forever():
            while True:
                jax.jit(lambda x: jnp.sin(x) + 1)(x)
        threading.Thread(target=forever, daemon=True).start()
        time.sleep(0.1)
    """,
    "daemon thread that waits": """
        y = long(x)
        threading.Thread(target=y.block_until_ready, daemon=True).start()
        time.sleep(0.01)
    """,
    "thread that dispatches": """
        def work():
            y = x
            for _ in range(3000):
                y = step(y)
        threading.Thread(target=work).start()
    """,
    "arrays in globals": """
        arrays = [jnp.ones(i) for i in range(1, 20)]
        views = [np.asarray(a) for a in arrays]
        sharded = jax.device_put(np.ones(8), jax.NamedSharding(mesh, jax.P("d")))
        compiled = step.lower(x).compile()
        class Last:
            def __del__(self): arrays.clear(); jnp.ones(3)
        last, cycle = Last(), []
        cycle.append((cycle, jnp.ones(4)))
    """,
    "exception": """
        y = long(x)
        raise SystemExit(0)
    """,
}


@pytest.mark.parametrize("way", WAYS_TO_EXIT)
def test_process_with_work_in_flight_exits_cleanly(run_python: RunPython, way: str) -> None:
    code = PREPARE + textwrap.dedent(WAYS_TO_EXIT[way])
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = [pool.submit(run_python, code) for _ in range(EXITS // len(WAYS_TO_EXIT))]
    for run in runs:
        succeed(run.result())


def test_process_that_fails_says_so_with_work_in_flight(run_python: RunPython) -> None:
    process = run_python(PREPARE + "y = long(x)\nraise RuntimeError('of the user')")
    assert process.returncode == 1
    assert process.stderr.endswith("RuntimeError: of the user\n")


def test_loop_over_a_collective_that_never_waits_does_not_deadlock(run_python: RunPython) -> None:
    # jaxlib 0.10's CPU backend ends the process after 40 s here: see runtime/flights.py.
    code = """
import jax, jax.numpy as jnp, numpy as np
mesh = jax.sharding.Mesh(np.array(jax.devices()), "x")
z = jax.device_put(np.arange(8.0), jax.NamedSharding(mesh, jax.P("x")))
step = jax.jit(lambda z: z - jnp.mean(z) + 1)
for _ in range(2000):
    z = step(z)
print(np.asarray(z).tolist())
"""
    expected = [k - 3.5 + 1 for k in range(8)]
    assert succeed(run_python(code, timeout=120)) == str(expected)


def test_a_fork_is_refused_and_does_not_hang(run_python: RunPython) -> None:
    code = textwrap.dedent("""
        import os, time, warnings
        import jax, jax.numpy as jnp, numpy as np

        warnings.simplefilter("ignore")  # JAX warns of forks
        plus = jax.jit(lambda x: x + 1)
        x = jax.block_until_ready(plus(jnp.ones(3)))
        child = os.fork()
        if child == 0:
            for use in (
                lambda: plus(x),
                lambda: jax.device_put(np.ones(3)),
                lambda: jax.jit(lambda x: x * 3)(x),
                lambda: jax.jit(lambda x: jax.debug.print("{}", x))(x),
            ):
                try:
                    print(use(), flush=True)
                except Exception as error:
                    print("spawn" in str(error), flush=True)
            os._exit(7)  # as multiprocessing's children do
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), plus(x)[0])
    """)
    process = run_python(code, timeout=30)
    assert process.stdout.split() == ["True"] * 4 + ["7", "3.0"], process.stderr


def test_a_fork_before_the_first_use_works(run_python: RunPython) -> None:
    code = textwrap.dedent("""
        import os
        import jax, jax.numpy as jnp

        child = os.fork()
        line = f"{float(jnp.ones(3).sum())} {jax.devices()[0].platform}"
        if child:  # what print writes comes in pieces: one process after the other
            os.waitpid(child, 0)
        print(line, flush=True)
    """)
    process = run_python(code, timeout=30)
    assert process.stdout.split() == ["3.0", "trn3"] * 2, process.stderr
