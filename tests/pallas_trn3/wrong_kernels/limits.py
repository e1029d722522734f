"""What one instruction cannot do: partitions, where they start, free sizes, types."""

import jax.numpy as jnp
import numpy as np

import pallas_trn3 as pltrn

from .cases import BF16, F32, I32, like, moved, numbers, right, run, wrong

SBUF, PSUM = pltrn.SBUF, pltrn.PSUM


# ---- partitions ----


@wrong("memset", "has 129 partitions; at most 128")
def one_partition_too_many():
    def kernel(x_ref, o_ref, tile):
        pltrn.memset(tile, value=0.0)  # wrong
        o_ref[...] = x_ref[...]

    return run(kernel, numbers(128, 64), scratch=[SBUF((129, 64), F32)])


@wrong("tensor_copy", "has 256 partitions; at most 128")
def block_of_256_rows_in_one_instruction():
    def kernel(x_ref, o_ref):
        pltrn.tensor_copy(o_ref, x_ref)  # wrong

    return run(kernel, numbers(256, 64))


@wrong("nc_matmul", "200 partitions")
def contraction_over_200_rows():
    def kernel(x_ref, y_ref, o_ref, acc):
        pltrn.nc_matmul(acc, x_ref, y_ref)  # wrong
        o_ref[...] = acc[...]

    inputs = numbers(200, 64, dtype=jnp.bfloat16), numbers(200, 64, dtype=jnp.bfloat16)
    return run(kernel, *inputs, out=like((64, 64)), scratch=[PSUM((64, 64), F32)])


@right
def all_128_partitions():
    def kernel(x_ref, o_ref):
        pltrn.tensor_copy(o_ref, x_ref)

    x = numbers(128, 64)
    return run(kernel, x), x


@right
def block_of_256_rows_in_tile_language():
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] + 1

    x = numbers(256, 64)
    return run(kernel, x), x + 1


@right
def rows_256_as_two_slots():
    def kernel(x_ref, o_ref):
        for slot in range(2):
            pltrn.tensor_copy(o_ref.at[slot], x_ref.at[slot])

    x = numbers(2, 128, 64)
    return run(kernel, x), x


# ---- where partitions start ----


@wrong("starts at partition 16", "may start at 0, 32, 64, 96")
def start_at_16():
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...]
        pltrn.tensor_copy(o_ref.at[0:16], x_ref.at[16:32])  # wrong

    return run(kernel, numbers(128, 64))


@wrong("starts at partition 32", "64 partitions may start at 0, 64")
def start_of_64_at_32():
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...]
        pltrn.memset(o_ref.at[32:96], value=1.0)  # wrong

    return run(kernel, numbers(128, 64))


@wrong("takes every 2th partition", "no stride")
def every_other_partition():
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...]
        pltrn.tensor_copy(o_ref.at[0:64], x_ref.at[0:128:2])  # wrong

    return run(kernel, numbers(128, 64))


@wrong("starts at partition 48")
def direct_allocation_at_partition_48():
    def kernel(x_ref, o_ref, tile):
        pltrn.memset(tile, value=1.0)  # wrong
        o_ref[...] = x_ref[...]

    return run(kernel, numbers(128, 64), scratch=[SBUF((32, 64), F32, address=(48, 0))])


@right
def starts_at_every_quadrant():
    def kernel(x_ref, o_ref):
        for start in (0, 32, 64, 96):
            pltrn.tensor_copy(o_ref.at[96 - start : 128 - start], x_ref.at[start : start + 32])

    x = numbers(128, 64)
    return run(kernel, x), x.reshape(4, 32, 64)[::-1].reshape(128, 64)


@right
def upper_half():
    def kernel(x_ref, o_ref):
        pltrn.tensor_copy(o_ref.at[0:64], x_ref.at[64:128])
        pltrn.tensor_copy(o_ref.at[64:128], x_ref.at[0:64])

    x = numbers(128, 64)
    return run(kernel, x), np.concatenate([x[64:], x[:64]])


# ---- free sizes ----


@wrong("nc_matmul", "moving", "4096")
def moving_operand_too_wide():
    def kernel(x_ref, y_ref, o_ref, acc):
        pltrn.nc_matmul(acc, x_ref, y_ref)  # wrong
        o_ref[...] = acc[:, 0:64]

    inputs = numbers(128, 64, dtype=jnp.bfloat16), numbers(128, 4608, dtype=jnp.bfloat16)
    return run(kernel, *inputs, out=like((64, 64)), scratch=[PSUM((64, 4608), F32)])


@wrong("nc_transpose", "129")
def transpose_of_129_columns():
    def kernel(x_ref, o_ref, acc):
        pltrn.nc_transpose(acc, x_ref)  # wrong
        o_ref[...] = acc[...]

    scratch = [PSUM((129, 128), BF16)]
    x = numbers(128, 129, dtype=jnp.bfloat16)
    return run(kernel, x, out=like((129, 128), BF16), scratch=scratch)


@wrong("bn_stats", "data has 513 elements a partition; allowed: 1 to 512")
def statistics_of_513_elements():
    def kernel(x_ref, o_ref):
        pltrn.bn_stats(o_ref, x_ref)  # wrong

    return run(kernel, numbers(128, 513), out=like((128, 6)))


@wrong("max8", "src has 7 elements a partition; allowed: 8 to 16384")
def largest_8_of_7():
    def kernel(x_ref, o_ref):
        pltrn.max8(o_ref, x_ref)  # wrong

    return run(kernel, numbers(128, 7), out=like((128, 8)))


@wrong("tensor_tensor", "data2 has 128 partitions of 32 elements, dst has 128 of 64")
def operands_of_unequal_width():
    def kernel(x_ref, y_ref, o_ref):
        pltrn.tensor_tensor(o_ref, x_ref, y_ref, op="add")  # wrong

    return run(kernel, numbers(128, 64), numbers(128, 32))


@right
def largest_8_of_8():
    def kernel(x_ref, o_ref):
        pltrn.max8(o_ref, x_ref)

    x = numbers(128, 8)
    return run(kernel, x), -np.sort(-x, axis=1)


@right
def widest_matmul():
    def kernel(x_ref, y_ref, o_ref, acc):
        pltrn.nc_matmul(acc, x_ref, y_ref)
        o_ref[...] = acc[...]

    x, y = numbers(128, 32, dtype=jnp.bfloat16), numbers(128, 4096, dtype=jnp.bfloat16)
    found = run(kernel, x, y, out=like((32, 4096)), scratch=[PSUM((32, 4096), F32)])
    return found, x.astype(np.float32).T @ y.astype(np.float32)


# ---- types ----


@wrong("nc_matmul", "int32", "allowed")
def matmul_of_integers():
    def kernel(x_ref, y_ref, o_ref, acc):
        pltrn.nc_matmul(acc, x_ref, y_ref)  # wrong
        o_ref[...] = acc[...]

    inputs = numbers(64, 64, dtype=np.int32), numbers(64, 64, dtype=np.int32)
    return run(kernel, *inputs, out=like((64, 64)), scratch=[PSUM((64, 64), F32)])


@wrong("nc_matmul", "stationary is float32 and moving bfloat16")
def matmul_of_float32_with_bfloat16():
    def kernel(x_ref, y_ref, o_ref, acc):
        pltrn.nc_matmul(acc, x_ref, y_ref)  # wrong
        o_ref[...] = acc[...]

    inputs = numbers(64, 64), numbers(64, 64, dtype=jnp.bfloat16)
    return run(kernel, *inputs, out=like((64, 64)), scratch=[PSUM((64, 64), F32)])


@wrong("nc_n_gather", "indices", "int32", "uint32")
def gather_by_signed_indices():
    def kernel(x_ref, i_ref, o_ref):
        pltrn.nc_n_gather(o_ref, x_ref, i_ref)  # wrong

    return run(kernel, numbers(128, 64), np.zeros((128, 64), np.int32))


@wrong("quantize_mx", "float32")
def quantization_of_float32():
    def kernel(x_ref, o_ref, packed, scales):
        pltrn.quantize_mx(packed, x_ref, scales)  # wrong
        o_ref[...] = x_ref[...]

    scratch = [SBUF((128, 16, 4), jnp.float8_e4m3fn), SBUF((128, 16), jnp.uint8)]
    return run(kernel, numbers(128, 64), scratch=scratch)


@wrong("tensor_tensor", "which engine vector does not have; gpsimd has it")
def power_on_vector():
    def kernel(x_ref, o_ref):
        pltrn.tensor_tensor(o_ref, x_ref, x_ref, op="power", engine="vector")  # wrong

    return run(kernel, numbers(128, 64))


@wrong("engine scalar does not run it")
def iota_on_scalar():
    def kernel(o_ref):
        pltrn.iota(o_ref, pattern=((1, 64),), engine="scalar")  # wrong

    return run(kernel, out=like((128, 64), I32))


@wrong("activation", "op is 'cosine'")
def unknown_function():
    def kernel(x_ref, o_ref):
        pltrn.activation(o_ref, x_ref, op="cosine")  # wrong

    return run(kernel, numbers(128, 64))


@right
def integers_are_added_on_gpsimd():
    def kernel(x_ref, o_ref):
        pltrn.tensor_tensor(o_ref, x_ref, x_ref, op="add", engine="gpsimd")

    x = numbers(128, 64, dtype=np.int32)
    return run(kernel, x), 2 * x


@right
def matmul_of_bfloat16():
    def kernel(x_ref, y_ref, o_ref, acc):
        pltrn.nc_matmul(acc, x_ref, y_ref)
        o_ref[...] = acc[...]

    x, y = numbers(64, 32, dtype=jnp.bfloat16), numbers(64, 48, dtype=jnp.bfloat16)
    found = run(kernel, x, y, out=like((32, 48)), scratch=[PSUM((32, 48), F32)])
    return found, x.astype(np.float32).T @ y.astype(np.float32)


@right
def copies_cast():
    def kernel(x_ref, o_ref):
        pltrn.tensor_copy(o_ref, x_ref)

    x = numbers(128, 64)
    return run(kernel, x, out=like((128, 64), I32)), x.astype(np.int32)


# ---- memories that engines do not reach ----


@wrong("dma_copy", "lies in psum")
def dma_out_of_psum():
    def kernel(x_hbm, o_hbm, tile, acc):
        pltrn.dma_copy(tile, x_hbm)
        pltrn.tensor_copy(acc, tile)
        pltrn.dma_copy(o_hbm, acc)  # wrong

    return moved(kernel, numbers(128, 64), scratch=[SBUF((128, 64), F32), PSUM((128, 64), F32)])


@wrong("dma_copy", "lies in psum")
def dma_into_psum():
    def kernel(x_hbm, o_hbm, tile, acc):
        pltrn.dma_copy(acc, x_hbm)  # wrong
        pltrn.tensor_copy(tile, acc)
        pltrn.dma_copy(o_hbm, tile)

    return moved(kernel, numbers(128, 64), scratch=[SBUF((128, 64), F32), PSUM((128, 64), F32)])


@wrong("dma_transpose", "lies in psum")
def dma_transpose_out_of_psum():
    def kernel(x_ref, o_ref, acc):
        pltrn.tensor_copy(acc, x_ref)
        pltrn.dma_transpose(o_ref, acc, axes=(1, 0))  # wrong

    scratch = [PSUM((64, 64), BF16)]
    return run(kernel, numbers(64, 64, dtype=jnp.bfloat16), scratch=scratch)


@wrong("tensor_tensor", "gpsimd cannot access psum")
def gpsimd_reads_psum():
    def kernel(x_ref, o_ref, acc):
        pltrn.tensor_copy(acc, x_ref)
        pltrn.tensor_tensor(o_ref, x_ref, acc, op="add", engine="gpsimd")  # wrong

    return run(kernel, numbers(128, 64), scratch=[PSUM((128, 64), F32)])


@wrong("memset", "gpsimd cannot access psum")
def gpsimd_writes_psum():
    def kernel(x_ref, o_ref, acc):
        pltrn.memset(acc, value=0.0, engine="gpsimd")  # wrong
        pltrn.tensor_tensor(o_ref, x_ref, acc, op="add")

    return run(kernel, numbers(128, 64), scratch=[PSUM((128, 64), F32)])


@wrong("nc_matmul", "lies in sbuf", "psum")
def matmul_into_sbuf():
    def kernel(x_ref, y_ref, o_ref):
        pltrn.nc_matmul(o_ref, x_ref, y_ref)  # wrong

    inputs = numbers(64, 64, dtype=jnp.bfloat16), numbers(64, 64, dtype=jnp.bfloat16)
    return run(kernel, *inputs, out=like((64, 64)))


@wrong("nc_matmul", "lies in psum", "sbuf")
def matmul_out_of_psum():
    def kernel(x_ref, y_ref, o_ref, staged, acc):
        pltrn.tensor_copy(staged, x_ref)
        pltrn.nc_matmul(acc, staged, y_ref)  # wrong
        o_ref[...] = acc[...]

    inputs = numbers(64, 64, dtype=jnp.bfloat16), numbers(64, 64, dtype=jnp.bfloat16)
    scratch = [PSUM((64, 64), BF16), PSUM((64, 64), F32)]
    return run(kernel, *inputs, out=like((64, 64)), scratch=scratch)


@wrong("tensor_tensor", "data1 and data2 both lie in psum")
def both_operands_in_psum():
    def kernel(x_ref, o_ref, one, two):
        pltrn.tensor_copy(one, x_ref)
        pltrn.tensor_copy(two, x_ref)
        pltrn.tensor_tensor(o_ref, one, two, op="add")  # wrong

    scratch = [PSUM((128, 64), F32), PSUM((128, 64), F32)]
    return run(kernel, numbers(128, 64), scratch=scratch)


@wrong("tensor_copy", "lies in hbm")
def vector_reads_hbm():
    def kernel(x_hbm, o_hbm, tile):
        pltrn.tensor_copy(tile, x_hbm)  # wrong
        pltrn.dma_copy(o_hbm, tile)

    return moved(kernel, numbers(128, 64), scratch=[SBUF((128, 64), F32)])


@right
def psum_by_way_of_sbuf():
    def kernel(x_hbm, o_hbm, tile, acc):
        pltrn.dma_copy(tile, x_hbm)
        pltrn.tensor_scalar(acc, tile, 3.0, op0="multiply")
        pltrn.activation(tile, acc, op="copy")
        pltrn.dma_copy(o_hbm, tile)

    x = numbers(128, 64)
    return moved(kernel, x, scratch=[SBUF((128, 64), F32), PSUM((128, 64), F32)]), 3 * x


@right
def gpsimd_in_sbuf():
    def kernel(x_ref, o_ref, tile):
        pltrn.iota(tile, pattern=((1, 64),), channel_multiplier=64)
        pltrn.tensor_tensor(o_ref, x_ref, tile, op="add", engine="gpsimd")

    x = numbers(128, 64, dtype=np.int32)
    found = run(kernel, x, scratch=[SBUF((128, 64), I32)])
    return found, x + np.arange(128 * 64, dtype=np.int32).reshape(128, 64)


@right
def one_operand_in_psum():
    def kernel(x_ref, o_ref, acc):
        pltrn.tensor_copy(acc, x_ref)
        pltrn.tensor_tensor(o_ref, x_ref, acc, op="multiply")

    x = numbers(128, 64)
    return run(kernel, x, scratch=[PSUM((128, 64), F32)]), x * x
