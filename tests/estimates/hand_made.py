"""Estimates of schedules made by hand, for the tests of the views."""

from dataclasses import replace

from hypothesis import strategies as st

from jax_trn3.compiler.timing.cost import Cost, Timed
from jax_trn3.compiler.timing.graph import Mesh, Source
from jax_trn3.compiler.timing.group import Plan
from jax_trn3.compiler.timing.residency import Residency, Resident
from jax_trn3.compiler.timing.schedule import Schedule, Step
from jax_trn3.estimates import Estimate
from jax_trn3.hardware import get_topology
from jax_trn3.isa import Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.tensor import nc_matmul
from jax_trn3.isa.vector_move import tensor_copy
from jax_trn3.simulator import loop, program, simulate


def copies(times):
    """HBM to SBUF, through VectorE and back."""
    source = Tile("source", "hbm", (128, 256), "float32", given=True)
    target = Tile("target", "hbm", (128, 256), "float32")
    here = Tile("here", "sbuf", (128, 256), "float32", slots=2)
    there = Tile("there", "sbuf", (128, 256), "float32", slots=2)

    def body(i):
        yield dma_copy(dst=here[i], src=source[:, :], engine="dma:sync")
        yield tensor_copy(dst=there[i], src=here[i], engine="vector")
        yield dma_copy(dst=target[:, :], src=there[i], engine="dma:scalar")

    return program("copies", [loop(times, body)])


def products(times):
    """Matrix products whose operands stay in SBUF."""
    a = Tile("a", "sbuf", (128, 128), "bfloat16", given=True)
    b = Tile("b", "sbuf", (128, 512), "bfloat16", given=True)
    c = Tile("c", "psum", (128, 512), "float32", slots=2)

    def body(i):
        yield nc_matmul(dst=c[i], stationary=a[:, :], moving=b[:, :])

    return program("products", [loop(times, body)])


TIMELINES = {
    (kind.__name__, n): simulate(kind(n)) for kind in (copies, products) for n in (1, 4, 30)
}
"""By kind and iterations."""


def source(line=0, name="dot_general"):
    return (
        Source("/somewhere/model.py", line, "layer", f"jit(step)/layer/{name}")
        if line
        else Source()
    )


def compute(kind="copies", n=4, repeat=1, line=7, name="dot_general", lacks=""):
    """A group of `repeat` runs of a program, as a step that starts at 0."""
    timeline = TIMELINES[kind, n]
    plan = Plan(timeline.program, repeat, timeline.flops * repeat, (f"{kind} assumed",), lacks)
    busy = {lane.partition("/")[2]: t.busy * repeat for lane, t in timeline.engines.items()}
    busy["dma"] = max((t.busy for t in timeline.dma.values()), default=0) * repeat
    cost = Cost(
        timeline.active_ps * repeat,
        busy,
        timeline.flops * repeat,
        timeline.hardware_flops * repeat,
        timeline.hbm_read_bytes * repeat,
        timeline.hbm_write_bytes * repeat,
        timeline.dma_bytes * repeat,
        timeline.num_instructions * repeat,
        busy.get("tensor", 0) / 1e12,
    )
    timed = Timed(cost, plan, timeline)
    return Step("compute", "rows", source(line, name), 0, cost, cost.time_ps, timed)


def collective(time_ps=10**7, count=2**20, line=9):
    """An all-gather beside what comes after it."""
    cost = Cost(
        time_ps, {"links": time_ps}, 0, 0, count, count, 2 * count, link_bytes={"chip": count}
    )
    return Step(
        "collective", "all_gather", source(line, "all_gather"), 0, cost, time_ps, algorithm="ring"
    )


def body(*steps):
    """Steps one after another, collectives beside computation. A loop is a pair (count, steps)."""
    free, links, placed = 0, 0, []
    for step in steps:
        if isinstance(step, tuple):
            step = while_(step[0], body(*step[1]))
            start = max(free, links)
            free = links = start + step.time_ps
        elif step.kind == "collective":
            start = max(free, links)
            links = start + step.time_ps
        else:
            start, free = free, free + step.time_ps
        placed.append(replace(step, start_ps=start))
    work = [(s.start_ps, s.start_ps + s.time_ps) for s in placed if s.kind != "collective"]
    exposed = []
    for step in placed:
        if step.kind == "collective":
            begin, end = step.start_ps, step.start_ps + step.time_ps
            hidden = sum(max(0, min(end, b) - max(begin, a)) for a, b in work)
            step = replace(step, exposed_ps=step.time_ps - hidden)
        exposed.append(step)
    lacks = [(s.timed.plan.lacks, s.source) for s in placed if s.timed and s.timed.plan.lacks]
    lacks += [lack for s in placed if s.inner for lack in s.inner.lacks]
    assumed = [line for s in placed if s.timed for line in s.timed.plan.assumptions]
    assumed += [line for s in placed if s.inner for line in s.inner.assumptions]
    time = max(free, links)
    return Schedule(
        tuple(exposed), time, time, tuple(dict.fromkeys(assumed)), tuple(dict.fromkeys(lacks))
    )


def while_(count, inner, condition_ps=0):
    """A loop whose condition takes so long each time."""
    time = inner.time_ps + inner.pace_ps * (count - 1) if count else 0
    time += condition_ps * (count + 1)
    condition = Cost(instructions=1 if condition_ps else 0) * (count + 1)
    cost = replace(inner.cost * count + condition, time_ps=time)
    return Step("loop", "while", source(3, "while"), 0, cost, time, inner=inner, count=count)


def estimate_of(
    schedule, topology="trn3-chip", peak=2**30, lnc=1, mesh=(("data", 4), ("model", 2))
):
    """The estimate of a schedule."""
    size = 1
    for _, axis in mesh:
        size *= axis
    largest = (Resident(peak // 2, (peak // 8, 4), "bf16", "parameter 0", source(7)),)
    assert size <= get_topology(topology, lnc).num_devices
    return Estimate(
        "step", get_topology(topology, lnc), Mesh(mesh if size > 1 else ()), schedule,
        Residency(peak, largest),
    )  # fmt: skip


_COMPUTE = st.builds(
    compute,
    st.sampled_from(["copies", "products"]),
    st.sampled_from([1, 4, 30]),
    st.integers(1, 3),
    st.integers(0, 4),
    st.sampled_from(["dot_general", "add"]),
    st.sampled_from(["", "no such instruction"]),
)
_COLLECTIVE = st.builds(
    collective, st.integers(10**5, 10**8), st.integers(1, 2**30), st.integers(0, 3)
)
_STEPS = st.recursive(
    st.lists(st.one_of(_COMPUTE, _COLLECTIVE), min_size=1, max_size=4),
    lambda inner: st.lists(
        st.one_of(_COMPUTE, _COLLECTIVE, st.tuples(st.integers(2, 50), inner)),
        min_size=1,
        max_size=4,
    ),
    max_leaves=6,
)
SCHEDULES = _STEPS.map(lambda steps: body(*steps))
"""Bodies with loops in loops."""
