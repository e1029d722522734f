"""The reference executor computes what compiled kernels compute, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

import pallas_trn3 as pltrn
from pallas_trn3.kernel import kernel_of
from pallas_trn3.reference import run


def kernel_in(function, *operands):
    """The kernel of a function's only pallas_call."""
    jaxpr = jax.make_jaxpr(function)(*operands)
    (equation,) = (e for e in jaxpr.eqns if e.primitive.name == "pallas_call")
    return kernel_of(**equation.params)


def same_bits(function, *operands, check=True):
    expected = jax.tree.leaves(jax.jit(function)(*operands))
    kernel = kernel_in(function, *operands)
    found = run(kernel, operands)
    if check:
        for plain, checked in zip(found, run(kernel, operands, check=True), strict=True):
            assert plain.tobytes() == checked.tobytes()
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        theirs = np.asarray(theirs)
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes()


def normal(*shape, dtype=jnp.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


F32 = jnp.float32


def test_blocked_matmul_accumulates():
    def kernel(x_ref, y_ref, o_ref, acc_ref):
        @pl.when(pl.program_id(2) == 0)
        def _():
            acc_ref[...] = jnp.zeros_like(acc_ref)

        acc_ref[...] += jnp.dot(x_ref[...], y_ref[...], preferred_element_type=F32)

        @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
        def _():
            o_ref[...] = acc_ref[...].astype(o_ref.dtype)

    def matmul(x, y):
        return pl.pallas_call(
            kernel,
            grid=(2, 2, 3),
            in_specs=[
                pl.BlockSpec((32, 16), lambda i, j, k: (i, k)),
                pl.BlockSpec((16, 24), lambda i, j, k: (k, j)),
            ],
            out_specs=pl.BlockSpec((32, 24), lambda i, j, k: (i, j)),
            out_shape=jax.ShapeDtypeStruct((64, 48), jnp.bfloat16),
            scratch_shapes=[pltrn.PSUM((32, 24), F32)],
        )(x, y)

    same_bits(matmul, normal(64, 48), normal(48, 48, seed=1))


def test_blocks_behind_the_edge_and_squeezed_dimensions():
    def kernel(x_ref, y_ref, o_ref):
        o_ref[...] = jnp.exp(x_ref[...]) * y_ref[...]

    def call(x, y):
        return pl.pallas_call(
            kernel,
            grid=(3, 2),
            in_specs=[
                pl.BlockSpec((None, 8, 128), lambda b, i: (b, i, 0)),
                pl.BlockSpec((8, 128), lambda b, i: (i, 0)),
            ],
            out_specs=pl.BlockSpec((None, 8, 128), lambda b, i: (b, i, 0)),
            out_shape=jax.ShapeDtypeStruct((3, 13, 100), F32),
        )(x, y)

    same_bits(call, normal(3, 13, 100), normal(13, 100, seed=1))


def test_loops_branches_scopes_and_copies():
    def kernel(s_ref, x_ref, o_ref, acc, sem):
        def body(i, count):
            part = pl.ds(i * 2, 2)
            acc[part, :] = jax.nn.relu(x_ref[part, :]) + count.astype(F32)
            return count + s_ref[0]

        lax.fori_loop(0, 4, body, jnp.int32(0))

        @pl.when(pl.program_id(0) > 0)
        def _():
            def scope(tile):
                tile[...] = acc[...] * 2.0
                copy = pltpu.make_async_copy(tile, acc, sem)
                copy.start()
                copy.wait()

            pl.run_scoped(scope, pltrn.SBUF((8, 128), F32))

        n, grown = lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 2), (0, F32(1)))
        total, rows = lax.scan(lambda c, x: (c + x, x * 2), F32(0), jnp.arange(4, dtype=F32))
        o_ref[...] = acc[...] + grown + total + rows.sum() + n.astype(F32)

    def call(s, x):
        grid = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(2,),
            in_specs=[pl.BlockSpec((8, 128), lambda i, s: (i + s[0] - 1, 0))],
            out_specs=pl.BlockSpec((8, 128), lambda i, s: (i, 0)),
            scratch_shapes=[pltrn.SBUF((8, 128), F32), pltpu.SemaphoreType.DMA],
        )
        shape = jax.ShapeDtypeStruct((16, 128), F32)
        return pl.pallas_call(kernel, grid_spec=grid, out_shape=shape)(s, x)

    same_bits(call, np.ones(1, np.int32), normal(16, 128))


def test_instructions_line_by_line():
    def kernel(x_hbm, y_hbm, o_hbm, x, y, acc, out):
        pltrn.dma_copy(x, x_hbm)
        pltrn.dma_copy(y, y_hbm)
        for k in range(2):
            pltrn.nc_matmul(acc, x.at[k], y.at[k], accumulate=k > 0)
        pltrn.activation(out, acc, op="gelu")
        out[0:32, :] = out[0:32, :] + 1.0
        pltrn.dma_copy(o_hbm, out)

    def call(x, y):
        whole = pl.BlockSpec(memory_space=pltrn.HBM)
        return pl.pallas_call(
            kernel,
            in_specs=[whole, whole],
            out_specs=whole,
            out_shape=jax.ShapeDtypeStruct((64, 96), F32),
            scratch_shapes=[
                pltrn.SBUF((2, 128, 64), jnp.bfloat16),
                pltrn.SBUF((2, 128, 96), jnp.bfloat16),
                pltrn.PSUM((64, 96), F32),
                pltrn.SBUF((64, 96), F32),
            ],
        )(x, y)

    same_bits(call, normal(2, 128, 64, dtype=jnp.bfloat16), normal(2, 128, 96, dtype=jnp.bfloat16))


@pytest.mark.parametrize("masked_off", [0, 3])
def test_masked_loads_and_stores(masked_off):
    def kernel(x_ref, o_ref):
        columns = lax.broadcasted_iota(jnp.int32, (8, 16), 1)
        mask = columns < 16 - masked_off
        found = pltpu.load(x_ref, mask=mask) if hasattr(pltpu, "load") else x_ref[...]
        o_ref[...] = jnp.zeros_like(o_ref)
        pltpu.store(o_ref, found * 2, mask=mask)

    def call(x):
        return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct((8, 16), F32))(x)

    same_bits(call, normal(8, 16))


def test_dynamic_bounds_of_the_grid_and_aliases():
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] * pl.num_programs(0).astype(F32) + pl.program_id(0).astype(F32)

    def call(n, x):
        block = pl.BlockSpec((8, 16), lambda i: (i, 0))
        return pl.pallas_call(
            kernel,
            grid=(n,),
            in_specs=[block],
            out_specs=block,
            out_shape=jax.ShapeDtypeStruct((32, 16), F32),
            input_output_aliases={0: 0},
        )(x)

    same_bits(call, np.int32(3), normal(32, 16))


def test_vmapped():
    def kernel(x_ref, y_ref, o_ref):
        o_ref[...] = x_ref[...] * y_ref[...] + pl.program_id(0).astype(F32)

    def call(x, y):
        block = pl.BlockSpec((8, 16), lambda i: (i, 0))
        one = pl.pallas_call(
            kernel,
            grid=(2,),
            in_specs=[block, block],
            out_specs=block,
            out_shape=jax.ShapeDtypeStruct((16, 16), F32),
        )
        return jax.vmap(one, in_axes=(0, None))(x, y)

    same_bits(call, normal(3, 16, 16), normal(16, 16, seed=1))
