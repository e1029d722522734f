"""Accesses that nothing puts in order: transfers in flight, engines that do not wait."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

import pallas_trn3 as pltrn

from .cases import BF16, F32, HBM, like, moved, numbers, right, run, wrong

SBUF, PSUM = pltrn.SBUF, pltrn.PSUM
DMA, REGULAR = pltpu.SemaphoreType.DMA, pltpu.SemaphoreType.REGULAR


# ---- transfers in flight ----


@wrong("tile", "race")
def read_before_the_copy_is_waited_for():
    def kernel(x_hbm, o_ref, tile, semaphore):
        copy = pltpu.make_async_copy(x_hbm, tile, semaphore)
        copy.start()  # wrong
        o_ref[...] = tile[...]  # wrong
        copy.wait()

    scratch = [SBUF((128, 64), F32), DMA]
    return run(kernel, numbers(128, 64), scratch=scratch, in_specs=[HBM])


@wrong("tile", "race")
def instruction_reads_before_the_copy_is_waited_for():
    def kernel(x_hbm, o_ref, tile, semaphore):
        copy = pltpu.make_async_copy(x_hbm, tile, semaphore)
        copy.start()  # wrong
        pltrn.tensor_copy(o_ref, tile)  # wrong
        copy.wait()

    scratch = [SBUF((128, 64), F32), DMA]
    return run(kernel, numbers(128, 64), scratch=scratch, in_specs=[HBM])


@wrong("tile", "race")
def one_element_of_a_copy_in_flight():
    def kernel(x_hbm, o_ref, tile, semaphore):
        copy = pltpu.make_async_copy(x_hbm, tile, semaphore)
        copy.start()  # wrong
        o_ref[...] = tile[127:128, 63:64]  # wrong
        copy.wait()

    scratch = [SBUF((128, 64), F32), DMA]
    return run(kernel, numbers(128, 64), out=like((1, 1)), scratch=scratch, in_specs=[HBM])


@wrong("tile", "race")
def source_overwritten_in_flight():
    def kernel(x_ref, o_hbm, tile, semaphore):
        tile[...] = x_ref[...]
        copy = pltpu.make_async_copy(tile, o_hbm, semaphore)
        copy.start()  # wrong
        tile[...] = x_ref[...] * 2  # wrong
        copy.wait()

    scratch = [SBUF((128, 64), F32), DMA]
    return run(kernel, numbers(128, 64), scratch=scratch, out_specs=HBM)


@wrong("tile", "race")
def target_overwritten_in_flight():
    def kernel(x_hbm, o_ref, tile, semaphore):
        copy = pltpu.make_async_copy(x_hbm, tile, semaphore)
        copy.start()  # wrong
        pltrn.memset(tile, value=0.0)  # wrong
        copy.wait()
        o_ref[...] = tile[...]

    scratch = [SBUF((128, 64), F32), DMA]
    return run(kernel, numbers(128, 64), scratch=scratch, in_specs=[HBM])


@wrong("tile", "race")
def two_copies_into_one_tile():
    def kernel(x_hbm, y_hbm, o_ref, tile, semaphores):
        one = pltpu.make_async_copy(x_hbm, tile, semaphores.at[0])
        two = pltpu.make_async_copy(y_hbm, tile, semaphores.at[1])
        one.start()  # wrong
        two.start()  # wrong
        one.wait()
        two.wait()
        o_ref[...] = tile[...]

    scratch = [SBUF((128, 64), F32), DMA((2,))]
    inputs = numbers(128, 64), numbers(128, 64)
    return run(kernel, *inputs, scratch=scratch, in_specs=[HBM, HBM])


@wrong("o_hbm", "race")
def two_copies_into_one_row_of_hbm():
    def kernel(x_ref, o_hbm, semaphores):
        one = pltpu.make_async_copy(x_ref.at[0:65], o_hbm.at[0:65], semaphores.at[0])
        two = pltpu.make_async_copy(x_ref.at[64:128], o_hbm.at[64:128], semaphores.at[1])
        one.start()  # wrong
        two.start()  # wrong
        one.wait()
        two.wait()

    return run(kernel, numbers(128, 64), scratch=[DMA((2,))], out_specs=HBM)


@wrong("tiles", "race")
def next_block_into_the_slot_in_use():
    """Double buffering with the slots mixed up."""

    def kernel(x_hbm, o_hbm, tiles, semaphores):
        def fetch(i, slot):
            return pltpu.make_async_copy(
                x_hbm.at[pl.ds(32 * i, 32)], tiles.at[slot], semaphores.at[slot]
            )

        fetch(0, 0).start()
        fetch(0, 0).wait()
        fetch(1, 0).start()  # wrong
        pltrn.dma_copy(o_hbm.at[0:32], tiles.at[0])  # wrong
        fetch(1, 0).wait()
        pltrn.dma_copy(o_hbm.at[32:64], tiles.at[0])

    scratch = [SBUF((32, 64), F32, buffers=2), DMA((2,))]
    return moved(kernel, numbers(64, 64), scratch=scratch)


@wrong("tile", "race")
def waiting_for_another_copy():
    def kernel(x_hbm, y_hbm, o_ref, tile, other, semaphores):
        one = pltpu.make_async_copy(x_hbm, tile, semaphores.at[0])
        two = pltpu.make_async_copy(y_hbm, other, semaphores.at[1])
        one.start()  # wrong
        two.start()
        two.wait()
        o_ref[...] = tile[...] + other[...]  # wrong
        one.wait()

    scratch = [SBUF((128, 64), F32), SBUF((128, 64), F32), DMA((2,))]
    inputs = numbers(128, 64), numbers(128, 64)
    return run(kernel, *inputs, scratch=scratch, in_specs=[HBM, HBM])


@wrong("o_hbm", "race")
def hbm_read_back_in_flight():
    def kernel(x_ref, o_hbm, tile, semaphore):
        copy = pltpu.make_async_copy(x_ref, o_hbm, semaphore)
        copy.start()  # wrong
        pltrn.dma_copy(tile, o_hbm)  # wrong
        copy.wait()

    scratch = [SBUF((128, 64), F32), DMA]
    return run(kernel, numbers(128, 64), scratch=scratch, out_specs=HBM)


@wrong("o_ref", "race", "grid goes on to the next block")
def copy_over_the_end_of_a_step():
    """The block is stored while the copy into it is under way."""

    def kernel(x_hbm, o_ref, semaphore):
        i = pl.program_id(0)

        def fetch(i):
            return pltpu.make_async_copy(x_hbm.at[:, pl.ds(64 * i, 64)], o_ref, semaphore)

        @pl.when(i > 0)
        def _():
            fetch(i - 1).wait()

        fetch(i).start()  # wrong

        @pl.when(i == 2)
        def _():
            fetch(i).wait()

    return run(
        kernel, numbers(128, 192), scratch=[DMA], grid=(3,), in_specs=[HBM],
        out_specs=pl.BlockSpec((128, 64), lambda i: (0, i)),
    )  # fmt: skip


@wrong("tile", "race", "given back")
def scope_that_ends_in_flight():
    def kernel(x_hbm, o_ref, semaphore):
        o_ref[...] = jnp.zeros_like(o_ref)

        def begin(tile):
            pltpu.make_async_copy(x_hbm, tile, semaphore).start()  # wrong

        def end(tile):
            pltpu.make_async_copy(x_hbm, tile, semaphore).wait()

        pl.run_scoped(begin, SBUF((128, 64), F32))  # wrong
        pl.run_scoped(end, SBUF((128, 64), F32))

    return run(kernel, numbers(128, 64), scratch=[DMA], in_specs=[HBM])


@wrong("race")
def first_of_two_copies_on_one_semaphore():
    """A semaphore that two copies share says that one of them is over, not which."""

    def kernel(x_hbm, y_hbm, o_ref, one, two, semaphore):
        first = pltpu.make_async_copy(x_hbm, one, semaphore)
        second = pltpu.make_async_copy(y_hbm, two, semaphore)
        first.start()  # wrong
        second.start()
        first.wait()
        o_ref[...] = one[...]  # wrong
        second.wait()

    tile = SBUF((128, 64), F32)
    inputs = numbers(128, 64), numbers(128, 64)
    return run(kernel, *inputs, scratch=[tile, tile, DMA], in_specs=[HBM, HBM])


@right
def copy_within_each_step():
    def kernel(x_hbm, o_ref, semaphore):
        i = pl.program_id(0)
        copy = pltpu.make_async_copy(x_hbm.at[:, pl.ds(64 * i, 64)], o_ref, semaphore)
        copy.start()
        copy.wait()

    x = numbers(128, 192)
    found = run(
        kernel, x, scratch=[DMA], grid=(3,), in_specs=[HBM],
        out_specs=pl.BlockSpec((128, 64), lambda i: (0, i)),
    )  # fmt: skip
    return found, x


@right
def copy_into_scratch_over_the_end_of_a_step():
    """Scratch stays where it is."""

    def kernel(x_hbm, o_ref, tiles, semaphores):
        i = pl.program_id(0)

        def fetch(i):
            return pltpu.make_async_copy(
                x_hbm.at[:, pl.ds(64 * i, 64)], tiles.at[i % 2], semaphores.at[i % 2]
            )

        @pl.when(i == 0)
        def _():
            fetch(0).start()

        @pl.when(i < 2)
        def _():
            fetch(i + 1).start()

        fetch(i).wait()
        o_ref[...] = tiles[i % 2]

    x = numbers(128, 192)
    found = run(
        kernel, x, scratch=[SBUF((128, 64), F32, buffers=2), DMA((2,))], grid=(3,), in_specs=[HBM],
        out_specs=pl.BlockSpec((128, 64), lambda i: (0, i)),
    )  # fmt: skip
    return found, x


@right
def read_after_the_wait():
    def kernel(x_hbm, o_ref, tile, semaphore):
        copy = pltpu.make_async_copy(x_hbm, tile, semaphore)
        copy.start()
        copy.wait()
        o_ref[...] = tile[...]

    x = numbers(128, 64)
    return run(kernel, x, scratch=[SBUF((128, 64), F32), DMA], in_specs=[HBM]), x


@right
def source_reused_after_the_wait():
    def kernel(x_ref, o_hbm, tile, semaphore):
        for half in range(2):
            tile[...] = x_ref[64 * half : 64 * half + 64] * (half + 1)
            copy = pltpu.make_async_copy(tile, o_hbm.at[64 * half : 64 * half + 64], semaphore)
            copy.start()
            copy.wait()

    x = numbers(128, 64)
    found = run(kernel, x, scratch=[SBUF((64, 64), F32), DMA], out_specs=HBM)
    return found, np.concatenate([x[:64], 2 * x[64:]])


@right
def source_read_in_flight():
    """Two that read are no race."""

    def kernel(x_ref, o_ref, p_hbm, semaphore):
        copy = pltpu.make_async_copy(x_ref, p_hbm, semaphore)
        copy.start()
        o_ref[...] = x_ref[...] * 2
        copy.wait()

    x = numbers(128, 64)
    specs = [pl.BlockSpec((128, 64), lambda: (0, 0)), HBM]
    one, two = run(
        kernel, x, out=[like((128, 64)), like((128, 64))], scratch=[DMA], out_specs=specs
    )
    return np.stack([one, two]), np.stack([2 * x, x])


@right
def other_half_in_flight():
    def kernel(x_hbm, o_ref, tile, semaphore):
        tile[0:64] = jnp.ones((64, 64), jnp.float32)
        copy = pltpu.make_async_copy(x_hbm.at[64:128], tile.at[64:128], semaphore)
        copy.start()
        tile[0:64] = tile[0:64] * 3
        copy.wait()
        o_ref[...] = tile[...]

    x = numbers(128, 64)
    found = run(kernel, x, scratch=[SBUF((128, 64), F32), DMA], in_specs=[HBM])
    return found, np.concatenate([np.full((64, 64), 3, np.float32), x[64:]])


@right
def two_copies_into_two_halves():
    def kernel(x_hbm, o_ref, tile, semaphore):
        copies = [
            pltpu.make_async_copy(x_hbm.at[rows], tile.at[rows], semaphore)
            for rows in (slice(0, 64), slice(64, 128))
        ]
        for copy in copies:
            copy.start()
        for copy in copies:
            copy.wait()
        o_ref[...] = tile[...]

    x = numbers(128, 64)
    return run(kernel, x, scratch=[SBUF((128, 64), F32), DMA], in_specs=[HBM]), x


@right
def double_buffering():
    def kernel(x_hbm, o_hbm, tiles, semaphores):
        def fetch(i, slot):
            return pltpu.make_async_copy(
                x_hbm.at[pl.ds(32 * i, 32)], tiles.at[slot], semaphores.at[slot]
            )

        fetch(0, 0).start()

        def body(i, _):
            slot = i % 2

            @pl.when(i < 3)
            def _():
                fetch(i + 1, 1 - slot).start()

            fetch(i, slot).wait()
            pltrn.dma_copy(o_hbm.at[pl.ds(32 * i, 32)], tiles.at[slot])
            return 0

        lax.fori_loop(0, 4, body, 0)

    x = numbers(128, 64)
    return moved(kernel, x, scratch=[SBUF((32, 64), F32, buffers=2), DMA((2,))]), x


@right
def emitted_pipeline():
    def body(x_ref, o_ref):
        o_ref[...] = x_ref[...] + 1

    def kernel(x_hbm, o_hbm):
        spec = pl.BlockSpec((32, 128), lambda i: (i, 0))
        pltpu.emit_pipeline(body, grid=(4,), in_specs=[spec], out_specs=[spec])(x_hbm, o_hbm)

    x = numbers(128, 128)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return run(kernel, x, in_specs=[anywhere], out_specs=anywhere), x + 1


# ---- engines that wait only where they are told to ----


@wrong("tile", "race")
def vector_does_not_wait_for_the_transfer():
    def kernel(x_hbm, o_hbm, tile, out, done):
        pltrn.dma_copy(tile, x_hbm)  # wrong
        pltrn.tensor_scalar(out, tile, 2.0, op0="multiply", signal=[(done, 1)])  # wrong
        pltrn.dma_copy(o_hbm, out, wait=[(done, 1)])

    scratch = [SBUF((128, 64), F32), SBUF((128, 64), F32), REGULAR]
    return moved(kernel, numbers(128, 64), scratch=scratch, explicit=True)


@wrong("out", "race")
def transfer_does_not_wait_for_the_vector_engine():
    def kernel(x_hbm, o_hbm, tile, out, loaded):
        pltrn.dma_copy(tile, x_hbm, signal=[(loaded, 1)])
        pltrn.tensor_scalar(out, tile, 2.0, op0="multiply", wait=[(loaded, 1)])  # wrong
        pltrn.dma_copy(o_hbm, out)  # wrong

    scratch = [SBUF((128, 64), F32), SBUF((128, 64), F32), REGULAR]
    return moved(kernel, numbers(128, 64), scratch=scratch, explicit=True)


@wrong("acc", "race")
def vector_does_not_wait_for_the_tensor_engine():
    def kernel(x_hbm, y_hbm, o_hbm, x, y, out, acc, loaded, done):
        pltrn.dma_copy(x, x_hbm, signal=[(loaded, 1)])
        pltrn.dma_copy(y, y_hbm, signal=[(loaded, 1)])
        pltrn.nc_matmul(acc, x, y, wait=[(loaded, 2)])  # wrong
        pltrn.tensor_copy(out, acc, signal=[(done, 1)])  # wrong
        pltrn.dma_copy(o_hbm, out, wait=[(done, 1)])

    tile = SBUF((64, 64), BF16)
    scratch = [tile, tile, SBUF((64, 64), F32), PSUM((64, 64), F32), REGULAR, REGULAR]
    inputs = numbers(64, 64, dtype=BF16), numbers(64, 64, dtype=BF16)
    return moved(kernel, *inputs, out=like((64, 64)), scratch=scratch, explicit=True)


@wrong("tile", "race")
def scalar_overwrites_what_vector_reads():
    """Write after read."""

    def kernel(x_hbm, o_hbm, tile, out, loaded, done):
        pltrn.dma_copy(tile, x_hbm, signal=[(loaded, 2)])
        pltrn.tensor_scalar(  # wrong
            out, tile, 2.0, op0="multiply", wait=[(loaded, 1)], signal=[(done, 1)]
        )
        pltrn.tensor_scalar(  # wrong
            tile, tile, 3.0, op0="multiply", engine="scalar", wait=[(loaded, 1)]
        )
        pltrn.dma_copy(o_hbm, out, wait=[(done, 1)])

    scratch = [SBUF((128, 64), F32), SBUF((128, 64), F32), REGULAR, REGULAR]
    return moved(kernel, numbers(128, 64), scratch=scratch, explicit=True)


@wrong("out", "race")
def two_engines_write_one_tile():
    def kernel(o_hbm, out, done):
        pltrn.memset(out, value=1.0, engine="vector", signal=[(done, 1)])  # wrong
        pltrn.memset(out, value=2.0, engine="gpsimd", signal=[(done, 1)])  # wrong
        pltrn.dma_copy(o_hbm, out, wait=[(done, 2)])

    scratch = [SBUF((128, 64), F32), REGULAR]
    return moved(kernel, out=like((128, 64)), scratch=scratch, explicit=True)


@wrong("tile", "race")
def next_transfer_does_not_wait_for_the_reader():
    def kernel(x_hbm, o_hbm, tile, out, loaded, done):
        for half in range(2):
            rows = slice(64 * half, 64 * half + 64)
            pltrn.dma_copy(tile, x_hbm.at[rows], signal=[(loaded, 1)])  # wrong
            pltrn.tensor_scalar(  # wrong
                out.at[rows], tile, 2.0, op0="multiply", wait=[(loaded, 1)], signal=[(done, 1)]
            )
        pltrn.dma_copy(o_hbm, out, wait=[(done, 2)])

    scratch = [SBUF((64, 64), F32), SBUF((128, 64), F32), REGULAR, REGULAR]
    return moved(kernel, numbers(128, 64), scratch=scratch, explicit=True)


@wrong("out", "race")
def signal_of_an_earlier_instruction():
    """The semaphore says that one of two is done; the second is read."""

    def kernel(x_hbm, o_hbm, tile, out, loaded, done):
        pltrn.dma_copy(tile, x_hbm, signal=[(loaded, 1)])
        pltrn.tensor_copy(out.at[0:64], tile.at[0:64], wait=[(loaded, 1)], signal=[(done, 1)])
        pltrn.tensor_copy(out.at[64:128], tile.at[64:128])  # wrong
        pltrn.dma_copy(o_hbm, out, wait=[(done, 1)])  # wrong

    scratch = [SBUF((128, 64), F32), SBUF((128, 64), F32), REGULAR, REGULAR]
    return moved(kernel, numbers(128, 64), scratch=scratch, explicit=True)


@right
def engines_wait_for_each_other():
    def kernel(x_hbm, o_hbm, tile, out, loaded, done):
        pltrn.dma_copy(tile, x_hbm, signal=[(loaded, 1)])
        pltrn.tensor_scalar(out, tile, 2.0, op0="multiply", wait=[(loaded, 1)], signal=[(done, 1)])
        pltrn.dma_copy(o_hbm, out, wait=[(done, 1)])

    x = numbers(128, 64)
    scratch = [SBUF((128, 64), F32), SBUF((128, 64), F32), REGULAR, REGULAR]
    return moved(kernel, x, scratch=scratch, explicit=True), 2 * x


@right
def one_engine_is_in_order_by_itself():
    def kernel(x_hbm, o_hbm, tile, out, loaded, done):
        pltrn.dma_copy(tile, x_hbm, signal=[(loaded, 1)])
        pltrn.tensor_scalar(out, tile, 2.0, op0="multiply", wait=[(loaded, 1)])
        pltrn.tensor_scalar(out, out, 1.0, op0="add", signal=[(done, 1)])
        pltrn.dma_copy(o_hbm, out, wait=[(done, 1)])

    x = numbers(128, 64)
    scratch = [SBUF((128, 64), F32), SBUF((128, 64), F32), REGULAR, REGULAR]
    return moved(kernel, x, scratch=scratch, explicit=True), 2 * x + 1


@right
def order_by_way_of_a_third_engine():
    """vector after scalar after the transfer: nothing says it directly."""

    def kernel(x_hbm, o_hbm, tile, middle, out, loaded, on, done):
        pltrn.dma_copy(tile, x_hbm, signal=[(loaded, 1)])
        pltrn.activation(middle, tile, op="copy", wait=[(loaded, 1)], signal=[(on, 1)])
        pltrn.tensor_tensor(out, tile, middle, op="add", wait=[(on, 1)], signal=[(done, 1)])
        pltrn.dma_copy(o_hbm, out, wait=[(done, 1)])

    x = numbers(128, 64)
    tile = SBUF((128, 64), F32)
    scratch = [tile, tile, tile, REGULAR, REGULAR, REGULAR]
    return moved(kernel, x, scratch=scratch, explicit=True), 2 * x


@right
def matmul_with_every_wait():
    def kernel(x_hbm, y_hbm, o_hbm, x, y, out, acc, loaded, done, copied):
        pltrn.dma_copy(x, x_hbm, engine="dma:sync", signal=[(loaded, 1)])
        pltrn.dma_copy(y, y_hbm, engine="dma:scalar", signal=[(loaded, 1)])
        pltrn.nc_matmul(acc, x, y, wait=[(loaded, 2)], signal=[(done, 1)])
        pltrn.tensor_copy(out, acc, wait=[(done, 1)], signal=[(copied, 1)])
        pltrn.dma_copy(o_hbm, out, wait=[(copied, 1)])

    tile = SBUF((64, 64), BF16)
    scratch = [tile, tile, SBUF((64, 64), F32), PSUM((64, 64), F32), REGULAR, REGULAR, REGULAR]
    x, y = numbers(64, 64, dtype=BF16), numbers(64, 64, dtype=BF16)
    found = moved(kernel, x, y, out=like((64, 64)), scratch=scratch, explicit=True)
    return found, x.astype(np.float32).T @ y.astype(np.float32)


@right
def engines_on_two_halves():
    def kernel(o_hbm, out, done):
        pltrn.memset(out.at[0:64], value=1.0, engine="vector", signal=[(done, 1)])
        pltrn.memset(out.at[64:128], value=2.0, engine="gpsimd", signal=[(done, 1)])
        pltrn.dma_copy(o_hbm, out, wait=[(done, 2)])

    scratch = [SBUF((128, 64), F32), REGULAR]
    found = moved(kernel, out=like((128, 64)), scratch=scratch, explicit=True)
    return found, np.repeat(np.float32([1, 2]), 64)[:, None] * np.ones((1, 64), np.float32)


@right
def tile_reused_after_its_reader():
    def kernel(x_hbm, o_hbm, tile, out, loaded, free, done):
        for half in range(2):
            rows = slice(64 * half, 64 * half + 64)
            waits = [(free, 1)] if half else []
            pltrn.dma_copy(tile, x_hbm.at[rows], wait=waits, signal=[(loaded, 1)])
            signals = [(done, 1)] if half else [(free, 1)]
            pltrn.tensor_scalar(
                out.at[rows], tile, 2.0, op0="multiply", wait=[(loaded, 1)], signal=signals
            )
        pltrn.dma_copy(o_hbm, out, wait=[(done, 1)])

    x = numbers(128, 64)
    scratch = [SBUF((64, 64), F32), SBUF((128, 64), F32), REGULAR, REGULAR, REGULAR]
    return moved(kernel, x, scratch=scratch, explicit=True), 2 * x
