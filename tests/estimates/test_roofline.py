"""Estimates beside JAX's roofline: operations agree, and nothing is faster than the machine."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.roofline import Compared, cases, compared

PRODUCTS = (
    "matmul 2048^3",
    "matmul 8 x 4096 x 4096",
    "mlp 2048 x 2048 x 8192",
    "attention of jax.nn, 8 heads of 2048 x 128",
    "fused attention",
)
OTHERS = ("fused causal attention", "softmax 4096 x 4096", "x * y + x, 4096 x 4096")


@pytest.fixture(scope="module")
def found() -> dict[str, Compared]:
    return {case.name: compared(case) for case in cases() if case.name in (*PRODUCTS, *OTHERS)}


@pytest.mark.parametrize("name", [*PRODUCTS, *OTHERS])
def test_nothing_is_faster_than_the_machine(found, name):
    assert found[name].bound_s < found[name].time_s < 20 * found[name].bound_s


@pytest.mark.parametrize("name", PRODUCTS)
def test_operations_of_products_are_jax_s(found, name):
    line = found[name]
    assert line.roofline_flops <= line.flops <= 1.02 * line.roofline_flops


def test_a_mask_halves_the_operations(found):
    whole, half = found["fused attention"], found["fused causal attention"]
    assert half.flops == pytest.approx(whole.flops / 2, rel=0.01)


@pytest.mark.parametrize("name", [*PRODUCTS, *OTHERS])
def test_bytes_are_at_least_arguments_and_results(found, name):
    line = found[name]
    assert line.bytes >= line.least_bytes
    assert line.bytes <= line.unfused_bytes * 1.01
