"""What moves: as many bytes as there are to move, never faster than HBM, more never sooner."""

import time

import jax
import jax.numpy as jnp
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from jax_trn3.compiler.timing.fusion import groups
from jax_trn3.compiler.timing.graph import Body, Operation, Tensor
from jax_trn3.compiler.timing.group import Group
from jax_trn3.compiler.timing.read import device_program
from jax_trn3.compiler.timing.rules import RULES
from jax_trn3.hardware import TRAINIUM1, TRAINIUM2, TRAINIUM3
from jax_trn3.simulator import simulate

CHIPS = [TRAINIUM1, TRAINIUM2, TRAINIUM3]
F32, BF16, I32 = jnp.float32, jnp.bfloat16, jnp.int32


def struct(*shape, dtype=F32):
    return jax.ShapeDtypeStruct(shape, dtype)


def groups_of(fun, *shapes) -> list[Group]:
    traced = jax.jit(fun).trace(*shapes)
    module = traced.lower(lowering_platforms=("trn3",)).compiler_ir("stablehlo")
    return [g for g in groups(device_program(module).body) if isinstance(g, Group)]


def timed(group, chip=TRAINIUM3):
    plan = RULES[group.rule](group, chip)
    timeline = simulate(plan.program, chip, active_cores=chip.cores_per_stack)
    share = chip.hbm_stack_bandwidth_bytes_per_s / chip.cores_per_stack
    moved = timeline.hbm_read_bytes + timeline.hbm_write_bytes
    assert timeline.active_ps >= moved / share * 1e12
    return timeline, plan


def lone(kind, operands, result, **attributes) -> Group:
    operation = Operation(f"stablehlo.{kind}", tuple(operands), (result,), attributes)
    (group,) = groups(Body(tuple(operands), (operation,), (result,)))
    assert isinstance(group, Group)
    return group


def transposed(shape, order, dtype="bf16") -> Group:
    result = Tensor(1, tuple(shape[a] for a in order), dtype)
    return lone("transpose", (Tensor(0, shape, dtype),), result, permutation=order)


WHOLE = {
    # Everything that it reads and everything that it writes, once.
    "transpose": (lambda x: x.T, (struct(512, 384, dtype=BF16),)),
    "transpose of odd sizes": (lambda x: x.T, (struct(517, 1031),)),
    "transpose of bytes": (lambda x: x.T, (struct(256, 640, dtype=jnp.uint8),)),
    "heads": (lambda x: x.transpose(0, 2, 1, 3), (struct(2, 128, 8, 64, dtype=BF16),)),
    "concatenate": (lambda x, y: jnp.concatenate([x, y], 1), (struct(300, 512), struct(300, 70))),
    "concatenate short runs": (
        lambda x, y: jnp.stack([x, y], -1),
        (struct(300, 512), struct(300, 512)),
    ),
    "pad": (lambda x: jnp.pad(x, ((1, 2), (3, 4))), (struct(300, 512),)),
    "reverse rows": (lambda x: x[::-1], (struct(300, 512),)),
    "reverse elements": (lambda x: x[:, ::-1], (struct(300, 512),)),
    "pooling": (
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        (struct(2, 16, 16, 64),),
    ),
    "sort": (lambda x: jnp.sort(x, -1), (struct(256, 200),)),
    "top_k": (lambda x: lax.top_k(x, 8), (struct(256, 4000),)),
    "top_k of many": (lambda x: lax.top_k(x, 200), (struct(256, 400),)),
}


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
@pytest.mark.parametrize("name", WHOLE)
def test_each_byte_once(name, chip):
    fun, shapes = WHOLE[name]
    group = max(groups_of(fun, *shapes), key=lambda g: sum(t.bytes for t in g.inputs))
    timeline, _ = timed(group, chip)
    assert timeline.hbm_read_bytes == sum(t.bytes for t in group.inputs)
    assert timeline.hbm_write_bytes == sum(t.bytes for t in group.outputs)


def test_slices_move_what_they_take():
    x = Tensor(0, (512, 600), "f32")
    group = lone(
        "slice", (x,), Tensor(1, (512, 40), "f32"),
        start_indices=(0, 3), limit_indices=(512, 43), strides=(1, 1),
    )  # fmt: skip
    timeline, _ = timed(group)
    assert timeline.hbm_read_bytes == timeline.hbm_write_bytes == 512 * 40 * 4


def test_every_other_element_comes_by_way_of_sbuf():
    (group,) = groups_of(lambda x: x[:, ::2], struct(512, 1024))
    timeline, _ = timed(group)
    assert timeline.hbm_read_bytes == group.inputs[0].bytes


def test_updates_move_the_update():
    def update(x, u, i):
        return lax.dynamic_update_slice(x, u, (i, 0))

    shapes = struct(4096, 512), struct(16, 512), struct(dtype=I32)
    group = groups_of(update, *shapes)[-1]
    timeline, plan = timed(group)
    assert timeline.hbm_write_bytes == 16 * 512 * 4
    # Of a parameter that must stay, all of it.
    traced = jax.jit(update).trace(*shapes).lower(lowering_platforms=("trn3",))
    kept = groups(device_program(traced.compiler_ir("stablehlo")).body, donated=())[-1]
    timeline, plan = timed(kept)
    assert timeline.hbm_write_bytes == (4096 + 16) * 512 * 4
    assert plan.assumptions


def test_rows_of_a_table():
    (gather,) = [
        g
        for g in groups_of(
            lambda e, i: e[i], struct(32_000, 1024, dtype=BF16), struct(300, dtype=I32)
        )
        if g.rule == "gather"
    ]
    timeline, _ = timed(gather)
    assert timeline.hbm_write_bytes == 300 * 1024 * 2
    assert timeline.hbm_read_bytes == 300 * (1024 * 2 + 4)


def test_single_elements_are_slow():
    def seconds(rows, columns):
        table, places = Tensor(0, (50_000, columns), "f32"), Tensor(1, (rows, 1), "i32")
        group = lone(
            "gather", (table, places), Tensor(2, (rows, columns), "f32"), slice_sizes=(1, columns)
        )
        return timed(group)[0].active_ps

    # 64 times the bytes in not much more time.
    assert seconds(2048, 64) < 2 * seconds(2048, 1)


def test_rows_that_are_added_wait_for_each_other():
    shapes = struct(1000, 256), struct(512, dtype=I32), struct(512, 256)
    added = groups_of(lambda e, i, u: e.at[i].add(u), *shapes)
    written = groups_of(lambda e, i, u: e.at[i].set(u, unique_indices=True), *shapes)
    one, other = (next(g for g in gs if g.rule == "scatter") for gs in (added, written))
    assert timed(one)[0].active_ps > timed(other)[0].active_ps
    assert timed(one)[1].assumptions


@settings(max_examples=20)
@given(
    rows=st.integers(2, 700),
    columns=st.integers(2, 700),
    dtype=st.sampled_from(["bf16", "f32", "i8"]),
)
def test_transposes_of_any_size(rows, columns, dtype):
    small = timed(transposed((rows, columns), (1, 0), dtype))[0]
    large = timed(transposed((4 * rows, columns), (1, 0), dtype))[0]
    assert small.hbm_read_bytes == small.hbm_write_bytes
    assert large.active_ps >= small.active_ps


@settings(max_examples=10)
@given(shape=st.tuples(*[st.integers(1, 40)] * 4), order=st.permutations(range(4)))
def test_transposes_of_any_order(shape, order):
    moved = [axis for axis in order if shape[axis] > 1]
    assume(moved != sorted(moved))  # else nothing moves
    group = transposed(shape, tuple(order), "f32")
    timeline, _ = timed(group)
    assert timeline.hbm_write_bytes == group.outputs[0].bytes


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_running_sums_take_two_cycles_an_element(chip):
    x, y = (Tensor(n, (1024, 512), "f32") for n in range(2))
    group = lone("reduce_window", (x,), y, window_dimensions=(1, 512), padding=((0, 0), (511, 0)))
    timeline, _ = timed(group, chip)
    cycles = 2 * 8 * 512
    assert timeline.engines["core0/vector"].busy >= cycles / chip.core.vector.clock_hz * 1e12


@pytest.mark.parametrize("name", ["transpose", "concatenate", "top_k", "pad"])
def test_a_group_is_simulated_soon(name):
    fun, shapes = WHOLE[name]
    group = groups_of(fun, *shapes)[-1]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        timed(group)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.06
