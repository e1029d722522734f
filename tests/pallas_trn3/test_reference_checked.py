"""Kernels under the checks in compiled programs: jit, loops, vmap, shard_map; errors arrive."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import dispatch
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

import pallas_trn3 as pltrn
from jax_trn3.isa import IllegalInstruction
from pallas_trn3.errors import KernelError, UndefinedValue
from pallas_trn3.kernel import kernel_of
from pallas_trn3.reference import run

F32 = jnp.float32
CHECKED = pltrn.CompilerParams(check=True)


def doubled(x, wrong=False, params=CHECKED):
    """Twice the array by blocks of 8 rows; `wrong`: from memory that nothing writes."""

    def kernel(x_ref, o_ref, tile):
        if not wrong:
            tile[...] = x_ref[...]
        o_ref[...] = tile[...] * 2

    block = pl.BlockSpec((8, x.shape[1]), lambda i: (i, 0))
    return pl.pallas_call(
        kernel,
        grid=(x.shape[0] // 8,),
        in_specs=[block],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_shapes=[pltrn.SBUF((8, x.shape[1]), x.dtype)],
        compiler_params=params,
    )(x)


X = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)


def test_in_jit_and_beside_other_operations():
    found = jax.jit(lambda x: doubled(jnp.sin(x)) @ x.T)(X)
    np.testing.assert_allclose(found, (2 * np.sin(X)) @ X.T, rtol=1e-5, atol=1e-5)


def test_in_scan():
    def step(carry, x):
        return doubled(carry) * 0.5 + x, carry.sum()

    last, _ = jax.lax.scan(step, jnp.asarray(X), jnp.ones((3, 1, 1)))
    np.testing.assert_allclose(last, X + 3, rtol=1e-6)


def test_in_vmap():
    stacked = np.stack([X, -X, X * 3])
    np.testing.assert_array_equal(jax.vmap(doubled)(stacked), 2 * stacked)


def test_in_shard_map():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("i",))
    split = jax.shard_map(doubled, mesh=mesh, in_specs=P("i"), out_specs=P("i"), check_vma=False)
    np.testing.assert_array_equal(jax.jit(split)(X), 2 * X)


@pytest.mark.parametrize("around", ["nothing", "jit", "scan", "vmap"])
def test_the_error_arrives_as_it_is(around):
    functions = {
        "nothing": lambda x: doubled(x, wrong=True),
        "jit": jax.jit(lambda x: doubled(x, wrong=True) + 1),
        "scan": lambda x: jax.lax.scan(lambda c, _: (doubled(c, wrong=True), 0), x, None, length=2),
        "vmap": lambda x: jax.vmap(lambda y: doubled(y, wrong=True))(x[None]),
    }
    with pytest.raises(Exception, match="UndefinedValue.*tile.*have never been written"):
        jax.block_until_ready(functions[around](jnp.asarray(X)))
    # and leaves nothing behind
    np.testing.assert_array_equal(doubled(jnp.asarray(X)), 2 * X)


def test_the_environment_turns_checks_on(monkeypatch):
    params = pltrn.CompilerParams()
    doubled(jnp.asarray(X), wrong=True, params=params).block_until_ready()
    monkeypatch.setenv("JAX_TRN3_CHECK", "1")
    with pytest.raises(Exception, match="UndefinedValue"):
        jax.block_until_ready(jax.jit(lambda x: doubled(x, wrong=True, params=params))(X[:16]))


def test_large_operands_do_not_stop_the_callback():
    x = np.ones((1024, 2048), np.float32)
    np.testing.assert_array_equal(jax.jit(doubled)(x), 2 * x)


def kernel_in(function, *operands):
    (equation,) = jax.make_jaxpr(function)(*operands).eqns
    return kernel_of(**equation.params)


def test_errors_are_values_of_their_own():
    assert issubclass(KernelError, ValueError)
    kernel = kernel_in(lambda x: doubled(x, wrong=True), X)
    with pytest.raises(UndefinedValue, match=r"tile\[0, 0\]") as raised:
        run(kernel, (X,), check=True)
    assert f"{__file__}:" in str(raised.value)
    assert "the read at" in str(raised.value)
    assert "the write at" in str(raised.value)
    run(kernel, (X,))  # nothing is looked for


def test_who_waits_for_whom_is_told():
    def kernel(o_ref, left, right, one, two):
        pltrn.memset(left, value=1.0, engine="vector", wait=[(one, 1)], signal=[(two, 1)])
        pltrn.memset(right, value=2.0, engine="gpsimd", wait=[(two, 1)], signal=[(one, 1)])
        o_ref[...] = left[...] + right[...]

    def call():
        tile = pltrn.SBUF((8, 16), F32)
        semaphore = pltpu.SemaphoreType.REGULAR
        return pl.pallas_call(
            kernel,
            out_shape=jax.ShapeDtypeStruct((8, 16), F32),
            scratch_shapes=[tile, tile, semaphore, semaphore],
            compiler_params=pltrn.CompilerParams(synchronization="explicit"),
        )()

    with pytest.raises(KernelError) as raised:
        run(kernel_in(call), (), check=True)
    text = str(raised.value)
    for part in (
        "vector waits for 1 of semaphore one",
        "one is signalled by gpsimd",
        "gpsimd waits for two before",
        "two is signalled by vector",
        "a circle",
    ):
        assert part in text


def test_cost_is_linear_in_the_number_of_accesses():
    """Many parts of one tile, each copied and waited for: twice as many cost twice as much."""

    def kernel(x_hbm, o_ref, tile, semaphore):
        def body(i, _):
            part = pl.ds(i, 1)
            copy = pltpu.make_async_copy(x_hbm.at[part], tile.at[part], semaphore)
            copy.start()
            copy.wait()
            return 0

        jax.lax.fori_loop(0, x_hbm.shape[0], body, 0)
        o_ref[...] = tile[...]

    def call(x):
        return pl.pallas_call(
            kernel,
            in_specs=[pl.BlockSpec(memory_space=pltrn.HBM)],
            out_shape=jax.ShapeDtypeStruct(x.shape, F32),
            scratch_shapes=[pltrn.SBUF(x.shape, F32), pltpu.SemaphoreType.DMA],
        )(x)

    def seconds(rows):
        x = np.ones((rows, 8), np.float32)
        traced = kernel_in(call, x)
        best = np.inf
        for _ in range(3):
            start = time.perf_counter()
            run(traced, (x,), check=True)
            best = min(best, time.perf_counter() - start)
        return best

    seconds(100)
    assert seconds(1600) < 8 * seconds(400)


def meeting(kernel, x, devices=4):
    """A kernel on several devices, each with rows of the array."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("i",))
    whole = pl.BlockSpec(memory_space=pltrn.HBM)

    def call(x):
        return pl.pallas_call(
            kernel,
            in_specs=[whole],
            out_specs=whole,
            out_shape=jax.ShapeDtypeStruct(x.shape, F32),
            scratch_shapes=[pltrn.SBUF(x.shape, F32)],
            compiler_params=CHECKED,
        )(x)

    split = jax.shard_map(call, mesh=mesh, in_specs=P("i"), out_specs=P("i"), check_vma=False)
    return np.asarray(jax.jit(split)(x))


def test_devices_meet_in_one_thread():
    def kernel(x_hbm, o_hbm, tile):
        pltrn.dma_copy(tile, x_hbm)
        tile[...] = tile[...] * (1.0 + jax.lax.axis_index("i").astype(F32))
        pltrn.dma_copy(o_hbm, tile)
        pltrn.all_reduce(o_hbm, o_hbm, "i")

    pieces = X.reshape(4, 8, 16) * np.arange(1, 5, dtype=np.float32)[:, None, None]
    np.testing.assert_allclose(meeting(kernel, X), np.tile(pieces.sum(axis=0), (4, 1)), rtol=1e-5)


def test_a_device_that_does_not_come():
    def kernel(x_hbm, o_hbm, tile):
        pltrn.dma_copy(o_hbm, x_hbm)

        @pl.when(jax.lax.axis_index("i") < 3)
        def _():
            pltrn.all_reduce(o_hbm, x_hbm, "i")

    with pytest.raises(Exception, match="EndlessWait.*device 0 waits.*device 3 has ended"):
        meeting(kernel, X)
    dispatch.runtime_tokens.clear()  # JAX would tell of the others' errors when the process ends


def test_prints_of_a_kernel(capfd):
    def kernel(x_ref, o_ref):
        pl.debug_print("step {} has {}", pl.program_id(0), x_ref[0, 0])
        o_ref[...] = x_ref[...]

    block = pl.BlockSpec((8, 16), lambda i: (i, 0))
    call = pl.pallas_call(
        kernel,
        grid=(2,),
        in_specs=[block],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct((16, 16), F32),
        compiler_params=CHECKED,
    )
    jax.jit(call)(np.arange(256, dtype=np.float32).reshape(16, 16)).block_until_ready()
    assert "step 0 has 0.0\nstep 1 has 128.0\n" in capfd.readouterr().out


@pytest.mark.parametrize("end", ["source", "target"])
def test_copies_do_not_reach_psum(end):
    def kernel(x_ref, o_ref, acc, semaphore):
        pair = (acc, o_ref) if end == "source" else (x_ref, acc)
        copy = pltpu.make_async_copy(*pair, semaphore)
        copy.start()
        copy.wait()

    call = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((8, 16), F32),
        scratch_shapes=[pltrn.PSUM((8, 16), F32), pltpu.SemaphoreType.DMA],
    )
    with pytest.raises(IllegalInstruction, match=f"{__file__}:.*its {end} lies in psum"):
        jax.jit(call)(X[:8])


def to(rank):
    """How JAX says which device."""
    if jax.__version_info__ >= (0, 11):
        return {"device_id": {"i": rank}}
    return {"device_id": rank, "device_id_type": pl.DeviceIdType.LOGICAL}


def around_the_ring(kernel, devices=4):
    """A kernel on devices with a semaphore for what they send and one for what they get."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("i",))
    whole = pl.BlockSpec(memory_space=pltrn.HBM)

    def call(x):
        return pl.pallas_call(
            kernel,
            in_specs=[whole],
            out_specs=whole,
            out_shape=jax.ShapeDtypeStruct((devices, *x.shape), F32),
            scratch_shapes=[pltpu.SemaphoreType.DMA((3,))] * 2,
            compiler_params=CHECKED,
        )(x)

    split = jax.shard_map(call, mesh=mesh, in_specs=P("i"), out_specs=P("i"), check_vma=False)
    return np.asarray(jax.jit(split)(X)).reshape(devices, devices, 32 // devices, 16)


def test_gathered_around_the_ring():
    def kernel(x_hbm, o_hbm, sent, received):
        me = jax.lax.axis_index("i")
        pltrn.dma_copy(o_hbm.at[me], x_hbm)
        for step in range(3):
            part = o_hbm.at[jax.lax.rem(me - step + 4, 4)]
            copy = pltpu.make_async_remote_copy(
                part, part, sent.at[step], received.at[step], **to(jax.lax.rem(me + 1, 4))
            )
            copy.start()
            copy.wait()

    np.testing.assert_array_equal(around_the_ring(kernel), np.stack([X.reshape(4, 8, 16)] * 4))


def test_a_copy_that_nobody_sends():
    def kernel(x_hbm, o_hbm, sent, received):
        me = jax.lax.axis_index("i")
        for k in range(1, 4):  # all but what comes from the one before
            pltrn.dma_copy(o_hbm.at[jax.lax.rem(me - 1 + k + 4, 4)], x_hbm)
        copy = pltpu.make_async_remote_copy(
            x_hbm, o_hbm.at[me], sent.at[0], received.at[0], **to(jax.lax.rem(me + 1, 4))
        )

        @pl.when(me != 2)
        def _():
            copy.start()
            copy.wait_send()

        copy.wait_recv()

    with pytest.raises(Exception, match="EndlessWait.*device 3 waits for .* of semaphore received"):
        around_the_ring(kernel)
    dispatch.runtime_tokens.clear()


def test_what_comes_from_another_device_is_waited_for():
    def kernel(x_hbm, o_hbm, sent, received):
        me = jax.lax.axis_index("i")
        for k in range(1, 4):  # all but what comes from the one before
            pltrn.dma_copy(o_hbm.at[jax.lax.rem(me - 1 + k + 4, 4)], x_hbm)
        copy = pltpu.make_async_remote_copy(
            x_hbm, o_hbm.at[me], sent.at[0], received.at[0], **to(jax.lax.rem(me + 1, 4))
        )
        copy.start()
        copy.wait_send()
        pltrn.dma_copy(o_hbm.at[me], o_hbm.at[jax.lax.rem(me + 3, 4)])
        copy.wait_recv()

    with pytest.raises(Exception, match="Race.*o_hbm.*the copy at"):
        around_the_ring(kernel)
    dispatch.runtime_tokens.clear()
