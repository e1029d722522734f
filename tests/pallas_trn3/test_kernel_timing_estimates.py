"""Kernels in estimates and profiles, and beside programs written by hand."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

import jax_trn3
import pallas_trn3 as pltrn
from examples.headline_programs.matmul import matmul as matmul_by_hand
from examples.headline_programs.softmax import softmax as softmax_by_hand
from jax_trn3.isa import TABLE
from jax_trn3.simulator import simulate
from pallas_trn3.kernels import matmul
from pallas_trn3.registry import KERNELS
from pallas_trn3.timing import timeline_of

BF16, F32 = jnp.bfloat16, jnp.float32
HBM = pl.BlockSpec(memory_space=pltrn.HBM)


def shape(*sizes, dtype=BF16):
    return jax.ShapeDtypeStruct(sizes, dtype)


def doubled(x_ref, y_ref):
    pltrn.activation(y_ref, x_ref, op="copy", scale=2.0)


def double(x):
    rows, columns = x.shape
    spec = pl.BlockSpec((128, columns), lambda i: (i, 0))
    return pl.pallas_call(
        doubled,
        grid=(rows // 128,),
        in_specs=[spec],
        out_specs=spec,
        out_shape=shape(rows, columns),
    )(x)


def steps(estimate):
    """Its kernels' timelines."""
    return [
        step.timed.timeline
        for step in estimate.schedule.steps
        if step.timed is not None and step.name == "doubled"
    ]


def test_an_estimate_sees_the_kernels_instructions():
    estimate = jax_trn3.estimate(lambda x: jnp.tanh(double(x)), shape(1024, 512))
    (timeline,) = steps(estimate)
    names = [i.name for i in timeline.instructions]
    assert names == ["dma_copy", "activation", "dma_copy"]
    assert timeline.instructions[1].origin.file == __file__
    assert timeline.num_instructions == 3 * 8


def test_the_views_show_them(tmp_path):
    estimate = jax_trn3.estimate(double, shape(512, 512))
    estimate.save(tmp_path / "kernel.pftrace")
    estimate.save(tmp_path / "kernel.json")
    trace = (tmp_path / "kernel.pftrace").read_bytes()
    for shown in (
        b"activation",
        b"dma_copy",
        b"dma:sync.x_ref",
        b"test_kernel_timing_estimates.py",
    ):
        assert shown in trace
    (operation,) = json.loads((tmp_path / "kernel.json").read_text())["operations"]
    assert operation["name"] == "doubled"
    assert operation["place"]["file"] == __file__
    assert operation["instructions"] == 3 * 4


def test_tables_have_the_kernels_lines(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    jax_trn3.estimate(double, shape(512, 512)).save(tmp_path / "kernel.parquet")
    table = parquet.read_table(tmp_path / "kernel.parquet" / "Instruction.parquet")
    rows = [row for row in table.to_pylist() if row["bir_instruction_name"] == "activation"]
    line = doubled.__code__.co_firstlineno + 1
    assert {row["nki_source_location"] for row in rows} == {f"{__file__}:{line}"}
    assert "dst=y_ref[0:128, 0:512]" in rows[0]["operands"]


def test_a_profile_sees_the_kernel(tmp_path):
    array = jnp.ones((256, 256), BF16)
    run = jax.jit(double)
    with jax_trn3.profile() as profile:
        run(array).block_until_ready()
    profile.save(tmp_path / "run.pftrace")
    assert b"activation at" in (tmp_path / "run.pftrace").read_bytes()


def test_in_a_loop_under_vmap_and_shard_map():
    once = jax_trn3.estimate(double, shape(512, 512))
    loop = jax_trn3.estimate(
        lambda x: jax.lax.fori_loop(0, 5, lambda _, c: double(c), x), shape(512, 512)
    )
    inner = [s for s in loop.schedule.steps if s.kind == "loop"]
    assert inner[0].count == 5
    together = jax_trn3.estimate(jax.vmap(double), shape(3, 512, 512))
    (one,), (three,) = steps(once), steps(together)
    assert three.num_instructions == 3 * one.num_instructions
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((4,), ("x",), axis_types=auto)
    spread = jax.shard_map(double, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False)
    (own,) = steps(jax_trn3.estimate(spread, shape(2048, 512)))
    assert own.num_instructions == one.num_instructions


def test_a_kernel_of_another_process_is_timed_by_what_it_computes():
    known = dict(KERNELS)
    lowered = jax.jit(double).trace(shape(256, 512)).lower(lowering_platforms=("trn3",))
    try:
        KERNELS.clear()
        from jax_trn3.compiler.timing.read import device_program
        from jax_trn3.estimates.estimate import of_program
        from jax_trn3.hardware import get_topology

        program = device_program(lowered.compiler_ir("stablehlo"))
        estimate = of_program(program, get_topology("trn3-chip"))
    finally:
        KERNELS.update(known)
    assert any("lowered in another process" in a for a in estimate.schedule.assumptions)
    assert estimate.time_s > 0


def test_the_librarys_matmul_is_near_the_program_by_hand():
    n = 2048
    kernel = timeline_of(matmul, shape(n, n), shape(n, n))
    by_hand = simulate(matmul_by_hand(n, n, n))
    assert kernel.engines["core0/tensor"].busy >= by_hand.engines["core0/tensor"].busy * 0.99
    assert kernel.active_ps == pytest.approx(by_hand.active_ps, rel=0.05)


def test_the_program_by_hand_as_a_kernel_takes_as_long():
    """examples/headline_programs/matmul.py, line by line."""
    m = k = n = 1024
    rows, columns, group, block = 128, 512, 4, 4
    blocks = k // (block * rows)

    def kernel(x_hbm, y_hbm, o_hbm, x, y, psum, staged):
        @pl.loop(0, m // (group * rows))
        def _(i):
            @pl.loop(0, k // (block * rows))
            def _(b):
                slots = pl.ds((i % 2 * blocks + b) * block, block)
                pltrn.dma_copy(x.at[slots], x_hbm.at[i, b], engine="dma:sync")

            @pl.loop(0, n // columns)
            def _(j):
                @pl.loop(0, k // (block * rows))
                def _(b):
                    number = (i * (n // columns) + j) * (k // (block * rows)) + b
                    slots = pl.ds(number % 4 * block, block)
                    pltrn.dma_copy(y.at[slots], y_hbm.at[b, j], engine="dma:sync")
                    for tile in range(block):
                        for row in range(group):
                            pltrn.nc_matmul(
                                psum.at[(j % 2) * group + row],
                                x.at[
                                    (i % 2 * blocks + b) * block + tile, :, pl.ds(row * rows, rows)
                                ],
                                y.at[number % 4 * block + tile],
                                accumulate=(b > 0) | (tile > 0),
                            )

                for row in range(group):
                    slot = (j % 2) * group + row
                    if row % 2:
                        pltrn.tensor_copy(staged.at[slot], psum.at[slot])
                    else:
                        pltrn.activation(staged.at[slot], psum.at[slot], op="copy")
                for row in range(group):
                    place = o_hbm.at[
                        pl.ds((i * group + row) * rows, rows), pl.ds(j * columns, columns)
                    ]
                    pltrn.dma_copy(place, staged.at[(j % 2) * group + row], engine="dma:scalar")

    def call(x, y):
        return pl.pallas_call(
            kernel,
            in_specs=[HBM, HBM],
            out_specs=HBM,
            out_shape=shape(m, n),
            scratch_shapes=[
                pltrn.SBUF((2 * k // rows, rows, group * rows), BF16),
                pltrn.SBUF((4 * block, rows, columns), BF16),
                pltrn.PSUM((2 * group, rows, columns), F32),
                pltrn.SBUF((2 * group, rows, columns), BF16),
            ],
        )(x, y)

    args = (
        shape(m // (group * rows), blocks, block, rows, group * rows),
        shape(blocks, n // columns, block, rows, columns),
    )
    own, by_hand = timeline_of(call, *args), simulate(matmul_by_hand(m, k, n))
    assert own.num_instructions == pytest.approx(by_hand.num_instructions, rel=0.02)
    assert own.active_ps == pytest.approx(by_hand.active_ps, rel=0.1)


def test_the_librarys_softmax_is_near_the_program_by_hand():
    from pallas_trn3.kernels.softmax import softmax

    kernel = timeline_of(softmax, shape(2048, 2048))
    by_hand = simulate(softmax_by_hand(2048, 2048, "vector", "hbm"))
    assert kernel.active_ps < 1.5 * by_hand.active_ps


def test_every_instruction_knows_its_line_and_tiles():
    timeline = timeline_of(matmul, shape(512, 512), shape(512, 512))
    for instruction in timeline.instructions:
        assert instruction.name in TABLE
        assert instruction.origin.line > 0
        assert all(
            access.tile.address for _, access in instruction.operands if access.memory != "hbm"
        )
