"""Writes docs/isa.md, the page of the instruction table: python tools/isa_page.py"""

import inspect
from collections.abc import Iterator
from pathlib import Path

from isa_samples import SIZES, sample

from jax_trn3.hardware import NEURON_CORE_V2, NEURON_CORE_V3, NEURON_CORE_V4, NeuronCore
from jax_trn3.isa import TABLE, InstructionSpec, Operand, Work
from jax_trn3.isa.dtypes import ANY, FLOATS, FP8, FP16, FP32, INDEX, INTEGERS, MX, PLAIN
from jax_trn3.isa.spec import Rule

PAGE = Path(__file__).parents[1] / "docs" / "isa.md"
CORES = (NEURON_CORE_V2, NEURON_CORE_V3, NEURON_CORE_V4)
ENGINES = ("tensor", "vector", "scalar", "gpsimd", "dma", "sync", "collective")
GROUPS = {
    "any": ANY, "plain": PLAIN, "floats": FLOATS, "integers": INTEGERS, "fp32": FP32, "fp16": FP16,
    "fp8": FP8, "mx": MX, "index": INDEX,
}  # fmt: skip

HEAD = """# The instructions

Written by `tools/isa_page.py` from the table in `jax_trn3/isa/`: edit the table, not this page.

What an instruction is, what its meaning is given, and what is rounded how, says the docstring of
`jax_trn3/isa/spec.py`; the general rules (partitions, access patterns, memories, dtypes by
generation) are in `jax_trn3/isa/check.py`. Everything here comes from public documentation of AWS
Neuron; what that leaves open is said where it matters, and nothing was measured on hardware.

Costs are those of one sample (`tools/isa_samples.py`): cycles of its engine, without waiting, or
for transfers the time of the DMA engine that is busy longest.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_dtypes(), *_contents(), *_sections()])


def _dtypes() -> Iterator[str]:
    yield "## Groups of dtypes\n"
    yield "| name | dtypes |\n|---|---|"
    for name, dtypes in GROUPS.items():
        yield f"| {name} | {', '.join(dtypes)} |"
    yield ""


def _contents() -> Iterator[str]:
    for engine, specs in _by_engine():
        links = ", ".join(f"[{spec.name}](#{spec.name})" for spec in specs)
        yield f"- **{engine}**: {links}"
    yield ""


def _by_engine() -> Iterator[tuple[str, list[InstructionSpec]]]:
    """Instructions by the first of their engines, in the order of their names."""
    for engine in ENGINES:
        specs = (spec for spec in TABLE.values() if spec.engines[0] == engine)
        yield engine, sorted(specs, key=lambda spec: spec.name)


def _sections() -> Iterator[str]:
    for engine, specs in _by_engine():
        yield f"## {engine}\n"
        for spec in specs:
            yield from _section(spec)


def _section(spec: InstructionSpec) -> Iterator[str]:
    yield f"### {spec.name}\n"
    yield f"{inspect.getdoc(spec)}\n"
    engines = ", ".join(spec.engines)
    yield f"Runs on {engines}; since NeuronCore-v{spec.since}. Source: {spec.source}.\n"
    if spec.operands:
        yield "| operand | | memory | dtypes |\n|---|---|---|---|"
        yield from _operands(spec)
        yield ""
    if spec.params:
        yield f"Parameters: {', '.join(_parameter(spec, name) for name in spec.params)}.\n"
    if spec.state:
        yield f"State: the {spec.state} of its engine.\n"
    if spec.rules:
        yield "Limits:\n"
        yield from (f"- {_text(rule)}" for rule in spec.rules)
        yield ""
    yield from _costs(spec)


def _operands(spec: InstructionSpec) -> Iterator[str]:
    for first, last, operand in _runs([o for o in spec.operands if o.index_of is None]):
        name = first if first == last else f"{first} ... {last}"
        memories = ", ".join(operand.memories)
        yield f"| {name} | {_role(operand)} | {memories} | {_dtype_list(operand.dtypes)} |"


def _runs(operands: list[Operand]) -> Iterator[tuple[str, str, Operand]]:
    """Operands that differ in their number only, together: (first name, last name, operand)."""
    alike: list[Operand] = []
    for operand in [*operands, None]:
        if alike and (operand is None or _kind(operand) != _kind(alike[0])):
            yield alike[0].name, alike[-1].name, alike[0]
            alike = []
        if operand is not None:
            alike.append(operand)


def _kind(operand: Operand) -> tuple[object, ...]:
    numbered = operand.name.rstrip("0123456789") if operand.name.startswith("src") else operand.name
    return numbered, operand.role, operand.optional, operand.memories, operand.dtypes


def _role(operand: Operand) -> str:
    words = {"read": "read", "write": "written", "accumulate": "updated"}[operand.role]
    extras = [
        "may be left out" if operand.optional else "",
        "or a number" if operand.scalar else "",
        f"indirect by {operand.name}_index (v4)" if operand.indirect else "",
    ]
    return ", ".join([words, *filter(None, extras)])


def _dtype_list(dtypes: tuple[str, ...]) -> str:
    """dtypes, groups of them by their names."""
    left, words = list(dtypes), []
    for name, group in GROUPS.items():
        if all(dtype in left for dtype in group):
            words.append(f"*{name}*")
            left = [dtype for dtype in left if dtype not in group]
    return ", ".join(words + left)


def _parameter(spec: InstructionSpec, name: str) -> str:
    default = inspect.signature(spec.meaning).parameters[name].default
    return f"`{name}`" if name in spec.required else f"`{name}={default!r}`"


def _text(rule: Rule) -> str:
    return " ".join((inspect.getdoc(rule) or "").split())


def _costs(spec: InstructionSpec) -> Iterator[str]:
    made = sample(spec.name, SIZES[-1])
    tiles = ", ".join(f"{name} {_tile(access)}" for name, access in made.operands)
    yield f"Sample: on {made.engine}{', ' if tiles else ''}{tiles}.\n"
    yield "| core | cost | |\n|---|---|---|"
    for core in CORES:
        if core.generation >= spec.since:
            cost, note = _cost(spec.cost(made, core), made.engine, core)
            yield f"| {core.name} | {cost} | {note} |"
    yield ""
    if reason := inspect.getdoc(spec.cost):
        yield f"{' '.join(reason.split())}\n"


def _tile(access: object) -> str:
    shape = list(access.shape)  # type: ignore[attr-defined]
    return f"{access.dtype}{shape} in {access.memory}"  # type: ignore[attr-defined]


def _cost(work: Work, engine: str, core: NeuronCore) -> tuple[str, str]:
    if work.dma:
        busy = max(work.dma.engine_ps) / 1000
        note = f"{work.dma.packets} packets, {work.dma.bytes} bytes, issue {work.dma.issue_ns} ns"
        return f"{busy:.1f} ns", f"{note}, latency {work.dma.latency_ns} ns"
    clock = getattr(core, engine).clock_hz
    load = f"and {work.load_cycles:g} to load, hidden" if work.load_cycles else ""
    return f"{work.cycles:g} cycles = {work.cycles / clock * 1e9:.1f} ns", load


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE}: {len(TABLE)} instructions")
