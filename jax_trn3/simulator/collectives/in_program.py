"""Collectives among a core's other instructions: they run beside them and share its DMA engines."""

import math
from typing import Any

from jax_trn3.hardware import Topology
from jax_trn3.isa import Access, Instruction, Origin
from jax_trn3.isa.collective import collective as instruction

from ..program import Loop, Node, loop
from .choose import collective
from .groups import Groups
from .network import Memory
from .plan import Kind
from .result import StepTime

_MOST_PARTS = 256
"""Parts of a step, and of all steps like it."""


def collective_in_program(
    kind: Kind,
    dst: Access,
    src: Access,
    topology: Topology,
    *,
    num_bytes: int | None = None,
    groups: Groups | None = None,
    algorithm: str | None = None,
    pairs: tuple[tuple[int, int], ...] | None = None,
    op: str = "add",
    priority: int | None = None,
    origin: Origin | None = None,
    core: int = 0,
) -> list[Node]:
    """A collective as instructions of one core's program.

    Each step of the algorithm is a chain of parts of one full packet a DMA engine, or of more if it
    is long: so often other transfers can get between them
    (neuron-runtime/explore/compute-comm-overlap.rst).

    **Arguments:**

    - `kind`, `groups`, `algorithm`, `pairs`: As for `collective`.
    - `dst`, `src`: What it writes and reads in the core's own HBM or SBUF.
    - `num_bytes`: As `collective` counts them; by default the bytes of the larger of the two.
    - `op`: "add", "max" or "min", where it reduces.
    - `priority`: Traffic class, 0 to 3, lower first (NeuronCore-v4).

    **Raises:** What `collective` raises.
    """
    size = max(dst.bytes, src.bytes) if num_bytes is None else num_bytes
    memory: Memory = "sbuf" if src.memory == dst.memory == "sbuf" else "hbm"
    time = collective(
        kind, size, topology, groups=groups, algorithm=algorithm, memory=memory, pairs=pairs
    )
    dma = topology.chip.core.dma
    burst = dma.count * dma.collective_packet_bytes
    given: dict[str, Any] = {
        "kind": kind,
        "op": op,
        "priority": priority,
        "core": core,
        "origin": origin,
    }

    def trigger(part_ps: int) -> Instruction:
        return instruction(dst, src, time_ps=part_ps, parts=2, **given)

    def steps(step: StepTime) -> Loop:
        local = step.local
        parts = min(_MOST_PARTS, max(1, math.ceil(step.repeat * local.dma_bytes / burst)))

        def share(number: int) -> int:
            return math.ceil(step.repeat * number / parts)

        part = instruction(
            dst,
            src,
            time_ps=share(step.time_ps),
            dma_bytes=share(local.dma_bytes),
            hbm_read_bytes=share(local.hbm_read_bytes),
            hbm_write_bytes=share(local.hbm_write_bytes),
            parts=parts + 1,
            **given,
        )
        return loop(parts, lambda _: [part])

    before = time.trigger_ps // 2
    after = time.trigger_ps - before
    return [trigger(before), *map(steps, time.steps), trigger(after)]
