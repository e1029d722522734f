"""Attention: the operation that trn3 has for it, and those that were found in a program."""

from dataclasses import replace

from jax_trn3.hardware import Chip
from jax_trn3.simulator import Node, program

from ..group import Group, Plan
from . import rule
from .attention_backward import backward
from .attention_kernel import Flash
from .attention_shape import LONGEST, Shape, lacks, of_operation, recognized
from .tiles import fits

_LONGEST = (LONGEST, 8192, 4096, 2048, 1024, 512)
"""Keys that may be treated at once."""


@rule("trn3.dot_product_attention")
def attention(group: Group, chip: Chip) -> Plan:
    """The forward operation, with the maxima and sums that derivatives need."""
    (operation,) = group.operations
    return forward(of_operation(operation), chip, operation.kind)


def forward(shape: Shape, chip: Chip, name: str) -> Plan:
    """The plan of softmax(scale * q @ k.T) @ v."""
    kernel, body = _fitting(shape, chip)
    flops = 2 * shape.products * (shape.features + shape.value_features)
    said = [
        f"attention {shape.queries} x {shape.keys}: groups of {shape.rows} queries against "
        f"{shape.tile} keys at a time"
    ]
    if shape.causal or shape.window is not None:
        said.append("tiles of keys that no query of a group sees are left out")
    return Plan(program(name, body), kernel.repeat, flops, tuple(said), lacks(shape, chip))


def _fitting(shape: Shape, chip: Chip) -> tuple[Flash, list[Node]]:
    """The kernel with as many keys at once as SBUF holds; keys that nobody sees are left out."""
    if shape.causal or shape.window is not None:
        right = 0 if shape.causal or shape.window is None else max(0, shape.window[1])
        shape = replace(shape, keys=max(1, min(shape.keys, shape.queries + right)))
    for longest in _LONGEST:
        kernel = Flash(replace(shape, longest=longest), chip)
        body = kernel.program()
        if fits(body, chip) or longest == _LONGEST[-1]:
            break
    return kernel, body


@rule("trn3.recognized_attention")
def recognized_attention(group: Group, chip: Chip) -> Plan:
    """An attention that the compiler found in the program, one level of it."""
    (operation,) = group.operations
    shape = recognized(operation)
    if operation.attributes.get("pass") == "backward":
        return backward(shape, chip, operation.kind, ("query", "key", "value"))
    return forward(shape, chip, operation.kind)
