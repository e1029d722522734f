"""Two questions to the links: what a switch does for a mixture of experts, and what SBUF-to-SBUF
does for decoding tokens.

    python examples/collective_scenarios.py

Both are simulated on chips that nobody in the room owns, in a few milliseconds.
"""

from dataclasses import dataclass

from jax_trn3.hardware import get_topology
from jax_trn3.simulator.collectives import CollectiveTime, along, collective


@dataclass(frozen=True)
class Comparison:
    """The same collective in two ways."""

    before: CollectiveTime
    after: CollectiveTime

    @property
    def speedup(self) -> float:
        """How many times less the second takes."""
        return self.before.time_ps / self.after.time_ps


def moe_all_to_all(
    tokens: int = 4096, width: int = 7168, experts: int = 8, element_bytes: int = 1
) -> Comparison:
    """Dispatch in a mixture-of-experts layer spread over 64 chips: the torus of a Trn2 UltraServer,
    then the switches of a Trn3 UltraServer (Gen1).

    Every chip holds `tokens` tokens of `width` elements and sends each to `experts` experts, which
    lie anywhere. The four devices of a chip (LNC 2) share its tokens, and all devices hold experts.
    """
    num_bytes = tokens * width * experts * element_bytes // 4
    torus = collective("all_to_all", num_bytes, get_topology("trn2-ultraserver", lnc=2))
    switch = collective("all_to_all", num_bytes, get_topology("trn3-gen1", lnc=2))
    return Comparison(torus, switch)


def token_decode(
    batch: int = 16, width: int = 8192, chips: int = 1, element_bytes: int = 2
) -> Comparison:
    """The all-reduce after a projection in decoding, tensor parallel over `chips` chips of a Trn3
    sled (1, 2 or 4): through HBM, then from SBUF to SBUF."""
    topology = get_topology("trn3-sled", lnc=2)
    groups = along((4 // chips, 4 * chips), (1,))
    num_bytes = batch * width * element_bytes
    through = collective("all_reduce", num_bytes, topology, groups=groups)
    between = collective("all_reduce", num_bytes, topology, groups=groups, memory="sbuf")
    return Comparison(through, between)


def _line(name: str, compared: Comparison) -> str:
    before, after = compared.before, compared.after
    return (
        f"{name:34s} {before.time_ps / 1e6:10.1f} us -> {after.time_ps / 1e6:10.1f} us   "
        f"{compared.speedup:5.2f}x   waits for {before.bound} -> {after.bound}"
    )


def main() -> None:
    print("All-to-all of a mixture-of-experts layer, 64 chips: torus -> switches")
    for tokens in (16, 256, 4096, 32768):
        print(_line(f"  {tokens} tokens a chip", moe_all_to_all(tokens)))
    print("All-reduce in token decode: HBM -> SBUF")
    for chips in (1, 4):
        for batch in (1, 16, 128):
            print(_line(f"  {chips} chip(s), batch {batch}", token_decode(batch, chips=chips)))


if __name__ == "__main__":
    main()
