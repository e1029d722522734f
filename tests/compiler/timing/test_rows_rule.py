"""Groups of rows: never below the roofline, as many bytes as there are, as fast as by hand."""

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.headline_programs.softmax import softmax
from examples.headline_programs.streams import vector_add
from jax_trn3.compiler.timing.fusion import groups
from jax_trn3.compiler.timing.graph import Body, Operation, Tensor
from jax_trn3.compiler.timing.group import Group
from jax_trn3.compiler.timing.kinds import ELEMENTWISE
from jax_trn3.compiler.timing.rules import RULES
from jax_trn3.compiler.timing.rules.elementwise import RECIPES, recipe
from jax_trn3.hardware import TRAINIUM1, TRAINIUM2, TRAINIUM3
from jax_trn3.isa.alu import ACTIVATIONS, ALU_OPS
from jax_trn3.simulator import Timeline, simulate

CHIPS = [TRAINIUM1, TRAINIUM2, TRAINIUM3]
SUM = Body((), (Operation("stablehlo.add", (), ()),), ())
LARGEST = Body((), (Operation("stablehlo.maximum", (), ()),), ())


def op(kind, operands, result, regions=(), **attributes):
    return Operation(f"stablehlo.{kind}", tuple(operands), (result,), attributes, regions)


def only(body: Body) -> Group:
    (group,) = groups(body)
    assert isinstance(group, Group)
    return group


def pointwise(kind, shape, dtype="f32", operands=2):
    values = [Tensor(n, shape, dtype) for n in range(operands + 1)]
    return only(Body(tuple(values[:-1]), (op(kind, values[:-1], values[-1]),), (values[-1],)))


def softmax_of(rows, columns, dtype="bf16"):
    full = [Tensor(n, (rows, columns), dtype) for n in range(6)]
    row = [Tensor(10 + n, (rows,), dtype) for n in range(2)]
    number = Tensor(20, (), dtype)
    wide = [Tensor(30 + n, (rows, columns), dtype) for n in range(2)]
    operations = (
        op("constant", (), number),
        op("reduce", (full[0], number), row[0], (LARGEST,), dimensions=(1,)),
        op("broadcast_in_dim", (row[0],), wide[0], broadcast_dimensions=(0,)),
        op("subtract", (full[0], wide[0]), full[1]),
        op("exponential", (full[1],), full[2]),
        op("reduce", (full[2], number), row[1], (SUM,), dimensions=(1,)),
        op("broadcast_in_dim", (row[1],), wide[1], broadcast_dimensions=(0,)),
        op("divide", (full[2], wide[1]), full[3]),
    )
    return only(Body((full[0],), operations, (full[3],)))


def reduced(shape, axes, dtype="f32"):
    number = Tensor(9, (), dtype)
    left = tuple(n for a, n in enumerate(shape) if a not in axes)
    before, after = Tensor(0, shape, dtype), Tensor(1, left, dtype)
    reduce = op("reduce", (before, number), after, (SUM,), dimensions=tuple(axes))
    return only(Body((before,), (op("constant", (), number), reduce), (after,)))


def timed(group: Group, chip) -> Timeline:
    """Of a group by its rule, held against what must hold for all of them."""
    plan = RULES[group.rule](group, chip)
    timeline = simulate(plan.program, chip, active_cores=chip.cores_per_stack)
    assert plan.repeat == 1
    read, written = (sum(t.bytes for t in ts) for ts in (group.inputs, group.outputs))
    assert (timeline.hbm_read_bytes, timeline.hbm_write_bytes) == (read, written)
    share = chip.hbm_stack_bandwidth_bytes_per_s / chip.cores_per_stack
    assert timeline.active_ps >= (read + written) / share * 1e12
    return timeline


GROUPS = {
    "a sum": pointwise("add", (1024, 512)),
    "a function": pointwise("exponential", (1000, 333), "bf16", 1),
    "a number of elements that is prime": pointwise("tanh", (104_729,), "f32", 1),
    "one element": pointwise("sine", (), "f32", 1),
    "a few": pointwise("multiply", (7,), "bf16"),
    "integers": pointwise("xor", (4096, 16), "ui32"),
    "booleans": pointwise("and", (4096, 16), "i1"),
    "bytes": pointwise("subtract", (300, 70), "i8"),
    "power": pointwise("power", (512, 64)),
    "selection": only(
        Body(
            tuple(
                p := (Tensor(0, (256, 96), "i1"), *(Tensor(n, (256, 96), "f32") for n in (1, 2)))
            ),
            (op("select", p, r := Tensor(3, (256, 96), "f32")),),
            (r,),
        )
    ),
    "softmax": softmax_of(1024, 512),
    "softmax of short rows": softmax_of(4096, 8, "f32"),
    "softmax of odd rows": softmax_of(321, 77, "f32"),
    "softmax of long rows": softmax_of(64, 32_768, "f32"),
    "sums of rows": reduced((1024, 256), (1,)),
    "sums of columns": reduced((4096, 512), (0,)),
    "sums in the middle": reduced((8, 512, 256), (1,)),
    "the sum of all": reduced((1024, 640), (0, 1)),
    "sums of all but the middle": reduced((16, 64, 128), (0, 2)),
}


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
@pytest.mark.parametrize("name", GROUPS)
def test_bytes_and_roofline(name, chip):
    timed(GROUPS[name], chip)


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
@pytest.mark.parametrize("kind", sorted(ELEMENTWISE))
def test_every_elementwise_operation_runs(kind, chip):
    operands = 3 if kind.endswith(("select", "clamp")) else 2
    dtypes = ["i1" if kind.endswith("select") else "f32", "f32", "f32"]
    values = [Tensor(n, (300, 40), dtype) for n, dtype in enumerate(dtypes[:operands])]
    result = Tensor(9, (300, 40), "f32")
    group = only(Body(tuple(values), (Operation(kind, tuple(values), (result,)),), (result,)))
    plan = RULES["rows"](group, chip)
    timeline = simulate(plan.program, chip)
    assert timeline.hbm_write_bytes == result.bytes
    assert timeline.num_instructions > 2


def test_recipes_name_what_engines_have():
    for kind in ELEMENTWISE:
        for place, (name, *operands) in enumerate(recipe(Operation(kind, (), ()))):
            assert name in {*ALU_OPS, *ACTIVATIONS, "select", "convert", "round"}, kind
            assert all(isinstance(o, float) or -place <= o <= 2 for o in operands), kind
    assert set(RECIPES) <= ELEMENTWISE


SIZES = st.integers(1, 3000)


@settings(max_examples=25)
@given(rows=SIZES, columns=st.integers(1, 700), more=st.integers(1, 500))
def test_more_rows_take_no_less_time(rows, columns, more):
    def time_of(count):
        return timed(pointwise("add", (count, columns)), TRAINIUM3).active_ps

    # What does not divide into equal tiles takes up to two small ones more, of a microsecond.
    spare = 2_000_000
    assert time_of(rows + more) >= 0.9 * time_of(rows) - spare
    assert time_of(4 * rows + 128) >= time_of(rows) - spare


@settings(max_examples=10)
@given(rows=st.integers(1, 600), columns=st.integers(2, 3000))
def test_softmax_of_any_size(rows, columns):
    timed(softmax_of(rows, columns, "f32"), TRAINIUM3)


@pytest.mark.parametrize("columns", [1024, 2048])
def test_softmax_as_fast_as_by_hand(columns):
    best = min(
        simulate(softmax(4096, columns, on, "hbm"), TRAINIUM3, active_cores=2).active_ps
        for on in ("vector", "scalar")
    )
    ours = timed(softmax_of(4096, columns), TRAINIUM3).active_ps
    assert ours == pytest.approx(best, rel=0.15)


def test_vector_add_as_fast_as_by_hand():
    by_hand = simulate(vector_add(64), TRAINIUM3, active_cores=2).active_ps
    ours = timed(pointwise("add", (64 * 128, 512)), TRAINIUM3).active_ps
    assert ours == pytest.approx(by_hand, rel=0.15)


@pytest.mark.parametrize("dtype", ["f64", "i64", "complex<f32>"])
def test_types_that_engines_lack_are_said(dtype):
    group = pointwise("multiply", (256, 64), dtype)
    plan = RULES["rows"](group, TRAINIUM3)
    assert dtype in plan.lacks
    timeline = simulate(plan.program, TRAINIUM3)
    assert timeline.hbm_write_bytes == group.outputs[0].bytes
    narrow = simulate(RULES["rows"](pointwise("multiply", (256, 64)), TRAINIUM3).program, TRAINIUM3)
    assert timeline.num_instructions > narrow.num_instructions


def test_loop_counters_stay_in_registers():
    before, after = Tensor(0, (), "i32"), Tensor(1, (), "i32")
    plan = RULES["rows"](
        only(Body((before,), (op("add", (before, before), after),), (after,))), TRAINIUM3
    )
    timeline = simulate(plan.program, TRAINIUM3)
    assert timeline.dma_bytes == 0 < timeline.active_ps
    assert "registers" in plan.assumptions[0]


@pytest.mark.parametrize("name", ["softmax", "sums of columns", "a sum"])
def test_a_group_is_simulated_soon(name):
    times = []
    for _ in range(3):
        start = time.perf_counter()
        plan = RULES["rows"](GROUPS[name], TRAINIUM3)
        simulate(plan.program, TRAINIUM3)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.06  # 10 ms on a quiet machine


def test_flops_are_the_results():
    plan = RULES["rows"](GROUPS["softmax"], TRAINIUM3)
    elements = 1024 * 512
    assert plan.flops == math.prod((5, elements))
