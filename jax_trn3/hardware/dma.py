"""The DMA engines of a NeuronCore: sixteen copiers between HBM, SBUF and the links.

A transfer is cut into packets. A packet of b bytes takes `b / engine_bytes_per_s +
packet_overhead_ns`; full packets so reach the practical bandwidth that AWS publishes beside the
theoretical one, and rows shorter than a packet less (1-KiB rows on Trainium2: 252 GB/s by this
rule, 259 in a published profile).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .figure import Table, extrapolated, inferred, published, rounded

_V3 = "nki/guides/architecture/trainium2_arch.rst"
_V4 = "nki/guides/architecture/trainium3_arch.rst"
_OVERVIEW = "nki/get-started/about/nki-dma-overview.rst"
_BANDWIDTH = "nki/deep-dives/nki-dma-bandwidth-guide.rst"
_DGE = "nki/deep-dives/nki-dge.rst"
_OVERLAP = "neuron-runtime/explore/compute-comm-overlap.rst"


@dataclass(frozen=True)
class DmaEngines:
    """All DMA engines of one NeuronCore."""

    count: int
    """Engines (a count). A transfer is striped over all of them."""

    queues_per_engine: int
    """Queues of one engine (a count). Each is served in order; among them the engine takes turns,
    on v4 by priority."""

    partitions_per_engine: int
    """Partitions of a full tile that one engine serves (a count)."""

    engine_bytes_per_s: int
    """Rate of one engine inside a packet, bytes per second."""

    packet_bytes: int
    """Largest packet, bytes."""

    collective_packet_bytes: int
    """Largest packet of a collective, bytes. An engine turns to another queue only between
    packets, so that larger ones take precedence."""

    packet_overhead_ns: float
    """Time of a packet beside its bytes, ns."""

    latency_ns: int
    """Time from the semaphore that triggers a transfer until its first byte moves, ns."""

    issue_ns: Mapping[str, int]
    """Time the issuing engine is held for one transfer, ns, by who writes the descriptors: "none"
    (the host, before the start), "hwdge" (a hardware block), "swdge" (GpSimdE, at run time)."""

    hwdge_instances: int
    """Hardware descriptor generators (a count)."""

    accumulate_factor: float
    """Share of full throughput when the transfer adds to what is there."""

    transpose_factors: Mapping[str, float]
    """Share of full throughput when the transfer transposes, by source and destination."""

    traffic_classes: int
    """Priorities the engines know (a count)."""

    max_compute_sources: int
    """Most sources that one transfer can sum (a count)."""

    gpsimd_bytes_per_s: int
    """Rate of GpSimdE's own DMA, both directions together, bytes per second; 0 without it."""

    @property
    def peak_bytes_per_s(self) -> int:
        """All engines inside packets, bytes per second."""
        return self.count * self.engine_bytes_per_s

    @property
    def practical_bytes_per_s(self) -> float:
        """All engines with full packets, bytes per second."""
        return self.count * self.packet_bytes / self.packet_ns(self.packet_bytes) * 1e9

    def packet_ns(self, size: int) -> float:
        """Time one engine takes for a packet of `size` bytes, ns."""
        return size / self.engine_bytes_per_s * 1e9 + self.packet_overhead_ns


def _overhead(practical: float, theoretical: float) -> float:
    """What turns `theoretical` bytes a nanosecond into `practical` ones over 4-KiB packets."""
    return inferred(
        4096 / practical - 4096 / theoretical,
        "ns",
        f"{_OVERVIEW}: 4096 B / {practical} B/ns - 4096 B / {theoretical} B/ns",
    )


DMA_V2 = DmaEngines(
    count=published(16, "engines", _OVERVIEW),
    queues_per_engine=published(16, "queues/engine", _OVERVIEW),
    partitions_per_engine=published(8, "partitions/engine", _OVERVIEW),
    engine_bytes_per_s=published(27_200_000_000, "bytes/s", _OVERVIEW),
    packet_bytes=published(4_096, "bytes", f"{_OVERLAP}: DMA_PACKETIZATION_SIZE"),
    collective_packet_bytes=published(65_536, "bytes", f"{_OVERLAP}: CC_DMA_PACKET_SIZE"),
    packet_overhead_ns=_overhead(17, 27.2),
    latency_ns=rounded(1_300, "ns", f"{_BANDWIDTH}: semaphore-to-start"),
    issue_ns=Table(
        {
            "none": inferred(
                340,
                "ns",
                "vector additions of tiny tiles, 3 transfers an iteration: 1.07 and 0.97 us",
                low=320,
                high=360,
            ),
            "swdge": extrapolated(
                1_000, "ns", f"{_DGE}: software, slower than hardware's 600", low=600, high=2_000
            ),
        }
    ),
    hwdge_instances=published(0, "instances", f"{_DGE}: from Trainium2 on"),
    accumulate_factor=inferred(0.5, "factor", f"{_V4}: before it"),
    transpose_factors=Table(
        {
            "hbm_to_sbuf": extrapolated(0.9, "factor", f"{_V3}, DMA transpose", low=0.4, high=0.9),
            "sbuf_to_sbuf": extrapolated(0.5, "factor", f"{_V3}, DMA transpose", low=0.2, high=0.5),
        }
    ),
    traffic_classes=inferred(1, "classes", f"{_V4} introduces them"),
    max_compute_sources=published(16, "sources", "nki.isa dma_compute"),
    gpsimd_bytes_per_s=inferred(0, "bytes/s", f"{_V3} introduces it"),
)

DMA_V3 = replace(
    DMA_V2,
    packet_overhead_ns=_overhead(23, 27.2),
    issue_ns=Table(
        {
            **DMA_V2.issue_ns,
            "none": inferred(
                550,
                "ns",
                "vector additions of tiny tiles, 3 transfers an iteration: 1.46 and 1.83 us",
                low=490,
                high=610,
            ),
            "hwdge": rounded(600, "ns", _DGE),
        }
    ),
    hwdge_instances=published(2, "instances", _DGE),
    transpose_factors=Table(
        {
            "hbm_to_sbuf": rounded(0.9, "factor", f"{_V3}, DMA transpose: up to 90 %"),
            "sbuf_to_sbuf": rounded(0.5, "factor", f"{_V3}, DMA transpose: about 50 %"),
        }
    ),
    gpsimd_bytes_per_s=published(307_000_000_000, "bytes/s", _V3),
)

DMA_V4 = replace(
    DMA_V3,
    engine_bytes_per_s=published(38_400_000_000, "bytes/s", _OVERVIEW),
    issue_ns=Table(
        {
            **DMA_V3.issue_ns,
            "none": extrapolated(
                550, "ns", "Trainium2: vector additions of tiny tiles", low=200, high=850
            ),
        }
    ),
    packet_overhead_ns=_overhead(33, 38.4),
    accumulate_factor=published(1.0, "factor", f"{_V4}: SBUF read-add-write"),
    transpose_factors=Table(
        {
            "hbm_to_sbuf": extrapolated(0.9, "factor", f"{_V3}, DMA transpose", low=0.5, high=1),
            "sbuf_to_sbuf": extrapolated(0.5, "factor", f"{_V3}, DMA transpose", low=0.25, high=1),
        }
    ),
    traffic_classes=published(4, "classes", f"{_V4}: traffic shaping"),
    gpsimd_bytes_per_s=extrapolated(
        307_000_000_000, "bytes/s", _V3, low=307_000_000_000, high=460_000_000_000
    ),
)
