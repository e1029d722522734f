"""Kernels of engine instructions as programs: what runs, how often, and when."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

import pallas_trn3 as pltrn
from jax_trn3.hardware import TRAINIUM2, TRAINIUM3
from pallas_trn3.timing import kernel_of_function, program_of, simulated, timeline_of

BF16, F32 = jnp.bfloat16, jnp.float32
HBM = pl.BlockSpec(memory_space=pltrn.HBM)


def shape(*sizes, dtype=F32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def ran(timeline):
    """How often each instruction ran, by name."""
    counts = Counter()
    for instruction, times in zip(timeline.instructions, timeline.executions):
        counts[instruction.name] += int(times)
    return dict(counts)


def blocked(m, k, n):
    """x.T @ y, a block of the contracted dimension a step."""

    def kernel(x_ref, y_ref, o_ref, acc):
        step = pl.program_id(2)
        pltrn.nc_matmul(acc, x_ref, y_ref, accumulate=step > 0)

        @pl.when(step == pl.num_programs(2) - 1)
        def _():
            pltrn.tensor_copy(o_ref, acc)

    def call(x, y):
        return pl.pallas_call(
            kernel,
            grid=(m // 128, n // 512, k // 128),
            in_specs=[
                pl.BlockSpec((128, 128), lambda i, j, k: (k, i)),
                pl.BlockSpec((128, 512), lambda i, j, k: (k, j)),
            ],
            out_specs=pl.BlockSpec((128, 512), lambda i, j, k: (i, j)),
            out_shape=shape(m, n),
            scratch_shapes=[pltrn.PSUM((128, 512), F32)],
        )(x, y)

    return call, (shape(k, m, dtype=BF16), shape(k, n, dtype=BF16))


def test_the_grid_is_loops_and_what_runs_is_counted():
    call, args = blocked(256, 1024, 1024)
    timeline = timeline_of(call, *args)
    steps, results = 2 * 2 * 8, 2 * 2
    assert ran(timeline) == {
        "dma_copy": 2 * steps + results, "nc_matmul": steps, "tensor_copy": results
    }  # fmt: skip
    assert len(timeline.instructions) < 10


@pytest.mark.parametrize("chip", [TRAINIUM2, TRAINIUM3])
def test_time_is_at_least_what_each_engine_needs(chip):
    call, args = blocked(512, 1024, 1024)
    timeline = timeline_of(call, *args, chip=chip)
    flops = 2 * 512 * 1024 * 1024
    assert (
        sum(
            int(n) * w.flops
            for n, w, i in zip(timeline.executions, timeline.work, timeline.instructions)
            if i.engine == "tensor"
        )
        == flops
    )
    assert timeline.active_ps >= flops / chip.core.peak_flops("bfloat16") * 1e12
    read = timeline.hbm_read_bytes + timeline.hbm_write_bytes
    bandwidth = chip.hbm_bandwidth_bytes_per_s / chip.hbm_stacks
    assert timeline.active_ps >= read / bandwidth * 1e12


def test_lines_are_the_kernels_own():
    call, args = blocked(128, 256, 512)
    lines = {i.name: i.origin for i in timeline_of(call, *args).instructions}
    assert lines["nc_matmul"].file == __file__
    assert lines["nc_matmul"].line == blocked.__code__.co_firstlineno + 5


def test_a_triangle_of_blocks_stays_loops():
    def kernel(x_ref, o_ref):
        i, j = pl.program_id(0), pl.program_id(1)

        @pl.when(j == 0)
        def _():
            pltrn.memset(o_ref, value=0.0)

        @pl.when(j <= i)
        def _():
            pltrn.tensor_tensor(o_ref, o_ref, x_ref, op="add")

    def call(x):
        return pl.pallas_call(
            kernel,
            grid=(16, 16),
            in_specs=[pl.BlockSpec((128, 256), lambda i, j: (j, 0))],
            out_specs=pl.BlockSpec((128, 256), lambda i, j: (i, 0)),
            out_shape=shape(2048, 256),
        )(x)

    timeline = timeline_of(call, shape(2048, 256))
    assert ran(timeline) == {"memset": 16, "tensor_tensor": 136, "dma_copy": 256 + 16}
    assert len(timeline.instructions) < 10


def test_tiles_of_a_pool_are_slots():
    def kernel(x_hbm, o_hbm, pool, out):
        @pl.loop(0, 16)
        def _(k):
            pltrn.dma_copy(pool.at[k % 4], x_hbm.at[:, pl.ds(k * 512, 512)])
            pltrn.activation(out.at[:, pl.ds(k * 512, 512)], pool.at[k % 4], op="exp")

        pltrn.dma_copy(o_hbm, out)

    def call(x):
        return pl.pallas_call(
            kernel,
            in_specs=[HBM],
            out_specs=HBM,
            out_shape=shape(128, 8192),
            scratch_shapes=[pltrn.SBUF((128, 512), F32, buffers=4), pltrn.SBUF((128, 8192), F32)],
        )(x)

    timed = program_of(kernel_of_function(call, shape(128, 8192)))
    tiles = {tile.name: tile for tile in timed.program.tiles()}
    assert (tiles["pool"].slots, tiles["pool"].shape) == (4, (128, 512))
    assert (tiles["out"].slots, tiles["out"].shape) == (16, (128, 512))
    assert not timed.assumptions
    # Four in rotation: the engine is as good as never without work after the first has arrived.
    four = simulated(timed)
    assert ran(four) == {"dma_copy": 17, "activation": 16}


def test_asynchronous_copies_and_semaphores():
    def kernel(x_hbm, o_ref, buffer, sem):
        def copy(k):
            return pltpu.make_async_copy(
                x_hbm.at[pl.ds(k * 128, 128)], buffer.at[k % 2], sem.at[k % 2]
            )

        copy(0).start()

        @pl.loop(0, 8)
        def _(k):
            @pl.when(k < 7)
            def _():
                copy(k + 1).start()

            copy(k).wait()
            pltrn.activation(o_ref.at[:, pl.ds(k * 256, 256)], buffer.at[k % 2], op="exp")

    def call(x):
        return pl.pallas_call(
            kernel,
            in_specs=[HBM],
            out_shape=shape(128, 2048),
            scratch_shapes=[pltrn.SBUF((2, 128, 256), F32), pltpu.SemaphoreType.DMA((2,))],
        )(x)

    timeline = timeline_of(call, shape(1024, 256))
    assert ran(timeline) == {"dma_copy": 9, "nop": 8, "activation": 8}


def test_a_function_must_call_one_kernel():
    with pytest.raises(ValueError, match="calls 0 kernels"):
        kernel_of_function(lambda x: x + 1, shape(8))
    call, args = blocked(128, 128, 512)
    with pytest.raises(ValueError, match="calls 2 kernels"):
        kernel_of_function(lambda x, y: call(x, y) + call(x, y), *args)
