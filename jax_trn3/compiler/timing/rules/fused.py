"""Elementwise operations around a product: what is done to operands before, to results after."""

from dataclasses import dataclass, replace

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
        steps[-1] = replace(steps[-1], kept=False)
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
    """The other operations of the group, one after another."""
    own = {result.id for op in group.operations for result in op.results}
    outputs = {x.id for x in group.outputs}
    used = {x.id for op in group.operations for x in op.operands}
    before = _ancestors(dot, group)
    steps: list[Step] = []
    flops = 0
    sigmoids = _sigmoids(group)
    for op in group.operations:
        if op is dot or id(op) in before or op.kind in FREE or not op.results:
            continue
        if id(op) in sigmoids:
            flops += op.results[0].size
            if sigmoids[id(op)]:
                dtype = held_as(op.results[0].dtype, core)
                steps.append(Step("scalar", "sigmoid", dtype))
            continue
        result = op.results[0]
        kept = result.id in outputs and result.id in used
        dtype = held_as(result.dtype, core)
        if op.kind in CONVERTS and steps and not steps[-1].kept:
            steps[-1] = replace(steps[-1], dtype=dtype, kept=kept)
            continue
        if op.kind in CONVERTS and not (kept or steps):
            continue
        flops += result.size * (op.kind not in CONVERTS)
        steps += _steps(op, own, dot, dtype, kept, core)
    return steps, flops


_SIGMOID = ("stablehlo.negate", "stablehlo.exponential", "stablehlo.add", "stablehlo.divide")


def _sigmoids(group: Group) -> dict[int, bool]:
    """Operations that spell 1 / (1 + exp(-x)) out, which is one of ScalarE's functions; True for
    the last of them."""
    used = {x.id: op for op in group.operations for x in op.operands}
    outputs = {x.id for x in group.outputs}
    found: dict[int, bool] = {}
    for op in group.operations:
        chain = [op]
        while len(chain) < len(_SIGMOID) and chain[-1].results[0].id in used:
            if chain[-1].results[0].id in outputs:
                break
            chain.append(used[chain[-1].results[0].id])
        if tuple(link.kind for link in chain) == _SIGMOID:
            found |= {id(link): link is chain[-1] for link in chain}
    return found


def _ancestors(dot: Operation, group: Group) -> set[int]:
    """Operations of the group that make the product's operands."""
    made = {result.id: op for op in group.operations for result in op.results}
    pending, found = list(dot.operands), set()
    while pending:
        op = made.get(pending.pop().id)
        if op is not None and id(op) not in found:
            found.add(id(op))
            pending += op.operands
    return found


def _steps(
    op: Operation, own: set[int], dot: Operation, dtype: str, kept: bool, core: NeuronCore
) -> list[Step]:
    """One operation: an instruction for each operand from HBM, or for what it is."""
    passes = _PASSES.get(op.kind, 1)
    repeats = tuple(op.attributes.get("repeats", ())) or (None,) * len(op.operands)
    operation = _ALU.get(op.kind, "multiply")
    outside = [
        (x, repeat)
        for x, repeat in zip(op.operands, repeats)
        if x.id not in own and x.size > 1 and x.dtype != "token"
    ]
    if outside:
        return [
            Step(
                "vector", operation, dtype, held_as(x.dtype, core),
                _along(x, repeat, op.results[0]), 1 if number else passes,
                kept and number == len(outside) - 1,
            )
            for number, (x, repeat) in enumerate(outside)
        ]  # fmt: skip
    inside = [x for x in op.operands if x.id in own and x.size == op.results[0].size]
    if len(inside) > 1:
        return [Step("vector", operation, dtype, "", "own", passes, kept)]
    if op.kind in _FUNCTIONS:
        return [Step("scalar", _FUNCTIONS[op.kind], dtype, passes=passes, kept=kept)]
    if op.kind in CONVERTS:
        return [Step("scalar", "copy", dtype, kept=kept)]
    if operation.startswith("logical"):
        operation = "multiply"
    return [Step("vector", operation, dtype, passes=passes, kept=kept)]


def _along(operand: Tensor, repeat: int | None, result: Tensor) -> str:
    """Whether it has an element for each of the result's, for each column, or for each row."""
    if operand.size >= result.size:
        return "all"
    if repeat is not None:
        return "rows" if repeat else "columns"
    return "columns" if operand.shape[-1:] == result.shape[-1:] else "rows"
