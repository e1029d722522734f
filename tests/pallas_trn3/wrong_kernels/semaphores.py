"""Waits that nobody signals, and semaphores that are not zero at the end."""

from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

import pallas_trn3 as pltrn

from .cases import F32, HBM, like, moved, numbers, right, run, wrong

SBUF = pltrn.SBUF
DMA, REGULAR = pltpu.SemaphoreType.DMA, pltpu.SemaphoreType.REGULAR


# ---- waits that nobody signals ----


@wrong("semaphore", "nobody has signalled it")
def wait_without_a_signal():
    def kernel(x_ref, o_ref, semaphore):
        o_ref[...] = x_ref[...]
        pl.semaphore_wait(semaphore, 1)  # wrong

    return run(kernel, numbers(128, 64), scratch=[REGULAR])


@wrong("semaphore", "holds 1")
def wait_for_two_of_one():
    def kernel(x_ref, o_ref, semaphore):
        o_ref[...] = x_ref[...]
        pl.semaphore_signal(semaphore, 1)
        pl.semaphore_wait(semaphore, 2)  # wrong

    return run(kernel, numbers(128, 64), scratch=[REGULAR])


@wrong("semaphore", "nobody has signalled it")
def second_wait_for_one_signal():
    def kernel(x_ref, o_ref, semaphore):
        o_ref[...] = x_ref[...]
        pl.semaphore_signal(semaphore, 1)
        pl.semaphore_wait(semaphore, 1)
        pl.semaphore_wait(semaphore, 1)  # wrong

    return run(kernel, numbers(128, 64), scratch=[REGULAR])


@wrong("semaphore", "nobody has signalled it")
def wait_before_the_signal():
    def kernel(x_ref, o_ref, semaphore):
        o_ref[...] = x_ref[...]
        pl.semaphore_wait(semaphore, 1)  # wrong
        pl.semaphore_signal(semaphore, 1)

    return run(kernel, numbers(128, 64), scratch=[REGULAR])


@wrong("semaphore", "nobody has signalled it")
def copy_that_was_not_started():
    def kernel(x_hbm, o_ref, semaphore):
        copy = pltpu.make_async_copy(x_hbm, o_ref, semaphore)
        copy.wait()  # wrong

    return run(kernel, numbers(128, 64), scratch=[DMA], in_specs=[HBM])


@wrong("semaphores", "nobody has signalled it")
def wait_on_another_copys_semaphore():
    def kernel(x_hbm, o_ref, semaphores):
        pltpu.make_async_copy(x_hbm, o_ref, semaphores.at[0]).start()
        pltpu.make_async_copy(x_hbm, o_ref, semaphores.at[1]).wait()  # wrong

    return run(kernel, numbers(128, 64), scratch=[DMA((2,))], in_specs=[HBM])


@wrong("semaphore", "nobody has signalled it")
def copy_waited_for_twice():
    def kernel(x_hbm, o_ref, semaphore):
        copy = pltpu.make_async_copy(x_hbm, o_ref, semaphore)
        copy.start()
        copy.wait()
        copy.wait()  # wrong

    return run(kernel, numbers(128, 64), scratch=[DMA], in_specs=[HBM])


@wrong("semaphore", "nobody has signalled it")
def branch_that_does_not_signal():
    def kernel(x_ref, o_ref, semaphore):
        o_ref[...] = x_ref[...]
        i = pl.program_id(0)

        @pl.when(i < 1)
        def _():
            pl.semaphore_signal(semaphore, 1)

        pl.semaphore_wait(semaphore, 1)  # wrong

    whole = pl.BlockSpec((128, 64), lambda i: (0, 0))
    return run(
        kernel, numbers(128, 64), scratch=[REGULAR], grid=(2,), in_specs=[whole], out_specs=whole
    )


@wrong("nobody has signalled it", "loaded")
def engine_waits_for_nobody():
    def kernel(x_hbm, o_hbm, tile, out, loaded, done):
        pltrn.dma_copy(tile, x_hbm)
        pltrn.tensor_copy(out, tile, wait=[(loaded, 1)], signal=[(done, 1)])  # wrong
        pltrn.dma_copy(o_hbm, out, wait=[(done, 1)])

    scratch = [SBUF((128, 64), F32), SBUF((128, 64), F32), REGULAR, REGULAR]
    return moved(kernel, numbers(128, 64), scratch=scratch, explicit=True)


@wrong("nobody has signalled it", "one", "two", "a circle")
def two_engines_wait_for_each_other():
    def kernel(o_hbm, left, right, one, two):
        pltrn.memset(left, value=1.0, engine="vector", wait=[(one, 1)], signal=[(two, 1)])  # wrong
        pltrn.memset(right, value=2.0, engine="gpsimd", wait=[(two, 1)], signal=[(one, 1)])  # wrong
        pltrn.dma_copy(o_hbm.at[0:64], left)
        pltrn.dma_copy(o_hbm.at[64:128], right)

    scratch = [SBUF((64, 64), F32), SBUF((64, 64), F32), REGULAR, REGULAR]
    return moved(kernel, out=like((128, 64)), scratch=scratch, explicit=True)


@wrong("one", "two", "three", "a circle")
def three_engines_in_a_circle():
    def kernel(o_hbm, a, b, one, two, three):
        pltrn.memset(a, value=1.0, engine="vector", wait=[(one, 1)], signal=[(two, 1)])  # wrong
        pltrn.memset(b, value=2.0, engine="gpsimd", wait=[(two, 1)], signal=[(three, 1)])  # wrong
        pltrn.activation(a, b, op="copy", wait=[(three, 1)], signal=[(one, 1)])  # wrong
        pltrn.dma_copy(o_hbm, a)

    scratch = [SBUF((128, 64), F32), SBUF((128, 64), F32), REGULAR, REGULAR, REGULAR]
    return moved(kernel, out=like((128, 64)), scratch=scratch, explicit=True)


@wrong("holds 1", "loaded")
def engine_waits_for_two_transfers_of_one():
    def kernel(x_hbm, o_hbm, tile, out, loaded, done):
        pltrn.dma_copy(tile, x_hbm, signal=[(loaded, 1)])
        pltrn.tensor_copy(out, tile, wait=[(loaded, 2)], signal=[(done, 1)])  # wrong
        pltrn.dma_copy(o_hbm, out, wait=[(done, 1)])

    scratch = [SBUF((128, 64), F32), SBUF((128, 64), F32), REGULAR, REGULAR]
    return moved(kernel, numbers(128, 64), scratch=scratch, explicit=True)


@wrong("one", "Signal it earlier in the kernel than it is waited for")
def signal_of_another_engine_further_down():
    """The engines would not mind; but a kernel's text is one of the orders in which it may run."""

    def kernel(o_hbm, left, right, one, done):
        pltrn.tensor_copy(  # wrong
            left, right, engine="vector", wait=[(one, 1)], signal=[(done, 1)]
        )
        pltrn.memset(right, value=2.0, engine="gpsimd", signal=[(one, 1)])
        pltrn.dma_copy(o_hbm, left, wait=[(done, 1)])

    scratch = [SBUF((128, 64), F32), SBUF((128, 64), F32), REGULAR, REGULAR]
    return moved(kernel, out=like((128, 64)), scratch=scratch, explicit=True)


# ---- left over ----


@wrong("semaphore", "holds 1 at the end")
def signal_without_a_wait():
    def kernel(x_ref, o_ref, semaphore):
        o_ref[...] = x_ref[...]
        pl.semaphore_signal(semaphore, 1)  # wrong

    return run(kernel, numbers(128, 64), scratch=[REGULAR])


@wrong("semaphore", "holds 2 at the end")
def more_signals_than_waits():
    def kernel(x_ref, o_ref, semaphore):
        o_ref[...] = x_ref[...]
        pl.semaphore_signal(semaphore, 3)  # wrong
        pl.semaphore_wait(semaphore, 1)

    return run(kernel, numbers(128, 64), scratch=[REGULAR])


@wrong("semaphore", "at the end of kernel")
def copy_that_nobody_waits_for():
    def kernel(x_hbm, o_ref, semaphore):
        pltpu.make_async_copy(x_hbm, o_ref, semaphore).start()  # wrong

    return run(kernel, numbers(128, 64), scratch=[DMA], in_specs=[HBM])


@wrong("semaphore", "holds 3 at the end")
def one_signal_a_step():
    def kernel(x_ref, o_ref, semaphore):
        o_ref[...] = x_ref[...]
        pl.semaphore_signal(semaphore, 1)  # wrong

    spec = pl.BlockSpec((128, 64), lambda i: (0, i))
    return run(
        kernel, numbers(128, 192), scratch=[REGULAR], grid=(3,), in_specs=[spec], out_specs=spec
    )


@wrong("semaphore", "holds 1 at the end")
def left_in_a_scope():
    def kernel(x_ref, o_ref):
        def inner(semaphore):
            pl.semaphore_signal(semaphore, 1)  # wrong
            o_ref[...] = x_ref[...]

        pl.run_scoped(inner, REGULAR)

    return run(kernel, numbers(128, 64))


@wrong("done", "holds 1 at the end")
def instruction_signals_for_nobody():
    def kernel(x_ref, o_ref, done):
        pltrn.tensor_copy(o_ref, x_ref, signal=[(done, 1)])  # wrong

    return run(kernel, numbers(128, 64), scratch=[REGULAR])


# ---- balanced ----


@right
def signal_and_wait():
    def kernel(x_ref, o_ref, semaphore):
        pl.semaphore_signal(semaphore, 3)
        o_ref[...] = x_ref[...]
        pl.semaphore_wait(semaphore, 1)
        pl.semaphore_wait(semaphore, 2)

    x = numbers(128, 64)
    return run(kernel, x, scratch=[REGULAR]), x


@right
def signal_in_one_step_and_wait_in_the_next():
    def kernel(x_ref, o_ref, semaphore):
        i = pl.program_id(0)
        o_ref[...] = x_ref[...]

        @pl.when(i < 2)
        def _():
            pl.semaphore_signal(semaphore, 1)

        @pl.when(i > 0)
        def _():
            pl.semaphore_wait(semaphore, 1)

    x = numbers(128, 192)
    spec = pl.BlockSpec((128, 64), lambda i: (0, i))
    return run(kernel, x, scratch=[REGULAR], grid=(3,), in_specs=[spec], out_specs=spec), x


@right
def scoped_semaphore():
    def kernel(x_hbm, o_ref):
        def inner(semaphore):
            copy = pltpu.make_async_copy(x_hbm, o_ref, semaphore)
            copy.start()
            copy.wait()

        pl.run_scoped(inner, DMA)

    x = numbers(128, 64)
    return run(kernel, x, in_specs=[HBM]), x


@right
def one_semaphore_for_two_copies():
    def kernel(x_hbm, y_hbm, o_ref, one, two, semaphore):
        copies = [
            pltpu.make_async_copy(x_hbm, one, semaphore),
            pltpu.make_async_copy(y_hbm, two, semaphore),
        ]
        for copy in copies:
            copy.start()
        for copy in copies:
            copy.wait()
        o_ref[...] = one[...] + two[...]

    x = numbers(128, 64)
    scratch = [SBUF((128, 64), F32), SBUF((128, 64), F32), DMA]
    return run(kernel, x, 2 * x, scratch=scratch, in_specs=[HBM, HBM]), 3 * x


@right
def instruction_signals_and_another_waits():
    def kernel(x_ref, o_ref, tile, done):
        pltrn.tensor_copy(tile, x_ref, signal=[(done, 2)])
        pltrn.tensor_copy(o_ref, tile, wait=[(done, 2)])

    x = numbers(128, 64)
    return run(kernel, x, scratch=[SBUF((128, 64), F32), REGULAR]), x
