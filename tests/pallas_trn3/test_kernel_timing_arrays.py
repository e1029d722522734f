"""Array code in kernels: which engine instructions it becomes, and never none."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

import pallas_trn3 as pltrn
from jax_trn3.hardware import TRAINIUM2, TRAINIUM3
from pallas_trn3.timing import kernel_of_function, program_of, simulated, timeline_of

BF16, F32, I32 = jnp.bfloat16, jnp.float32, jnp.int32


def shape(*sizes, dtype=F32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def ran(timeline):
    """How often each instruction ran, by name."""
    counts = Counter()
    for instruction, times in zip(timeline.instructions, timeline.executions):
        counts[instruction.name] += int(times)
    return dict(counts)


def on_arrays(function, *shapes, out=None):
    """A kernel that loads whole arrays, computes and stores."""

    def kernel(*refs):
        *ins, result = refs
        result[...] = function(*(ref[...] for ref in ins)).astype(result.dtype)

    out = out or jax.eval_shape(function, *shapes)
    return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(out.shape, out.dtype)), shapes


def timed(function, *shapes, chip=TRAINIUM3, **kwargs):
    call, args = on_arrays(function, *shapes, **kwargs)
    made = program_of(kernel_of_function(call, *args), chip)
    return made, simulated(made, chip)


def documented_matmul(x_ref, y_ref, z_ref, acc_ref):
    @pl.when(pl.program_id(2) == 0)
    def _():
        acc_ref[...] = jnp.zeros_like(acc_ref)

    acc_ref[...] += jnp.dot(x_ref[...], y_ref[...], preferred_element_type=F32)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        z_ref[...] = jax.nn.relu(acc_ref[...]).astype(z_ref.dtype)


def matmul(x, y, bm=256, bk=512, bn=512):
    (m, k), n = x.shape, y.shape[1]
    return pl.pallas_call(
        documented_matmul,
        grid=(m // bm, n // bn, k // bk),
        in_specs=[
            pl.BlockSpec((bm, bk), lambda i, j, k: (i, k)),
            pl.BlockSpec((bk, bn), lambda i, j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((bm, bn), lambda i, j, k: (i, j)),
        out_shape=jax.ShapeDtypeStruct((m, n), x.dtype),
        scratch_shapes=[pltpu.VMEM((bm, bn), F32)],
    )(x, y)


def test_a_sum_of_products_stays_in_psum():
    timeline = timeline_of(matmul, shape(1024, 1024, dtype=BF16), shape(1024, 1024, dtype=BF16))
    blocks, results = 4 * 2 * 2, 4 * 2
    assert ran(timeline) == {
        "dma_transpose": 4 * blocks,  # x, whose contracted dimension is the last
        "dma_copy": blocks + results,
        "memset": 2 * results,
        "nc_matmul": 8 * blocks,
        "tensor_scalar": 2 * results,  # relu, out of PSUM, cast
    }
    sums = {tile.name: tile.memory for tile in timeline.program.tiles()}
    assert sums["acc_ref"] == "psum"


def test_softmax_is_as_one_writes_it():
    def softmax(x):
        e = jnp.exp(x - jnp.max(x, -1, keepdims=True))
        return e / jnp.sum(e, -1, keepdims=True)

    _, timeline = timed(softmax, shape(256, 1024))
    assert ran(timeline) == {
        "dma_copy": 2,  # two chunks of 128 rows each
        "tensor_reduce": 2,
        "tensor_scalar": 2 + 2,  # the negative maximum; times 1 / sum
        "activation": 2,  # the shift is its bias, the sum its reduction
        "reciprocal": 2,
    }


def flash(q_ref, k_ref, v_ref, o_ref, m, l, acc, *, scale):  # noqa: E741
    i, j = pl.program_id(1), pl.program_id(2)

    @pl.when(j == 0)
    def _():
        m[...] = jnp.full_like(m, -1e30)
        l[...] = jnp.zeros_like(l)
        acc[...] = jnp.zeros_like(acc)

    @pl.when(j <= i)
    def _():
        s = lax.dot_general(
            q_ref[0], k_ref[0], (((1,), (1,)), ((), ())), preferred_element_type=F32
        )
        rows = lax.broadcasted_iota(I32, s.shape, 0) + i * s.shape[0]
        columns = lax.broadcasted_iota(I32, s.shape, 1) + j * s.shape[1]
        s = jnp.where(rows >= columns, s * scale, -1e30)
        before = m[...]
        largest = jnp.maximum(before, s.max(-1, keepdims=True))
        p = jnp.exp(s - largest)
        alpha = jnp.exp(before - largest)
        l[...] = l[...] * alpha + p.sum(-1, keepdims=True)
        product = jnp.dot(p.astype(v_ref.dtype), v_ref[0], preferred_element_type=F32)
        acc[...] = acc[...] * alpha + product
        m[...] = largest

    @pl.when(j == pl.num_programs(2) - 1)
    def _():
        o_ref[0] = (acc[...] / l[...]).astype(o_ref.dtype)


def attention(q, k, v, block=128):
    heads, length, width = q.shape
    spec = pl.BlockSpec((1, block, width), lambda h, i, j: (h, i, 0))
    moving = pl.BlockSpec((1, block, width), lambda h, i, j: (h, j, 0))
    return pl.pallas_call(
        functools.partial(flash, scale=width**-0.5),
        grid=(heads, length // block, length // block),
        in_specs=[spec, moving, moving],
        out_specs=spec,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        scratch_shapes=[
            pltpu.VMEM((block, 1), F32), pltpu.VMEM((block, 1), F32), pltpu.VMEM((block, width), F32)
        ],
    )(q, k, v)  # fmt: skip


def test_causal_attention_leaves_out_what_nobody_sees():
    heads, blocks = 2, 6
    arrays = [shape(heads, 128 * blocks, 128, dtype=BF16)] * 3
    made = program_of(kernel_of_function(attention, *arrays))
    timeline = simulated(made)
    seen, rows = heads * blocks * (blocks + 1) // 2, heads * blocks
    counts = ran(timeline)
    assert not made.assumptions
    assert counts["nc_matmul"] == 2 * seen
    assert counts["affine_select"] == seen  # the mask
    assert counts["nc_transpose"] == seen  # of p
    assert counts["reciprocal"] == rows
    assert counts["dma_copy"] == heads * blocks * blocks + rows  # v; results


@pytest.mark.parametrize("chip", [TRAINIUM2, TRAINIUM3])
@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x: jnp.tanh(x * 2.0 + 1.0), [shape(128, 512)]),
        (lambda x: jax.nn.gelu(x), [shape(300, 200)]),
        (lambda x, y: jnp.where(x > y, x, y), [shape(128, 256)] * 2),
        (lambda x, b: x + b, [shape(256, 512), shape(1, 512)]),
        (lambda x, b: x * b[None, :], [shape(256, 512), shape(512)]),
        (lambda x: x.T, [shape(256, 128)]),
        (lambda x: x.sum(0), [shape(256, 640)]),
        (lambda x: x.max(0), [shape(256, 640)]),
        (lambda x: jnp.cumsum(x, 1), [shape(128, 64)]),
        (lambda x: jnp.argmax(x, -1), [shape(128, 64)]),
        (lambda x: jnp.sort(x, -1), [shape(128, 64)]),
        (lambda x: jnp.concatenate([x, x], 1), [shape(128, 64)]),
        (lambda x: x.reshape(64, 128), [shape(128, 64)]),
        (lambda x: x[:, 16:48], [shape(128, 64)]),
        (lambda x: jnp.pad(x, ((0, 0), (1, 1))), [shape(128, 64)]),
        (lambda x, y: x // y, [shape(128, 64, dtype=I32)] * 2),
        (lambda x: x ^ 3, [shape(128, 64, dtype=I32)]),
        (lambda x: x**3 / 7.0 - jnp.log1p(jnp.exp(x)), [shape(64)]),
        (lambda x, y: jnp.einsum("bij,bjk->bik", x, y), [shape(4, 64, 96), shape(4, 96, 32)]),
        (lambda x, y: jnp.dot(x, y, preferred_element_type=I32), [shape(32, 64, dtype=jnp.int8), shape(64, 16, dtype=jnp.int8)]),
        (lambda x: lax.fori_loop(0, 5, lambda _, c: c * 1.5 + x, x), [shape(128, 256)]),
        (lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x), [shape(128, 8)]),
        (lambda x: lax.cond(x.sum() > 0, lambda: x, lambda: x * 2), [shape(128, 8)]),
        (lambda x: lax.scan(lambda c, r: (c + r, c * r), x[0], x)[1], [shape(8, 128)]),
    ],
)  # fmt: skip
def test_every_operation_costs_something(chip, function, shapes):
    _, empty = timed(lambda *xs: xs[0], *shapes, chip=chip, out=shapes[0])
    _, timeline = timed(function, *shapes, chip=chip)
    busy = sum(spent.busy for spent in timeline.engines.values())
    assert busy > 0 or timeline.dma_bytes > empty.dma_bytes
    assert timeline.active_ps > 0


def test_what_has_no_instruction_says_so():
    made, _ = timed(lambda x: jnp.sort(x, -1), shape(128, 64))
    (said,) = made.assumptions
    assert "sort has no instruction of its own" in said
    assert "test_kernel_timing_arrays.py:" in said


def test_loops_that_data_end_are_assumed():
    made, _ = timed(
        lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x), shape(8, 8)
    )
    assert any("a loop whose end data decide runs once" in a for a in made.assumptions)


def test_time_grows_with_the_work():
    times = [timed(lambda x: jnp.exp(x), shape(128, n))[1].active_ps for n in (512, 2048, 8192)]
    assert times == sorted(times)
    assert times[-1] > 4 * times[0]


@pytest.mark.parametrize("chip", [TRAINIUM2, TRAINIUM3])
def test_no_time_below_the_bounds(chip):
    timeline = timeline_of(
        matmul, shape(512, 1024, dtype=BF16), shape(1024, 1024, dtype=BF16), chip=chip
    )
    flops = 2 * 512 * 1024 * 1024
    assert timeline.active_ps >= flops / chip.core.peak_flops("bfloat16") * 1e12
    for spent in (*timeline.engines.values(), *timeline.dma.values()):
        assert timeline.active_ps >= spent.busy


def test_lowering_and_simulation_are_quick():
    import time

    arrays = [shape(8, 2048, 128, dtype=BF16)] * 3
    kernel = kernel_of_function(attention, *arrays)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        simulated(program_of(kernel))
        best = min(best, time.perf_counter() - start)
    assert best < 2.0  # 0.25 s on a quiet machine


def test_what_does_not_fit_names_the_kernels_tiles():
    from jax_trn3.simulator import DoesNotFit

    call, args = on_arrays(lambda x: x * 2, shape(8192, 1024))
    with pytest.raises(DoesNotFit) as error:
        timeline_of(call, *args)
    said = str(error.value)
    assert "test_kernel_timing_arrays.py:" in said
    assert "refs[0] 262144 (64 slots of 4096)" in said


def test_values_that_do_not_fit_twice_are_there_once():
    def kernel(x_ref, o_ref):
        o_ref[...] = jnp.exp(x_ref[...]) + jnp.tanh(x_ref[...]) * jnp.sin(x_ref[...])

    def call(x):
        spec = pl.BlockSpec((128, 8192), lambda i: (i, 0))
        return pl.pallas_call(
            kernel, grid=(4,), in_specs=[spec], out_specs=spec, out_shape=shape(512, 8192)
        )(x)

    slots = {
        tile.name: tile.slots
        for tile in program_of(kernel_of_function(call, shape(512, 8192))).program.tiles()
        if tile.memory == "sbuf"
    }
    assert slots.pop("x_ref") == slots.pop("o_ref") == 2
    assert set(slots.values()) == {1}


def test_mixed_lines_of_arrays_and_instructions():
    def kernel(x_ref, o_ref, psum):
        pltrn.nc_matmul(psum, x_ref, x_ref)
        o_ref[...] = jnp.tanh(psum[...]) * 2.0

    def call(x):
        return pl.pallas_call(
            kernel, out_shape=shape(128, 128), scratch_shapes=[pltrn.PSUM((128, 128), F32)]
        )(x)

    timeline = timeline_of(call, shape(128, 128, dtype=BF16))
    assert ran(timeline) == {"dma_copy": 2, "nc_matmul": 1, "activation": 1, "tensor_scalar": 1}
    assert np.isfinite(timeline.active_ps)
