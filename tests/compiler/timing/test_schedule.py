"""Groups, collectives and loops in time: what overlaps, what adds up."""

from dataclasses import replace

import pytest

from jax_trn3.compiler.timing import schedule as module
from jax_trn3.compiler.timing.cost import Cost
from jax_trn3.compiler.timing.graph import Body, DeviceProgram, Mesh, Operation, Source, Tensor
from jax_trn3.compiler.timing.group import Group, Plan
from jax_trn3.compiler.timing.schedule import Machine, Schedule, UnknownTripCount, schedule
from jax_trn3.hardware import get_topology

CHIP = get_topology("trn3-chip")
MESH = Mesh((("d", 8),))


def tensor(number: int) -> Tensor:
    return Tensor(number, (256, 256), "f32")


def compute(time: int, reads: list[int], writes: list[int]) -> Group:
    """A group that takes `time`."""
    operands, results = tuple(map(tensor, reads)), tuple(map(tensor, writes))
    operation = Operation("fake", operands, results, {"time": time}, source=Source("f.py", time))
    return Group("fake", (operation,), operands, results)


def gather(time: int, read: int, write: int) -> Operation:
    return Operation(
        "sdy.all_gather", (tensor(read),), (tensor(write),), {"time": time, "axes": "d"}
    )


def body(*parts: Group | Operation, parameters=(0,), results=()) -> Body:
    flat = tuple(
        Operation("group", p.inputs, p.outputs, {"part": p}) if isinstance(p, Group) else p
        for p in parts
    )
    return Body(tuple(map(tensor, parameters)), flat, tuple(map(tensor, results)))


def loop(inner: Body, reads: list[int], writes: list[int]) -> Operation:
    nothing = Body(inner.parameters, (), ())
    return Operation(
        "stablehlo.while",
        tuple(map(tensor, reads)),
        tuple(map(tensor, writes)),
        {},
        (nothing, inner),
    )


@pytest.fixture(autouse=True)
def told_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups and collectives take the time that they say."""

    def cost(time: int, engine: str) -> Cost:
        return Cost(time_ps=time, engines={engine: time}, flops=time)

    def timed(group, topology):
        time = group.operations[0].attributes["time"]
        made = module.Timed.__new__(module.Timed)
        object.__setattr__(made, "cost", cost(time, "tensor"))
        object.__setattr__(made, "plan", Plan(None, assumptions=(f"takes {time}",)))
        object.__setattr__(made, "timeline", None)
        return made

    class Chosen:
        algorithm = "ring"

    monkeypatch.setattr(
        module,
        "groups",
        lambda body, donated=None: [op.attributes.get("part", op) for op in body.operations],
    )
    monkeypatch.setattr(module, "time_group", timed)
    monkeypatch.setattr(
        module,
        "time_collective",
        lambda op, mesh, topology: (cost(op.attributes["time"], "links"), Chosen()),
    )


def run(inner: Body, **options) -> Schedule:
    counts = options.pop("trip_counts", {})
    program = DeviceProgram("p", inner, MESH, trip_counts=counts)
    return schedule(program, Machine(CHIP, MESH, counts, **options))


def exposed(timed: Schedule) -> int:
    return sum(step.exposed_ps for step in timed.steps)


def test_one_after_another() -> None:
    timed = run(body(compute(30, [0], [1]), compute(50, [1], [2])))
    assert timed.time_ps == 80 == exposed(timed)
    assert [step.start_ps for step in timed.steps] == [0, 30]
    assert timed.cost.engines == {"tensor": 80}
    assert timed.cost.time_ps == 80
    assert timed.assumptions == ("takes 30", "takes 50")


def test_a_collective_runs_beside_what_does_not_need_it() -> None:
    timed = run(body(gather(40, 0, 1), compute(100, [0], [2]), compute(10, [1, 2], [3])))
    assert timed.time_ps == 110
    assert exposed(timed) == 110
    collective = next(step for step in timed.steps if step.kind == "collective")
    assert (collective.exposed_ps, collective.time_ps, collective.algorithm) == (0, 40, "ring")


def test_what_needs_a_collective_waits_for_it() -> None:
    timed = run(body(gather(40, 0, 1), compute(100, [1], [2])))
    assert timed.time_ps == 140 == exposed(timed)


def test_part_of_a_collective_is_exposed() -> None:
    timed = run(body(gather(40, 0, 1), compute(25, [0], [2]), compute(10, [1], [3])))
    assert timed.time_ps == 50 == exposed(timed)
    assert [s.exposed_ps for s in timed.steps if s.kind == "collective"] == [15]


def test_something_ready_goes_before_what_waits() -> None:
    timed = run(body(gather(40, 0, 1), compute(10, [1], [2]), compute(30, [0], [3])))
    assert timed.time_ps == 50


def test_a_loop_multiplies_its_body() -> None:
    inner = body(compute(10, [10], [11]), parameters=(10,), results=(11,))
    timed = run(body(loop(inner, [0], [1])), trip_counts={1: 100})
    assert timed.time_ps == 1000
    assert timed.cost.engines == {"tensor": 1000}
    assert timed.steps[0].count == 100
    assert timed.steps[0].inner.time_ps == 10


def test_collectives_of_one_iteration_overlap_with_the_next() -> None:
    # The weights of the next iteration do not depend on this one's result.
    parts = [gather(30, 10, 12), compute(50, [11, 12], [13])]
    inner = body(*parts, parameters=(10, 11), results=(10, 13))
    timed = run(body(loop(inner, [0, 1], [2, 3]), parameters=(0, 1)), trip_counts={2: 10})
    assert timed.steps[0].inner.time_ps == 80
    assert timed.steps[0].inner.pace_ps == 50
    assert timed.time_ps == 80 + 9 * 50


def test_collectives_in_a_chain_do_not() -> None:
    parts = [gather(30, 10, 12), compute(50, [12], [13])]
    inner = body(*parts, parameters=(10,), results=(13,))
    timed = run(body(loop(inner, [0], [2])), trip_counts={2: 10})
    assert timed.time_ps == 10 * 80


def test_loops_in_loops_cost_what_they_do() -> None:
    inner = body(compute(3, [20], [21]), parameters=(20,), results=(21,))
    outer = body(loop(inner, [10], [11]), compute(4, [11], [12]), parameters=(10,), results=(12,))
    timed = run(body(loop(outer, [0], [1])), trip_counts={1: 5, 11: 7})
    assert timed.time_ps == 5 * (7 * 3 + 4)


def test_a_loop_that_never_runs() -> None:
    inner = body(compute(10, [10], [11]), parameters=(10,), results=(11,))
    assert run(body(loop(inner, [0], [1])), trip_counts={1: 0}).time_ps == 0


def test_of_branches_the_longest() -> None:
    branches = tuple(body(compute(time, [0], [5])) for time in (10, 70, 30))
    case = Operation("stablehlo.case", (tensor(0),), (tensor(1),), {}, branches)
    assert run(body(case, compute(5, [1], [2]))).time_ps == 75


def test_a_loop_of_unknown_length_is_asked_about() -> None:
    inner = body(compute(10, [10], [11]), parameters=(10,), results=(11,))
    unknown = replace(loop(inner, [0], [1]), source=Source("model.py", 7))
    with pytest.raises(UnknownTripCount, match=r"loop at model.py:7 .*while_trip_count"):
        run(body(unknown))
    assert run(body(unknown), default_trip_count=12).time_ps == 120


def test_a_kernel_without_a_program_is_counted_by_its_bytes(monkeypatch) -> None:
    told = module.time_group

    def refuses_kernels(group, topology):
        if group.rule != "other":
            raise module.ImpossiblePlan("not this one")
        return told(group, topology)

    monkeypatch.setattr(module, "time_group", refuses_kernels)
    kind = next(kind for kind in module.RULES if kind.startswith("trn3."))
    kernel = Operation(kind, (tensor(0),), (tensor(1),), {"time": 20})
    timed = run(body(kernel))
    assert timed.time_ps == 20
    assert any("counted are its operands and results" in line for line in timed.assumptions)


def test_a_group_without_a_program_runs_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    told = module.time_group

    def refuses_several(group, topology):
        if len(group.operations) > 1:
            raise module.ImpossiblePlan("too much")
        return told(group, topology)

    monkeypatch.setattr(module, "time_group", refuses_several)
    first, second = compute(30, [0], [1]).operations[0], compute(50, [1], [2]).operations[0]
    both = Group("fake", (first, second), (tensor(0),), (tensor(2),))
    timed = run(body(both))
    assert timed.time_ps == 80
    assert any("each runs by itself" in line for line in timed.assumptions)
