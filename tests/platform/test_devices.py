"""The devices that JAX sees, and how the environment chooses them."""

import gc
import json
import textwrap
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

GIB = 1024**3

DESCRIBE = textwrap.dedent("""
    import json, jax
    devices = jax.devices("trn3")
    first, last = devices[0], devices[-1]
    print(json.dumps({
        "devices": len(devices),
        "kind": last.device_kind,
        "last": [last.id, last.coords, last.chip, last.core, last.server],
        "num_cores": last.num_cores,
        "bytes_limit": first.memory_stats()["bytes_limit"],
        "sum": float(jax.jit(jax.numpy.sum)(jax.device_put(jax.numpy.arange(4.0), last))),
    }))
""")

RunPython = Callable[..., CompletedProcess[str]]


def succeed(process: CompletedProcess[str]) -> str:
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def failure(process: CompletedProcess[str]) -> str:
    assert process.returncode == 1, process.stdout
    return process.stderr


def test_one_chip_of_eight_cores_by_default() -> None:
    assert [d.id for d in jax.devices()] == list(range(8))
    assert jax.devices() == jax.devices("trn3") == jax.local_devices()
    assert jax.default_backend() == "trn3"
    assert jax.process_count() == 1


@pytest.mark.parametrize("core", range(8))
def test_device_says_what_and_where_it_is(core: int) -> None:
    device = jax.devices()[core]
    assert device.platform == "trn3"
    assert device.device_kind == "NeuronCore-v4"
    assert device.process_index == 0
    assert device.local_hardware_id == core
    assert list(device.coords) == [0, 0, 0, core]
    assert (device.chip, device.core, device.server) == (0, core, 0)


@pytest.mark.parametrize("core", [0, 7])
def test_repr_says_the_place_and_str_the_platform(core: int) -> None:
    device = jax.devices()[core]
    assert repr(device) == f"NeuronCore(id={core}, rack=0, server=0, chip=0, core={core})"
    assert str(device) == f"trn3:{core}"


def test_platform_version_names_both_versions() -> None:
    version = jax.devices()[0].client.platform_version
    assert f"jax-trn3 {__import__('jax_trn3').__version__}" in version
    assert jax.lib.__version__ in version


def test_device_has_its_memory_and_two_of_the_host() -> None:
    device = jax.devices()[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    assert kinds == ["device", "pinned_host", "unpinned_host"]
    assert device.default_memory().kind == "device"
    with pytest.raises(jax.errors.JaxRuntimeError, match="device, pinned_host, unpinned_host"):
        device.memory("hbm")


# ---- The environment -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topology", "lnc", "devices", "kind", "last", "gib"),
    [
        ("trn3-core", None, 1, "NeuronCore-v4", [0, [0, 0, 0, 0], 0, 0, 0], 144 / 8),
        ("trn3-sled", None, 32, "NeuronCore-v4", [31, [0, 0, 3, 7], 3, 7, 0], 144 / 8),
        ("trn2-chip", None, 8, "NeuronCore-v3", [7, [0, 0, 0, 7], 0, 7, 0], 96 / 8),
        ("trn1-chip", "1", 2, "NeuronCore-v2", [1, [0, 0, 0, 1], 0, 1, 0], 32 / 2),
        ("", "2", 4, "NeuronCore-v4", [3, [0, 0, 0, 3], 0, 3, 0], 144 / 4),
        ("trn3-sled", "2", 16, "NeuronCore-v4", [15, [0, 0, 3, 3], 3, 3, 0], 144 / 4),
    ],
)
def test_environment_chooses_the_devices(
    run_python: RunPython, topology: str, lnc: str | None, devices: int, kind: str,
    last: list[Any], gib: float,
) -> None:  # fmt: skip
    process = run_python(DESCRIBE, JAX_TRN3_TOPOLOGY=topology, JAX_TRN3_LNC=lnc)
    assert json.loads(succeed(process)) == {
        "devices": devices,
        "kind": kind,
        "last": last,
        "num_cores": int(lnc or 1),
        "bytes_limit": gib * GIB,
        "sum": 6.0,
    }


def test_unknown_topology_is_an_error_that_lists_the_known(run_python: RunPython) -> None:
    error = failure(run_python(DESCRIBE, JAX_TRN3_TOPOLOGY="trn4-chip"))
    assert "trn4-chip" in error
    for known in ("trn3-core", "trn3-chip", "trn3-sled", "trn3-gen1", "trn3-gen2", "trn2-chip"):
        assert known in error


@pytest.mark.parametrize(
    ("topology", "lnc", "reason"),
    [
        ("trn3-chip", "3", "JAX_TRN3_LNC must be 1 or 2, got '3'"),
        ("trn1-chip", "2", "lnc=2 is not supported; Trainium1 takes 1"),
        ("trn3-core", "2", "lnc=2 cannot fuse 1 core"),
    ],
)
def test_lnc_that_cannot_be_is_an_error_that_says_why(
    run_python: RunPython, topology: str, lnc: str, reason: str
) -> None:
    error = failure(run_python(DESCRIBE, JAX_TRN3_TOPOLOGY=topology, JAX_TRN3_LNC=lnc))
    assert reason in error


def test_platform_that_is_not_asked_for_leaves_the_default_to_the_cpu(
    run_python: RunPython,
) -> None:
    code = "import jax; print(jax.default_backend(), len(jax.devices('trn3')))"
    process = run_python(code, JAX_PLATFORMS=None)
    assert succeed(process) == "cpu 8"
    assert process.stderr == ""


@pytest.mark.parametrize("platforms", [None, "cpu"])
def test_platform_that_cannot_start_does_not_stand_in_the_way(
    run_python: RunPython, platforms: str | None
) -> None:
    code = "import jax.numpy as jnp; x = jnp.arange(4) + 1; print(x.device.platform, int(x.sum()))"
    process = run_python(code, JAX_PLATFORMS=platforms, JAX_TRN3_TOPOLOGY="broken")
    assert succeed(process) == "cpu 10"


def test_platform_that_cannot_start_says_why_when_it_is_asked_for(run_python: RunPython) -> None:
    code = "import jax; jax.devices('trn3')"
    assert "unknown topology 'broken'" in failure(
        run_python(code, JAX_PLATFORMS="trn3,cpu", JAX_TRN3_TOPOLOGY="broken")
    )


@pytest.mark.parametrize(
    "expression",
    [
        "jax.jit(jnp.sin)(jnp.zeros(3)).sum() + 3",
        "jnp.linalg.eigh(3 * jnp.eye(2))[0][0]",
        "jnp.linalg.svd(3 * jnp.eye(2))[1][0]",
        "3 + 0 * jax.random.normal(jax.random.key(0))",
    ],
    ids=["jit", "eigh", "svd", "random"],
)
def test_platform_works_without_the_cpu_beside_it(run_python: RunPython, expression: str) -> None:
    code = f"import jax, jax.numpy as jnp; x = {expression}; print(x.device.platform, round(x))"
    assert succeed(run_python(code, JAX_PLATFORMS="trn3")) == "trn3 3"


def test_callback_without_the_cpu_says_what_to_do(run_python: RunPython) -> None:
    code = "import jax; jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((), 'float32'), jax.numpy.zeros(()))"
    assert 'Make sure "cpu" is listed' in failure(run_python(code, JAX_PLATFORMS="trn3"))


# ---- Memory statistics ---------------------------------------------------------------------------


def in_use(device: jax.Device) -> int:
    gc.collect()
    return device.memory_stats()["bytes_in_use"]


def test_limit_is_a_cores_share_of_the_chips_hbm() -> None:
    stats = jax.devices()[0].memory_stats()
    assert stats["bytes_limit"] == stats["bytes_reservable_limit"] == 144 * GIB // 8


@pytest.mark.parametrize(
    ("dtype", "bits"), [("float32", 32), ("bfloat16", 16), ("int4", 4), ("uint2", 2), ("bool", 8)]
)
def test_bytes_in_use_rise_and_fall_with_arrays(dtype: str, bits: int) -> None:
    device = jax.devices()[5]
    before = in_use(device)
    x = jax.device_put(np.zeros((64, 3), dtype), device)
    assert in_use(device) - before == 64 * 3 * bits // 8
    del x
    assert in_use(device) == before


def test_deleted_array_is_not_in_use() -> None:
    device = jax.devices()[5]
    before = in_use(device)
    x = jax.device_put(np.zeros(1000, np.float32), device)
    x.delete()
    assert in_use(device) == before


def test_results_count_and_donated_arguments_do_not() -> None:
    device = jax.devices()[5]
    x = jax.device_put(np.zeros(1000, np.float32), device)
    kept = jax.jit(lambda x: x + 1)
    given = jax.jit(lambda x: x + 1, donate_argnums=0)
    before = in_use(device)
    y = kept(x)
    assert in_use(device) - before == 4000
    z = given(y)
    assert in_use(device) - before == 4000
    del z
    assert in_use(device) == before


def test_peak_and_largest_stay_when_arrays_go() -> None:
    device = jax.devices()[6]
    before = in_use(device)
    size = device.memory_stats()["peak_bytes_in_use"] + 1_000_000
    x = jax.device_put(np.zeros(size, np.uint8), device)
    del x
    gc.collect()
    stats = device.memory_stats()
    assert stats["peak_bytes_in_use"] == before + size
    assert stats["largest_alloc_size"] == size
    assert stats["bytes_in_use"] == before


def test_each_device_counts_its_own_shard() -> None:
    before = [in_use(device) for device in jax.devices()]
    mesh = jax.make_mesh((8,), ("d",))
    x = jax.device_put(np.zeros((16, 5), np.float32), jax.NamedSharding(mesh, jax.P("d")))
    rise = [in_use(d) - b for d, b in zip(jax.devices(), before, strict=True)]
    assert rise == [2 * 5 * 4] * 8
    assert jnp.shape(x) == (16, 5)


def test_host_memory_does_not_count_against_the_device() -> None:
    device = jax.devices()[5]
    before = in_use(device)
    host = jax.sharding.SingleDeviceSharding(device, memory_kind="pinned_host")
    x = jax.device_put(np.zeros(1000, np.float32), host)
    assert in_use(device) == before
    assert x.sharding.memory_kind == "pinned_host"
