"""The time of transfers: how they are cut into packets, and which DMA engines carry them."""

import math
from collections.abc import Iterable

from jax_trn3.hardware import NEURON_CORE_V4, NeuronCore

from .check import first_partition
from .cost import engine_cycles
from .operand import Access
from .spec import DmaWork, Instruction, Work

SOURCES = tuple(f"src{k}" for k in range(NEURON_CORE_V4.dma.max_compute_sources))
"""Operands that `dma_compute` sums."""


def sources_of(instruction: Instruction) -> tuple[str, ...]:
    """Those of them that are given."""
    return tuple(name for name, _ in instruction.operands if name in SOURCES)


def issuing_engine(instruction: Instruction) -> str:
    """The engine on whose queue a transfer is issued."""
    return instruction.engine.partition(":")[2].partition(".")[0]


def row_indices(instruction: Instruction) -> list[str]:
    """The operands that choose rows of another."""
    return [name for name, _ in instruction.operands if name.endswith("_index")]


def default_queue(instruction: Instruction) -> str:
    """The queue where the program names none: that of the engine that can write the descriptors."""
    software = row_indices(instruction) or instruction.get("dge_mode") == "swdge"
    return "dma:gpsimd" if software else "dma:sync"


def descriptor_mode(instruction: Instruction) -> str:
    """Who writes the descriptors: GpSimdE where rows are chosen at run time; where the program
    leaves it open, the hardware if there is a priority (nki.isa dma_copy has none without it),
    else the host, before the start. What AWS's compiler chooses is not documented."""
    mode: str = instruction.get("dge_mode", "unknown")
    if mode != "unknown":
        return mode
    if row_indices(instruction):
        return "swdge"
    return "hwdge" if instruction.get("priority") is not None else "none"


def dma_work(
    instruction: Instruction,
    sources: tuple[str, ...],
    core: NeuronCore,
    *,
    share: float = 1.0,
    gathers_runs: bool = False,
) -> DmaWork:
    """What a transfer of `sources` into "dst" asks of the DMA engines.

    A partition of SBUF is served by the engine of its group of `partitions_per_engine`; what stays
    in HBM is spread evenly over all engines. A packet is at most `packet_bytes` that
    lie next to each other on both sides and takes `packet_overhead_ns` beside its bytes; whole rows
    that are neighbours in HBM are one packet although they lie in several partitions. (Profiles of
    Trainium1: 128 rows of 4 bytes take 0.3 us at most, of 256 bytes about as long.) A transfer
    that casts counts the wider side; every source passes through the engines once.

    **Arguments:**

    - `share`: Share of full throughput, where it transposes or accumulates.
    - `gathers_runs`: Whether packets are full whatever lies next to each other (transposes).
    """
    dma = core.dma
    elements = math.prod(instruction.shape("dst"))
    widths = {name: instruction[name].tile.element.bytes for name in (*sources, "dst")}
    run = elements if gathers_runs else min(_run_elements(instruction, name) for name in widths)
    wide = [max(widths[source], widths["dst"]) for source in sources]
    sbuf = _sbuf_side(instruction, sources)
    pieces = sbuf.partitions if sbuf else 1
    run = min(run, elements // pieces)
    packets = math.ceil(elements / pieces / run) * sum(
        math.ceil(run * width / dma.packet_bytes) for width in wide
    )
    moved = elements * sum(wide)
    row = elements // pieces
    neighbours = elements if gathers_runs else _neighbours_in_hbm(instruction, widths)
    together = neighbours // row if run == row else 1
    fitting = dma.packet_bytes // (row * max(widths.values()))
    rows = max(1, min(together, fitting, dma.partitions_per_engine))
    served = _partitions_served(sbuf, core) if sbuf else [1 / dma.count] * dma.count
    sent = [packets * math.ceil(count / rows) if sbuf else packets * count for count in served]
    busy = [
        number * dma.packet_overhead_ns + count * moved / pieces / dma.engine_bytes_per_s * 1e9
        for number, count in zip(sent, served)
    ]
    mode = descriptor_mode(instruction)
    return DmaWork(
        engine_ps=tuple(math.ceil(round(ns / share * 1000, 6)) for ns in busy),
        packets=round(sum(sent)),
        bytes=moved,
        bytes_read_hbm=sum(elements * widths[s] for s in sources if _in_hbm(instruction, s)),
        bytes_written_hbm=elements * widths["dst"] if _in_hbm(instruction, "dst") else 0,
        mode=mode,
        issue_ns=dma.issue_ns.get(mode, 0),
        latency_ns=dma.latency_ns,
    )


def _in_hbm(instruction: Instruction, name: str) -> bool:
    return instruction[name].memory == "hbm"


def _run_elements(instruction: Instruction, name: str) -> int:
    """Elements that lie next to each other; of chosen rows at most one row."""
    access = instruction[name]
    run = access.run_bytes // access.tile.element.bytes
    if instruction.get(f"{name}_index") is None:
        return run
    return min(run, math.prod(access.shape[1:]))


def _neighbours_in_hbm(instruction: Instruction, names: Iterable[str]) -> int:
    """Elements that lie next to each other in HBM, whatever lies where in SBUF; 0 if none do."""
    runs = [_run_elements(instruction, name) for name in names if _in_hbm(instruction, name)]
    return min(runs, default=0)


def _sbuf_side(instruction: Instruction, sources: tuple[str, ...]) -> Access | None:
    """The operand whose partitions say which engines work: dst before sources."""
    sides = [instruction[name] for name in ("dst", *sources)]
    return next((access for access in sides if access.memory == "sbuf"), None)


def _partitions_served(access: Access, core: NeuronCore) -> list[float]:
    """Of an access's partitions, how many each DMA engine serves."""
    dma = core.dma
    served = [0.0] * dma.count
    first = first_partition(access)
    for partition in range(first, first + access.partitions):
        served[partition // dma.partitions_per_engine % dma.count] += 1
    return served


def copy_work(instruction: Instruction, core: NeuronCore) -> Work:
    """Sums into SBUF pass at the published share of full throughput (all of it on NeuronCore-v4,
    half before); a sum into HBM reads what is there, too."""
    if not instruction.get("accumulate"):
        return Work(dma=dma_work(instruction, ("src",), core))
    if _in_hbm(instruction, "dst"):
        return Work(dma=dma_work(instruction, ("src", "dst"), core))
    share = core.dma.accumulate_factor
    return Work(dma=dma_work(instruction, ("src",), core, share=share))


def transpose_work(instruction: Instruction, core: NeuronCore) -> Work:
    """Full packets at the published share of full throughput for where the source lies."""
    share = core.dma.transpose_factors[f"{instruction['src'].memory}_to_sbuf"]
    return Work(dma=dma_work(instruction, ("src",), core, share=share, gathers_runs=True))


def compute_work(instruction: Instruction, core: NeuronCore) -> Work:
    """Every source passes through the engines: two of them take twice as long as a copy, which is
    the published half of full throughput."""
    return Work(dma=dma_work(instruction, sources_of(instruction), core))


def sendrecv_work(instruction: Instruction, core: NeuronCore) -> Work:
    """A copy from SBUF to SBUF; on GpSimdE's own DMA at half its rate, which is both
    directions'."""
    if instruction.engine != "gpsimd":
        return Work(dma=dma_work(instruction, ("src",), core))
    rate = core.dma.gpsimd_bytes_per_s / 2
    cycles = instruction["src"].bytes / rate * core.gpsimd.clock_hz
    return Work(engine_cycles(core.gpsimd, 0, extra=cycles))
