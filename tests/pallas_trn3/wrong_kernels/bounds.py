"""Indices outside of a tile or an array, known only when the kernel runs."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

import pallas_trn3 as pltrn

from .cases import F32, like, moved, numbers, right, run, wrong

SBUF = pltrn.SBUF
WHOLE = pl.BlockSpec((128, 64), lambda i: (0, 0))


@wrong("x_ref", "128")
def row_behind_the_last():
    def kernel(x_ref, o_ref):
        i = pl.program_id(0)
        o_ref[pl.ds(i, 1)] = x_ref[pl.ds(i + 1, 1)]  # wrong

    return run(kernel, numbers(128, 64), grid=(128,), in_specs=[WHOLE], out_specs=WHOLE)


@wrong("x_ref", "-1")
def row_before_the_first():
    def kernel(x_ref, o_ref):
        i = pl.program_id(0)
        o_ref[pl.ds(i, 1)] = x_ref[pl.ds(i - 1, 1)]  # wrong

    return run(kernel, numbers(128, 64), grid=(128,), in_specs=[WHOLE], out_specs=WHOLE)


@wrong("o_ref", "128")
def store_behind_the_end():
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...]
        i = pl.program_id(0)
        o_ref[pl.ds(32 * i, 64)] = x_ref[0:64]  # wrong

    return run(kernel, numbers(128, 64), grid=(4,), in_specs=[WHOLE], out_specs=WHOLE)


@wrong("x_ref", "64")
def column_from_a_table():
    def kernel(table_ref, x_ref, o_ref):
        column = table_ref[pl.program_id(0)]
        o_ref[:, pl.ds(pl.program_id(0), 1)] = x_ref[:, pl.ds(column, 1)]  # wrong

    table = np.array([3, 64, 0, 1], np.int32)
    specs = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=(4,),
        in_specs=[pl.BlockSpec((128, 64), lambda i, t: (0, 0))],
        out_specs=pl.BlockSpec((128, 4), lambda i, t: (0, 0)),
    )  # fmt: skip
    params = pltrn.CompilerParams(check=True)
    return pl.pallas_call(
        kernel, grid_spec=specs, out_shape=like((128, 4)), compiler_params=params
    )(table, numbers(128, 64)).block_until_ready()


@wrong("tiles", "2")
def slot_that_does_not_exist():
    def kernel(x_hbm, o_hbm, tiles):
        def body(i, _):
            pltrn.dma_copy(tiles.at[i], x_hbm.at[pl.ds(32 * i, 32)])  # wrong
            return 0

        lax.fori_loop(0, 3, body, 0)
        pltrn.dma_copy(o_hbm, tiles.at[1])

    scratch = [SBUF((32, 64), F32, buffers=2)]
    return moved(kernel, numbers(128, 64), out=like((32, 64)), scratch=scratch)


@wrong("x_hbm")
def transfer_behind_the_end():
    def kernel(x_hbm, o_hbm, tile):
        def body(i, _):
            pltrn.dma_copy(tile, x_hbm.at[pl.ds(48 * i, 64)])  # wrong
            return 0

        lax.fori_loop(0, 3, body, 0)
        pltrn.dma_copy(o_hbm, tile)

    scratch = [SBUF((64, 64), F32)]
    return moved(kernel, numbers(128, 64), out=like((64, 64)), scratch=scratch)


@wrong("o_hbm")
def transfer_out_behind_the_end():
    def kernel(x_hbm, o_hbm, tile):
        pltrn.dma_copy(tile, x_hbm.at[0:64])

        def body(i, _):
            pltrn.dma_copy(o_hbm.at[pl.ds(64 * i, 64)], tile)  # wrong
            return 0

        lax.fori_loop(0, 3, body, 0)

    return moved(kernel, numbers(128, 64), scratch=[SBUF((64, 64), F32)])


@wrong("x_hbm")
def async_copy_behind_the_end():
    def kernel(x_hbm, o_ref, semaphore):
        i = pl.program_id(0)
        copy = pltpu.make_async_copy(x_hbm.at[pl.ds(64 * i + 32, 64)], o_ref, semaphore)
        copy.start()  # wrong
        copy.wait()

    return run(
        kernel, numbers(128, 64), scratch=[pltpu.SemaphoreType.DMA], grid=(2,),
        in_specs=[pl.BlockSpec(memory_space=pltrn.HBM)],
        out_specs=pl.BlockSpec((64, 64), lambda i: (i, 0)),
    )  # fmt: skip


@wrong("3")
def block_behind_the_array():
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...]

    return run(
        kernel, numbers(128, 192), grid=(3,),
        in_specs=[pl.BlockSpec((128, 64), lambda i: (0, i + 1))],  # wrong
        out_specs=pl.BlockSpec((128, 64), lambda i: (0, i)),
    )  # fmt: skip


@wrong("-1")
def block_before_the_array():
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...]

    return run(
        kernel, numbers(128, 192), grid=(3,),
        in_specs=[pl.BlockSpec((128, 64), lambda i: (0, i - 1))],  # wrong
        out_specs=pl.BlockSpec((128, 64), lambda i: (0, i)),
    )  # fmt: skip


@wrong("3")
def output_block_behind_the_array():
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...]

    return run(
        kernel, numbers(128, 192), grid=(4,),
        in_specs=[pl.BlockSpec((128, 64), lambda i: (0, jnp.minimum(i, 2)))],
        out_specs=pl.BlockSpec((128, 64), lambda i: (0, i)),  # wrong
    )  # fmt: skip


@wrong("dma_copy", "200")
def gathered_row_that_does_not_exist():
    def kernel(x_hbm, i_ref, o_ref):
        pltrn.dma_copy(o_ref, x_hbm, src_index=i_ref)  # wrong

    index = np.arange(32, dtype=np.int32).reshape(32, 1)
    index[5] = 200
    specs = [pl.BlockSpec(memory_space=pltrn.HBM), pl.BlockSpec()]
    return run(kernel, numbers(128, 64), index, out=like((32, 64)), in_specs=specs)


@wrong("x_ref")
def loop_that_ends_too_late():
    def kernel(x_ref, o_ref):
        def body(i, total):
            return total + x_ref[pl.ds(i, 1)]  # wrong

        o_ref[...] = lax.fori_loop(0, 129, body, jnp.zeros((1, 64), jnp.float32))

    return run(kernel, numbers(128, 64), out=like((1, 64)))


@wrong("x_ref")
def slice_of_a_slice():
    def kernel(x_ref, o_ref):
        i = pl.program_id(0)
        part = x_ref.at[64:128]
        o_ref[pl.ds(i * 64, 64)] = part[pl.ds(i * 32, 64)]  # wrong

    return run(kernel, numbers(128, 64), grid=(2,), in_specs=[WHOLE], out_specs=WHOLE)


# ---- to the edge, and no further ----


@right
def last_row():
    def kernel(x_ref, o_ref):
        i = pl.program_id(0)
        o_ref[pl.ds(i, 1)] = x_ref[pl.ds(127 - i, 1)]

    x = numbers(128, 64)
    return run(kernel, x, grid=(128,), in_specs=[WHOLE], out_specs=WHOLE), x[::-1]


@right
def neighbours_kept_inside():
    def kernel(x_ref, o_ref):
        i = pl.program_id(0)
        o_ref[pl.ds(i, 1)] = x_ref[pl.ds(jnp.maximum(i - 1, 0), 1)]

    x = numbers(128, 64)
    expected = np.concatenate([x[:1], x[:-1]])
    return run(kernel, x, grid=(128,), in_specs=[WHOLE], out_specs=WHOLE), expected


@right
def neighbours_behind_a_branch():
    def kernel(x_ref, o_ref):
        i = pl.program_id(0)

        @pl.when(i > 0)
        def _():
            o_ref[pl.ds(i, 1)] = x_ref[pl.ds(i - 1, 1)]

        @pl.when(i == 0)
        def _():
            o_ref[0:1] = x_ref[0:1]

    x = numbers(128, 64)
    expected = np.concatenate([x[:1], x[:-1]])
    return run(kernel, x, grid=(128,), in_specs=[WHOLE], out_specs=WHOLE), expected


@right
def slots_in_rotation():
    def kernel(x_hbm, o_hbm, tiles):
        def body(i, _):
            slot = i % 2
            pltrn.dma_copy(tiles.at[slot], x_hbm.at[pl.ds(32 * i, 32)])
            pltrn.dma_copy(o_hbm.at[pl.ds(96 - 32 * i, 32)], tiles.at[slot])
            return 0

        lax.fori_loop(0, 4, body, 0)

    x = numbers(128, 64)
    found = moved(kernel, x, scratch=[SBUF((32, 64), F32, buffers=2)])
    return found, x.reshape(4, 32, 64)[::-1].reshape(128, 64)


@right
def blocks_backwards():
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...]

    x = numbers(128, 192)
    found = run(
        kernel, x, grid=(3,), in_specs=[pl.BlockSpec((128, 64), lambda i: (0, 2 - i))],
        out_specs=pl.BlockSpec((128, 64), lambda i: (0, i)),
    )  # fmt: skip
    return found, x.reshape(128, 3, 64)[:, ::-1].reshape(128, 192)


@right
def last_block_beyond_the_edge():
    """A part of it is inside."""

    def kernel(x_ref, o_ref):
        o_ref[...] = -x_ref[...]

    x = numbers(100, 64)
    spec = pl.BlockSpec((64, 64), lambda i: (i, 0))
    return run(kernel, x, grid=(2,), in_specs=[spec], out_specs=spec), -x


@right
def gathered_rows():
    def kernel(x_hbm, i_ref, o_ref):
        pltrn.dma_copy(o_ref, x_hbm, src_index=i_ref)

    x = numbers(128, 64)
    index = (127 - np.arange(32, dtype=np.int32)).reshape(32, 1)
    specs = [pl.BlockSpec(memory_space=pltrn.HBM), pl.BlockSpec()]
    return run(kernel, x, index, out=like((32, 64)), in_specs=specs), x[index[:, 0]]


@right
def gathered_rows_that_are_skipped():
    def kernel(x_hbm, i_ref, o_ref):
        pltrn.memset(o_ref, value=0.0)
        pltrn.dma_copy(o_ref, x_hbm, src_index=i_ref, oob_mode="skip")

    x = numbers(128, 64)
    index = np.arange(32, dtype=np.int32).reshape(32, 1)
    index[5] = 200
    specs = [pl.BlockSpec(memory_space=pltrn.HBM), pl.BlockSpec()]
    expected = x[:32].copy()
    expected[5] = 0
    return run(kernel, x, index, out=like((32, 64)), in_specs=specs), expected


@right
def branch_that_is_not_taken():
    def kernel(x_ref, o_ref):
        i = pl.program_id(0)
        o_ref[pl.ds(i, 1)] = x_ref[pl.ds(i, 1)]

        @pl.when(i > 1000)
        def _():
            o_ref[pl.ds(i, 1)] = x_ref[pl.ds(i, 1)] * 2

    x = numbers(128, 64)
    return run(kernel, x, grid=(128,), in_specs=[WHOLE], out_specs=WHOLE), x
