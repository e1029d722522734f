"""When each group, collective and loop of a program runs.

A device computes one group after another; collectives run beside, on a queue of their own. Of what
is ready, the first in the program's order goes first. A loop is one place of its surroundings: its
first iteration, and as many more as it makes at the pace that its iterations settle to.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from jax_trn3.hardware import Topology

from . import extensions
from .cost import Cost, ImpossiblePlan, Timed, time_group, total
from .fusion import groups
from .graph import Body, DeviceProgram, Mesh, Operation, Source
from .group import Group
from .rules import OPENED, RULES
from .rules.collectives import is_collective, time_collective

_SETTLED = 3
"""Iterations of a body after which another one takes as long as the last."""


@dataclass(frozen=True)
class Step:
    """Something that runs once in a body."""

    kind: str
    """"compute", "collective", "loop" or "branch"."""

    name: str
    """The rule, the kernel, the collective, "while" or "case"."""

    source: Source
    start_ps: int
    """From the start of the body."""

    cost: Cost
    """Of one run; of a loop, of all its iterations."""

    exposed_ps: int
    """The part of its time in which nothing else could go on: what it adds to the whole."""

    timed: Timed | None = None
    """Of "compute": plan and timeline."""

    algorithm: str = ""
    """Of "collective"."""

    inner: "Schedule | None" = None
    """Of "loop" and "branch": the body."""

    count: int = 1
    """Of "loop": iterations."""

    @property
    def time_ps(self) -> int:
        """Time that it takes."""
        return self.cost.time_ps


@dataclass(frozen=True)
class Schedule:
    """A body in time."""

    steps: tuple[Step, ...]
    time_ps: int
    """Of one run."""

    pace_ps: int
    """Of each further run, one after another: collectives of one overlap with the next."""

    assumptions: tuple[str, ...] = ()
    lacks: tuple[tuple[str, Source], ...] = ()
    """What the hardware lacks, and where."""

    @property
    def cost(self) -> Cost:
        """What one run needs; its time is `time_ps`."""
        summed = total(step.cost for step in self.steps)
        return _with_time(summed, self.time_ps)


@dataclass(frozen=True)
class _Item:
    """What is to be placed: its cost, and what it reads and writes."""

    kind: str
    name: str
    source: Source
    cost: Cost
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    timed: Timed | None = None
    algorithm: str = ""
    inner: Schedule | None = None
    count: int = 1


@dataclass(frozen=True)
class Machine:
    """Where a program is timed."""

    topology: Topology
    mesh: Mesh
    trip_counts: Mapping[int, int | None] = field(default_factory=dict)
    default_trip_count: int | None = None
    """For loops whose count data decide."""


class UnknownTripCount(ValueError):
    """A loop that runs as often as data decide, and nobody said how often that is."""


def schedule(program: DeviceProgram, machine: Machine) -> Schedule:
    """Times a program.

    **Raises:** `UnknownTripCount` for a loop whose count neither the program nor `machine` says.
    """
    extensions.load()
    return _schedule(program.body, machine, program.donated_ids)


def _schedule(body: Body, machine: Machine, donated: Collection[int] | None = None) -> Schedule:
    """A body; `donated` are the parameters whose memory it may take, None: all of them."""
    items = [item for part in groups(body, donated) for item in _items(part, machine)]
    once = _place(items, body, 1)
    settled = _place(items, body, _SETTLED)
    before = _place(items, body, _SETTLED - 1)
    steps = _exposed(items, once)
    inner = [item.inner for item in items if item.inner is not None]
    plans = [item.timed.plan for item in items if item.timed is not None]
    assumptions = [line for plan in plans for line in plan.assumptions]
    assumptions += [line for schedule in inner for line in schedule.assumptions]
    lacks = [(i.timed.plan.lacks, i.source) for i in items if i.timed and i.timed.plan.lacks]
    lacks += [lack for schedule in inner for lack in schedule.lacks]
    return Schedule(
        steps,
        max(once[-1].values(), default=0),
        max(settled[-1].values(), default=0) - max(before[-1].values(), default=0),
        tuple(dict.fromkeys(assumptions)),
        tuple(dict.fromkeys(lacks)),
    )


def _items(part: Group | Operation, machine: Machine) -> list[_Item]:
    if isinstance(part, Group):
        return _computed(part, machine)
    if part.kind == "stablehlo.while":
        return [_loop(part, machine)]
    if part.kind in ("stablehlo.case", "stablehlo.if"):
        return [_branch(part, machine)]
    if is_collective(part):
        cost, time = time_collective(part, machine.mesh, machine.topology)
        if time is None:
            return []
        name, algorithm = part.kind.partition(".")[2] or part.kind, time.algorithm
        return [_Item("collective", name, part.source, cost, *_ends(part), algorithm=algorithm)]
    if part.kind == "sdy.all_slice":
        part = _own_part(part)
        return _computed(Group("copy", (part,), part.operands, part.results), machine)
    why = OPENED[part.kind](part) if part.kind in OPENED else ""
    if why:
        return [_opened(part, machine, why)]
    rule = part.kind if part.kind in RULES else "other"
    return _computed(Group(rule, (part,), part.operands, part.results), machine)


def _own_part(operation: Operation) -> Operation:
    """The copy by which a device keeps its own part of what it has whole."""
    sizes = operation.results[0].shape
    bounds = {
        "start_indices": (0,) * len(sizes), "limit_indices": sizes, "strides": (1,) * len(sizes)
    }  # fmt: skip
    return replace(operation, kind="stablehlo.slice", attributes=bounds)


def _ends(part: Group | Operation) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of the values that it reads and writes."""
    if isinstance(part, Group):
        return tuple(t.id for t in part.inputs), tuple(t.id for t in part.outputs)
    return tuple(t.id for t in part.used), tuple(t.id for t in part.results)


_ONE_BY_ONE = "{} at {}: no program was found that does them together; each runs by itself"
_PASSES = "{} at {}: no program was found; counted are its operands and results"


def _computed(group: Group, machine: Machine) -> list[_Item]:
    """A group; where its rule finds no program for all of it, its operations one by one."""
    try:
        return [_compute(group, machine)]
    except ImpossiblePlan:
        if len(group.operations) == 1 and group.rule == "other":
            raise
    items = []
    several = len(group.operations) > 1
    for operation in group.operations:
        rule = group.rule if several else "other"
        alone = Group(rule, (operation,), operation.operands, operation.results)
        items += _computed(alone, machine)
    said = (_ONE_BY_ONE if several else _PASSES).format(_names(group), group.source)
    return [*map(_assuming(said), items[:1]), *items[1:]]


def _names(group: Group) -> str:
    return ", ".join(dict.fromkeys(op.kind.partition(".")[2] for op in group.operations))


def _assuming(said: str) -> Callable[[_Item], _Item]:
    """Adds an assumption to what is computed."""

    def with_it(item: _Item) -> _Item:
        assert item.timed is not None
        plan = item.timed.plan
        told = replace(plan, assumptions=(*plan.assumptions, said))
        return replace(item, timed=replace(item.timed, plan=told))

    return with_it


def _compute(group: Group, machine: Machine) -> _Item:
    timed = time_group(group, machine.topology)
    name = timed.plan.program.name if timed.plan.authored else group.rule
    return _Item("compute", name, group.source, timed.cost, *_ends(group), timed=timed)


def _loop(operation: Operation, machine: Machine) -> _Item:
    condition, body = (_schedule(region, machine) for region in operation.regions)
    count = _trip_count(operation, machine)
    first = condition.time_ps + body.time_ps
    pace = max(condition.pace_ps + body.pace_ps, 1 if count else 0)
    time = first + pace * (count - 1) + condition.time_ps if count else condition.time_ps
    cost = _with_time(condition.cost * (count + 1) + body.cost * count, time)
    return _Item(
        "loop", "while", operation.source, cost, *_ends(operation), inner=body, count=count
    )


def _trip_count(operation: Operation, machine: Machine) -> int:
    key = operation.results[0].id if operation.results else -1
    count = machine.trip_counts.get(key)
    if count is None:
        count = machine.default_trip_count
    if count is None:
        raise UnknownTripCount(
            f"the loop at {operation.source} runs as often as data decide; say how often to take "
            "it (while_trip_count=...)"
        )
    return count


def _branch(operation: Operation, machine: Machine) -> _Item:
    """Of several branches the one that takes longest."""
    branches = [_schedule(region, machine) for region in operation.regions]
    longest = max(branches, key=lambda branch: branch.time_ps)
    cost = longest.cost
    return _Item("branch", "case", operation.source, cost, *_ends(operation), inner=longest)


def _opened(operation: Operation, machine: Machine, why: str) -> _Item:
    """An operation that was kept whole, by its decomposition."""
    inner = _schedule(operation.regions[0], machine)
    inner = replace(inner, assumptions=(*inner.assumptions, why))
    name = operation.kind.partition(".")[2]
    return _Item("branch", name, operation.source, inner.cost, *_ends(operation), inner=inner)


# Placing. Two lanes: what computes, and collectives; a loop or branch takes both.

_Place = list[dict[int, int]]


def _place(items: Sequence[_Item], body: Body, iterations: int) -> list[dict[int, int]]:
    """Start of each item in each iteration, and last the ends of everything, by number."""
    free = {"compute": 0, "collective": 0}
    ready: dict[int, int] = {}
    starts: list[dict[int, int]] = []
    ends: dict[int, int] = {}
    producers = {w: k for k, item in enumerate(items) for w in item.writes}
    carried = list(zip((t.id for t in body.parameters), (t.id for t in body.results)))
    for iteration in range(iterations):
        placed: dict[int, int] = {}
        waiting = list(range(len(items)))
        done: dict[int, int] = {}
        while waiting:
            number, start = _next(items, waiting, producers, done, ready, free)
            waiting.remove(number)
            item = items[number]
            end = start + item.cost.time_ps
            for lane in _lanes(item):
                free[lane] = end
            placed[number] = start
            done[number] = end
            for write in item.writes:
                ready[write] = end
            ends[iteration * len(items) + number] = end
        starts.append(placed)
        ready = {parameter: ready.get(result, 0) for parameter, result in carried}
    starts.append(ends)
    return starts


def _lanes(item: _Item) -> tuple[str, ...]:
    return {"compute": ("compute",), "collective": ("collective",)}.get(
        item.kind, ("compute", "collective")
    )


_LOOK_AHEAD = 64
"""Items of the program's order among which the next one is chosen."""


def _next(
    items: Sequence[_Item],
    waiting: Sequence[int],
    producers: Mapping[int, int],
    done: Mapping[int, int],
    ready: Mapping[int, int],
    free: Mapping[str, int],
) -> tuple[int, int]:
    """The first item that can start before any other."""
    best: tuple[int, int] | None = None
    for number in waiting[:_LOOK_AHEAD]:
        item = items[number]
        if any(r in producers and producers[r] not in done for r in item.reads):
            continue
        start = max([free[lane] for lane in _lanes(item)] + [ready.get(r, 0) for r in item.reads])
        if best is None or start < best[1]:
            best = number, start
    assert best is not None, "a body's operations stand in an order in which they can run"
    return best


def _exposed(items: Sequence[_Item], placed: list[dict[int, int]]) -> tuple[Step, ...]:
    """The steps of the first iteration; of collectives, what no computation covers."""
    starts = placed[0]
    covered = sorted(
        (starts[k], starts[k] + item.cost.time_ps)
        for k, item in enumerate(items)
        if item.kind != "collective"
    )
    steps = []
    for number in sorted(starts, key=lambda k: (starts[k], k)):
        item, start = items[number], starts[number]
        end = start + item.cost.time_ps
        exposed = end - start
        if item.kind == "collective":
            exposed -= sum(max(0, min(end, b) - max(start, a)) for a, b in covered)
        steps.append(
            Step(
                item.kind, item.name, item.source, start, item.cost, exposed, item.timed,
                item.algorithm, item.inner, item.count,
            )
        )  # fmt: skip
    return tuple(steps)


def _with_time(cost: Cost, time_ps: int) -> Cost:
    return replace(cost, time_ps=time_ps)
