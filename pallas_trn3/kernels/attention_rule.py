"""The library's flash kernel as the compiler's plan of attention, where it is the better one.

Importing this enters the rule; the platform does when a program is first timed. Estimates of
`trn3.dot_product_attention` then take the kernel's time where every query sees every key; elsewhere
(causal, windows, biases, masks, ...) the compiler's own plan stays. `uninstall()` brings that back
everywhere.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from jax_trn3.compiler.timing import cost
from jax_trn3.compiler.timing.group import Group, Plan
from jax_trn3.compiler.timing.rules import RULES, Rule
from jax_trn3.compiler.timing.rules.attention import attention as own
from jax_trn3.compiler.timing.rules.attention_shape import Shape, of_operation
from jax_trn3.hardware import Chip

from ..timing import kernel_of_function, program_of
from .flash_attention import forward
from .flash_kernel import ROWS, TILE

NAME = "trn3.dot_product_attention"

_DTYPES = {"bf16": jnp.bfloat16, "f16": jnp.float16}


def install() -> None:
    """Enters the rule in place of the compiler's own."""
    RULES[NAME] = attention
    cost._timed.cache_clear()  # of plans that were made before


def uninstall() -> None:
    """The compiler's own again."""
    RULES[NAME] = own
    cost._timed.cache_clear()


def suits(shape: Shape, chip: Chip) -> bool:
    """Whether the kernel is better than the compiler's own plan: all see all, and enough of both
    that its pipeline fills."""
    special = (
        shape.causal, shape.window is not None, shape.cap, bool(shape.bias), shape.mask,
        shape.sinks, shape.mx,
    )  # fmt: skip
    narrow = max(shape.features, shape.value_features) <= ROWS
    long = shape.queries >= 4 * ROWS and shape.keys >= 4 * TILE
    new = chip.core.generation >= 3
    return new and not any(special) and shape.dtype in _DTYPES and narrow and long


def attention(group: Group, chip: Chip) -> Plan:
    """The kernel's plan, or the compiler's own."""
    (operation,) = group.operations
    shape = of_operation(operation)
    return _plan(shape, chip) if suits(shape, chip) else own(group, chip)


@functools.lru_cache(maxsize=256)
def _plan(shape: Shape, chip: Chip) -> Plan:
    """A kernel is traced once for each shape and chip."""
    heads = shape.heads * shape.group
    dtype = _DTYPES[shape.dtype]
    arrays = [
        jax.ShapeDtypeStruct((1, n, rows, features), dtype)
        for n, rows, features in (
            (heads, shape.queries, shape.features),
            (shape.heads, shape.keys, shape.features),
            (shape.heads, shape.keys, shape.value_features),
        )
    ]
    function = functools.partial(
        forward, scale=1 / math.sqrt(shape.features), causal=False, window=None, chip=chip,
        choices=None, residuals=True,
    )  # fmt: skip
    timed = program_of(kernel_of_function(function, *arrays), chip)
    flops = 2 * shape.products * (shape.features + shape.value_features)
    said = (f"attention {shape.queries} x {shape.keys}: pallas_trn3.kernels.flash_attention",)
    return Plan(timed.program, 1, flops, said)


_: Rule = attention
install()
