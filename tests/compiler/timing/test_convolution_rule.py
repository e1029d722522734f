"""Convolutions: laws on every chip, and that dimensions, strides and groups are read right."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from timing_products import check_laws, run, seconds

from jax_trn3.compiler.timing.graph import Operation, Tensor
from jax_trn3.compiler.timing.group import Group
from jax_trn3.compiler.timing.rules import RULES
from jax_trn3.compiler.timing.rules.convolution import window_of
from jax_trn3.hardware import TRAINIUM1, TRAINIUM2, TRAINIUM3

CHIPS = pytest.mark.parametrize("chip", [TRAINIUM1, TRAINIUM2, TRAINIUM3], ids=lambda c: c.name)
_AXES = {"N": "batch", "C": "feature", "I": "input_feature", "O": "output_feature"}


def convolution(
    lhs, rhs, layout=("NCHW", "OIHW", "NCHW"), strides=(1, 1), padding=((1, 1), (1, 1)),
    groups=1, batches=1, spread=(1, 1), dtype="bf16", kind="stablehlo.convolution",
):  # fmt: skip
    """A group of one convolution, its result's shape by JAX."""
    numbers = lax.conv_dimension_numbers(lhs, rhs, layout)
    arguments = {
        "window_strides": strides, "padding": padding, "lhs_dilation": spread,
        "dimension_numbers": numbers, "feature_group_count": groups, "batch_group_count": batches,
    }  # fmt: skip
    shapes = [jax.ShapeDtypeStruct(x, jnp.float32) for x in (lhs, rhs)]
    out = jax.eval_shape(lambda x, w: lax.conv_general_dilated(x, w, **arguments), *shapes).shape
    if kind.startswith("trn3."):
        attributes = {name: str(value) for name, value in arguments.items()}
        attributes |= {"feature_group_count": groups, "batch_group_count": batches}
    else:
        x, w, y = numbers
        attributes = arguments | {
            "dimension_numbers": {
                "input_batch_dimension": x[0], "input_feature_dimension": x[1],
                "input_spatial_dimensions": x[2:], "kernel_output_feature_dimension": w[0],
                "kernel_input_feature_dimension": w[1], "kernel_spatial_dimensions": w[2:],
                "output_batch_dimension": y[0], "output_feature_dimension": y[1],
                "output_spatial_dimensions": y[2:],
            }
        }  # fmt: skip
    tensors = [Tensor(i, x, dtype) for i, x in enumerate((lhs, rhs, out))]
    op = Operation(kind, tuple(tensors[:2]), tuple(tensors[2:]), attributes)
    return Group("matmul", (op,), op.operands, op.results)


NHWC = ("NHWC", "HWIO", "NHWC")
CASES = {
    "plain": convolution((2, 64, 28, 28), (64, 64, 3, 3)),
    "features last": convolution((2, 28, 28, 64), (3, 3, 64, 64), NHWC),
    "pointwise": convolution((2, 14, 14, 256), (1, 1, 256, 64), NHWC, padding="VALID"),
    "strided, few features": convolution((1, 3, 64, 64), (32, 3, 7, 7), strides=(2, 2)),
    "grouped": convolution((2, 64, 14, 14), (64, 16, 3, 3), groups=4),
    "depthwise": convolution((2, 96, 28, 28), (96, 1, 7, 7), groups=96),
    "of a gradient": convolution((4, 8, 14, 14), (32, 8, 3, 3), batches=2),
    "transposed": convolution((2, 64, 14, 14), (32, 64, 4, 4), spread=(2, 2)),
    "float32": convolution((2, 16, 14, 14), (16, 16, 3, 3), dtype="f32"),
    "one element": convolution((1, 1, 1, 1), (1, 1, 1, 1), padding="VALID"),
    "sequence": convolution(
        (2, 64, 100), (64, 64, 5), ("NCW", "OIW", "NCW"), (1,), ((2, 2),), spread=(1,)
    ),
}


@CHIPS
@pytest.mark.parametrize("name", CASES)
def test_laws(name, chip):
    group = CASES[name]
    plan = RULES["matmul"](group, chip)
    dtype = group.inputs[0].dtype
    check_laws(group, plan, chip, "float32" if dtype == "f32" else "bfloat16")


def test_sizes_are_read_right():
    (op,) = CASES["strided, few features"].operations
    window = window_of(op)
    assert (window.taps, window.inputs, window.outputs, window.stride) == (49, 3, 32, 2)
    (op,) = CASES["of a gradient"].operations
    window = window_of(op)
    assert (window.groups, window.batch, window.outputs) == (2, 2, 16)
    (op,) = CASES["transposed"].operations
    assert window_of(op).taps == 4


def test_flops_are_the_mathematical_ones():
    for name, taps in (("plain", 64 * 9), ("grouped", 16 * 9), ("depthwise", 49)):
        group = CASES[name]
        plan = RULES["matmul"](group, TRAINIUM3)
        assert plan.flops == 2 * group.outputs[0].size * taps


def test_utilization():
    """Many features fill the array: on Trainium3 more than half of its peak."""
    group = convolution((8, 512, 14, 14), (512, 512, 3, 3))
    plan = RULES["matmul"](group, TRAINIUM3)
    assert check_laws(group, plan, TRAINIUM3, "bfloat16") > 0.5


def test_time_grows_with_the_work():
    small, large = (
        seconds(RULES["matmul"](convolution((n, 64, 28, 28), (64, 64, 3, 3)), TRAINIUM3), TRAINIUM3)
        for n in (2, 8)
    )
    assert large > 1.5 * small


@CHIPS
def test_convolutions_of_our_own(chip):
    for kind in ("trn3.bf16_conv_general_dilated", "trn3.mx_conv_general_dilated"):
        group = convolution((2, 64, 14, 14), (64, 64, 3, 3), dtype="f32", kind=kind)
        (op,) = group.operations
        attributes = op.attributes | ({"format": "mxfp8_e4m3"} if "mx" in kind else {})
        op = Operation(kind, op.operands, op.results, attributes)
        plan = RULES[kind](Group(kind, (op,), op.operands, op.results), chip)
        run(plan, chip)
        assert bool(plan.lacks) == ("mx" in kind and chip is not TRAINIUM3)
