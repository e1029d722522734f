"""ScalarE's instructions: meaning against float64, accumulators, limits, cost."""

import numpy as np
import pytest
from isa_cases import CORES, V2, V3, V4, float64, hbm, problems, psum, run, sbuf, values

from jax_trn3.isa.scalar import activate2, activation, activation_reduce

STATE = "scalar.accumulators"


def test_activation_is_the_function_of_data_scaled_and_shifted():
    data, column = sbuf(96, 5, 7), sbuf(96, 1, dtype="bfloat16")
    instruction = activation(psum(96, 35, dtype="bfloat16"), data, column, sbuf(96, 1), op="tanh")
    for core in CORES:
        assert problems(instruction, core) == ""
    x, b, s = values(data, 1), values(column, 2), values(sbuf(96, 1), 3)
    want = np.tanh(float64(x).reshape(96, 35) * float64(s) + float64(b))
    got = run(instruction, {"data": x, "bias": b, "scale": s})["dst"]
    assert got.dtype == "bfloat16"
    np.testing.assert_allclose(float64(got), want, rtol=2**-8, atol=1e-6)


def test_activation_takes_numbers_and_leaves_out_what_is_not_given():
    x = values(sbuf(4, 6))
    for given, want in (
        ({}, x),
        ({"bias": 2.0}, x + 2),
        ({"scale": 3.0}, 3 * x),
        ({"bias": 2.0, "scale": 3.0}, 3 * x + 2),
    ):
        instruction = activation(sbuf(4, 6), sbuf(4, 6), op="copy", **given)
        got = run(instruction, {"data": x})["dst"]
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_activation_reads_integers_as_float32_and_writes_them_rounded():
    data = sbuf(2, 3, dtype="int32")
    instruction = activation(sbuf(2, 3, dtype="int8"), data, op="copy", scale=0.5)
    x = np.array([[1, 3, 5], [-1, 1000, -1000]], np.int32)
    got = run(instruction, {"data": x})["dst"]
    assert got.tolist() == [[0, 2, 2], [0, 127, -128]]


def test_accumulators_live_from_instruction_to_instruction():
    def step(command, arrays, result=None, **params):
        tile = sbuf(8, 4, start=32)
        reduces = None if command in ("idle", "reset") else "add"
        instruction = activation(
            sbuf(8, 4, start=32), tile, reduce_res=result, op="square", reduce_cmd=command,
            reduce_op=reduces, **params,
        )  # fmt: skip
        assert problems(instruction) == ""
        return run(instruction, arrays | {"data": np.full((8, 4), 2, np.float32)})

    first = step("reset_reduce", {})
    assert first[STATE].shape == (128,)
    assert (first[STATE][32:40] == 16).all()
    assert (first[STATE][:32] == 0).all()
    second = step("reduce", first, sbuf(8, 1, start=32))
    assert (second["reduce_res"] == 32).all()
    assert (second["dst"] == 4).all()
    assert (step("idle", second, sbuf(8, 1, start=32))["reduce_res"] == 32).all()
    assert (step("reset", second)[STATE][32:40] == 0).all()
    with pytest.raises(ValueError, match="nothing has reset"):
        step("reduce", {})
    with pytest.raises(ValueError, match="nothing was reduced"):
        step("idle", {}, sbuf(8, 1, start=32))


def test_activation_reduce_sums_the_results():
    instruction = activation_reduce(
        sbuf(16, 50, dtype="float16"),
        sbuf(16, 50),
        sbuf(16, 1),
        op="exp",
        reduce_op="add",
        scale=0.1,
    )
    x = values(instruction["data"])
    found = run(instruction, {"data": x})
    want = np.exp(float64(x) * np.float64(np.float32(0.1)))
    np.testing.assert_allclose(float64(found["dst"]), want, rtol=2**-10)
    np.testing.assert_allclose(found["reduce_res"], want.sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(found[STATE][:16], want.sum(1), rtol=1e-5)


def test_activation_reduce_needs_reduce_op():
    with pytest.raises(TypeError, match="activation_reduce needs reduce_op"):
        activation_reduce(sbuf(4, 4), sbuf(4, 4), sbuf(4, 1), op="exp")


@pytest.mark.parametrize(
    ("op0", "op1", "reverse", "want"),
    [
        ("multiply", "add", (False, False), lambda x, a, b: x * a + b),
        ("multiply", "subtract", (False, False), lambda x, a, b: x * a - b),
        ("multiply", "subtract", (False, True), lambda x, a, b: b - x * a),
        ("multiply", "bypass", (False, False), lambda x, a, b: x * a),
        ("add", "bypass", (False, False), lambda x, a, b: x + a),
        ("subtract", "bypass", (False, False), lambda x, a, b: x - a),
        ("subtract", "bypass", (True, False), lambda x, a, b: a - x),
        ("bypass", "bypass", (False, False), lambda x, a, b: x),
    ],
)
def test_activate2_has_two_stages_before_the_function(op0, op1, reverse, want):
    instruction = activate2(
        sbuf(8, 9), sbuf(8, 9), 0.75, sbuf(8, 1), op="relu", op0=op0, op1=op1,
        reverse0=reverse[0], reverse1=reverse[1],
    )  # fmt: skip
    assert problems(instruction) == ""
    x, b = values(sbuf(8, 9), 1), values(sbuf(8, 1), 2)
    got = run(instruction, {"data": x, "imm1": b})["dst"]
    np.testing.assert_allclose(got, np.maximum(want(float64(x), 0.75, float64(b)), 0), atol=1e-6)


@pytest.mark.parametrize(
    ("op", "want"),
    [
        ("add", lambda y: y.sum(1)),
        ("maximum", lambda y: y.max(1)),
        ("minimum", lambda y: y.min(1)),
        ("abs_max", lambda y: np.take_along_axis(y, np.abs(y).argmax(1)[:, None], 1)[:, 0]),
        ("abs_min", lambda y: np.take_along_axis(y, np.abs(y).argmin(1)[:, None], 1)[:, 0]),
    ],
)
def test_activate2_reduces_with_five_operations(op, want):
    instruction = activate2(
        sbuf(8, 21), sbuf(8, 21), reduce_res=psum(8, 1), op="prelu", relu_param=0.25, op0="bypass",
        op1="bypass", reduce_op=op, reduce_cmd="reset_reduce",
    )  # fmt: skip
    assert problems(instruction) == ""
    x = values(sbuf(8, 21))
    y = np.where(x >= 0, x, 0.25 * x).astype(np.float64)
    got = run(instruction, {"data": x})["reduce_res"]
    np.testing.assert_allclose(got[:, 0], want(y), rtol=1e-5)


def test_gathered_data_and_scattered_result():
    """Offset i of a group of 16 partitions is index[i % 16, i // 16]."""
    data, index = sbuf(32, 50), sbuf(32, 2, dtype="uint16")
    dst = sbuf(32, 60)
    instruction = activation(dst, data, op="copy", data_index=index, dst_index=index)
    assert problems(instruction) == ""
    x, before = values(data, 1), values(dst, 2)
    where = np.stack([np.random.default_rng(g).permutation(50)[:32] for g in range(2)])
    tile = where.reshape(2, 2, 16).transpose(0, 2, 1).reshape(32, 2).astype(np.uint16)
    want = before.copy()
    for p in range(32):
        want[p, where[p // 16]] = x[p, where[p // 16]]
    arrays = {"data": x, "data_index": tile, "dst_index": tile}
    np.testing.assert_array_equal(run(instruction, arrays, before)["dst"], want)
    with pytest.raises(ValueError, match="scatters to dst: what is there"):
        run(instruction, arrays)


COPY = {"op": "copy"}


@pytest.mark.parametrize(
    ("core", "instruction", "words"),
    [
        (V4, activation(sbuf(8, 4), sbuf(8, 5), **COPY), "dst has 8 partitions of 4 elements, data"),
        (V4, activation(sbuf(8, 4), sbuf(4, 4), **COPY), "data has 4 of 4"),
        (V2, activation(sbuf(8, 4), sbuf(8, 4), bias=1.0, **COPY), "before NeuronCore-v3 it must be"),
        (V4, activation(sbuf(8, 4), sbuf(8, 4), sbuf(8, 2), **COPY), "allowed: 8 of 1"),
        (V4, activation(sbuf(8, 4), sbuf(8, 4), sbuf(8, 1, dtype="tfloat32"), **COPY), "tfloat32"),
        (
            V4,
            activation(sbuf(8, 4), sbuf(8, 4), None, sbuf(8, 1, dtype="bfloat16"), **COPY),
            "scale = ",
        ),
        (V4, activation(sbuf(8, 4), sbuf(8, 4), op="cosh"), "op is 'cosh'; allowed: 'copy'"),
        (V4, activation(sbuf(8, 4), sbuf(8, 4), reduce_op="maximum", **COPY), "allowed: 'add'"),
        (V4, activation(sbuf(8, 4), sbuf(8, 4), reduce_cmd="load", **COPY), "reduce_cmd is 'load'"),
        (V4, activation(sbuf(8, 4), sbuf(8, 4), reduce_cmd="reduce", **COPY), "no reduce_op"),
        (V4, activation(sbuf(8, 4), sbuf(8, 4), reduce_op="add", **COPY), "use 'reset_reduce'"),
        (V4, activation(sbuf(8, 4), hbm(8, 4), **COPY), "must lie in sbuf or psum"),
        (V4, activation(sbuf(8, 4), sbuf(8, 4), engine="vector", **COPY), "vector does not run it"),
        (
            V4,
            activate2(sbuf(8, 4), sbuf(8, 4), 1.0, 1.0, op0="add", op1="add", **COPY),
            "(op0, op1) is ('add', 'add'); allowed: ('multiply', 'add')",
        ),
        (
            V4,
            activate2(sbuf(8, 4), sbuf(8, 4), op0="bypass", op1="bypass", reverse0=True, **COPY),
            "reverse0 needs an op0",
        ),
        (
            V4,
            activate2(sbuf(8, 4), sbuf(8, 4), sbuf(8, 1), sbuf(8, 1, dtype="bfloat16"),
                      op0="multiply", op1="add", **COPY),
            "imm0 is float32 and imm1 bfloat16",
        ),
        (
            V4,
            activate2(sbuf(8, 4), sbuf(8, 4), op0="multiply", op1="bypass", **COPY),
            "op0 is 'multiply', which needs imm0",
        ),
        (
            V3,
            activate2(sbuf(8, 4), sbuf(8, 4), op0="bypass", op1="bypass", **COPY),
            "NeuronCore-v4 is the first to have it",
        ),
        (
            V4,
            activation(psum(16, 4), sbuf(16, 4), dst_index=sbuf(16, 1, dtype="uint16"), **COPY),
            "scalar scatters in sbuf only",
        ),
    ],
)  # fmt: skip
def test_limits(core, instruction, words):
    assert words in problems(instruction, core)


@pytest.mark.parametrize("core", CORES, ids=lambda core: core.name)
def test_cost_is_an_element_a_cycle_and_64_to_read_the_sum(core):
    for n in (1, 64, 65, 2000):
        plain = activation(sbuf(128, n), sbuf(128, n), op="exp")
        summed = activation_reduce(
            sbuf(128, n), sbuf(128, n), sbuf(128, 1), op="exp", reduce_op="add"
        )
        assert activation.cost(plain, core).cycles == max(64, n) + core.scalar.start_cycles
        assert (
            activation_reduce.cost(summed, core).cycles
            == max(64, n) + 64 + core.scalar.start_cycles
        )
        assert activation.cost(plain, core).flops == 128 * n
