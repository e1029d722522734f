"""Executables as bytes: there and back, ahead of time, in JAX's cache, and when the bytes are bad."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import RunPython
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import serialize_executable, topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jax_trn3.compiler import artifact
from jax_trn3.compiler.artifact import Artifact


def solve(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.linalg.solve(a @ a.T + jnp.eye(8), b)


@pytest.fixture(scope="module")
def compiled() -> jax.stages.Compiled:
    shape = jax.ShapeDtypeStruct((8, 8), np.float32)
    return jax.jit(solve).lower(shape, shape).compile()


# jaxlib puts an envelope of its own around the platform's bytes.
def split(serialized: bytes) -> tuple[bytes, bytes]:
    at = serialized.index(b"TRN3EXE\n")
    return serialized[:at], serialized[at:]


@pytest.fixture(scope="module")
def data(compiled: jax.stages.Compiled) -> bytes:
    return split(compiled.runtime_executable().serialize())[1]


def matrices() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 8, 8)).astype(np.float32)
    return a, b


@pytest.fixture(scope="module")
def load(compiled: jax.stages.Compiled) -> Callable[[bytes], Any]:
    envelope, _ = split(compiled.runtime_executable().serialize())
    client = jax.devices()[0].client
    return lambda data: client.deserialize_executable(envelope + data, client.devices()[:1])


# ---- There and back ------------------------------------------------------------------------------


def test_a_loaded_executable_computes_the_same(compiled: jax.stages.Compiled) -> None:
    again = serialize_executable.deserialize_and_load(
        *serialize_executable.serialize(compiled), execution_devices=jax.devices()[:1]
    )
    a, b = matrices()
    np.testing.assert_allclose(again(a, b), np.linalg.solve(a @ a.T + np.eye(8), b), rtol=2e-2)
    np.testing.assert_array_equal(again(a, b), compiled(a, b))
    assert again.as_text() == compiled.as_text()
    assert (
        again.memory_analysis().temp_size_in_bytes == compiled.memory_analysis().temp_size_in_bytes
    )


def test_a_sharded_program_with_donation_and_memory_kinds() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, P("x"))
    host = NamedSharding(mesh, P(), memory_kind="pinned_host")
    program = jax.jit(lambda x, y: (x + 1, y.sum(0)), donate_argnums=0, out_shardings=(rows, host))
    x = jax.device_put(np.ones((16, 4), np.float32), rows)
    compiled = program.lower(x, x).compile()
    again = serialize_executable.deserialize_and_load(*serialize_executable.serialize(compiled))
    y = jax.device_put(np.ones((16, 4), np.float32), rows)
    plus_one, total = again(x, y)
    assert total.sharding == host
    assert x.is_deleted()
    assert not y.is_deleted()
    np.testing.assert_array_equal(plus_one, np.full((16, 4), 2))
    np.testing.assert_array_equal(total, np.full(4, 16))


def test_without_trusted_machine_code_the_program_is_compiled_again(
    data: bytes, load: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Artifact.unpack(data).native
    monkeypatch.setattr(artifact, "_key", lambda: b"somebody else's")
    assert Artifact.unpack(data).native == b""
    a, b = matrices()
    (result,) = (
        load(data)
        .execute_sharded([jax.device_put(a), jax.device_put(b)])
        .disassemble_into_single_device_arrays()
    )
    np.testing.assert_allclose(result[0], np.linalg.solve(a @ a.T + np.eye(8), b), rtol=2e-2)


@pytest.mark.parametrize("what", ["jaxlib", "key"])
def test_machine_code_of_another_jaxlib_or_user_is_not_linked(
    what: str, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "jaxlib":
        monkeypatch.setattr(artifact, "_maker", lambda: b"jaxlib 0.0")
    else:
        monkeypatch.setattr(artifact, "_key", lambda: b"")
    assert Artifact.unpack(data).native == b""
    assert Artifact.unpack(Artifact.unpack(data).pack()).program == Artifact.unpack(data).program


def test_machine_code_of_another_program_is_not_linked(
    data: bytes, load: Callable[[bytes], Any]
) -> None:
    """The sections of one artifact around the machine code of another, under its digest."""
    other = jax.jit(lambda a, b: a * b).lower(*matrices()).compile()
    theirs = split(other.runtime_executable().serialize())[1]
    ours, mine = Artifact.unpack(theirs), Artifact.unpack(data)
    assert ours.native
    mixed = dataclasses.replace(mine, native=ours.native).pack()
    _, _, size = artifact._PREFIX.unpack_from(theirs)
    mac = json.loads(theirs[artifact._PREFIX.size :][:size])["mac"]
    _, _, size = artifact._PREFIX.unpack_from(mixed)
    header = json.loads(mixed[artifact._PREFIX.size :][:size]) | {"mac": mac}
    text = json.dumps(header, sort_keys=True).encode()
    body = artifact._PREFIX.pack(b"TRN3EXE\n", artifact.VERSION, len(text)) + text
    body += mixed[artifact._PREFIX.size + size : -32]
    forged = body + hashlib.sha256(body).digest()
    assert Artifact.unpack(forged) == dataclasses.replace(mine, native=b"")
    a, b = matrices()
    (result,) = (
        load(forged)
        .execute_sharded([jax.device_put(a), jax.device_put(b)])
        .disassemble_into_single_device_arrays()
    )
    np.testing.assert_allclose(result[0], np.linalg.solve(a @ a.T + np.eye(8), b), rtol=2e-2)


def test_callbacks_cannot_be_serialized() -> None:
    def f(x: jax.Array) -> jax.Array:
        jax.debug.print("{}", x)
        return x

    compiled = jax.jit(f).lower(1.0).compile()
    with pytest.raises(
        jax.errors.JaxRuntimeError, match=r"UNIMPLEMENTED.*jit_f calls Python.*export"
    ):
        compiled.runtime_executable().serialize()


def test_the_key_is_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    key = artifact._key.__wrapped__()
    assert len(key) == 32
    path = tmp_path / "jax_trn3" / "artifact.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert artifact._key.__wrapped__() == key
    path.chmod(0o644)
    assert artifact._key.__wrapped__() == b""


def test_without_a_place_for_a_key_there_is_no_machine_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert artifact._key.__wrapped__() == b""


# ---- Bad bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "not a serialized trn3 executable: 0 bytes"),
        (lambda data: b"PK\x03\x04" + data, "not a serialized trn3 executable"),
        (lambda data: data[:-1], "damaged or cut short"),
        (lambda data: data[:60], "damaged or cut short"),
        (lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:], "damaged or cut short"),
        (lambda data: data[:8] + b"\x02" + data[9:], "format 2, this jax-trn3 reads 1"),
    ],
    ids=["empty", "foreign", "one byte short", "header only", "one bit", "future"],
)
def test_bad_bytes(
    data: bytes, load: Callable[[bytes], Any], damage: Callable[[bytes], bytes], message: str
) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"INVALID_ARGUMENT: .*{message}"):
        load(damage(data))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_drawn_damage_is_always_found(data: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(data) - 1))
    change = draw.draw(st.integers(1, 255))
    damaged = data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]
    with pytest.raises(ValueError, match="serialized"):
        Artifact.unpack(damaged)


def test_a_forged_checksum_meets_a_wrong_program(load: Callable[[bytes], Any]) -> None:
    forged = Artifact(b"not a program", b"", b"machine code of mine").pack()
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT"):
        load(forged)


def test_a_header_that_makes_no_sense(data: bytes) -> None:
    for header in (
        b"{}",
        b"[]",
        b'{"sizes": [1, 2], "mac": ""}',
        b'{"sizes": [-1, 2, 3], "mac": ""}',
        b"\xff",
    ):
        body = data[:12] + len(header).to_bytes(4, "little") + header + b"123456"
        with pytest.raises(ValueError, match="header"):
            Artifact.unpack(body + hashlib.sha256(body).digest())


def test_for_devices_that_are_not_there() -> None:
    topology = topologies.get_topology_desc("trn3-sled", platform="trn3")
    mesh = topologies.make_mesh(topology, (32,), ("x",))
    x = jax.ShapeDtypeStruct((64,), np.float32, sharding=NamedSharding(mesh, P("x")))
    compiled = jax.jit(jnp.sin).lower(x).compile()
    with pytest.raises(jax.errors.JaxRuntimeError, match="for device 8; there are 8"):
        serialize_executable.deserialize_and_load(
            *serialize_executable.serialize(compiled), execution_devices=jax.devices()
        )


# ---- Ahead of time -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "devices"), [("trn3-core", 1), ("trn3-chip", 8), ("trn3-gen2", 1152)]
)
def test_compile_for_a_topology(name: str, devices: int) -> None:
    topology = topologies.get_topology_desc(name, platform="trn3")
    assert len(topology.devices) == devices
    mesh = topologies.make_mesh(topology, (devices,), ("x",))
    rows = NamedSharding(mesh, P("x"))
    x = jax.ShapeDtypeStruct((devices * 4, 128), np.float32, sharding=rows)
    compiled = jax.jit(lambda x: (x * 2, x.sum())).lower(x).compile()
    doubled, total = compiled.output_shardings
    assert doubled.is_equivalent_to(rows, 2)
    assert total.is_fully_replicated
    assert compiled.memory_analysis().argument_size_in_bytes == 4 * 128 * 4
    assert ("all-reduce" in compiled.as_text()) == (devices > 1)


def test_what_was_compiled_for_a_topology_runs_on_it() -> None:
    topology = topologies.get_topology_desc("trn3-chip", platform="trn3")
    mesh = topologies.make_mesh(topology, (8,), ("x",))
    x = jax.ShapeDtypeStruct((16, 4), np.float32, sharding=NamedSharding(mesh, P("x")))
    ahead = jax.jit(lambda x: x @ x.T).lower(x).compile()
    loaded = serialize_executable.deserialize_and_load(
        *serialize_executable.serialize(ahead), execution_devices=jax.devices()
    )
    values = np.arange(64, dtype=np.float32).reshape(16, 4)
    attached = NamedSharding(jax.make_mesh((8,), ("x",)), P("x"))
    np.testing.assert_array_equal(loaded(jax.device_put(values, attached)), values @ values.T)


def test_too_many_devices_to_compile_for() -> None:
    topology = topologies.get_topology_desc("trn3-ultracluster:1024", platform="trn3")
    one = jax.sharding.SingleDeviceSharding(topology.devices[0])
    x = jax.ShapeDtypeStruct((4,), np.float32, sharding=one)
    with pytest.raises(jax.errors.JaxRuntimeError, match="has 8192 devices.*at most 4096"):
        jax.jit(jnp.sin).lower(x).compile()


# ---- JAX's persistent cache ----------------------------------------------------------------------


def test_the_persistent_cache_serves_the_platform(run_python: RunPython, tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import jax, jax.numpy as jnp
        from jax._src import monitoring

        hits = []
        monitoring.register_event_listener(lambda event, **_: hits.append(event))
        result = jax.jit(lambda x: jnp.linalg.inv(x @ x.T + jnp.eye(4)))(jnp.ones((4, 4)))
        print(float(result[0, 0]), sum("cache_hits" in hit for hit in hits))
    """)
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    first, second = (run_python(code, **environment).stdout.split() for _ in range(2))
    assert first[0] == second[0]
    assert first[1] == "0"
    assert int(second[1]) >= 1
    # Damage is a warning and a compilation, not an error.
    for path in tmp_path.glob("*-cache"):
        path.write_bytes(os.urandom(100))
    third = run_python(code, **environment).stdout.split()
    assert third[0] == first[0]
