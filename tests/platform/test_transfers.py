"""Values on their way to a device, between devices and back, bit for bit."""

import gc
import weakref
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

SMALL = ["int2", "int4", "uint2", "uint4", "float4_e2m1fn"]  # less than a byte an element
FLOAT8 = [
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
]
USUAL = ["bool", "int8", "int16", "int32", "uint8", "uint16", "uint32"]
FLOATS = ["float16", "bfloat16", "float32", "complex64"]
X64 = ["int64", "uint64", "float64", "complex128"]
DTYPES = [*SMALL, *FLOAT8, *USUAL, *FLOATS, *X64]

MEMORIES = ["device", "pinned_host", "unpinned_host"]


def dtype_named(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def every_pattern(dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Values of all bit patterns, or of random ones where there are too many."""
    size = int(np.prod(shape))
    if dtype.name in SMALL:
        bits = 2 if dtype.name.endswith("2") else 4
        codes = np.arange(size, dtype=np.uint8) % 2**bits
        if dtype.name.startswith("int"):
            return (codes.astype(np.int8) - 2 ** (bits - 1)).astype(dtype).reshape(shape)
        if dtype.name.startswith("uint"):
            return codes.astype(dtype).reshape(shape)
        return codes.view(dtype).reshape(shape)
    if dtype.kind == "b":
        return (np.arange(size) % 3 == 0).reshape(shape)
    if dtype.itemsize == 1:
        return np.arange(size).astype(np.uint8).view(dtype).reshape(shape)
    random = np.random.default_rng(0).bytes(size * dtype.itemsize)
    return np.frombuffer(random, dtype).reshape(shape)


def same_bits(actual: object, expected: np.ndarray) -> None:
    actual = np.asarray(actual)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert np.ascontiguousarray(actual).tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", DTYPES)
def test_every_bit_pattern_makes_the_round_trip(name: str) -> None:
    host = every_pattern(dtype_named(name), (8, 32))
    x = jax.device_put(host)
    assert x.dtype == host.dtype
    same_bits(x, host)


@pytest.mark.parametrize("name", DTYPES)
def test_program_reads_and_writes_every_dtype(name: str) -> None:
    host = every_pattern(dtype_named(name), (3, 5))
    same_bits(jax.jit(lambda x: x.T)(host), host.T)


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_goes_from_device_to_device(name: str) -> None:
    host = every_pattern(dtype_named(name), (4, 6))
    there = jax.device_put(jax.device_put(host, jax.devices()[0]), jax.devices()[7])
    assert there.devices() == {jax.devices()[7]}
    same_bits(there, host)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1, 1)], ids=str)
def test_scalars_and_arrays_without_elements(name: str, shape: tuple[int, ...]) -> None:
    host = every_pattern(dtype_named(name), shape)
    same_bits(jax.device_put(host), host)
    same_bits(jax.jit(lambda x: x.reshape(shape[::-1]))(host), host.reshape(shape[::-1]))


@pytest.mark.parametrize("value", [True, 3, 2.5, 1j])
def test_python_scalars_become_arrays(value: complex) -> None:
    same_bits(jax.device_put(value), np.asarray(value))


# ---- Strides -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["int4", "float8_e4m3fn", "bfloat16", "float32", "complex128"])
@settings(max_examples=50)
@given(data=st.data())
def test_any_slice_arrives_as_numpy_sees_it(name: str, data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(max_dims=4, max_side=6))
    base = every_pattern(dtype_named(name), shape)
    view = base[data.draw(hnp.basic_indices(shape, allow_newaxis=True))]
    view = np.asarray(view).transpose(data.draw(st.permutations(range(np.ndim(view)))))
    same_bits(jax.device_put(view), view)


@pytest.mark.parametrize("name", ["int4", "uint8", "float32", "complex64"])
@settings(max_examples=25)
@given(data=st.data())
def test_any_broadcast_arrives_as_numpy_sees_it(name: str, data: st.DataObject) -> None:
    shapes = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=1, base_shape=(2, 3, 4)))
    base = every_pattern(dtype_named(name), shapes.input_shapes[0])
    view = np.broadcast_to(base, shapes.result_shape)  # strides of 0
    same_bits(jax.device_put(view), view)


@pytest.mark.parametrize(
    "index",
    [np.s_[::-1], np.s_[:, ::-1], np.s_[::-1, ::-1], np.s_[::2, 1::3], np.s_[5:1:-2, ::-3]],
    ids=str,
)
def test_negative_and_wide_strides(index: tuple[slice, ...]) -> None:
    base = np.arange(6 * 10, dtype=np.float32).reshape(6, 10)
    same_bits(jax.device_put(base[index]), base[index])


@pytest.mark.parametrize("order", ["C", "F"])
def test_column_major_arrays(order: str) -> None:
    base = np.asarray(every_pattern(np.dtype("int16"), (5, 7)), order=order)
    same_bits(jax.device_put(base), base)


def test_array_that_is_not_aligned() -> None:
    base = np.arange(81, dtype=np.uint8)[1:].view(np.float32)
    same_bits(jax.device_put(base), base)


# ---- Between devices and memories ----------------------------------------------------------------


@pytest.mark.parametrize("core", [2, 3], ids=["same device", "other device"])
@pytest.mark.parametrize("source", MEMORIES)
@pytest.mark.parametrize("target", MEMORIES)
def test_values_go_from_any_memory_to_any(source: str, target: str, core: int) -> None:
    host = every_pattern(np.dtype("float32"), (6, 7))
    device = jax.devices()[core]
    here = jax.sharding.SingleDeviceSharding(jax.devices()[2], memory_kind=source)
    there = jax.sharding.SingleDeviceSharding(device, memory_kind=target)
    x = jax.device_put(host, here)
    y = jax.device_put(x, there)
    assert (x.sharding.memory_kind, y.sharding.memory_kind) == (source, target)
    assert y.devices() == {device}
    same_bits(y, host)


def test_sharded_array_goes_to_host_memory_and_back() -> None:
    host = every_pattern(np.dtype("int32"), (16, 3))
    sharding = jax.NamedSharding(jax.make_mesh((8,), ("d",)), jax.P("d"))
    x = jax.device_put(host, sharding)
    y = jax.device_put(x, sharding.with_memory_kind("pinned_host"))
    z = jax.device_put(y, sharding)
    assert [a.sharding.memory_kind for a in (x, y, z)] == ["device", "pinned_host", "device"]
    for array in (x, y, z):
        same_bits(array, host)


def test_program_computes_on_what_came_from_host_memory() -> None:
    host = every_pattern(np.dtype("int32"), (16,))
    pinned = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")
    x = jax.device_put(host, pinned)
    same_bits(jax.jit(lambda x: x + x)(x), host + host)
    same_bits(jax.jit(lambda x: jax.device_put(x, jax.memory.Space.Device) + 1)(x), host + 1)


@pytest.mark.parametrize("kind", ["pinned_host", "unpinned_host"])
def test_program_leaves_its_results_in_host_memory(kind: str) -> None:
    host = every_pattern(np.dtype("int32"), (16,))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind=kind)
    x = jax.jit(lambda x: (x + x, x * x), out_shardings=(sharding, None))(host)
    same_bits(x[0], host + host)
    assert [a.sharding.memory_kind for a in x] == [kind, "device"]


def test_program_puts_a_value_into_host_memory() -> None:
    x = jax.jit(lambda x: jax.device_put(x, jax.memory.Space.Host))(jnp.arange(4.0))
    same_bits(x, np.arange(4.0))
    assert x.sharding.memory_kind == "pinned_host"


@pytest.mark.parametrize("spec", [("a", "b"), ("b", "a"), (("a", "b"), None), (None, "b"), ()])
def test_sharded_arrays_have_their_part_on_each_device(spec: tuple[object, ...]) -> None:
    host = every_pattern(np.dtype("float32"), (8, 16))
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    x = jax.device_put(host, jax.NamedSharding(mesh, jax.P(*spec)))
    assert len(x.addressable_shards) == 8
    for shard in x.addressable_shards:
        same_bits(shard.data, host[shard.index])
    same_bits(x, host)


def test_resharding_moves_the_values() -> None:
    host = every_pattern(np.dtype("float32"), (8, 8))
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    x = jax.device_put(host, jax.NamedSharding(mesh, jax.P("a", "b")))
    y = jax.device_put(x, jax.NamedSharding(mesh, jax.P("b", "a")))
    for shard in y.addressable_shards:
        same_bits(shard.data, host[shard.index])


def test_values_come_from_the_cpu_backend_and_go_back() -> None:
    host = every_pattern(np.dtype("bfloat16"), (9, 9))
    cpu = jax.devices("cpu")[0]
    there = jax.device_put(jax.device_put(host, cpu), jax.devices("trn3")[0])
    back = jax.device_put(there, cpu)
    assert (there.device.platform, back.device.platform) == ("trn3", "cpu")
    same_bits(back, host)


# ---- Whose memory it is --------------------------------------------------------------------------


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Counts from 0, at an address that XLA:CPU would take without a copy."""
    size = int(np.prod(shape))
    raw = np.zeros(size * 4 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    array = raw[start : start + size * 4].view(np.float32).reshape(shape)
    array[...] = np.arange(size).reshape(shape)
    return array


@pytest.mark.parametrize("shape", [(4,), (64, 64)], ids=str)
@pytest.mark.parametrize(
    "copy",
    [jnp.array, lambda x: jnp.array(x, copy=True), lambda x: jax.device_put(x) + 0],
    ids=["jnp.array", "copy=True", "result"],
)
def test_copy_does_not_see_what_happens_to_the_original(
    copy: Callable[[np.ndarray], jax.Array], shape: tuple[int, ...]
) -> None:
    host = aligned(shape)
    expected = host.copy()
    x = copy(host).block_until_ready()
    host[...] = -1
    same_bits(x, expected)
    same_bits(x + 0, expected)


def test_array_outlives_the_numpy_array_that_it_came_from() -> None:
    host = aligned((256, 256))
    expected = host.copy()
    arrays = [jax.device_put(host) for _ in range(4)]
    del host
    trash = [aligned((256, 256)) * -1 for _ in range(4)]
    for x in arrays:
        same_bits(x, expected)
    assert len(trash) == 4


def test_numpy_array_lives_exactly_as_long_as_it_is_read() -> None:
    class Owner(np.ndarray):
        pass

    host = aligned((256, 256)).view(Owner)
    gone = weakref.ref(host)
    x = jax.device_put(host)
    x.block_until_ready()
    del host
    float(x.sum())
    del x
    jax.device_put(0.0).block_until_ready()  # lets the platform clear up
    gc.collect()
    assert gone() is None


def test_donation_does_not_write_into_the_numpy_array() -> None:
    host = aligned((256, 256))
    expected = host.copy()
    x = jax.device_put(host)
    y = jax.jit(lambda x: x * -1, donate_argnums=0)(x)
    same_bits(y, expected * -1)
    same_bits(host, expected)


@pytest.mark.parametrize("name", ["float32", "int4", "complex64"])
def test_numpy_view_keeps_its_values_after_the_array_is_deleted(name: str) -> None:
    host = every_pattern(dtype_named(name), (128, 128))
    x = jax.device_put(host) + jnp.zeros((), host.dtype)
    expected = np.array(x, copy=True)
    view = np.asarray(x)
    x.delete()
    trash = [jnp.full((128, 128), 3, host.dtype) for _ in range(4)]
    same_bits(view, expected)
    del trash, x
    same_bits(view, expected)


def test_numpy_view_keeps_its_values_after_the_array_is_donated() -> None:
    x = jnp.arange(65536.0, dtype=jnp.float32) + 1
    view = np.asarray(x)
    expected = view.copy()
    y = jax.jit(lambda x: x * -1, donate_argnums=0)(x)
    same_bits(y, -expected)
    same_bits(view, expected)


def test_numpy_view_is_read_only() -> None:
    view = np.asarray(jnp.arange(4))
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1


@pytest.mark.parametrize("sharded", [False, True], ids=["one device", "eight devices"])
def test_large_array_makes_the_round_trip(sharded: bool) -> None:
    host = np.random.default_rng(0).integers(0, 2**32, 64 * 2**20 // 4, dtype=np.uint32)
    mesh = jax.make_mesh((8,), ("d",))
    x = jax.device_put(host, jax.NamedSharding(mesh, jax.P("d")) if sharded else None)
    np.testing.assert_array_equal(np.asarray(x), host)
    np.testing.assert_array_equal(np.asarray(x ^ host[0]), host ^ host[0])
