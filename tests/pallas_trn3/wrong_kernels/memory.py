"""Tiles that do not fit, and tiles in one place."""

import numpy as np
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn
from jax_trn3.hardware import TRAINIUM3

from .cases import BF16, F32, like, moved, numbers, right, run, wrong

SBUF, PSUM = pltrn.SBUF, pltrn.PSUM
CORE = TRAINIUM3.core
WHOLE = CORE.sbuf_usable_partition_bytes // 4
"""float32 values of one partition of SBUF."""


# ---- too much ----


@wrong("sbuf", f"{CORE.sbuf_usable_partition_bytes}")
def one_tile_larger_than_sbuf():
    def kernel(x_hbm, o_hbm, tile):  # wrong
        pltrn.dma_copy(tile.at[:, 0:64], x_hbm)
        pltrn.dma_copy(o_hbm, tile.at[:, 0:64])

    return moved(kernel, numbers(128, 64), scratch=[SBUF((128, WHOLE + 1), F32)])


@wrong("sbuf", f"{CORE.sbuf_usable_partition_bytes}")
def two_tiles_larger_than_sbuf():
    def kernel(x_hbm, o_hbm, one, two):  # wrong
        pltrn.dma_copy(one.at[:, 0:64], x_hbm)
        pltrn.dma_copy(two.at[:, 0:64], x_hbm)
        pltrn.tensor_tensor(one.at[:, 0:64], one.at[:, 0:64], two.at[:, 0:64], op="add")
        pltrn.dma_copy(o_hbm, one.at[:, 0:64])

    scratch = [SBUF((128, WHOLE // 2), F32), SBUF((128, WHOLE // 2 + 8), F32)]
    return moved(kernel, numbers(128, 64), scratch=scratch)


@wrong("sbuf")
def rotation_larger_than_sbuf():
    def kernel(x_hbm, o_hbm, tiles):  # wrong
        pltrn.dma_copy(tiles.at[0, :, 0:64], x_hbm)
        pltrn.dma_copy(o_hbm, tiles.at[0, :, 0:64])

    scratch = [SBUF((128, WHOLE // 4 + 16), F32, buffers=4)]
    return moved(kernel, numbers(128, 64), scratch=scratch)


@wrong("sbuf")
def double_buffered_blocks_larger_than_sbuf():
    wide = WHOLE // 4 + 64

    def kernel(x_ref, o_ref):  # wrong
        o_ref[...] = x_ref[...]

    spec = pl.BlockSpec((128, wide), lambda i: (0, i))
    return run(kernel, numbers(128, 2 * wide), grid=(2,), in_specs=[spec], out_specs=spec)


@wrong("psum", f"{CORE.psum_partition_bytes}")
def nine_banks():
    def kernel(x_ref, o_ref, acc):  # wrong
        pltrn.tensor_copy(acc.at[0, :, 0:64], x_ref)
        pltrn.tensor_copy(o_ref, acc.at[0, :, 0:64])

    return run(kernel, numbers(128, 64), scratch=[PSUM((128, 512), F32, buffers=9)])


@wrong("psum")
def tile_wider_than_psum():
    def kernel(x_ref, o_ref, acc):  # wrong
        pltrn.tensor_copy(acc.at[:, 0:64], x_ref)
        pltrn.tensor_copy(o_ref, acc.at[:, 0:64])

    return run(kernel, numbers(128, 64), scratch=[PSUM((128, 4097), F32)])


@wrong("sbuf")
def scoped_tile_larger_than_what_is_left():
    def kernel(x_hbm, o_hbm, tile):
        pltrn.dma_copy(tile.at[:, 0:64], x_hbm)

        def inner(more):
            pltrn.tensor_copy(more.at[:, 0:64], tile.at[:, 0:64])
            pltrn.dma_copy(o_hbm, more.at[:, 0:64])

        pl.run_scoped(inner, SBUF((128, WHOLE // 2 + 64), F32))  # wrong

    return moved(kernel, numbers(128, 64), scratch=[SBUF((128, WHOLE // 2), F32)])


@wrong("sbuf")
def direct_allocation_behind_the_end():
    def kernel(x_ref, o_ref, tile):  # wrong
        pltrn.tensor_copy(tile, x_ref)
        pltrn.tensor_copy(o_ref, tile)

    scratch = [SBUF((128, 64), F32, address=(0, 4 * WHOLE - 128))]
    return run(kernel, numbers(128, 64), scratch=scratch)


@wrong("psum")
def last_bank_and_one_more():
    def kernel(x_ref, o_ref, acc):  # wrong
        pltrn.tensor_copy(acc.at[:, 0:64], x_ref)
        pltrn.tensor_copy(o_ref, acc.at[:, 0:64])

    return run(kernel, numbers(128, 64), scratch=[PSUM((128, 1024), F32, bank=7)])


@right
def sbuf_exactly_full():
    def kernel(x_hbm, o_hbm, tile):
        pltrn.dma_copy(tile.at[:, 0:64], x_hbm)
        pltrn.dma_copy(o_hbm, tile.at[:, 0:64])

    x = numbers(128, 64)
    return moved(kernel, x, scratch=[SBUF((128, WHOLE), F32)]), x


@right
def sbuf_exactly_full_of_two():
    def kernel(x_hbm, o_hbm, one, two):
        pltrn.dma_copy(one.at[:, 0:64], x_hbm)
        pltrn.dma_copy(two.at[:, 0:64], x_hbm)
        pltrn.tensor_tensor(one.at[:, 0:64], one.at[:, 0:64], two.at[:, 0:64], op="add")
        pltrn.dma_copy(o_hbm, one.at[:, 0:64])

    x = numbers(128, 64)
    scratch = [SBUF((128, WHOLE // 2), F32), SBUF((128, WHOLE - WHOLE // 2), F32)]
    return moved(kernel, x, scratch=scratch), 2 * x


@right
def all_eight_banks():
    def kernel(x_ref, o_ref, acc):
        for bank in range(8):
            pltrn.tensor_copy(acc.at[bank, :, 0:64], x_ref)
        pltrn.tensor_copy(o_ref, acc.at[7, :, 0:64])

    x = numbers(128, 64)
    return run(kernel, x, scratch=[PSUM((128, 512), F32, buffers=8)]), x


@right
def scoped_tiles_one_after_another():
    def kernel(x_hbm, o_hbm):
        for half in range(2):

            def inner(tile, half=half):
                part = tile.at[0:64, 0:64]
                pltrn.dma_copy(part, x_hbm.at[64 * half : 64 * half + 64])
                pltrn.dma_copy(o_hbm.at[64 * half : 64 * half + 64], part)

            pl.run_scoped(inner, SBUF((128, WHOLE - 64), F32))

    x = numbers(128, 64)
    return moved(kernel, x), x


@right
def direct_allocation_at_the_end():
    def kernel(x_hbm, o_hbm, tile):
        pltrn.dma_copy(tile, x_hbm)
        pltrn.dma_copy(o_hbm, tile)

    x = numbers(128, 64)
    return moved(kernel, x, scratch=[SBUF((128, 64), F32, address=(0, 4 * WHOLE - 256))]), x


# ---- in one place ----


@wrong("overlap")
def two_tiles_at_one_address():
    def kernel(x_hbm, o_hbm, one, two):  # wrong
        pltrn.dma_copy(one, x_hbm)
        pltrn.memset(two, value=1.0)
        pltrn.tensor_tensor(one, one, two, op="add")
        pltrn.dma_copy(o_hbm, one)

    scratch = [SBUF((128, 64), F32, address=(0, 1024)), SBUF((128, 64), F32, address=(0, 1024))]
    return moved(kernel, numbers(128, 64), scratch=scratch)


@wrong("overlap")
def two_tiles_that_share_four_bytes():
    def kernel(x_hbm, o_hbm, one, two):  # wrong
        pltrn.dma_copy(one, x_hbm)
        pltrn.memset(two, value=1.0)
        pltrn.tensor_tensor(one, one, two, op="add")
        pltrn.dma_copy(o_hbm, one)

    scratch = [SBUF((128, 64), F32, address=(0, 0)), SBUF((128, 64), F32, address=(0, 252))]
    return moved(kernel, numbers(128, 64), scratch=scratch)


@wrong("overlap")
def two_tiles_that_share_partitions():
    def kernel(x_hbm, o_hbm, one, two):  # wrong
        pltrn.dma_copy(one, x_hbm)
        pltrn.memset(two, value=1.0)
        pltrn.tensor_copy(one.at[0:64], two)
        pltrn.dma_copy(o_hbm, one)

    scratch = [SBUF((128, 64), F32, address=(0, 0)), SBUF((64, 64), F32, address=(64, 0))]
    return moved(kernel, numbers(128, 64), scratch=scratch)


@wrong("overlap")
def two_tiles_in_one_bank():
    def kernel(x_ref, o_ref, one, two):  # wrong
        pltrn.tensor_copy(one, x_ref)
        pltrn.memset(two, value=1.0)
        pltrn.activation(o_ref, one, op="copy")
        pltrn.tensor_tensor(o_ref, o_ref, two, op="add")

    scratch = [PSUM((128, 64), F32, bank=3), PSUM((128, 64), F32, bank=3)]
    return run(kernel, numbers(128, 64), scratch=scratch)


@wrong("overlap")
def rotation_over_another_tile():
    def kernel(x_hbm, o_hbm, tiles, other):  # wrong
        pltrn.memset(other, value=1.0)
        pltrn.dma_copy(tiles.at[1], x_hbm)
        pltrn.tensor_tensor(other, other, tiles.at[1], op="add")
        pltrn.dma_copy(o_hbm, other)

    scratch = [
        SBUF((128, 64), F32, address=(0, 0), buffers=4),
        SBUF((128, 64), F32, address=(0, 512)),
    ]
    return moved(kernel, numbers(128, 64), scratch=scratch)


@right
def two_tiles_side_by_side():
    def kernel(x_hbm, o_hbm, one, two):
        pltrn.dma_copy(one, x_hbm)
        pltrn.memset(two, value=1.0)
        pltrn.tensor_tensor(one, one, two, op="add")
        pltrn.dma_copy(o_hbm, one)

    x = numbers(128, 64)
    scratch = [SBUF((128, 64), F32, address=(0, 0)), SBUF((128, 64), F32, address=(0, 256))]
    return moved(kernel, x, scratch=scratch), x + 1


@right
def two_tiles_one_above_the_other():
    def kernel(x_hbm, o_hbm, one, two):
        pltrn.dma_copy(one, x_hbm.at[0:64])
        pltrn.dma_copy(two, x_hbm.at[64:128])
        pltrn.dma_copy(o_hbm.at[0:64], two)
        pltrn.dma_copy(o_hbm.at[64:128], one)

    x = numbers(128, 64)
    scratch = [SBUF((64, 64), F32, address=(0, 0)), SBUF((64, 64), F32, address=(64, 0))]
    return moved(kernel, x, scratch=scratch), np.concatenate([x[64:], x[:64]])


@right
def every_bank_by_number():
    def kernel(x_ref, o_ref, *banks):
        for bank in banks:
            pltrn.tensor_copy(bank, x_ref)
        pltrn.activation(o_ref, banks[0], op="copy")
        for bank in banks[1:]:
            pltrn.tensor_tensor(o_ref, o_ref, bank, op="add")

    x = numbers(128, 64)
    return run(kernel, x, scratch=[PSUM((128, 512 // 8), F32, bank=b) for b in range(8)]), 8 * x


@right
def scoped_tiles_at_one_address():
    """They do not live at the same time."""

    def kernel(x_hbm, o_hbm):
        for half in range(2):

            def inner(tile, half=half):
                pltrn.dma_copy(tile, x_hbm.at[64 * half : 64 * half + 64])
                pltrn.dma_copy(o_hbm.at[64 * half : 64 * half + 64], tile)

            pl.run_scoped(inner, SBUF((64, 64), F32, address=(0, 4096)))

    x = numbers(128, 64)
    return moved(kernel, x), x


@wrong("overlap")
def scoped_tile_over_a_living_one():
    def kernel(x_hbm, o_hbm, outer):
        pltrn.dma_copy(outer, x_hbm)

        def inner(tile):
            pltrn.memset(tile, value=1.0)
            pltrn.tensor_tensor(outer, outer, tile, op="add")

        pl.run_scoped(inner, SBUF((128, 64), F32, address=(0, 4096)))  # wrong
        pltrn.dma_copy(o_hbm, outer)

    return moved(kernel, numbers(128, 64), scratch=[SBUF((128, 64), F32, address=(0, 4096))])


# ---- sums in PSUM ----


@wrong("nc_matmul")
def sum_that_nobody_began():
    def kernel(x_ref, y_ref, o_ref, acc):
        pltrn.nc_matmul(acc, x_ref, y_ref, accumulate=True)  # wrong
        o_ref[...] = acc[...]

    inputs = numbers(64, 64, dtype=BF16), numbers(64, 64, dtype=BF16)
    return run(kernel, *inputs, out=like((64, 64)), scratch=[PSUM((64, 64), F32)])


@wrong("nc_matmul")
def sum_that_goes_on_where_it_should_begin():
    def kernel(x_ref, y_ref, o_ref, acc):
        k = pl.program_id(0)
        pltrn.nc_matmul(acc, x_ref, y_ref, accumulate=k < 2)  # wrong

        @pl.when(k == 1)
        def _():
            o_ref[...] = acc[...]

    spec = pl.BlockSpec((64, 64), lambda k: (k, 0))
    whole = pl.BlockSpec((64, 64), lambda k: (0, 0))
    inputs = numbers(128, 64, dtype=BF16), numbers(128, 64, dtype=BF16)
    return run(
        kernel, *inputs, out=like((64, 64)), scratch=[PSUM((64, 64), F32)], grid=(2,),
        in_specs=[spec, spec], out_specs=whole,
    )  # fmt: skip


@wrong("nc_matmul")
def sum_wider_than_its_beginning():
    def kernel(x_ref, y_ref, o_ref, acc):
        pltrn.nc_matmul(acc.at[:, 0:32], x_ref, y_ref.at[:, 0:32], accumulate=False)
        pltrn.nc_matmul(acc, x_ref, y_ref, accumulate=True)  # wrong
        o_ref[...] = acc[...]

    inputs = numbers(64, 64, dtype=BF16), numbers(64, 64, dtype=BF16)
    return run(kernel, *inputs, out=like((64, 64)), scratch=[PSUM((64, 64), F32)])


@wrong("nc_matmul")
def sum_in_the_other_slot():
    def kernel(x_ref, y_ref, o_ref, acc):
        pltrn.nc_matmul(acc.at[0], x_ref, y_ref, accumulate=False)
        pltrn.nc_matmul(acc.at[1], x_ref, y_ref, accumulate=True)  # wrong
        o_ref[...] = acc[1]

    inputs = numbers(64, 64, dtype=BF16), numbers(64, 64, dtype=BF16)
    return run(kernel, *inputs, out=like((64, 64)), scratch=[PSUM((64, 64), F32, buffers=2)])


@wrong("nc_matmul")
def sum_that_continues_a_transpose():
    def kernel(x_ref, y_ref, o_ref, acc):
        pltrn.nc_transpose(acc, x_ref)
        pltrn.nc_matmul(acc, x_ref, y_ref, accumulate=True)  # wrong
        o_ref[...] = acc[...]

    inputs = numbers(64, 64), numbers(64, 64)
    return run(kernel, *inputs, out=like((64, 64)), scratch=[PSUM((64, 64), F32)])


@wrong("nc_matmul")
def sum_interrupted_by_the_vector_engine():
    def kernel(x_ref, y_ref, o_ref, acc):
        pltrn.nc_matmul(acc, x_ref, y_ref, accumulate=False)
        pltrn.memset(acc, value=0.0)
        pltrn.nc_matmul(acc, x_ref, y_ref, accumulate=True)  # wrong
        o_ref[...] = acc[...]

    inputs = numbers(64, 64, dtype=BF16), numbers(64, 64, dtype=BF16)
    return run(kernel, *inputs, out=like((64, 64)), scratch=[PSUM((64, 64), F32)])


def _product(x, y):
    return x.astype(np.float32).T @ y.astype(np.float32)


@right
def sum_over_a_grid():
    def kernel(x_ref, y_ref, o_ref, acc):
        k = pl.program_id(0)
        pltrn.nc_matmul(acc, x_ref, y_ref, accumulate=k > 0)

        @pl.when(k == 1)
        def _():
            o_ref[...] = acc[...]

    spec = pl.BlockSpec((64, 64), lambda k: (k, 0))
    whole = pl.BlockSpec((64, 64), lambda k: (0, 0))
    x, y = numbers(128, 64, dtype=BF16), numbers(128, 64, dtype=BF16)
    found = run(
        kernel, x, y, out=like((64, 64)), scratch=[PSUM((64, 64), F32)], grid=(2,),
        in_specs=[spec, spec], out_specs=whole,
    )  # fmt: skip
    return found, _product(x, y)


@right
def two_sums_in_turn():
    def kernel(x_ref, y_ref, o_ref, acc):
        for k in range(2):
            for slot in range(2):
                rows = slice(32 * k, 32 * k + 32)
                pltrn.nc_matmul(acc.at[slot], x_ref.at[rows], y_ref.at[rows], accumulate=k > 0)
        pltrn.activation(o_ref, acc.at[0], op="copy")
        pltrn.tensor_tensor(o_ref, o_ref, acc.at[1], op="add")

    x, y = numbers(64, 64, dtype=BF16), numbers(64, 64, dtype=BF16)
    found = run(kernel, x, y, out=like((64, 64)), scratch=[PSUM((64, 64), F32, buffers=2)])
    return found, 2 * _product(x, y)


@right
def sum_that_begins_by_itself():
    """Without `accumulate` a sum goes on if there is one."""

    def kernel(x_ref, y_ref, o_ref, acc):
        pltrn.nc_matmul(acc, x_ref, y_ref)
        pltrn.nc_matmul(acc, x_ref, y_ref)
        o_ref[...] = acc[...]

    x, y = numbers(64, 64, dtype=BF16), numbers(64, 64, dtype=BF16)
    found = run(kernel, x, y, out=like((64, 64)), scratch=[PSUM((64, 64), F32)])
    return found, 2 * _product(x, y)


@right
def sum_begun_anew():
    def kernel(x_ref, y_ref, o_ref, acc):
        for _ in range(2):
            pltrn.nc_matmul(acc, x_ref, y_ref, accumulate=False)
            pltrn.nc_matmul(acc, x_ref, y_ref, accumulate=True)
            o_ref[...] = acc[...]

    x, y = numbers(64, 64, dtype=BF16), numbers(64, 64, dtype=BF16)
    found = run(kernel, x, y, out=like((64, 64)), scratch=[PSUM((64, 64), F32)])
    return found, 2 * _product(x, y)


@right
def halves_of_a_sum_begun_apart():
    def kernel(x_ref, y_ref, o_ref, acc):
        for half in (slice(0, 32), slice(32, 64)):
            pltrn.nc_matmul(acc.at[:, half], x_ref, y_ref.at[:, half], accumulate=False)
        pltrn.nc_matmul(acc, x_ref, y_ref, accumulate=True)
        o_ref[...] = acc[...]

    x, y = numbers(64, 64, dtype=BF16), numbers(64, 64, dtype=BF16)
    found = run(kernel, x, y, out=like((64, 64)), scratch=[PSUM((64, 64), F32)])
    return found, 2 * _product(x, y)
