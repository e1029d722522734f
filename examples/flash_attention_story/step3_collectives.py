"""Step 3: tokens gathered from the cores of a chip, through HBM, then from SBUF to SBUF.

    python -m examples.flash_attention_story.step3_collectives

Four logical cores hold 1024 tokens each, in SBUF, and need all 4096 there. Through HBM they store
their share, gather, and load the whole. From SBUF to SBUF they gather.
"""

from dataclasses import dataclass

from jax_trn3.hardware import Topology, get_topology
from jax_trn3.isa import Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.simulator import program, simulate
from jax_trn3.simulator.collectives import along, collective

from .shape import TOKENS, WIDTH

BYTES = TOKENS * WIDTH * 2
"""Of all tokens, in bfloat16."""

_ROW = 8192
"""Elements of a partition in one transfer."""


@dataclass(frozen=True)
class Gather:
    """Where the time goes, ps."""

    store: int
    through_hbm: int
    load: int
    between_sbufs: int

    @property
    def before(self) -> int:
        """Through HBM, all of it."""
        return self.store + self.through_hbm + self.load

    @property
    def faster(self) -> float:
        """How many times as fast it became; the talk says 4."""
        return self.before / self.between_sbufs


def gather(server: str = "trn2-ultraserver") -> Gather:
    """The all-gather in both ways."""
    topology = get_topology(server, lnc=2)
    ranks = topology.devices_per_chip
    groups = along((topology.num_chips, ranks), (1,))
    through, between = (
        collective("all_gather", BYTES, topology, groups=groups, memory=memory)
        for memory in ("hbm", "sbuf")
    )
    return Gather(
        _moved(BYTES // ranks, topology, into_sbuf=False),
        through.time_ps,
        _moved(BYTES, topology, into_sbuf=True),
        between.time_ps,
    )


def _moved(num_bytes: int, topology: Topology, into_sbuf: bool) -> int:
    """Time of a copy between SBUF and HBM, half of it by each of a rank's two cores, ps."""
    columns = num_bytes // topology.lnc // 2 // 128
    body = []
    for number in range(0, columns, _ROW):
        shape = (128, min(_ROW, columns - number))
        near = Tile(f"near {number}", "sbuf", shape, "bfloat16", given=not into_sbuf)
        far = Tile(f"far {number}", "hbm", shape, "bfloat16", given=into_sbuf)
        pair = (near[0], far[0]) if into_sbuf else (far[0], near[0])
        body.append(dma_copy(*pair, engine="dma:sync"))
    chip = topology.chip
    return simulate(program("copy", body), chip, active_cores=chip.cores_per_stack).active_ps


if __name__ == "__main__":
    from .report import printed_gather

    printed_gather(gather())
