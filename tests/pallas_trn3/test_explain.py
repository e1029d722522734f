"""pltrn.explain: bounds, critical path, waits, advice."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn
from pallas_trn3.explanation import critical_path, explained
from pallas_trn3.kernels import matmul
from pallas_trn3.timing import timeline_of

BF16, F32 = jnp.bfloat16, jnp.float32
HBM = pl.BlockSpec(memory_space=pltrn.HBM)


def shape(*sizes, dtype=F32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def kernel_on(kernel, out, *scratch, specs=1):
    def call(*args):
        return pl.pallas_call(
            kernel, in_specs=[HBM] * specs, out_specs=HBM, out_shape=out, scratch_shapes=scratch
        )(*args)

    return call


def streamed(buffers, columns=512):
    """Exponentials of what arrives tile after tile."""

    def kernel(x_hbm, o_hbm, x, y):
        @pl.loop(0, 32)
        def _(i):
            place = pl.ds(i * columns, columns)
            pltrn.dma_copy(x.at[i % buffers], x_hbm.at[:, place])
            pltrn.activation(y.at[i % buffers], x.at[i % buffers], op="exp")
            pltrn.dma_copy(o_hbm.at[:, place], y.at[i % buffers], engine="dma:gpsimd")

    tiles = [pltrn.SBUF((buffers, 128, columns), F32) for _ in range(2)]
    return kernel_on(kernel, shape(128, 32 * columns), *tiles), shape(128, 32 * columns)


def said(function, *args):
    return " ".join(a.what for a in explained(timeline_of(function, *args)).advice)


def test_it_prints_and_returns_the_figures(capsys):
    found = pltrn.explain(matmul, shape(512, 512, dtype=BF16), shape(512, 512, dtype=BF16))
    printed = capsys.readouterr().out
    assert "tensor" in printed
    assert "the end waits for" in printed
    assert found.bounds[0].busy_ps <= found.time_ps
    assert json.loads(json.dumps(found.as_json()))["kernel"] == found.kernel
    assert found.timeline.active_ps == found.time_ps


@pytest.mark.parametrize("buffers", [1, 2, 4])
def test_the_critical_path_adds_up_to_the_time(buffers):
    call, arg = streamed(buffers)
    timeline = timeline_of(call, arg)
    path = critical_path(timeline)
    assert sum(link.time_ps for link in path) == pytest.approx(timeline.active_ps, abs=len(path))
    assert all(link.time_ps >= 0 for link in path)
    assert {link.file for link in path} == {__file__}


def test_one_buffer_waits_for_its_transfers():
    call, arg = streamed(1)
    assert "load earlier on dma:sync: more buffers in rotation for x (1)" in said(call, arg)
    call, arg = streamed(4, columns=4096)
    assert "load earlier" not in said(call, arg)


def test_an_engine_at_its_limit_is_named():
    assert "tensor is at its limit" in said(
        matmul, shape(2048, 2048, dtype=BF16), shape(2048, 2048, dtype=BF16)
    )


def test_small_transfers_are_named():
    def kernel(x_hbm, o_hbm, x):
        @pl.loop(0, 64)
        def _(i):
            pltrn.dma_copy(x.at[i % 32], x_hbm.at[:, pl.ds(i * 8, 8)])
            pltrn.tensor_scalar(x.at[i % 32], x.at[i % 32], 2.0, op0="multiply")
            pltrn.dma_copy(o_hbm.at[:, pl.ds(i * 8, 8)], x.at[i % 32], engine="dma:scalar")

    call = kernel_on(kernel, shape(128, 512), pltrn.SBUF((32, 128, 8), F32))
    assert "larger transfers at dma_copy (test_explain.py:" in said(call, shape(128, 512))


def test_one_engine_that_empties_psum_is_named():
    def kernel(x_hbm, o_hbm, x, psum, out):
        pltrn.dma_copy(x, x_hbm)

        @pl.loop(0, 16)
        def _(i):
            pltrn.nc_matmul(psum.at[i % 4], x.at[:, 0:128], x, accumulate=False)
            pltrn.tensor_copy(out.at[i % 4], psum.at[i % 4])
            pltrn.dma_copy(o_hbm.at[i], out.at[i % 4])

    call = kernel_on(
        kernel, shape(16, 128, 512), pltrn.SBUF((128, 512), BF16), pltrn.PSUM((4, 128, 512), F32),
        pltrn.SBUF((4, 128, 512), F32),
    )  # fmt: skip
    assert "let scalar copy out of PSUM, too" in said(call, shape(128, 512, dtype=BF16))


def test_transposes_and_short_instructions_are_named():
    def kernel(x_hbm, o_hbm, x, psum, out, small):
        pltrn.dma_copy(x, x_hbm)

        @pl.loop(0, 16)
        def _(i):
            pltrn.nc_transpose(psum.at[i % 4], x)
            pltrn.tensor_copy(out, psum.at[i % 4])
            for _ in range(4):
                pltrn.tensor_scalar(small, small, 2.0, op0="multiply")

        pltrn.dma_copy(o_hbm, out)

    call = kernel_on(
        kernel, shape(128, 128, dtype=BF16), pltrn.SBUF((128, 128), BF16),
        pltrn.PSUM((4, 128, 128), BF16), pltrn.SBUF((128, 128), BF16), pltrn.SBUF((128, 1), F32),
    )  # fmt: skip
    advice = said(call, shape(128, 128, dtype=BF16))
    assert "dma_transpose" in advice
    assert "fewer, longer instructions on vector" in advice
