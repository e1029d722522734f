"""HBM is as large as the chip's: what does not fit is RESOURCE_EXHAUSTED, and says what is largest.

Nothing here is really allocated but where a test says so: the platform refuses before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

GIB = 2**30
LIMIT = 144 * GIB // 8  # of a core; trainium.md, "144 GiB HBM3e" a chip


def exhausted(pattern: str) -> Any:
    return pytest.raises(jax.errors.JaxRuntimeError, match=f"(?s)RESOURCE_EXHAUSTED.*{pattern}")


def shape(*dims: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, dtype)


def test_the_limit_is_the_chips() -> None:
    assert jax.devices()[0].memory_stats()["bytes_limit"] == LIMIT


def test_output() -> None:
    with exhausted(
        r"jit_broadcast_in_dim needs 20.00 GiB.*18.00 GiB.*output 0, float32\[5368709120\]"
    ):
        jnp.zeros((5 * GIB,), jnp.float32)


def test_argument() -> None:
    with exhausted(r"arguments 20.00 GiB.*largest is argument 1, float32\[5120,1048576\]"):
        jax.jit(lambda x, y: x + y.sum()).lower(shape(), shape(5120, 2**20)).compile()


def test_temporary_names_operation_and_source_line() -> None:
    def f(x: jax.Array) -> jax.Array:
        return jnp.sort(x[:, None] * x[None, :], axis=0)[0]

    with exhausted(
        r"temporaries 2\d.\d+ GiB.*f32\[80000,80000\] of jit\(f\).*test_memory_limit.py:\d+"
    ):
        jax.jit(f).lower(shape(80_000)).compile()


def test_donation_counts_once() -> None:
    big = shape(3, GIB)  # 12 GiB
    with exhausted(r"needs 24.00 GiB"):
        jax.jit(lambda x: x + 1).lower(big).compile()
    jax.jit(lambda x: x + 1, donate_argnums=0).lower(big).compile()


def test_sharding_makes_it_fit() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.ShapeDtypeStruct((8, GIB), np.float32, sharding=NamedSharding(mesh, P("x")))
    jax.jit(lambda x: x + 1).lower(sharded).compile()


def test_host_memory_is_not_limited() -> None:
    host = SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")
    big = jax.ShapeDtypeStruct((5, GIB), np.float32, sharding=host)
    compiled = jax.jit(lambda x: x, out_shardings=host).lower(big).compile()
    assert compiled.memory_analysis() is not None


def test_unattached_topology() -> None:
    topology = topologies.get_topology_desc("trn3-gen2", platform="trn3")
    one = SingleDeviceSharding(topology.devices[7])
    big = jax.ShapeDtypeStruct((5, GIB), np.float32, sharding=one)
    with exhausted(r"arguments 20.00 GiB"):
        jax.jit(jnp.sum).lower(big).compile()


def test_transfer() -> None:
    # A view of four bytes: no host has to hold it.
    with exhausted(r"f32\[5368709120\] needs 20.00 GiB in the device memory of NeuronCore\(id=0"):
        jax.device_put(np.broadcast_to(np.float32(1), (5 * GIB,)))


def test_live_arrays_count() -> None:
    # 6 GiB that are allocated, but never touched: from calloc'ed numpy memory, without a copy.
    x = jax.device_put(np.zeros((6 * GIB,), np.uint8), may_alias=True)
    before = jax.devices()[0].memory_stats()
    assert before["bytes_in_use"] >= 6 * GIB
    program = jax.jit(lambda: jnp.zeros((13, GIB), jnp.uint8)).lower().compile()
    with exhausted(
        r"jit__lambda needs 13.00 GiB.*has 18.00 GiB.*largest live array is u8\[6442450944\] with 6.00"
    ):
        program()
    with exhausted(r"largest live array is u8\[6442450944\] with 6.00 GiB\."):
        jax.device_put(np.broadcast_to(np.uint8(1), (13 * GIB,)))
    del x
    after = jax.devices()[0].memory_stats()
    assert before["bytes_in_use"] - after["bytes_in_use"] == 6 * GIB


def test_peak_counts_temporaries() -> None:
    device = jax.devices()[3]
    x = jax.device_put(np.ones((1000, 1000), np.float32), device)
    program = jax.jit(lambda x: jnp.sort(x @ x, axis=0)[0]).lower(x).compile()
    temporaries = program.memory_analysis().temp_size_in_bytes
    assert temporaries >= 4_000_000
    in_use = device.memory_stats()["bytes_in_use"]
    program(x).block_until_ready()
    assert device.memory_stats()["peak_bytes_in_use"] >= in_use + temporaries


def test_more_than_the_host_has_is_an_error_too() -> None:
    """The kernel would kill the process: eight devices may have more memory than this machine."""
    text = Path("/proc/meminfo").read_text()
    available = 1024 * int(text.partition("MemAvailable:")[2].split()[0])
    if available > 8 * 17 * GIB:
        pytest.skip("this machine has room for all that eight devices have")
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, P("x"))
    program = jax.jit(lambda: jnp.ones((8 * 17, GIB), jnp.uint8), out_shardings=rows)
    with exhausted("on the host: jit__lambda needs 136.00 GiB"):
        program()
