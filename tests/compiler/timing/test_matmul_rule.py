"""Products: laws (roofline, conservation, monotone), and how near to the best the programs are."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timing_products import FIRST, LAST, PLAIN, check_laws, dot, group_of, run, seconds, tensors

from jax_trn3.compiler.timing.graph import Operation, Tensor
from jax_trn3.compiler.timing.group import Group
from jax_trn3.compiler.timing.rules import RULES
from jax_trn3.hardware import TRAINIUM1, TRAINIUM2, TRAINIUM3

CHIPS = pytest.mark.parametrize("chip", [TRAINIUM1, TRAINIUM2, TRAINIUM3], ids=lambda c: c.name)
BATCHED = ((2,), (1,)), ((0,), (0,))
ATTENTION = ((3,), (3,)), ((0, 2), (0, 2))


def plan_of(group, chip):
    return RULES["matmul"](group, chip)


# Measured here: the share of the roofline that each reaches on Trainium3.
TARGETS = [
    ((4096, 4096), (4096, 4096), PLAIN, 0.95),
    ((4096, 4096), (4096, 4096), LAST, 0.95),
    ((4096, 4096), (4096, 4096), FIRST, 0.95),
    ((1, 8192), (8192, 28672), PLAIN, 0.95),
    ((8, 8192), (28672, 8192), LAST, 0.85),
    ((1024, 1024), (1024, 1024), PLAIN, 0.65),
    ((100_000, 512), (512, 512), PLAIN, 0.95),
    ((64, 512, 128), (64, 128, 512), BATCHED, 0.55),
]


@pytest.mark.parametrize(("lhs", "rhs", "numbers", "target"), TARGETS)
def test_bfloat16_is_near_the_roofline(lhs, rhs, numbers, target):
    group = dot(lhs, rhs, numbers)
    plan = plan_of(group, TRAINIUM3)
    assert check_laws(group, plan, TRAINIUM3, "bfloat16") >= target


@CHIPS
@pytest.mark.parametrize("dtype", ["bf16", "f32", "f8E4M3FN", "i8", "complex<f32>", "f64"])
def test_every_type_runs_and_keeps_the_laws(chip, dtype):
    group = dot((200, 300), (300, 130), dtype=dtype, result="f32" if dtype[0] == "f" else dtype)
    plan = plan_of(group, chip)
    kind = {"f32": "float32", "f64": "float32", "complex<f32>": "float32"}.get(dtype, "bfloat16")
    if dtype == "f8E4M3FN":
        kind = "float8_double_row" if chip.core.generation >= 3 else "float8"
    check_laws(group, plan, chip, kind, padded=0.45)
    assert bool(plan.lacks) == (dtype in ("i8", "complex<f32>", "f64"))


def test_types_that_the_tensor_engine_takes_faster():
    times = {
        dtype: seconds(plan_of(dot((2048, 2048), (2048, 2048), dtype=dtype), TRAINIUM3), TRAINIUM3)
        for dtype in ("f32", "bf16", "f8E4M3FN")
    }
    assert times["f32"] > 3.5 * times["bf16"]
    assert times["bf16"] > 1.7 * times["f8E4M3FN"]


def test_an_algorithm_of_the_program_counts():
    group = dot((1024, 1024), (1024, 1024), dtype="f32")
    (op,) = group.operations
    named = Operation(
        op.kind, op.operands, op.results,
        {**op.attributes, "algorithm": {"lhs_precision_type": "tf32", "rhs_precision_type": "tf32"}},
    )  # fmt: skip
    fast = Group("matmul", (named,), group.inputs, group.outputs)
    slow = seconds(plan_of(group, TRAINIUM3), TRAINIUM3)
    assert slow > 2 * seconds(plan_of(fast, TRAINIUM3), TRAINIUM3)


SIZES = st.sampled_from([1, 2, 3, 64, 100, 128, 129, 300, 512, 513, 1000, 1536])


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    m=SIZES, k=SIZES, n=SIZES, layout=st.sampled_from([PLAIN, LAST, FIRST]),
    chip=st.sampled_from([TRAINIUM1, TRAINIUM2, TRAINIUM3]),
    dtype=st.sampled_from(["bf16", "f32", "f8E4M3FN"]),
)  # fmt: skip
def test_any_size_keeps_the_laws(m, k, n, layout, chip, dtype):
    lhs = (k, m) if layout is FIRST else (m, k)
    rhs = (n, k) if layout is LAST else (k, n)
    group = dot(lhs, rhs, layout, dtype, result="f32")
    kind = {"bf16": "bfloat16", "f32": "float32"}.get(dtype, "float8")
    if kind == "float8" and chip.core.generation >= 3:
        kind = "float8_double_row"
    check_laws(group, plan_of(group, chip), chip, kind)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(m=SIZES, k=SIZES, n=SIZES, which=st.integers(0, 2))
def test_four_times_as_much_takes_longer(m, k, n, which):
    sizes, more = [m, k, n], [m, k, n]
    more[which] *= 4
    times = [
        seconds(plan_of(dot((a, b), (b, c)), TRAINIUM3), TRAINIUM3) for a, b, c in (sizes, more)
    ]
    assert times[1] >= times[0] - 0.6e-6  # at 3 us another layout counts more than another size


@CHIPS
def test_batches_run_and_keep_the_laws(chip):
    for lhs, rhs, numbers in (
        ((16, 100, 64), (16, 64, 200), BATCHED),
        ((2, 256, 4, 64), (2, 128, 4, 64), ATTENTION),
        ((3,), (3,), (((0,), (0,)), ((), ()))),
        ((4, 5), (4, 5), (((), ()), ((0, 1), (0, 1)))),
    ):
        group = dot(lhs, rhs, numbers)
        check_laws(group, plan_of(group, chip), chip, "bfloat16")


def test_no_elements_and_nothing_to_sum():
    for lhs, rhs in (((0, 4), (4, 3)), ((2, 0), (0, 3))):
        group = dot(lhs, rhs)
        plan = plan_of(group, TRAINIUM3)
        assert plan.flops == 0
        run(plan, TRAINIUM3)


def test_what_is_fused_behind_is_not_free():
    """Bias and gelu ride along where the tensor engine has work for longer, and read their operands."""
    plain = dot((2048, 4096), (4096, 2048))
    (product,) = plain.operations
    (out,) = product.results
    bias, added, final = (
        Tensor(7, (2048,), "bf16"),
        Tensor(8, out.shape, "bf16"),
        Tensor(9, out.shape, "bf16"),
    )
    add = Operation("stablehlo.add", (out, bias), (added,), {"repeats": (1, 0)})
    act = Operation("stablehlo.tanh", (added,), (final,))
    fused = Group("matmul", (product, add, act), (*plain.inputs, bias), (final,))
    one, other = (plan_of(g, TRAINIUM3) for g in (plain, fused))
    assert other.flops == one.flops + 2 * out.size
    times = [seconds(p, TRAINIUM3) for p in (one, other)]
    assert times[0] <= times[1] < 1.1 * times[0]
    engines = run(other, TRAINIUM3).engines
    assert engines["core0/scalar"].busy > 0
    assert engines["core0/vector"].busy > 0


def test_a_sigmoid_spelt_out_is_one_function():
    """x * 1 / (1 + exp(-x)) of the product, times another array: as swiglu lowers."""
    plain = dot((2048, 4096), (4096, 2048))
    (product,) = plain.operations
    (x,) = product.results
    values = [Tensor(10 + n, x.shape, "bf16") for n in range(6)]
    one, gate = Tensor(20, (), "bf16"), Tensor(21, x.shape, "bf16")
    kinds = ("negate", "exponential", "add", "divide", "multiply", "multiply")
    operands = [(x,), values[:1], (one, values[1]), (one, values[2]), (x, values[3])]
    operands.append((gate, values[4]))
    behind = [
        Operation(f"stablehlo.{kind}", tuple(of), (value,))
        for kind, of, value in zip(kinds, operands, values)
    ]
    fused = Group("matmul", (product, *behind), (*plain.inputs, gate), (values[-1],))
    plan = plan_of(fused, TRAINIUM3)
    timeline = run(plan, TRAINIUM3)
    functions = [i.get("op") for i in timeline.instructions if i.name == "activation"]
    assert "sigmoid" in functions
    assert "exp" not in functions
    assert seconds(plan, TRAINIUM3) < 1.1 * seconds(plan_of(plain, TRAINIUM3), TRAINIUM3)
    moved = timeline.hbm_read_bytes * plan.repeat
    assert moved >= sum(t.bytes for t in fused.inputs)


def mx(m, k, n, formats=("mxfp8_e4m3", "mxfp8_e4m3"), packed=(False, False), block=32, kind=None):
    stored = {"mxfp8_e4m3": "f8E4M3FN", "mxfp4_e2m1": "f4E2M1FN"}
    types = [stored[f] if p else "bf16" for f, p in zip(formats, packed)]
    operands = list(tensors(((m, k), types[0]), ((k, n), types[1])))
    shapes = [(m, k // 32), (k // 32, n)]
    operands += [Tensor(5 + i, shapes[i], "f8E8M0FNU") for i in range(2) if packed[i]]
    attributes = {
        "dimension_numbers": "(((1,), (0,)), ((), ()))", "block_size": block,
        "lhs_format": formats[0], "rhs_format": formats[1],
        "lhs_is_mx": packed[0], "rhs_is_mx": packed[1],
    }  # fmt: skip
    return group_of(
        kind or "trn3.mx_dot_general", operands, (Tensor(3, (m, n), "bf16"),), attributes
    )


def test_mx_operands_are_multiplied_at_four_times_the_rate():
    group = mx(4096, 4096, 4096, packed=(True, True))
    assert check_laws(group, plan_of(group, TRAINIUM3), TRAINIUM3, "mx") >= 0.85


def test_quantizing_on_the_way_costs_less_than_bfloat16():
    group = mx(4096, 4096, 4096)
    time_ = seconds(plan_of(group, TRAINIUM3), TRAINIUM3)
    assert check_laws(group, plan_of(group, TRAINIUM3), TRAINIUM3, "mx") >= 0.5
    assert time_ < 0.6 * seconds(plan_of(dot((4096, 4096), (4096, 4096)), TRAINIUM3), TRAINIUM3)
    work = run(plan_of(group, TRAINIUM3), TRAINIUM3)
    assert any(i.name == "quantize_mx" for i in work.instructions)


def test_small_formats_halve_the_weights_of_a_decoder():
    formats = ("mxfp8_e4m3", "mxfp4_e2m1")
    eight = mx(8, 8192, 8192, packed=(False, True))
    four = mx(8, 8192, 8192, formats, packed=(False, True))
    times = [seconds(plan_of(g, TRAINIUM3), TRAINIUM3) for g in (eight, four)]
    assert times[1] < 0.75 * times[0]


@CHIPS
def test_mx_anywhere(chip):
    for group in (mx(100, 200, 70), mx(1, 64, 3, packed=(False, True)), mx(64, 96, 64, block=16)):
        plan = plan_of(group, chip)
        run(plan, chip)
        assert bool(plan.lacks) == (
            chip is not TRAINIUM3 or group.operations[0].attributes["block_size"] != 32
        )


@CHIPS
def test_block_scaled_and_sparse_products(chip):
    numbers = "(((1,), (0,)), ((), ()))"
    operands = tensors(
        ((256, 512), "f8E4M3FN"), ((512, 256), "f8E4M3FN"),
        ((256, 16), "f8E8M0FNU"), ((16, 256), "f8E8M0FNU"), ((256, 256), "f32"),
    )  # fmt: skip
    scaled = group_of(
        "trn3.scaled_dot", operands[:4], operands[4:], {"dimension_numbers": numbers},
        "trn3.scaled_dot",
    )  # fmt: skip
    plan = RULES["trn3.scaled_dot"](scaled, chip)
    run(plan, chip)
    assert bool(plan.lacks) == (chip is not TRAINIUM3)
    operands = tensors(
        ((1024, 4096), "bf16"), ((1024, 1024), "bf16"), ((1024, 1024), "ui8"),
        ((1024, 1024), "bf16"),
    )  # fmt: skip
    attributes = {
        "dimension_numbers": numbers, "sparse_operand": "rhs", "pattern": "4:16", "axis": -2,
        "size": 4096,
    }  # fmt: skip
    sparse = group_of(
        "trn3.sparse_dot_general", operands[:3], operands[3:], attributes,
        "trn3.sparse_dot_general",
    )  # fmt: skip
    plan = RULES["trn3.sparse_dot_general"](sparse, chip)
    dense = seconds(plan_of(dot((1024, 4096), (4096, 1024)), chip), chip)
    assert plan.flops == 2 * 1024 * 1024 * 4096
    assert plan.lacks
    assert seconds(plan, chip) < dense if chip.core.generation >= 3 else seconds(plan, chip) > dense


@pytest.mark.parametrize(
    "sizes", [(8192, 8192, 8192), (16384, 8192, 3584), (1, 8192, 28672), (4096, 4096, 4096)]
)
def test_planning_and_simulating_is_quick(sizes):
    m, k, n = sizes
    group = dot((m, k), (k, n))
    best = 9.0
    for _ in range(3):
        start = time.perf_counter()
        run(plan_of(group, TRAINIUM3), TRAINIUM3)
        best = min(best, time.perf_counter() - start)
    assert best < 0.5  # about 0.04 s on an idle machine


def test_a_group_without_a_product_is_refused():
    (x,) = tensors(((4,), "f32"))
    with pytest.raises(ValueError, match="dot_general"):
        RULES["matmul"](group_of("stablehlo.add", (x, x), (x,), {}), TRAINIUM3)
