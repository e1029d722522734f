"""Elementwise operations around a product: what is done to operands before, to results after."""

from dataclasses import dataclass

from jax_trn3.hardware import NeuronCore

from ..graph import Operation, Tensor
from ..group import Group
from .epilogue import Epilogue, Step
from .tiles import held_as

FREE = (
    "stablehlo.constant", "stablehlo.reshape", "stablehlo.broadcast_in_dim", "stablehlo.iota",
    "stablehlo.optimization_barrier", "stablehlo.broadcast",
)  # fmt: skip
"""Operations that ask nothing of an engine inside a group."""

CONVERTS = ("stablehlo.convert", "stablehlo.bitcast_convert", "stablehlo.reduce_precision")

_FUNCTIONS = {
    "stablehlo.tanh": "tanh", "stablehlo.exponential": "exp", "stablehlo.log": "log",
    "stablehlo.logistic": "sigmoid", "stablehlo.rsqrt": "rsqrt", "stablehlo.sqrt": "sqrt",
    "stablehlo.sine": "sin", "stablehlo.abs": "abs", "stablehlo.sign": "sign",
    "chlo.erf": "erf", "stablehlo.negate": "copy",
    "stablehlo.exponential_minus_one": "exp", "stablehlo.log_plus_one": "log",
}  # fmt: skip
"""What ScalarE has a function for."""

_ALU = {
    "stablehlo.add": "add", "stablehlo.subtract": "subtract", "stablehlo.multiply": "multiply",
    "stablehlo.maximum": "maximum", "stablehlo.minimum": "minimum", "stablehlo.compare": "greater",
    "stablehlo.and": "logical_and", "stablehlo.or": "logical_or", "stablehlo.xor": "logical_xor",
}  # fmt: skip

_PASSES = {
    "stablehlo.divide": 2, "stablehlo.select": 2, "stablehlo.clamp": 2, "stablehlo.power": 3,
    "stablehlo.cosine": 2, "stablehlo.cbrt": 3, "stablehlo.floor": 2, "stablehlo.ceil": 2,
    "chlo.erf_inv": 12, "stablehlo.tan": 4, "stablehlo.atan2": 6, "stablehlo.remainder": 4,
}  # fmt: skip
"""Instructions of operations that take several."""


@dataclass(frozen=True)
class Around:
    """What is fused around a product."""

    stored: tuple[str, str]
    """StableHLO types in which the operands lie in HBM."""

    passes: tuple[int, int]
    """Elementwise operations on each of them."""

    epilogue: Epilogue
    flops: int
    assumptions: tuple[str, ...] = ()


def around(group: Group, dot: Operation, core: NeuronCore) -> Around:
    """What the group does beside its product."""
    made = {result.id: op for op in group.operations for result in op.results}
    before = [_before(x, made, group) for x in dot.operands[:2]]
    steps, flops = _after(group, dot, core)
    outputs = {x.id for x in group.outputs}
    result = held_as((group.outputs or dot.results)[-1].dtype, core)
    plain = dot.results[0]
    also = held_as(plain.dtype, core) if steps and plain.id in outputs else ""
    if steps:
        result = steps[-1].dtype
    epilogue = Epilogue(result, tuple(steps), also)
    return Around(
        (before[0][0], before[1][0]), (before[0][1], before[1][1]), epilogue,
        flops + sum(n for *_, n in before),
    )  # fmt: skip


def _before(operand: Tensor, made: dict[int, Operation], group: Group) -> tuple[str, int, int]:
    """(type in HBM, passes over it, operations) of what makes an operand inside the group."""
    passes, flops, value = 0, 0, operand
    while value.id in made:
        op = made[value.id]
        if op.kind not in FREE and op.kind not in CONVERTS:
            passes += _PASSES.get(op.kind, 1)
            flops += value.size
        if not op.operands:
            break
        value = max(op.operands, key=lambda x: (x.id in made, x.size))
    return value.dtype, passes, flops


def _after(group: Group, dot: Operation, core: NeuronCore) -> tuple[list[Step], int]:
    """The operations on the result, one after another."""
    known = {x.id for x in dot.results}
    outputs = {x.id for x in group.outputs}
    own = {result.id for op in group.operations for result in op.results}
    shape = dot.results[0].shape
    seen = False
    steps: list[Step] = []
    flops = 0
    for op in group.operations:
        seen = seen or op is dot
        if op is dot or not seen or not any(x.id in known for x in op.operands):
            continue
        known |= {x.id for x in op.results}
        (result,) = op.results[:1]
        last = result.id in outputs
        if op.kind in FREE or op.kind in CONVERTS:
            if steps and not steps[-1].kept:
                steps[-1] = _as(steps[-1], held_as(result.dtype, core), last and _more(op, group))
            continue
        others = [x for x in op.operands if x.id not in known and x.size > 1]
        steps.append(_step(op, others, own, group, shape, last and _more(op, group), core))
        flops += result.size
    return steps, flops


def _as(step: Step, dtype: str, kept: bool) -> Step:
    return Step(step.engine, step.op, dtype, step.other, step.along, step.passes, kept)


def _more(op: Operation, group: Group) -> bool:
    """Whether later operations of the group use the results."""
    ids = {x.id for x in op.results}
    return any(x.id in ids for later in group.operations for x in later.operands)


def _step(
    op: Operation,
    others: list[Tensor],
    own: set[int],
    group: Group,
    shape: tuple[int, ...],
    kept: bool,
    core: NeuronCore,
) -> Step:
    dtype = held_as(op.results[0].dtype, core)
    passes = _PASSES.get(op.kind, 1)
    source = _source(others[0], group, own) if others else None
    if source is not None and source.size > 1:
        along = _along(others[0], source, shape)
        operation = _ALU.get(op.kind, "multiply")
        return Step("vector", operation, dtype, held_as(source.dtype, core), along, passes, kept)
    if op.kind in _FUNCTIONS:
        return Step("scalar", _FUNCTIONS[op.kind], dtype, passes=passes, kept=kept)
    operation = _ALU.get(op.kind, "multiply")
    if operation.startswith("logical"):
        operation = "multiply"
    return Step("vector", operation, dtype, passes=passes, kept=kept)


def _source(value: Tensor, group: Group, own: set[int]) -> Tensor:
    """What an operand is a broadcast of."""
    made = {result.id: op for op in group.operations for result in op.results}
    while value.id in own and made[value.id].operands:
        value = max(made[value.id].operands, key=lambda x: x.size)
    return value


def _along(operand: Tensor, source: Tensor, shape: tuple[int, ...]) -> str:
    """Whether it has an element for each of the result's, for each column, or for each row."""
    if source.size >= operand.size:
        return "all"
    return "columns" if shape and source.shape and source.shape[-1] == shape[-1] else "rows"
