"""What a group of operations costs: its instruction program, simulated once."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jax_trn3.hardware import Topology
from jax_trn3.simulator import DoesNotFit, Timeline, simulate

from .graph import Body, Operation, Tensor
from .group import Group, Plan
from .rules import AUTHORED, RULES


@dataclass(frozen=True)
class Cost:
    """What one device needs for something. Costs add up, and multiply by whole numbers."""

    time_ps: int = 0
    engines: Mapping[str, int] = field(default_factory=dict)
    """Time that each engine works, ps: "tensor", "vector", "scalar", "gpsimd", "dma", "links"."""

    flops: int = 0
    """Operations that the results need (a multiply-add counts as two)."""

    hardware_flops: int = 0
    """Operations that the tensor engine carries out: passes and transposes count."""

    hbm_read_bytes: int = 0
    hbm_write_bytes: int = 0
    dma_bytes: int = 0
    instructions: int = 0
    peak_flops_s: float = 0.0
    """Seconds that `flops` would take at the peak rate of their own kind."""

    link_bytes: Mapping[str, int] = field(default_factory=dict)
    """Bytes over the busiest link of each tier."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(**{name: _sum(getattr(self, name), getattr(other, name)) for name in _FIGURES})

    def __mul__(self, times: int) -> "Cost":
        return Cost(**{name: _product(getattr(self, name), times) for name in _FIGURES})

    @property
    def hbm_bytes(self) -> int:
        """Bytes read from HBM and written to it."""
        return self.hbm_read_bytes + self.hbm_write_bytes


_FIGURES = tuple(Cost.__dataclass_fields__)


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, Mapping):
        return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
    return one + other


def _product(figure: Any, times: int) -> Any:
    if isinstance(figure, Mapping):
        return {name: number * times for name, number in figure.items()}
    return figure * times


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of costs."""
    return functools.reduce(Cost.__add__, costs, Cost())


@dataclass(frozen=True)
class Timed:
    """A group, planned and simulated."""

    cost: Cost
    plan: Plan
    timeline: Timeline
    """Of one run of the plan's program; the group takes `plan.repeat` of them."""


class ImpossiblePlan(Exception):
    """A rule has no program of a group that the machine can run: a defect of the rule."""


def time_group(group: Group, topology: Topology) -> Timed:
    """Plans a group for a device of a topology and simulates it; remembered by what it does.

    All cores of the chip are taken to work at the same time and to share HBM evenly. Of a device
    that fuses two cores (LNC 2) each takes half.
    """
    return _timed(_Signed(group, _signature(group)), topology)


@dataclass(frozen=True)
class _Signed:
    """A group that equals every other one that does the same."""

    group: Group = field(compare=False)
    signature: str


@functools.lru_cache(maxsize=4096)
def _timed(signed: _Signed, topology: Topology) -> Timed:
    chip, group = topology.chip, signed.group
    if group.rule not in RULES:
        raise ImpossiblePlan(f"no rule {group.rule!r} for {group.operations[0].kind}")
    try:
        plan = RULES[group.rule](group, chip)
        timeline = simulate(plan.program, chip, active_cores=chip.cores_per_stack)
    except Exception as error:
        if group.rule in AUTHORED and isinstance(error, DoesNotFit):
            raise
        # Not the user's doing. A rule that cannot take a group must not take away the estimate of
        # everything else: the schedule goes on without it, and says so.
        kinds = ", ".join(dict.fromkeys(op.kind for op in group.operations))
        raise ImpossiblePlan(
            f"the rule {group.rule!r} has no program of {kinds} at {group.source}: {error!r}"
        ) from error
    share = plan.repeat
    busy = {
        name.partition("/")[2]: engine.busy * share for name, engine in timeline.engines.items()
    }
    busy["dma"] = max((dma.busy for dma in timeline.dma.values()), default=0) * share
    # Multiplications that the results need, as a share of the tensor engine's work.
    needed = sum(
        int(count) * work.flops
        for count, work, lane in zip(timeline.executions, timeline.work, timeline.lanes)
        if lane.partition("/")[2].startswith("tensor")
    )
    done = max(1, timeline.hardware_flops)
    peak_s = busy.get("tensor", 0) / 1e12 * min(1.0, needed / done)
    whole = Cost(
        time_ps=timeline.active_ps * share,
        engines=busy,
        flops=plan.flops,
        hardware_flops=timeline.hardware_flops * share,
        hbm_read_bytes=timeline.hbm_read_bytes * share,
        hbm_write_bytes=timeline.hbm_write_bytes * share,
        dma_bytes=timeline.dma_bytes * share,
        instructions=timeline.num_instructions * share,
        peak_flops_s=peak_s,
    )
    return Timed(_of_a_device(whole, topology.lnc), plan, timeline)


def _of_a_device(cost: Cost, cores: int) -> Cost:
    """Spread over the cores of a device; bytes and operations stay what they are."""
    if cores == 1:
        return cost
    engines = {name: -(-busy // cores) for name, busy in cost.engines.items()}
    figures = {name: getattr(cost, name) for name in _FIGURES}
    time = -(-cost.time_ps // cores)
    return Cost(**{**figures, "time_ps": time, "engines": engines})


def _signature(group: Group) -> str:
    """What a group does, whatever its values are called and wherever it stands."""
    numbers: dict[int, int] = {}

    def tensor(value: Tensor) -> str:
        number = numbers.setdefault(value.id, len(numbers))
        return f"%{number}:{value.dtype}{list(value.shape)}"

    def operation(op: Operation) -> str:
        attributes = sorted((name, repr(value)) for name, value in op.attributes.items())
        regions = ";".join(map(body, op.regions))
        ends = f"{list(map(tensor, op.operands))}->{list(map(tensor, op.results))}"
        return f"{op.kind}{ends}{attributes}{{{regions}}}"

    def body(inner: Body) -> str:
        lines = [*map(tensor, inner.parameters), *map(operation, inner.operations)]
        return "\n".join([*lines, *map(tensor, inner.results)])

    parts = [group.rule, *map(operation, group.operations)]
    parts += ["in", *map(tensor, group.inputs), "out", *map(tensor, group.outputs)]
    return "\n".join(parts)
