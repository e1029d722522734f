"""What joins chips: the torus of Trainium2, the switches of Trainium3, and EFA beyond a server.

A `Fabric` says of each kind of `Topology.chip_axes` how chips that differ in that coordinate are
joined. All bandwidths are those of one chip's port in one direction.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from .figure import Table, extrapolated, inferred, published, rounded

_TRN2 = "about-neuron/arch/neuron-hardware/trn2-arch.rst"
_TRN3 = "about-neuron/arch/neuron-hardware/trn3-arch.rst"
_CHIP2 = "about-neuron/arch/neuron-hardware/trainium2.rst"
_CHIP3 = "about-neuron/arch/neuron-hardware/trainium3.rst"
_INTRA = "neuron-runtime/explore/intranode-collective-comm.rst"
_INTER = "neuron-runtime/explore/internode-collective-comm.rst"
_OVERLAP = "neuron-runtime/explore/compute-comm-overlap.rst"
_BANDWIDTH = "nki/deep-dives/nki-dma-bandwidth-guide.rst"
_GIGA = 10**9

Wiring = Literal["ring", "switch", "direct", "network"]


@dataclass(frozen=True)
class Tier:
    """How chips that differ in one coordinate are joined."""

    name: str
    """What reports call it, e.g. "NeuronSwitch in the sled"."""

    wiring: Wiring
    """"ring": a link to either neighbour, with the ends joined. "switch": one port to a switch
    that reaches every value of this coordinate and all inner ones. "direct": a port to the chips
    in the same position elsewhere; other positions are reached through these. "network": one port
    to a network that reaches every chip beyond this coordinate."""

    bandwidth_bytes_per_s: int
    """One port of one chip in one direction, bytes per second."""

    latency_ns: int
    """What each use of the tier adds to the latency of a transfer, ns."""


@dataclass(frozen=True)
class Fabric:
    """The links of one generation, and what its collective cores (CC-cores) take."""

    name: str
    """E.g. "NeuronLink-v4"."""

    tiers: Mapping[str, Tier]
    """By name of the coordinate, see `Topology.chip_axes`."""

    chip_bandwidth_bytes_per_s: int | None
    """NeuronLink bandwidth of a chip as AWS gives it, bytes per second; None where it gives none.
    Only for comparison."""

    cc_cores: int
    """CC-cores of a chip (a count)."""

    streams_per_core: int
    """Collectives that one physical NeuronCore can have under way (a count): one per CC-core."""

    hop_latency_ns: int
    """From the semaphore that starts a step to the one that ends it, its bytes apart, ns, when the
    data lie in HBM."""

    sbuf_hop_latency_ns: int
    """The same when the data lie in SBUF, ns."""

    trigger_latency_ns: int
    """From the engine's trigger to the first step, and again from the last step to the engine, ns.
    """

    message_ns: int
    """Time a core's CC-cores take to start one transfer to one peer, ns."""


_HOP = rounded(
    1_500, "ns", f"{_INTRA}: about 1-2 us, depending on HBM's load", low=1_000, high=2_000
)
_SBUF_HOP = inferred(
    1_000, "ns", f"{_INTRA}: the end of 1-2 us that has no load on HBM", low=700, high=1_500
)
_TRIGGER = inferred(
    1_300, "ns", f"{_BANDWIDTH}: semaphore to start, here across to a CC-core", low=650, high=5_000
)
_MESSAGE = extrapolated(
    100, "ns", f"{_OVERLAP}: rings are built before; a write to a queue each", low=20, high=600
)
_STREAMS = published(2, "streams/core", f"{_OVERLAP}: two CC cores per physical core")

_EFA = Tier(
    name="EFA",
    wiring="network",
    bandwidth_bytes_per_s=inferred(
        25 * _GIGA, "bytes/s", f"{_TRN2}: 3,200 Gbps for 16; {_TRN3}: 28,800 Gbps for 144"
    ),
    # Beyond the latency of a hop: 15 us are from HBM to HBM.
    latency_ns=inferred(
        13_500, "ns", f"{_INTER}: about 15 us, less the hop", low=10_000, high=18_500
    ),
)

_TORUS_LATENCY = extrapolated(200, "ns", "one more chip on the way; unpublished", low=50, high=500)
_TORUS_SPLIT = "for a chip, over 4 links, half of it each way"

NEURONLINK_V3 = Fabric(
    name="NeuronLink-v3",
    tiers=Table(
        {
            "ultraserver": _EFA,
            "instance": Tier(
                name="NeuronLink between instances",
                wiring="ring",
                bandwidth_bytes_per_s=inferred(
                    64 * _GIGA,
                    "bytes/s",
                    f"{_TRN2}: 256 GB/s for a chip, over 2 links, half of it each way",
                    low=64 * _GIGA,
                    high=128 * _GIGA,
                ),
                latency_ns=_TORUS_LATENCY,
            ),
            "row": Tier(
                name="NeuronLink across rows",
                wiring="ring",
                bandwidth_bytes_per_s=inferred(
                    128 * _GIGA,
                    "bytes/s",
                    f"{_TRN2}: 1,024 GB/s {_TORUS_SPLIT}",
                    low=128 * _GIGA,
                    high=256 * _GIGA,
                ),
                latency_ns=_TORUS_LATENCY,
            ),
            "column": Tier(
                name="NeuronLink across columns",
                wiring="ring",
                bandwidth_bytes_per_s=inferred(
                    128 * _GIGA,
                    "bytes/s",
                    f"{_TRN2}: 1,024 GB/s {_TORUS_SPLIT}",
                    low=128 * _GIGA,
                    high=256 * _GIGA,
                ),
                latency_ns=_TORUS_LATENCY,
            ),
        }
    ),
    chip_bandwidth_bytes_per_s=published(1_280 * _GIGA, "bytes/s", _CHIP2),
    cc_cores=published(16, "CC-cores", f"{_CHIP2}; trainium2_arch.rst has 20"),
    streams_per_core=_STREAMS,
    hop_latency_ns=_HOP,
    sbuf_hop_latency_ns=_SBUF_HOP,
    trigger_latency_ns=_TRIGGER,
    message_ns=_MESSAGE,
)

# A PCIe Gen6 x8 link carries 64 GB/s each way, so that what trn3-arch.rst calls 256 GB/s
# "bidirectional" of four links is 256 GB/s each way. Its three tiers make 704 GB/s, or 1.4 TB/s
# both ways, of the 2.56 TB/s that the chip is said to have: nobody has explained the rest.
_PCIE = f"{_TRN3}; PCIe Gen6 x8 is 64 GB/s each way"
_SWITCH_LATENCY = extrapolated(
    300,
    "ns",
    "a PCIe switch takes 100 to 200 ns, twice with cables; unpublished",
    low=100,
    high=1_000,
)

NEURONLINK_V4 = Fabric(
    name="NeuronLink-v4",
    tiers=Table(
        {
            "ultraserver": _EFA,
            "rack": Tier(
                name="PCIe between racks",
                wiring="direct",
                bandwidth_bytes_per_s=inferred(
                    128 * _GIGA, "bytes/s", f"{_PCIE}; 2 links", low=64 * _GIGA, high=233 * _GIGA
                ),
                latency_ns=extrapolated(
                    200, "ns", "a cable between two chips; unpublished", low=50, high=500
                ),
            ),
            "server": Tier(
                name="NeuronSwitch between servers",
                wiring="switch",
                bandwidth_bytes_per_s=inferred(
                    320 * _GIGA, "bytes/s", f"{_PCIE}; 5 links", low=160 * _GIGA, high=582 * _GIGA
                ),
                latency_ns=_SWITCH_LATENCY,
            ),
            "chip": Tier(
                name="NeuronSwitch in the server",
                wiring="switch",
                bandwidth_bytes_per_s=inferred(
                    256 * _GIGA, "bytes/s", f"{_PCIE}; 4 links", low=128 * _GIGA, high=465 * _GIGA
                ),
                latency_ns=_SWITCH_LATENCY,
            ),
        }
    ),
    chip_bandwidth_bytes_per_s=published(
        2_560 * _GIGA, "bytes/s", f"{_CHIP3}; {_TRN3} has 2,048 GiB/s"
    ),
    cc_cores=published(16, "CC-cores", f"{_CHIP3}; trainium3_arch.rst has 20"),
    streams_per_core=_STREAMS,
    hop_latency_ns=_HOP,
    sbuf_hop_latency_ns=_SBUF_HOP,
    trigger_latency_ns=_TRIGGER,
    message_ns=_MESSAGE,
)

# Chips of the first generation are simulated alone: no tier of theirs is ever used.
NEURONLINK_V2 = replace(
    NEURONLINK_V3,
    name="NeuronLink-v2",
    tiers=Table({}),
    chip_bandwidth_bytes_per_s=None,
    cc_cores=published(6, "CC-cores", "nki/guides/architecture/trainium_inferentia2_arch.rst"),
)
