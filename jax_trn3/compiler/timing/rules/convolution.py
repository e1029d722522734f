"""Convolutions: products whose one operand is gathered from the input by DMA (im2col).

Contracted are taps of the kernel and input features; a place of the output is a row (features last)
or a column. Where input features fill the partitions, a tile of the input stays in SBUF for all
taps, which read it shifted. Few features a group (depthwise): VectorE, a tap at a time.
"""

import ast
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jax_trn3.hardware import Chip
from jax_trn3.isa import Index, Instruction, Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.vector import scalar_tensor_tensor, tensor_scalar
from jax_trn3.simulator import loop, program

from ..graph import Operation
from ..group import Group, Plan
from . import rule
from .dimensions import Layout
from .matmul import OTHERS, arithmetic, planned
from .mx import mx_arithmetic
from .tiles import ROWS, ceil_div, held_as, size

_FEW = 16
"""Products a tap below which VectorE does a group's."""


@dataclass(frozen=True)
class Window:
    """A convolution by sizes."""

    batch: int
    inputs: int
    """Input features of a group."""

    outputs: int
    """Output features of a group."""

    groups: int
    taps: int
    """Of the kernel that meet an element of the input, not a zero of its dilation."""

    places: int
    """Of the output, of one of the batch."""

    row: int
    """Elements of the output's last spatial dimension."""

    stride: int
    """Of the last spatial dimension."""

    features_last: bool
    """Whether features are the last dimension of the output in memory."""

    input_features_last: bool


def window_of(operation: Operation) -> Window:
    """The sizes of a convolution: StableHLO's, or of our own operations."""
    attributes = operation.attributes
    lhs, rhs = operation.operands[:2]
    (out,) = operation.results
    batch, feature, space, kernel_in, kernel_out, kernel_space, out_feature, out_space = _axes(
        attributes["dimension_numbers"]
    )
    groups = int(attributes.get("feature_group_count", 1))
    batches = int(attributes.get("batch_group_count", 1))
    spread = _numbers(attributes.get("lhs_dilation")) or (1,) * len(space)
    strides = _numbers(attributes.get("window_strides")) or (1,) * len(space)
    kernel = [rhs.shape[d] for d in kernel_space]
    both = groups * batches
    return Window(
        batch=lhs.shape[batch] // batches,
        inputs=rhs.shape[kernel_in],
        outputs=rhs.shape[kernel_out] // both,
        groups=both,
        taps=math.prod(ceil_div(k, s) for k, s in zip(kernel, spread)),
        places=size([out.shape[d] for d in out_space]),
        row=out.shape[out_space[-1]] if out_space else 1,
        stride=strides[-1] if strides else 1,
        features_last=out_feature == len(out.shape) - 1,
        input_features_last=feature == len(lhs.shape) - 1,
    )


_SPEC = re.compile(r"spec=\(([\d, ]+)\)")


def _axes(numbers: Any) -> tuple[Any, ...]:
    if isinstance(numbers, Mapping):
        names = (
            "input_batch_dimension", "input_feature_dimension", "input_spatial_dimensions",
            "kernel_input_feature_dimension", "kernel_output_feature_dimension",
            "kernel_spatial_dimensions", "output_feature_dimension", "output_spatial_dimensions",
        )  # fmt: skip
        return tuple(numbers[name] for name in names)
    lhs, rhs, out = (tuple(map(int, spec.split(","))) for spec in _SPEC.findall(str(numbers)))
    return lhs[0], lhs[1], lhs[2:], rhs[1], rhs[0], rhs[2:], out[1], out[2:]


def _numbers(value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        value = ast.literal_eval(value)
    return tuple(int(n) for n in value) if value is not None else ()


def convolution(group: Group, operation: Operation, chip: Chip) -> Plan:
    """A convolution, with what is fused behind it."""
    window = window_of(operation)
    if window.groups > 1 and window.inputs * window.outputs < _FEW:
        return _depthwise(group, operation, window, chip)
    places, contracted = window.batch * window.places, window.inputs * window.taps
    # A row of the output comes from a row of the input; with strides, from all of it.
    reuse = window.taps if window.inputs >= ROWS // 2 else 1
    if window.input_features_last:
        run, turned = window.inputs, True
    else:
        run, turned = window.row * window.stride, False
    image = Layout(window.groups, contracted, places, run, turned, thin=window.stride, reuse=reuse)
    kernel = Layout(window.groups, contracted, window.outputs, window.outputs, False)
    if "format" in operation.attributes:
        name = str(operation.attributes["format"])
        how = mx_arithmetic([name, name], (False, False), 32, chip.core)
    else:
        how = arithmetic(operation, contracted, chip.core)
    if not window.features_last:
        lhs, rhs = operation.operands[:2]
        swapped = Operation(
            operation.kind, (rhs, lhs), operation.results, operation.attributes, (),
            operation.source,
        )  # fmt: skip
        operations = tuple(swapped if op is operation else op for op in group.operations)
        group = Group(group.rule, operations, group.inputs, group.outputs)
        plan = planned(group, swapped, (kernel, image), how.exchanged(), chip)
    else:
        plan = planned(group, operation, (image, kernel), how, chip)
    said = (
        f"convolution as a product of {places} places, {contracted} taps and features and "
        f"{window.outputs} features in {window.groups} groups, gathered by DMA"
    )
    return Plan(plan.program, plan.repeat, plan.flops, (said, *plan.assumptions), plan.lacks)


def _depthwise(group: Group, operation: Operation, window: Window, chip: Chip) -> Plan:
    """Features on partitions, a tap at a time: out = input * weight + out."""
    core = chip.core
    lhs, (out,) = operation.operands[0], operation.results
    stored, result = held_as(lhs.dtype, core), held_as(out.dtype, core)
    features = min(ROWS, window.groups * window.outputs)
    columns = ceil_div(window.places, ceil_div(window.places, 2048))
    spans = ceil_div(window.places, columns)
    elements = ceil_div(lhs.size, window.batch * window.groups * window.inputs)
    halo = max(columns * window.stride, ceil_div(elements, spans))
    x = Tile("input", "sbuf", (features, halo), stored, 4)
    sums = Tile("sums", "sbuf", (features, columns), "float32", 4)
    weights = Tile("weights", "sbuf", (features, window.inputs * window.taps), "float32", 2)
    kernel = Tile("weights in hbm", "hbm", weights.shape, "float32", given=True)
    written = Tile("output", "sbuf", (features, columns), result, 4)
    source = Tile("input in hbm", "hbm", (features, 2 * halo), stored, given=True)
    far = Tile("output in hbm", "hbm", (features, 2 * columns), result)
    rest = [op for op in group.operations if op is not operation]

    def block(index: Index) -> Iterable[Instruction]:
        yield dma_copy(x[index], source[:, 0:halo], engine="dma:sync")
        yield dma_copy(weights[index], kernel[0], engine="dma:gpsimd")
        places = x[index][:, 0 : columns * window.stride : window.stride]
        for number in range(window.inputs * window.taps):
            weight = weights[index][:, number : number + 1]
            if number == 0:
                yield tensor_scalar(sums[index], places, weight, op0="multiply", engine="vector")
            else:
                yield scalar_tensor_tensor(
                    sums[index], places, weight, sums[index], op0="multiply", op1="add"
                )
        for _ in range(len(rest)):
            yield tensor_scalar(sums[index], sums[index], 1.0, op0="multiply", engine="vector")
        yield tensor_scalar(written[index], sums[index], 1.0, op0="multiply", engine="vector")
        yield dma_copy(far[:, 0:columns], written[index], engine="dma:scalar")

    blocks = window.batch * ceil_div(window.groups * window.outputs, features)
    blocks *= spans
    flops = 2 * out.size * window.inputs * window.taps
    said = "a convolution of few features a group: on VectorE, a tap at a time"
    return Plan(program("depthwise convolution", [loop(blocks, block)]), 1, flops, (said,))


_KINDS = (
    "stablehlo.convolution", "stablehlo.dynamic_conv", "trn3.bf16_conv_general_dilated",
    "trn3.mx_conv_general_dilated",
)  # fmt: skip
for _kind in _KINDS:
    OTHERS[_kind] = convolution


@rule("convolution")
@rule("trn3.bf16_conv_general_dilated")
@rule("trn3.mx_conv_general_dilated")
def convolution_rule(group: Group, chip: Chip) -> Plan:
    """A group around one convolution."""
    operation = next(op for op in group.operations if op.kind in _KINDS)
    return convolution(group, operation, chip)
