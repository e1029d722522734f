"""Kernels within the programs that people write around them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import pallas_trn3 as pltrn

SHAPE = (128, 64)


def _twice_plus(x_ref: Any, y_ref: Any, o_ref: Any) -> None:
    pltrn.scalar_tensor_tensor(o_ref, x_ref, 2.0, y_ref, op0="multiply", op1="add")


@jax.jit
def twice_plus(x: jax.Array, y: jax.Array) -> jax.Array:
    """2 x + y."""
    return pl.pallas_call(_twice_plus, out_shape=x)(x, y)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).integers(-9, 9, SHAPE).astype(np.float32)


def test_jit_scan_and_remat(x: np.ndarray) -> None:
    def step(carry: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return jax.checkpoint(twice_plus)(carry, x), carry.sum()

    last, sums = jax.jit(lambda x: lax.scan(step, x, length=4))(x)
    np.testing.assert_array_equal(last, 31 * x)
    np.testing.assert_array_equal(sums, [n * x.sum() for n in (1, 3, 7, 15)])


def test_vmap(x: np.ndarray) -> None:
    xs = np.stack([x, 3 * x, -x])
    np.testing.assert_array_equal(jax.vmap(twice_plus, (0, None))(xs, x), 2 * xs + x)
    twice = jax.vmap(jax.vmap(twice_plus))(np.stack([xs, xs]), np.stack([xs, xs]))
    np.testing.assert_array_equal(twice[1], 3 * xs)


def test_custom_vjp(x: np.ndarray) -> None:
    @jax.custom_vjp
    def f(x: jax.Array) -> jax.Array:
        return twice_plus(x, x)

    f.defvjp(lambda x: (f(x), x), lambda x, ct: (3 * ct,))
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: f(x).sum()))(x), 3 * np.ones(SHAPE))


def test_no_derivative_says_what_to_do(x: np.ndarray) -> None:
    with pytest.raises(NotImplementedError, match=r"scalar_tensor_tensor has no .*custom_vjp"):
        jax.grad(lambda x: twice_plus(x, x).sum())(x)


def test_tile_language_is_derived(x: np.ndarray) -> None:
    def kernel(x_ref: Any, o_ref: Any) -> None:
        o_ref[...] = x_ref[...] * x_ref[...]

    square = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(SHAPE, jnp.float32))
    value, tangent = jax.jvp(square, (x,), (np.ones_like(x),))
    np.testing.assert_array_equal(value, x * x)
    np.testing.assert_array_equal(tangent, 2 * x)


def test_sharded(x: np.ndarray) -> None:
    mesh = jax.make_mesh((8,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    xs = jax.device_put(np.tile(x, (8, 1)), NamedSharding(mesh, P("i")))
    inside = jax.shard_map(
        twice_plus, mesh=mesh, in_specs=P("i"), out_specs=P("i"), check_vma=False
    )
    result = jax.jit(inside)(xs, xs)
    np.testing.assert_array_equal(result, 3 * np.tile(x, (8, 1)))
    assert result.sharding.spec == P("i")
    columns = jax.device_put(x, NamedSharding(mesh, P(None, "i")))
    outside = jax.jit(lambda x: twice_plus(x, x).sum())(columns)  # the kernel sees the whole array
    assert float(outside) == 3 * x.sum()


def test_remote_copy_to_a_neighbour(x: np.ndarray) -> None:
    def to(rank: jax.Array) -> dict[str, Any]:
        if jax.__version_info__ >= (0, 11):
            return {"device_id": {"i": rank}}
        # JAX 0.10 discharges no rank of a mesh's only axis.
        return {"device_id": rank, "device_id_type": pl.DeviceIdType.LOGICAL}

    mesh = jax.make_mesh((8,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))

    def kernel(x_ref: Any, o_ref: Any, sent: Any, received: Any) -> None:
        neighbour = lax.rem(lax.axis_index("i") + 1, 8)
        copy = pltpu.make_async_remote_copy(x_ref, o_ref, sent, received, **to(neighbour))
        copy.start()
        copy.wait()

    whole = pl.BlockSpec(memory_space=pl.ANY)
    shift = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(SHAPE, jnp.float32),
        in_specs=[whole],
        out_specs=whole,
        scratch_shapes=[pltpu.SemaphoreType.DMA] * 2,
    )
    xs = np.concatenate([x + k for k in range(8)])
    inside = jax.shard_map(shift, mesh=mesh, in_specs=P("i"), out_specs=P("i"), check_vma=False)
    np.testing.assert_array_equal(jax.jit(inside)(xs), np.roll(xs, SHAPE[0], axis=0))


def test_on_the_cpu(x: np.ndarray) -> None:
    here = jax.device_put(x, jax.devices("cpu")[0])
    result = twice_plus(here, here)
    assert result.devices() == here.devices()
    np.testing.assert_array_equal(result, 3 * x)


def test_checks_are_trn3s(x: np.ndarray) -> None:
    call = pl.pallas_call(
        _twice_plus,
        out_shape=jax.ShapeDtypeStruct(SHAPE, jnp.float32),
        compiler_params=pltrn.CompilerParams(check=True),
    )
    here = jax.device_put(x, jax.devices("cpu")[0])
    with pytest.raises(NotImplementedError, match="checks run on trn3"):
        call(here, here)


def test_another_platforms_kernel_on_the_cpu_is_jaxs_matter(x: np.ndarray) -> None:
    def kernel(x_ref: Any, o_ref: Any) -> None:
        o_ref[...] = x_ref[...]

    call = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(SHAPE, jnp.float32))
    with pytest.raises(ValueError, match="Only interpret mode is supported on CPU backend"):
        call(jax.device_put(x, jax.devices("cpu")[0]))


def test_aliases_and_donation(x: np.ndarray) -> None:
    def kernel(x_ref: Any, o_ref: Any) -> None:
        o_ref[0:64, :] = x_ref[64:128, :]

    call = pl.pallas_call(
        kernel, out_shape=jax.ShapeDtypeStruct(SHAPE, jnp.float32), input_output_aliases={0: 0}
    )
    found = jax.jit(call, donate_argnums=0)(jnp.asarray(x))
    np.testing.assert_array_equal(found, np.concatenate([x[64:], x[64:]]))


def test_export_and_compile_ahead(x: np.ndarray) -> None:
    exported = jax.export.export(twice_plus, platforms=["trn3"])(x, x)
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_array_equal(again.call(x, x), 3 * x)
    server = topologies.get_topology_desc("trn3-gen2", platform="trn3")
    mesh = jax.sharding.Mesh(np.array(server.devices), ("i",))
    n = mesh.size
    each = jax.ShapeDtypeStruct(
        (n * SHAPE[0], SHAPE[1]), jnp.float32, sharding=NamedSharding(mesh, P("i"))
    )
    inside = jax.shard_map(
        twice_plus, mesh=mesh, in_specs=P("i"), out_specs=P("i"), check_vma=False
    )
    lowered = jax.jit(inside).lower(each, each)
    assert "trn3.pallas_call" in lowered.as_text()


def test_dynamic_grid(x: np.ndarray) -> None:
    def kernel(x_ref: Any, o_ref: Any) -> None:
        o_ref[...] = x_ref[...] + 1

    @jax.jit
    def some_rows(n: jax.Array, x: jax.Array) -> jax.Array:
        block = pl.BlockSpec((16, 64), lambda i: (i, 0))
        return pl.pallas_call(
            kernel,
            grid=(n,),
            in_specs=[block],
            out_specs=block,
            out_shape=jax.ShapeDtypeStruct(SHAPE, jnp.float32),
        )(x)

    np.testing.assert_array_equal(some_rows(3, x)[:48], x[:48] + 1)


def test_named_grid(x: np.ndarray) -> None:
    def kernel(x_ref: Any, o_ref: Any) -> None:
        o_ref[...] = x_ref[...] + lax.axis_index("rows")

    block = pl.BlockSpec((16, 64), lambda i: (i, 0))
    call = pl.pallas_call(
        kernel,
        grid=(("rows", 8),),
        in_specs=[block],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(SHAPE, jnp.float32),
    )
    np.testing.assert_array_equal(call(x), x + np.repeat(np.arange(8), 16)[:, None])
