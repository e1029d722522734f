"""Groups around one product, and what a plan's timeline must keep."""

from typing import Any

from jax_trn3.compiler.timing.graph import Operation, Tensor
from jax_trn3.compiler.timing.group import Group, Plan
from jax_trn3.hardware import Chip
from jax_trn3.simulator import Timeline, simulate

PLAIN = ((1,), (0,)), ((), ())
LAST = ((1,), (1,)), ((), ())
FIRST = ((0,), (0,)), ((), ())


def tensors(*specs: tuple[tuple[int, ...], str]) -> tuple[Tensor, ...]:
    return tuple(Tensor(number, shape, dtype) for number, (shape, dtype) in enumerate(specs))


def group_of(
    kind: str, operands: Any, results: Any, attributes: Any, rule: str = "matmul"
) -> Group:
    op = Operation(kind, tuple(operands), tuple(results), attributes)
    return Group(rule, (op,), tuple(operands), tuple(results))


def dot(
    lhs: tuple[int, ...],
    rhs: tuple[int, ...],
    numbers: Any = PLAIN,
    dtype: str = "bf16",
    rhs_dtype: str = "",
    result: str = "",
) -> Group:
    (left, right), (left_batch, right_batch) = numbers
    shape = (
        *(lhs[d] for d in left_batch),
        *(n for d, n in enumerate(lhs) if d not in (*left, *left_batch)),
        *(n for d, n in enumerate(rhs) if d not in (*right, *right_batch)),
    )
    a, b, out = tensors((lhs, dtype), (rhs, rhs_dtype or dtype), (shape, result or dtype))
    dimensions = {
        "lhs_batching_dimensions": left_batch,
        "rhs_batching_dimensions": right_batch,
        "lhs_contracting_dimensions": left,
        "rhs_contracting_dimensions": right,
    }
    attributes = {"dot_dimension_numbers": dimensions}
    return group_of("stablehlo.dot_general", (a, b), (out,), attributes)


def run(plan: Plan, chip: Chip) -> Timeline:
    return simulate(plan.program, chip, active_cores=chip.cores_per_stack)


def seconds(plan: Plan, chip: Chip) -> float:
    return run(plan, chip).active_ps * plan.repeat * 1e-12


def bytes_of(group: Group) -> int:
    return sum(x.bytes for x in (*group.inputs, *group.outputs))


def roofline(group: Group, plan: Plan, chip: Chip, kind: str) -> float:
    """At a core's share of HBM, or at what its DMA engines move with full packets."""
    share = chip.hbm_bandwidth_bytes_per_s / chip.num_cores
    bandwidth = float(min(share, chip.core.dma.practical_bytes_per_s))
    return max(plan.flops / chip.core.peak_flops(kind), bytes_of(group) / bandwidth)


def check_laws(group: Group, plan: Plan, chip: Chip, kind: str, padded: float = 1.0) -> float:
    """Never below the roofline; nothing is left out. Returns the share of the roofline reached.

    padded: the least share of the bytes that must be moved (operands that are smaller on the way).
    """
    timeline = run(plan, chip)
    time = timeline.active_ps * plan.repeat * 1e-12
    limit = roofline(group, plan, chip, kind)
    assert time >= limit * min(1.0, padded) * 0.999, (time, limit)
    assert timeline.flops * plan.repeat >= plan.flops * 0.999
    moved = (timeline.hbm_read_bytes + timeline.hbm_write_bytes) * plan.repeat
    assert moved >= bytes_of(group) * padded, (moved, bytes_of(group))
    return limit / time
