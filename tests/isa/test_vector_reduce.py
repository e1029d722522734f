"""Reductions and the accumulator registers: meaning against numpy, limits, cost by generation."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isa_tiles import CORES, cycles, floats, refused, run, tile, wide

from jax_trn3.isa.vector_reduce import (
    FP32_MIN,
    exponential,
    range_select,
    select_reduce,
    tensor_reduce,
    tensor_scalar_cumulative,
    tensor_scalar_reduce,
)

BF16 = ml_dtypes.bfloat16


# tensor_reduce


@pytest.mark.parametrize(("axis", "kept"), [(3, 12), (-1, 12), ((2, 3), 3), ((1, 2, 3), 1)])
@pytest.mark.parametrize("op", ["add", "maximum", "minimum", "subtract"])
def test_tensor_reduce(axis: int | tuple[int, ...], kept: int, op: str) -> None:
    x = floats(32, 3, 4, 5)
    expected = getattr(np, op).reduce(x.astype(np.float64).reshape(32, kept, -1), axis=2)
    result = run(tensor_reduce, dst=tile(32, kept), data=x, op=op, axis=axis)["dst"]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    negated = run(tensor_reduce, dst=tile(32, kept), data=x, op=op, axis=axis, negate=True)["dst"]
    np.testing.assert_array_equal(negated, -result)


def test_tensor_reduce_on_bits_and_with_kept_dimensions() -> None:
    x = np.random.default_rng(0).integers(0, 2**16, (8, 6)).astype(np.uint16)
    result = run(
        tensor_reduce,
        dst=tile(8, 1, dtype="uint16"),
        data=x,
        op="bitwise_xor",
        axis=1,
        keepdims=True,
    )
    np.testing.assert_array_equal(result["dst"], np.bitwise_xor.reduce(x, axis=1, keepdims=True))


def test_tensor_reduce_limits_and_cost() -> None:
    x, one = tile(32, 4, 250), tile(32, 1)
    refused(
        r"axis is 1 of 3 dimensions; allowed: \(1, 2\), \(2,\)",
        tensor_reduce,
        dst=one,
        data=x,
        op="add",
        axis=1,
    )
    refused(r"axis is \(0, 1, 2\) of 3", tensor_reduce, dst=one, data=x, op="add", axis=(0, 1, 2))
    refused(
        "dst has 32 partitions of 1 elements; data .* has 32 of 4",
        tensor_reduce,
        dst=one,
        data=x,
        op="add",
        axis=2,
    )
    refused(
        "op is 'power'; allowed: bitwise_and, ",
        tensor_reduce,
        dst=one,
        data=x,
        op="power",
        axis=(1, 2),
    )
    refused("op is 'abs_max'; allowed", tensor_reduce, dst=one, data=x, op="abs_max", axis=(1, 2))
    bits = tile(32, 1000, dtype="int32")
    refused(
        "negate goes with arithmetic",
        tensor_reduce,
        dst=tile(32, 1, dtype="int32"),
        data=bits,
        op="bitwise_or",
        axis=1,
        negate=True,
    )
    narrow, sum16 = tile(32, 1000, dtype="bfloat16"), tile(32, 1, dtype="bfloat16")
    for generation in CORES:
        assert cycles(tensor_reduce(one, x, op="add", axis=(1, 2)), generation) == 1000
        assert cycles(tensor_reduce(sum16, narrow, op="maximum", axis=1), generation) == 500
        assert cycles(tensor_reduce(sum16, narrow, op="minimum", axis=1), generation) == 1000
        assert cycles(tensor_reduce(one, narrow, op="add", axis=1), generation) == 1000


# tensor_scalar_reduce


@pytest.mark.parametrize("reduce_op", ["add", "multiply", "maximum", "minimum"])
def test_tensor_scalar_reduce(reduce_op: str) -> None:
    x, vector = floats(64, 3, 4), floats(64, 1, seed=1)
    result = run(
        tensor_scalar_reduce, dst=tile(64, 12), data=x, operand0=vector, reduce_res=tile(64, 1),
        op0="add", reduce_op=reduce_op,
    )  # fmt: skip
    expected = wide(x) + wide(vector)
    np.testing.assert_allclose(result["dst"], expected, rtol=1e-5, atol=1e-6)
    reduced = getattr(np, reduce_op).reduce(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(result["reduce_res"], reduced, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(result["state"])[:64], result["reduce_res"][:, 0])


@settings(max_examples=10)
@given(st.integers(0, 99), st.sampled_from(["add", "maximum"]), st.sampled_from([4, 6]))
def test_a_chain_of_reductions_is_one_over_all(seed: int, op: str, cut: int) -> None:
    x = np.random.default_rng(seed).integers(-9, 9, (32, 12)).astype(np.float32)
    common = {"op0": "multiply", "operand0": 2.0, "reduce_op": op}
    left, right = x[:, :cut].copy(), x[:, cut:].copy()
    first = run(tensor_scalar_reduce, dst=tile(32, cut), data=left, **common)
    assert set(first) == {"dst", "state"}
    second = run(
        tensor_scalar_reduce, dst=tile(32, 12 - cut), data=right, reduce_res=tile(32, 1), reduce_cmd="reduce",
        state=first["state"], **common,
    )  # fmt: skip
    whole = run(tensor_scalar_reduce, dst=tile(32, 12), data=x, reduce_res=tile(32, 1), **common)
    np.testing.assert_array_equal(second["reduce_res"], whole["reduce_res"])


def test_registers_load_a_value_and_negate_what_they_give() -> None:
    x, start = np.float32([[1, 2], [3, 4]]), np.float32([[10], [20]])
    common = {"data": x, "dst": tile(2, 2), "op0": "add", "operand0": 0.0, "reduce_op": "add"}
    result = run(
        tensor_scalar_reduce, **common, reduce_res=tile(2, 1), reduce_cmd="load_reduce",
        reduce_init=start, reduce_res_negate=True,
    )  # fmt: skip
    np.testing.assert_array_equal(result["reduce_res"], [[-13], [-27]])
    np.testing.assert_array_equal(np.asarray(result["state"])[:2], [13, 27])
    with pytest.raises(ValueError, match="goes on with accumulators that nothing has reset"):
        run(tensor_scalar_reduce, **common, reduce_cmd="reduce")


def test_tensor_scalar_reduce_limits_and_cost() -> None:
    x, one = tile(32, 1000), tile(32, 1)
    common = {"dst": x, "data": x, "operand0": 1.0, "op0": "add", "reduce_op": "add"}
    refused(
        "reduce_op is 'subtract'; allowed: add, multiply",
        tensor_scalar_reduce,
        **common | {"reduce_op": "subtract"},
    )
    refused("op0 is 'bitwise_or'", tensor_scalar_reduce, **common | {"op0": "bitwise_or"})
    refused("reverse0 is True; allowed: False", tensor_scalar_reduce, **common, reverse0=True)
    refused(
        "reduce_cmd is 'idle'; allowed: reset_reduce, reduce, load_reduce",
        tensor_scalar_reduce,
        **common,
        reduce_cmd="idle",
    )
    refused(
        "'load_reduce', which needs reduce_init",
        tensor_scalar_reduce,
        **common,
        reduce_cmd="load_reduce",
    )
    refused(
        "reduce_init is given, but reduce_cmd is 'reset_reduce'",
        tensor_scalar_reduce,
        **common,
        reduce_init=one,
    )
    refused(
        "reduce_res has 32 partitions of 2 elements; allowed: 32 of 1",
        tensor_scalar_reduce,
        **common,
        reduce_res=tile(32, 2),
    )
    for generation in CORES:
        assert cycles(tensor_scalar_reduce(**common, reduce_res=one), generation) == 1000 + 64
        assert cycles(tensor_scalar_reduce(**common), generation) == 1000


# tensor_scalar_cumulative


@pytest.mark.parametrize("op1", ["add", "subtract", "multiply", "maximum", "minimum"])
def test_tensor_scalar_cumulative_is_its_loop(op1: str) -> None:
    x = floats(16, 7)
    start = {
        "add": 0.0,
        "subtract": 0.0,
        "multiply": 1.0,
        "maximum": -math.inf,
        "minimum": math.inf,
    }
    register, expected = np.full(16, start[op1]), []
    for i in range(7):
        register = getattr(np, op1)(x[:, i].astype(np.float64) * 1.5, register)
        expected.append(register)
    result = run(
        tensor_scalar_cumulative, dst=tile(16, 7), src=x, imm0=1.5, op0="multiply", op1=op1
    )
    np.testing.assert_allclose(result["dst"], np.stack(expected, axis=1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(result["state"])[:16], result["dst"][:, -1])


def test_tensor_scalar_cumulative_goes_on_and_loads() -> None:
    x = np.float32([[1, 2, 3, 4]])
    common = {"op0": "add", "imm0": 0.0, "op1": "add"}
    first = run(tensor_scalar_cumulative, dst=tile(1, 2), src=x[:, :2].copy(), **common)
    second = run(
        tensor_scalar_cumulative,
        dst=tile(1, 2),
        src=x[:, 2:].copy(),
        state=first["state"],
        reduce_cmd="reduce",
        **common,
    )
    np.testing.assert_array_equal(second["dst"], [[6, 10]])
    loaded = run(
        tensor_scalar_cumulative,
        dst=tile(1, 4),
        src=x,
        imm1=100.0,
        reduce_cmd="load_reduce",
        **common,
    )
    np.testing.assert_array_equal(loaded["dst"], [[101, 103, 106, 110]])


def test_tensor_scalar_cumulative_limits_and_cost() -> None:
    x = tile(32, 1000)
    common = {"op0": "add", "imm0": 0.0, "op1": "add"}
    for dtype in ("int32", "uint32"):
        refused(
            f"has dtype {dtype}; allowed: ",
            tensor_scalar_cumulative,
            dst=x,
            src=tile(32, 1000, dtype=dtype),
            **common,
        )
    refused(
        "op1 is 'logical_or'; allowed: add, subtract, multiply, maximum, minimum",
        tensor_scalar_cumulative,
        dst=x,
        src=x,
        **common | {"op1": "logical_or"},
    )
    refused(
        "needs imm1", tensor_scalar_cumulative, dst=x, src=x, **common, reduce_cmd="load_reduce"
    )
    for generation in CORES:
        assert cycles(tensor_scalar_cumulative(x, x, **common), generation) == 1000


# exponential


def test_exponential_subtracts_a_maximum_and_sums() -> None:
    x = floats(64, 2, 10)
    largest = x.reshape(64, 20).max(axis=1, keepdims=True)
    result = run(
        exponential, dst=tile(64, 20, dtype="bfloat16"), src=x, max_value=largest, reduce_res=tile(64, 1),
        reduce_cmd="reset_reduce",
    )  # fmt: skip
    expected = np.exp(wide(x) - wide(largest))
    np.testing.assert_allclose(result["dst"].astype(np.float64), expected, rtol=2**-8)
    total = expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(result["reduce_res"], total, rtol=1e-6)
    after = run(
        exponential,
        dst=tile(64, 20),
        src=x,
        max_value=largest,
        reduce_res=tile(64, 1),
        reduce_cmd="reduce",
        state=result["state"],
    )
    np.testing.assert_allclose(after["reduce_res"], 2 * total, rtol=1e-6)


def test_exponential_alone_leaves_the_registers_unknown() -> None:
    x = floats(32, 4)
    result = run(exponential, dst=tile(32, 4), src=x)
    np.testing.assert_allclose(result["dst"], np.exp(wide(x)), rtol=1e-6)
    assert np.isnan(np.asarray(result["state"])[:32]).all()
    loaded = run(
        exponential,
        dst=tile(32, 4),
        src=x,
        reduce_res=tile(32, 1),
        reduce_cmd="load_reduce",
        reduce_init=5.0,
    )
    np.testing.assert_allclose(
        loaded["reduce_res"][:, 0], 5 + np.exp(wide(x)).sum(axis=1), rtol=1e-6
    )


def test_exponential_limits_and_cost() -> None:
    x, one = tile(128, 4096), tile(128, 1)
    refused("NeuronCore-v4 is the first to have it", exponential, 3, dst=x, src=x)
    refused(
        "reduce_res is given, but nothing is reduced: reduce_cmd is 'idle'",
        exponential,
        dst=x,
        src=x,
        reduce_res=one,
    )
    refused(
        "max_value = .* has dtype bfloat16; allowed: float32",
        exponential,
        dst=x,
        src=x,
        max_value=tile(128, 1, dtype="bfloat16"),
    )
    refused(
        "reduce_init is given, but reduce_cmd is 'idle'", exponential, dst=x, src=x, reduce_init=1.0
    )
    deep = tile(2, 2, 2, 2, 2)
    refused("dst of shape .* has 5 dimensions; allowed: 4", exponential, dst=deep, src=deep)
    assert cycles(exponential(x, x, reduce_init=0.0), 4) == 1024
    assert cycles(exponential(x, x, one, reduce_res=one, reduce_cmd="reset_reduce"), 4) == 1024 + 64


# select_reduce, range_select


@pytest.mark.parametrize("reverse", [False, True])
def test_select_reduce(reverse: bool) -> None:
    x, other = floats(32, 6, dtype=BF16), floats(32, 1, seed=1)
    predicate = np.random.default_rng(2).integers(0, 2, (32, 6)).astype(np.int8)
    wanted = (predicate == 0) if reverse else (predicate != 0)
    expected = np.where(wanted, x.astype(np.float32), other)
    result = run(
        select_reduce, dst=tile(32, 6), predicate=predicate, on_true=x, on_false=other,
        reduce_res=tile(32, 1), reduce_cmd="reset_reduce", reverse_pred=reverse,
    )  # fmt: skip
    np.testing.assert_array_equal(result["dst"], expected)
    np.testing.assert_array_equal(result["reduce_res"][:, 0], expected.max(axis=1))


def test_select_reduce_limits_and_cost() -> None:
    x, one = tile(32, 1000), tile(32, 1)
    predicate, psum = tile(32, 1000, dtype="uint8"), tile(32, 1000, memory="psum")
    common = {"dst": x, "predicate": predicate, "on_true": x, "on_false": 0.0}
    refused("reduce_op is 'add'; allowed: 'maximum'", select_reduce, **common, reduce_op="add")
    refused(
        "reduce_cmd is 'load_reduce'; allowed: idle, reset_reduce, reduce",
        select_reduce,
        **common,
        reduce_cmd="load_reduce",
    )
    refused(
        "on_true = .* has dtype int32",
        select_reduce,
        **common | {"on_true": tile(32, 1000, dtype="int32")},
    )
    refused(
        "predicate = .* has dtype uint32",
        select_reduce,
        **common | {"predicate": tile(32, 1000, dtype="uint32")},
    )
    in_psum = tile(32, 1000, dtype="uint8", memory="psum")
    refused(
        "on_true and predicate both lie in psum",
        select_reduce,
        **common | {"on_true": psum, "predicate": in_psum},
    )
    assert cycles(select_reduce(**common), 2) == 2000
    assert cycles(select_reduce(**common | {"on_true": psum}), 2) == 1000
    assert cycles(select_reduce(**common, reduce_res=one, reduce_cmd="reset_reduce"), 4) == 1064


@pytest.mark.parametrize(
    "ops", [("greater_equal", "less"), ("greater", "less_equal"), ("equal", "equal")]
)
def test_range_select(ops: tuple[str, str]) -> None:
    x = floats(32, 2, 8)
    low, high = np.full((32, 1), 103, np.float32), np.arange(100, 132, dtype=np.float32)[:, None]
    index = 100.0 + np.arange(16)[None, :]
    inside = getattr(np, ops[0])(index, low) & getattr(np, ops[1])(index, high)
    expected = np.where(inside, x.reshape(32, 16), np.float32(FP32_MIN))
    result = run(
        range_select, dst=tile(32, 16), on_true_tile=x, bound0=low, bound1=high, reduce_res=tile(32, 1),
        comp_op0=ops[0], comp_op1=ops[1], range_start=100,
    )  # fmt: skip
    np.testing.assert_array_equal(result["dst"], expected)
    np.testing.assert_array_equal(result["reduce_res"][:, 0], expected.max(axis=1))


def test_range_select_in_few_bits_is_minus_infinity() -> None:
    x, bound = floats(8, 4), np.full((8, 1), 99, np.float32)
    result = run(
        range_select, dst=tile(8, 4, dtype="bfloat16"), on_true_tile=x, bound0=bound, bound1=bound,
        reduce_res=tile(8, 1), comp_op0="equal", comp_op1="equal",
    )  # fmt: skip
    assert np.isneginf(result["dst"].astype(np.float32)).all()
    assert (result["reduce_res"] == np.float32(FP32_MIN)).all()


def test_range_select_limits_and_cost() -> None:
    x, one = tile(32, 1000), tile(32, 1)
    common = {
        "dst": x,
        "on_true_tile": x,
        "bound0": one,
        "bound1": one,
        "comp_op0": "less",
        "comp_op1": "less",
    }
    refused("NeuronCore-v3 is the first", range_select, 2, **common)
    refused(
        "comp_op0 is 'not_equal'; allowed: 'equal'",
        range_select,
        **common | {"comp_op0": "not_equal"},
    )
    refused(
        "indices 16777000 to 16777999; they must be integers below 16777216",
        range_select,
        **common,
        range_start=16777000,
    )
    refused("on_false_value is 0.0; it must be -3.40", range_select, **common, on_false_value=0.0)
    refused(
        "on_true_tile = .* has dtype int32",
        range_select,
        **common | {"on_true_tile": tile(32, 1000, dtype="int32")},
    )
    refused(
        "bound1 has 32 partitions of 2 elements", range_select, **common | {"bound1": tile(32, 2)}
    )
    for generation in (3, 4):
        assert cycles(range_select(**common, reduce_res=one), generation) == 1000
