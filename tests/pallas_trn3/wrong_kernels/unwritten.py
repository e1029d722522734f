"""Memory that is read before anybody wrote it, and outputs that nobody writes."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn

from .cases import BF16, F32, HBM, I32, like, moved, numbers, right, run, wrong

SBUF, PSUM = pltrn.SBUF, pltrn.PSUM


# ---- scratch ----


@wrong("tile", "have never been written")
def scratch_in_tile_language():
    def kernel(x_ref, o_ref, tile):
        o_ref[...] = x_ref[...] + tile[...]  # wrong

    return run(kernel, numbers(128, 64), scratch=[SBUF((128, 64), F32)])


@wrong("tile", "have never been written")
def scratch_of_integers():
    def kernel(x_ref, o_ref, tile):
        o_ref[...] = x_ref[...] + tile[...]  # wrong

    return run(kernel, numbers(128, 64, dtype=np.int32), scratch=[SBUF((128, 64), I32)])


@wrong("tile", "have never been written")
def scratch_of_booleans():
    def kernel(x_ref, o_ref, tile):
        o_ref[...] = jnp.where(tile[...] != 0, x_ref[...], 1.0)  # wrong

    return run(kernel, numbers(128, 64), scratch=[SBUF((128, 64), jnp.uint8)])


@wrong("tile", "have never been written")
def scratch_in_an_instruction():
    def kernel(x_ref, o_ref, tile):
        pltrn.tensor_tensor(o_ref, x_ref, tile, op="add")  # wrong

    return run(kernel, numbers(128, 64), scratch=[SBUF((128, 64), F32)])


@wrong("tile", "have never been written")
def scratch_stored_by_dma():
    def kernel(x_hbm, o_hbm, tile):
        pltrn.dma_copy(tile.at[0:64], x_hbm.at[0:64])
        pltrn.dma_copy(o_hbm, tile)  # wrong

    return moved(kernel, numbers(128, 64), scratch=[SBUF((128, 64), F32)])


@wrong("acc", "have never been written")
def psum_without_a_product():
    def kernel(x_ref, o_ref, acc):
        pltrn.tensor_tensor(o_ref, x_ref, acc, op="add")  # wrong

    return run(kernel, numbers(128, 64), scratch=[PSUM((128, 64), F32)])


@wrong("tile", "have never been written")
def half_of_a_tile():
    def kernel(x_ref, o_ref, tile):
        tile[:, 0:32] = x_ref[:, 0:32]
        o_ref[...] = tile[...]  # wrong

    return run(kernel, numbers(128, 64), scratch=[SBUF((128, 64), F32)])


@wrong("tile", "have never been written")
def all_but_one_element():
    def kernel(x_ref, o_ref, tile):
        tile[...] = jnp.zeros_like(tile)
        o_ref[...] = x_ref[...]

        def inner(tile):
            tile[0:127] = x_ref[0:127]
            tile[127:128, 0:63] = x_ref[127:128, 0:63]
            o_ref[...] = tile[...]  # wrong

        pl.run_scoped(inner, SBUF((128, 64), F32))

    return run(kernel, numbers(128, 64), scratch=[SBUF((128, 64), F32)])


@wrong("tiles", "have never been written")
def slot_that_was_not_loaded():
    def kernel(x_hbm, o_hbm, tiles):
        pltrn.dma_copy(tiles.at[0], x_hbm)
        pltrn.dma_copy(o_hbm, tiles.at[1])  # wrong

    return moved(kernel, numbers(128, 64), scratch=[SBUF((128, 64), F32, buffers=2)])


@wrong("tile", "have never been written")
def scratch_of_an_earlier_scope():
    def kernel(x_ref, o_ref):
        def write(tile):
            tile[...] = x_ref[...]

        def read(tile):
            o_ref[...] = tile[...]  # wrong

        pl.run_scoped(write, SBUF((128, 64), F32))
        pl.run_scoped(read, SBUF((128, 64), F32))

    return run(kernel, numbers(128, 64))


@wrong("tile", "have never been written")
def sum_begun_in_the_wrong_step():
    def kernel(x_ref, o_ref, tile):
        k = pl.program_id(0)

        @pl.when(k == 2)
        def _():
            tile[...] = jnp.zeros_like(tile)

        tile[...] += x_ref[...]  # wrong

        @pl.when(k == 1)
        def _():
            o_ref[...] = tile[...]

    spec = pl.BlockSpec((128, 64), lambda k: (0, k))
    return run(
        kernel, numbers(128, 128), out=like((128, 64)), scratch=[SBUF((128, 64), F32)], grid=(2,),
        in_specs=[spec], out_specs=pl.BlockSpec((128, 64), lambda k: (0, 0)),
    )  # fmt: skip


@wrong("have never been written")
def sum_in_an_output_that_was_not_begun():
    def kernel(x_ref, o_ref):
        o_ref[...] += x_ref[...]  # wrong

    spec = pl.BlockSpec((128, 64), lambda k: (0, k))
    return run(
        kernel, numbers(128, 128), out=like((128, 64)), grid=(2,), in_specs=[spec],
        out_specs=pl.BlockSpec((128, 64), lambda k: (0, 0)),
    )  # fmt: skip


@wrong("tile", "have never been written")
def product_with_an_unwritten_row():
    def kernel(x_ref, y_ref, o_ref, tile, acc):
        tile[0:32] = y_ref[0:32]
        pltrn.nc_matmul(acc, x_ref, tile)  # wrong
        o_ref[...] = acc[...]

    inputs = numbers(64, 64, dtype=BF16), numbers(64, 64, dtype=BF16)
    scratch = [SBUF((64, 64), BF16), PSUM((64, 64), F32)]
    return run(kernel, *inputs, out=like((64, 64)), scratch=scratch)


@wrong("tile", "have never been written")
def sum_of_a_row_with_a_gap():
    def kernel(x_ref, o_ref, tile):
        tile[:, 0:63] = x_ref[:, 0:63]
        o_ref[...] = jnp.sum(tile[...], axis=1, keepdims=True)  # wrong

    return run(kernel, numbers(128, 64), out=like((128, 1)), scratch=[SBUF((128, 64), F32)])


@wrong("tile", "have never been written")
def sorted_with_a_gap():
    def kernel(x_ref, o_ref, tile):
        tile[:, 0:32] = x_ref[:, 0:32]
        o_ref[...] = jnp.sort(tile[...], axis=1)[:, 0:8]  # wrong

    return run(kernel, numbers(128, 64), out=like((128, 8)), scratch=[SBUF((128, 64), F32)])


@wrong("tile", "have never been written")
def largest_8_with_a_gap():
    def kernel(x_ref, o_ref, tile):
        tile[:, 0:32] = x_ref[:, 0:32]
        pltrn.max8(o_ref, tile)  # wrong

    return run(kernel, numbers(128, 64), out=like((128, 8)), scratch=[SBUF((128, 64), F32)])


@wrong("rows", "have never been written")
def rows_to_gather():
    def kernel(x_hbm, o_ref, rows):
        pltrn.dma_copy(o_ref, x_hbm, src_index=rows)  # wrong

    return run(
        kernel, numbers(128, 64), out=like((32, 64)), scratch=[SBUF((32, 1), I32)], in_specs=[HBM]
    )


@wrong("count", "have never been written")
def how_often_to_loop():
    def kernel(x_ref, o_ref, count):
        o_ref[...] = x_ref[...]

        def body(i, _):
            o_ref[...] += 1.0
            return 0

        lax.fori_loop(0, count[0, 0], body, 0)  # wrong

    return run(kernel, numbers(128, 64), scratch=[SBUF((1, 1), I32)])


@right
def largest_8_of_written_partitions():
    def kernel(x_ref, o_ref, tile, largest):
        tile[0:64] = x_ref[0:64]
        pltrn.max8(largest, tile)
        o_ref[...] = largest[0:64]

    x = numbers(128, 64)
    scratch = [SBUF((128, 64), F32), SBUF((128, 8), F32)]
    return run(kernel, x, out=like((64, 8)), scratch=scratch), -np.sort(-x[:64], axis=1)[:, :8]


@right
def select_protects():
    def kernel(x_ref, p_ref, o_ref, tile):
        tile[:, 0:32] = x_ref[:, 0:32]
        pltrn.select_reduce(o_ref, p_ref, tile, 0.0)

    x = numbers(128, 64)
    columns = np.broadcast_to(np.arange(64) < 32, (128, 64))
    found = run(kernel, x, columns.astype(np.uint8), scratch=[SBUF((128, 64), F32)])
    return found, np.where(columns, x, 0)


@right
def affine_select_protects():
    def kernel(x_ref, o_ref, tile):
        tile[:, 0:32] = x_ref[:, 0:32]
        pltrn.affine_select(
            o_ref, tile, pattern=((1, 64),), channel_multiplier=0, on_false_value=0.0,
            cmp_op="less", offset=-32,
        )  # fmt: skip

    x = numbers(128, 64)
    found = run(kernel, x, scratch=[SBUF((128, 64), F32)])
    return found, np.where(np.arange(64) < 32, x, 0)


# ---- behind a choice ----


@wrong("tile", "have never been written")
def chosen_by_where():
    def kernel(x_ref, o_ref, tile):
        tile[:, 0:32] = x_ref[:, 0:32]
        column = lax.broadcasted_iota(jnp.int32, (128, 64), 1)
        o_ref[...] = jnp.where(column < 33, tile[...], 0.0)  # wrong

    return run(kernel, numbers(128, 64), scratch=[SBUF((128, 64), F32)])


@wrong("tile", "have never been written")
def decides_a_where():
    def kernel(x_ref, o_ref, tile):
        o_ref[...] = jnp.where(tile[...] > 0, x_ref[...], -x_ref[...])  # wrong

    return run(kernel, numbers(128, 64), scratch=[SBUF((128, 64), F32)])


@wrong("tile", "have never been written")
def decides_a_branch():
    def kernel(x_ref, o_ref, tile):
        o_ref[...] = x_ref[...]

        @pl.when(tile[0, 0] > 0)  # wrong
        def _():
            o_ref[...] = -x_ref[...]

    return run(kernel, numbers(128, 64), scratch=[SBUF((128, 64), I32)])


@wrong("tile", "have never been written")
def decides_where_to_read():
    def kernel(x_ref, o_ref, tile):
        row = tile[0, 0]  # wrong
        o_ref[...] = x_ref[pl.ds(row, 1), :]

    scratch = [SBUF((1, 1), I32)]
    return run(kernel, numbers(128, 64), out=like((1, 64)), scratch=scratch)


@wrong("tile", "have never been written")
def times_zero():
    """A product with 0 is no protection: what is there may be infinite."""

    def kernel(x_ref, o_ref, tile):
        o_ref[...] = x_ref[...] + tile[...] * 0.0  # wrong

    return run(kernel, numbers(128, 64), scratch=[SBUF((128, 64), F32)])


@wrong("tile", "have never been written")
def predicated_copy_of_too_little():
    def kernel(x_ref, p_ref, o_ref, tile):
        pltrn.tensor_copy_predicated(tile, x_ref, p_ref)
        pltrn.tensor_copy(o_ref, tile)  # wrong

    mask = (numbers(128, 64) > 0).astype(np.uint8)
    return run(kernel, numbers(128, 64), mask, scratch=[SBUF((128, 64), F32)])


@right
def where_protects():
    def kernel(x_ref, o_ref, tile):
        tile[:, 0:32] = x_ref[:, 0:32]
        column = lax.broadcasted_iota(jnp.int32, (128, 64), 1)
        o_ref[...] = jnp.where(column < 32, tile[...], 0.0)

    x = numbers(128, 64)
    expected = np.concatenate([x[:, :32], np.zeros((128, 32), np.float32)], 1)
    return run(kernel, x, scratch=[SBUF((128, 64), F32)]), expected


@right
def where_protects_integers():
    def kernel(x_ref, o_ref, tile):
        tile[0:64] = x_ref[0:64]
        row = lax.broadcasted_iota(jnp.int32, (128, 64), 0)
        o_ref[...] = jnp.where(row < 64, tile[...], x_ref[...])

    x = numbers(128, 64, dtype=np.int32)
    return run(kernel, x, scratch=[SBUF((128, 64), I32)]), x


@right
def where_protects_a_sum():
    def kernel(x_ref, o_ref, tile):
        tile[:, 0:48] = x_ref[:, 0:48]
        column = lax.broadcasted_iota(jnp.int32, (128, 64), 1)
        kept = jnp.where(column < 48, tile[...], 0.0)
        o_ref[...] = jnp.sum(kept, axis=1, keepdims=True)

    x = numbers(128, 64)
    found = run(kernel, x, out=like((128, 1)), scratch=[SBUF((128, 64), F32)])
    return found, x[:, :48].sum(1, keepdims=True)


@right
def garbage_is_computed_on_but_not_used():
    def kernel(x_ref, o_ref, tile):
        tile[:, 0:32] = x_ref[:, 0:32]
        doubled = tile[...] * 2 + 1
        o_ref[...] = doubled[:, 0:32]

    x = numbers(128, 64)
    found = run(kernel, x, out=like((128, 32)), scratch=[SBUF((128, 64), F32)])
    return found, 2 * x[:, :32] + 1


@right
def garbage_is_copied_but_not_used():
    def kernel(x_ref, o_ref, tile, other):
        tile[:, 0:32] = x_ref[:, 0:32]
        other[...] = tile[...]
        o_ref[...] = other[:, 0:32]

    x = numbers(128, 64)
    scratch = [SBUF((128, 64), F32), SBUF((128, 64), F32)]
    return run(kernel, x, out=like((128, 32)), scratch=scratch), x[:, :32]


@right
def garbage_is_read_and_dropped():
    def kernel(x_ref, o_ref, tile):
        _ = tile[...]
        o_ref[...] = x_ref[...]

    x = numbers(128, 64)
    return run(kernel, x, scratch=[SBUF((128, 64), F32)]), x


@right
def garbage_is_overwritten():
    def kernel(x_ref, o_ref, tile):
        tile[...] = tile[...] + 1
        tile[...] = x_ref[...]
        o_ref[...] = tile[...]

    x = numbers(128, 64)
    return run(kernel, x, scratch=[SBUF((128, 64), F32)]), x


@right
def tile_written_in_pieces():
    def kernel(x_ref, o_ref, tile):
        for piece in range(4):
            tile[pl.ds(32 * piece, 32)] = x_ref[pl.ds(32 * piece, 32)]
        o_ref[...] = tile[...]

    x = numbers(128, 64)
    return run(kernel, x, scratch=[SBUF((128, 64), F32)]), x


@right
def tile_written_in_a_loop():
    def kernel(x_ref, o_ref, tile):
        def body(i, _):
            tile[pl.ds(32 * i, 32)] = x_ref[pl.ds(32 * i, 32)]
            return 0

        lax.fori_loop(0, 4, body, 0)
        o_ref[...] = tile[...]

    x = numbers(128, 64)
    return run(kernel, x, scratch=[SBUF((128, 64), F32)]), x


@right
def scratch_that_stays_from_step_to_step():
    def kernel(x_ref, o_ref, tile):
        k = pl.program_id(0)

        @pl.when(k == 0)
        def _():
            tile[...] = jnp.zeros_like(tile)

        tile[...] += x_ref[...]

        @pl.when(k == 1)
        def _():
            o_ref[...] = tile[...]

    x = numbers(128, 128)
    spec = pl.BlockSpec((128, 64), lambda k: (0, k))
    found = run(
        kernel, x, out=like((128, 64)), scratch=[SBUF((128, 64), F32)], grid=(2,), in_specs=[spec],
        out_specs=pl.BlockSpec((128, 64), lambda k: (0, 0)),
    )  # fmt: skip
    return found, x[:, :64] + x[:, 64:]


@right
def predicated_copy_over_zeros():
    def kernel(x_ref, p_ref, o_ref, tile):
        pltrn.memset(tile, value=0.0)
        pltrn.tensor_copy_predicated(tile, x_ref, p_ref)
        pltrn.tensor_copy(o_ref, tile)

    x = numbers(128, 64)
    found = run(kernel, x, (x > 0).astype(np.uint8), scratch=[SBUF((128, 64), F32)])
    return found, np.maximum(x, 0)


@right
def branch_on_what_was_written():
    def kernel(x_ref, o_ref, tile):
        tile[...] = jnp.ones_like(tile)
        o_ref[...] = x_ref[...]

        @pl.when(tile[0, 0] > 0)
        def _():
            o_ref[...] = -x_ref[...]

    x = numbers(128, 64)
    return run(kernel, x, scratch=[SBUF((1, 1), I32)]), -x


# ---- edges of arrays ----

_EDGE = pl.BlockSpec((128, 64), lambda i: (0, i))


@wrong("x_ref behind the edge of its array of shape (128, 100)")
def sum_over_the_edge():
    def kernel(x_ref, o_ref):
        @pl.when(pl.program_id(0) == 0)
        def _():
            o_ref[...] = jnp.zeros_like(o_ref)

        o_ref[...] += jnp.sum(x_ref[...], axis=1, keepdims=True)  # wrong

    return run(
        kernel, numbers(128, 100), out=like((128, 1)), grid=(2,), in_specs=[_EDGE],
        out_specs=pl.BlockSpec((128, 1), lambda i: (0, 0)),
    )  # fmt: skip


@wrong("x_ref behind the edge of its array of shape (100, 64)")
def product_over_the_edge():
    def kernel(x_ref, y_ref, o_ref, acc):
        k = pl.program_id(0)
        pltrn.nc_matmul(acc, x_ref, y_ref, accumulate=k > 0)  # wrong

        @pl.when(k == 1)
        def _():
            o_ref[...] = acc[...]

    spec = pl.BlockSpec((64, 64), lambda k: (k, 0))
    inputs = numbers(100, 64, dtype=BF16), numbers(100, 64, dtype=BF16)
    return run(
        kernel, *inputs, out=like((64, 64)), scratch=[PSUM((64, 64), F32)], grid=(2,),
        in_specs=[spec, spec], out_specs=pl.BlockSpec((64, 64), lambda k: (0, 0)),
    )  # fmt: skip


@right
def elements_at_the_edge():
    """What is computed behind the edge is not stored."""

    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] * 2 + 1

    x = numbers(128, 100)
    return run(kernel, x, grid=(2,), in_specs=[_EDGE], out_specs=_EDGE), 2 * x + 1


@right
def instruction_at_the_edge():
    def kernel(x_ref, o_ref):
        pltrn.tensor_scalar(o_ref, x_ref, 2.0, op0="multiply")

    x = numbers(128, 100)
    return run(kernel, x, grid=(2,), in_specs=[_EDGE], out_specs=_EDGE), 2 * x


@right
def masked_sum_over_the_edge():
    def kernel(x_ref, o_ref):
        i = pl.program_id(0)

        @pl.when(i == 0)
        def _():
            o_ref[...] = jnp.zeros_like(o_ref)

        column = i * 64 + lax.broadcasted_iota(jnp.int32, (128, 64), 1)
        kept = jnp.where(column < 100, x_ref[...], 0.0)
        o_ref[...] += jnp.sum(kept, axis=1, keepdims=True)

    x = numbers(128, 100)
    found = run(
        kernel, x, out=like((128, 1)), grid=(2,), in_specs=[_EDGE],
        out_specs=pl.BlockSpec((128, 1), lambda i: (0, 0)),
    )  # fmt: skip
    return found, x.sum(1, keepdims=True)


@right
def rows_at_the_edge_are_summed_by_row():
    """Sums of rows behind the edge are garbage, and not stored."""

    def kernel(x_ref, o_ref):
        o_ref[...] = jnp.sum(x_ref[...], axis=1, keepdims=True)

    x = numbers(100, 64)
    found = run(
        kernel, x, out=like((100, 1)), grid=(2,),
        in_specs=[pl.BlockSpec((64, 64), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((64, 1), lambda i: (i, 0)),
    )  # fmt: skip
    return found, x.sum(1, keepdims=True)


@right
def partitions_at_the_edge_are_summed_by_instructions():
    def kernel(x_ref, o_ref, largest, total):
        pltrn.tensor_reduce(largest, x_ref, op="maximum", axis=1)
        pltrn.activation_reduce(o_ref, x_ref, total, op="copy", reduce_op="add")
        pltrn.tensor_scalar(o_ref, o_ref, total, op0="add")
        pltrn.tensor_scalar(o_ref, o_ref, largest, op0="add")

    x = numbers(100, 64)
    spec = pl.BlockSpec((64, 64), lambda i: (i, 0))
    scratch = [SBUF((64, 1), F32), SBUF((64, 1), F32)]
    found = run(kernel, x, scratch=scratch, grid=(2,), in_specs=[spec], out_specs=spec)
    return found, x + x.sum(1, keepdims=True) + x.max(1, keepdims=True)


@right
def columns_of_a_product_at_the_edge():
    """Columns of a product have nothing to do with each other."""

    def kernel(x_ref, y_ref, o_ref, acc):
        pltrn.nc_matmul(acc, x_ref, y_ref, accumulate=False)
        o_ref[...] = acc[...]

    x, y = numbers(64, 64, dtype=BF16), numbers(64, 100, dtype=BF16)
    found = run(
        kernel, x, y, out=like((64, 100)), scratch=[PSUM((64, 64), F32)], grid=(2,),
        in_specs=[pl.BlockSpec((64, 64), lambda i: (0, 0)), pl.BlockSpec((64, 64), lambda i: (0, i))],
        out_specs=pl.BlockSpec((64, 64), lambda i: (0, i)),
    )  # fmt: skip
    return found, x.astype(np.float32).T @ y.astype(np.float32)


# ---- outputs ----


@wrong("output", "never written")
def output_that_nobody_writes():
    def kernel(x_ref, o_ref):  # wrong
        _ = x_ref[...]

    return run(kernel, numbers(128, 64))


@wrong("output", "never written")
def half_of_an_output():
    def kernel(x_ref, o_ref):  # wrong
        o_ref[0:64] = x_ref[0:64]

    return run(kernel, numbers(128, 64))


@wrong("output", "never written")
def block_that_one_step_leaves_out():
    def kernel(x_ref, o_ref):  # wrong
        @pl.when(pl.program_id(0) != 1)
        def _():
            o_ref[...] = x_ref[...]

    spec = pl.BlockSpec((128, 64), lambda i: (0, i))
    return run(kernel, numbers(128, 192), grid=(3,), in_specs=[spec], out_specs=spec)


@wrong("output", "never written")
def blocks_that_the_grid_does_not_reach():
    def kernel(x_ref, o_ref):  # wrong
        o_ref[...] = x_ref[...]

    spec = pl.BlockSpec((128, 64), lambda i: (0, i))
    return run(kernel, numbers(128, 192), grid=(2,), in_specs=[spec], out_specs=spec)


@wrong("output", "never written")
def rows_that_the_kernel_does_not_store():
    def kernel(x_hbm, o_hbm, tile):  # wrong
        pltrn.dma_copy(tile, x_hbm)
        pltrn.dma_copy(o_hbm.at[0:96], tile.at[0:96])

    return moved(kernel, numbers(128, 64), scratch=[SBUF((128, 64), F32)])


@wrong("output", "never written")
def second_of_two_outputs():
    def kernel(x_ref, one_ref, two_ref):  # wrong
        one_ref[...] = x_ref[...]

    return run(kernel, numbers(128, 64), out=[like((128, 64)), like((128, 64))])


@right
def output_written_in_two_steps():
    def kernel(x_ref, o_ref):
        i = pl.program_id(0)
        o_ref[pl.ds(64 * i, 64)] = x_ref[pl.ds(64 * i, 64)]

    x = numbers(128, 64)
    whole = pl.BlockSpec((128, 64), lambda i: (0, 0))
    return run(kernel, x, grid=(2,), in_specs=[whole], out_specs=whole), x


@right
def output_that_is_an_aliased_input():
    def kernel(x_ref, o_ref):
        o_ref[0:64] = x_ref[0:64] * 2

    x = numbers(128, 64)
    expected = np.concatenate([2 * x[:64], x[64:]])
    return run(kernel, x, input_output_aliases={0: 0}), expected


@right
def output_stored_in_pieces():
    def kernel(x_hbm, o_hbm, tile):
        pltrn.dma_copy(tile, x_hbm)
        for start in (0, 32, 64, 96):
            pltrn.dma_copy(o_hbm.at[start : start + 32], tile.at[start : start + 32])

    x = numbers(128, 64)
    return moved(kernel, x, scratch=[SBUF((128, 64), F32)]), x


@right
def two_outputs():
    def kernel(x_ref, one_ref, two_ref):
        one_ref[...] = x_ref[...]
        two_ref[...] = -x_ref[...]

    x = numbers(128, 64)
    one, two = run(kernel, x, out=[like((128, 64)), like((128, 64))])
    return np.stack([one, two]), np.stack([x, -x])
