"""Loops and branches of kernels stay loops, and run as often as in the kernel."""

import random
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

import pallas_trn3 as pltrn
from jax_trn3.simulator import Loop
from pallas_trn3.timing import kernel_of_function, program_of, simulated

F32 = jnp.float32
OPERATIONS = ("add", "multiply", "maximum", "minimum", "subtract")

CONDITIONS = {
    "i == 0": lambda i, j, n: i == 0,
    "j == n - 1": lambda i, j, n: j == n - 1,
    "j <= i": lambda i, j, n: j <= i,
    "i + j < n": lambda i, j, n: i + j < n,
    "2 j > i": lambda i, j, n: 2 * j > i,
    "j % 2 == 0": lambda i, j, n: j % 2 == 0,
    "i // 3 == 1": lambda i, j, n: i // 3 == 1,
    "(i * n + j) % 4 == 1": lambda i, j, n: (i * n + j) % 4 == 1,
    "0 < i <= j": lambda i, j, n: (i > 0) & (i <= j),
    "i == j or j == 2": lambda i, j, n: (i == j) | (j == 2),
}


def kernel_of(n, inner, conditions, form):
    """Nested loops with an instruction, by its own operation, under each condition."""

    def kernel(x_ref, o_ref):
        def body(i, j):
            for operation, condition in zip(OPERATIONS, conditions):

                @pl.when(CONDITIONS[condition](i, j, n))
                def _(operation=operation):
                    pltrn.tensor_tensor(o_ref, x_ref, x_ref, op=operation)

        if form == "grid":
            body(pl.program_id(0), pl.program_id(1))
        else:

            @pl.loop(0, n)
            def _(i):
                @pl.loop(0, inner(i) if form == "triangle" else n)
                def _(j):
                    body(i, j)

    grid = {"grid": (n, n)} if form == "grid" else {}
    shape = jax.ShapeDtypeStruct((128, 8), F32)
    return pl.pallas_call(kernel, out_shape=shape, **grid), shape


def counted(n, inner, conditions, form):
    """The same by running it."""
    counts = Counter()
    for i in range(n):
        for j in range(inner(i) if form == "triangle" else n):
            for operation, condition in zip(OPERATIONS, conditions):
                counts[operation] += bool(CONDITIONS[condition](i, j, n))
    return {k: v for k, v in counts.items() if v}


@pytest.mark.parametrize("form", ["loops", "grid", "triangle"])
@pytest.mark.parametrize("seed", range(12))
def test_instructions_run_as_often_as_in_the_kernel(seed, form):
    draw = random.Random(f"{seed} {form}")
    n = draw.choice([2, 3, 5, 6, 8])
    conditions = draw.sample(sorted(CONDITIONS), draw.randint(1, 3))
    call, shape = kernel_of(n, lambda i: i + 1, conditions, form)
    made = program_of(kernel_of_function(call, shape))
    assert not made.assumptions
    timeline = simulated(made)
    counts = Counter()
    for instruction, times in zip(timeline.instructions, timeline.executions):
        if instruction.name == "tensor_tensor" and times:
            counts[instruction.get("op")] += int(times)
    assert dict(counts) == counted(n, lambda i: i + 1, conditions, form), (n, conditions)


@pytest.mark.parametrize(
    "condition", ["i == 0", "j == n - 1", "j <= i", "j % 2 == 0", "i // 3 == 1"]
)
def test_conditions_on_loops_are_not_unrolled(condition):
    call, shape = kernel_of(48, None, [condition], "loops")
    made = program_of(kernel_of_function(call, shape))
    assert sum(1 for _ in made.program.instructions()) < 12
    assert any(isinstance(node, Loop) for node in made.program.body)


def test_a_branch_that_data_decide_is_the_longer_one():
    def kernel(x_ref, n_ref, o_ref):
        @pl.when(n_ref[0] > 3)
        def _():
            pltrn.tensor_copy(o_ref, x_ref)
            pltrn.tensor_copy(o_ref, x_ref)

    shape = jax.ShapeDtypeStruct((128, 64), F32)
    call = pl.pallas_call(kernel, out_shape=shape)
    made = program_of(kernel_of_function(call, shape, jax.ShapeDtypeStruct((1,), jnp.int32)))
    (said,) = made.assumptions
    assert "of branches that data decide, the one that takes longest" in said
    assert [i.name for i in made.program.instructions()].count("tensor_copy") == 2


def test_slots_in_turn_stay_loops():
    def kernel(x_hbm, o_ref, pool):
        @pl.loop(0, 64)
        def _(i):
            place = pl.ds((i % 4) * 128, 128)
            pltrn.dma_copy(pool.at[:, place], x_hbm.at[pl.ds(i * 128, 128)])
            pltrn.tensor_tensor(o_ref, o_ref, pool.at[:, place], op="add")

    def call(x):
        return pl.pallas_call(
            kernel,
            in_specs=[pl.BlockSpec(memory_space=pltrn.HBM)],
            out_shape=jax.ShapeDtypeStruct((128, 128), F32),
            scratch_shapes=[pltrn.SBUF((128, 512), F32)],
        )(x)

    made = program_of(kernel_of_function(call, jax.ShapeDtypeStruct((8192, 128), F32)))
    (loop,) = (node for node in made.program.body if isinstance(node, Loop))
    assert len(loop.body) == 2
    tiles = {tile.name: tile for tile in made.program.tiles()}
    assert tiles["pool"].slots == 4


def test_emit_pipeline_is_double_buffered():
    def add(x_ref, y_ref, z_ref):
        z_ref[...] = x_ref[...] + y_ref[...]

    def outer(x, y, z):
        spec = pl.BlockSpec((128, 512), lambda i: (i, 0))
        pltpu.emit_pipeline(add, grid=(8,), in_specs=[spec, spec], out_specs=[spec])(x, y, z)

    def call(x, y):
        hbm = pl.BlockSpec(memory_space=pl.ANY)
        return pl.pallas_call(outer, in_specs=[hbm, hbm], out_specs=hbm, out_shape=shape)(x, y)

    shape = jax.ShapeDtypeStruct((1024, 512), F32)
    made = program_of(kernel_of_function(call, shape, shape))
    timeline = simulated(made)
    names = Counter(i.name for i in timeline.instructions)
    assert not made.assumptions
    assert (names["dma_copy"], names["tensor_tensor"]) == (3 * 8, 8)
    alone = sum(w.dma.latency_ns for w in timeline.work if w.dma) / 3  # if nothing overlapped
    assert timeline.active_ps < 1000 * alone + sum(d.busy for d in timeline.dma.values())


def test_numbers_that_a_loop_carries_are_known():
    def kernel(x_ref, o_ref):
        def body(i, carry):
            slot, other = carry
            pltrn.tensor_copy(o_ref.at[:, pl.ds(slot * 64, 64)], x_ref.at[:, pl.ds(other * 64, 64)])
            return jax.lax.rem(slot + 1, 2), slot

        jax.lax.fori_loop(0, 6, body, (0, 1))

    shape = jax.ShapeDtypeStruct((128, 128), F32)
    made = program_of(kernel_of_function(pl.pallas_call(kernel, out_shape=shape), shape))
    copies = [i for i in made.program.instructions() if i.name == "tensor_copy"]
    assert [(i["dst"].start[1] // 64, i["src"].start[1] // 64) for i in copies] in (
        [(0, 1), (1, 0)] * 3,
        [(0, 0)] * 6,  # as slots
    )
    assert len(copies) == 6
