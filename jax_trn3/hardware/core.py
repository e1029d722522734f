"""One NeuronCore: its generation, its two on-chip memories and its engines."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .dma import DMA_V2, DMA_V3, DMA_V4, DmaEngines
from .engine import (
    GPSIMD_V2,
    GPSIMD_V3,
    GPSIMD_V4,
    SCALAR_V2,
    SCALAR_V3,
    SCALAR_V4,
    SYNC_V2,
    SYNC_V3,
    SYNC_V4,
    TENSOR_V2,
    TENSOR_V3,
    TENSOR_V4,
    VECTOR_V2,
    VECTOR_V3,
    VECTOR_V4,
    ComputeEngine,
    SyncEngine,
    TensorEngine,
)
from .figure import Table, extrapolated, inferred, published, rounded

_KIB = 1024
_V2 = "nki/guides/architecture/trainium_inferentia2_arch.rst"
_V3 = "nki/guides/architecture/trainium2_arch.rst"
_V4 = "nki/guides/architecture/trainium3_arch.rst"
_ACCESS = "nki/deep-dives/nki-aps.rst"
_SETUP = "Trainium2 profiles: 63-69 set-up instructions an engine, 1.8-2.2 us"


@dataclass(frozen=True)
class NeuronCore:
    """A physical NeuronCore of one generation.

    Both memories are two-dimensional: `partitions` rows, each of the same number of bytes.
    """

    name: str
    """Generation as AWS writes it, e.g. "NeuronCore-v4"; also JAX's `device_kind`."""

    partitions: int
    """Partitions of SBUF, and of PSUM (a count)."""

    sbuf_partition_bytes: int
    """SBUF bytes in one partition, before what the compiler reserves."""

    psum_banks: int
    """PSUM banks in one partition (a count); one matmul writes into one bank."""

    psum_bank_bytes: int
    """Bytes of one PSUM bank in one partition (2 KiB = 512 float32)."""

    generation: int
    """AWS's number of the architecture: 2, 3 or 4."""

    tensor: TensorEngine
    """TensorE."""

    vector: ComputeEngine
    """VectorE."""

    scalar: ComputeEngine
    """ScalarE."""

    gpsimd: ComputeEngine
    """GpSimdE."""

    sync: SyncEngine
    """SyncE."""

    dma: DmaEngines
    """The DMA engines that belong to the core."""

    sbuf_reserved_partition_bytes: int
    """SBUF bytes of one partition that the compiler keeps for itself."""

    quadrant_partitions: int
    """Partitions of a quadrant (a count): accesses start at quadrants."""

    max_free_elements: Mapping[str, int]
    """Most elements of one partition in an instruction's access, by memory ("sbuf", "psum")."""

    max_free_dims: int
    """Most dimensions of an access beside the partitions (a count)."""

    slow_stride_bytes: int
    """Distance of neighbouring elements beyond which an access takes twice as long."""

    psum_accumulate_dtypes: tuple[str, ...]
    """Types in which PSUM accumulates a matmul."""

    shared_sbuf_port: bool
    """Whether VectorE and GpSimdE cannot access SBUF at the same time."""

    shared_psum_port: bool
    """Whether VectorE and ScalarE cannot access PSUM at the same time."""

    shared_mode_bus: bool
    """Whether VectorE in a 2x or 4x mode takes the bus to SBUF that GpSimdE uses."""

    shared_psum_banks: bool
    """Whether VectorE and ScalarE cannot access the same PSUM bank at the same time."""

    registers: int
    """Registers of 32 bits in each engine's sequencer (a count)."""

    start_stop_ns: int
    """Time inside a program's total during which no engine works: its start and its stop, ns."""

    setup_ns: int
    """Time for which every engine sets itself up before its first instruction, ns."""

    @property
    def sbuf_bytes(self) -> int:
        """SBUF bytes of the whole core."""
        return self.partitions * self.sbuf_partition_bytes

    @property
    def sbuf_usable_partition_bytes(self) -> int:
        """SBUF bytes in one partition that a program may allocate."""
        return self.sbuf_partition_bytes - self.sbuf_reserved_partition_bytes

    @property
    def psum_partition_bytes(self) -> int:
        """PSUM bytes in one partition, all banks together."""
        return self.psum_banks * self.psum_bank_bytes

    @property
    def psum_bytes(self) -> int:
        """PSUM bytes of the whole core."""
        return self.partitions * self.psum_partition_bytes

    def peak_flops(self, kind: str = "bfloat16") -> float:
        """FLOP/s of TensorE at full clock; `kind` as in `TensorEngine.passes`.

        **Raises:** `ValueError` for a kind that this generation does not have.
        """
        if kind not in self.tensor.passes:
            known = ", ".join(self.tensor.passes)
            raise ValueError(f"{self.name} has no {kind!r} matmul; its kinds: {known}")
        return self.tensor.peak_flops(kind)

    def partition_starts(self, partitions: int) -> range:
        """Where an access to that many partitions may start: 0, 32, 64 or 96 for up to 32 of them,
        0 or 64 for up to 64, else 0 (trainium_inferentia2_arch.rst).

        **Raises:** `ValueError` for a count that no access can have.
        """
        if not 1 <= partitions <= self.partitions:
            raise ValueError(
                f"an access covers 1 to {self.partitions} partitions of a {self.name}, "
                f"not {partitions}"
            )
        span = self.quadrant_partitions
        while span < partitions:
            span *= 2
        return range(0, self.partitions, span)


NEURON_CORE_V2 = NeuronCore(
    name="NeuronCore-v2",
    partitions=published(128, "partitions", _V2),
    sbuf_partition_bytes=published(192 * _KIB, "bytes", _V2),
    psum_banks=published(8, "banks", _V2),
    psum_bank_bytes=published(2 * _KIB, "bytes", f"{_V2}: 512 float32"),
    generation=published(2, "generation", _V2),
    tensor=TENSOR_V2,
    vector=VECTOR_V2,
    scalar=SCALAR_V2,
    gpsimd=GPSIMD_V2,
    sync=SYNC_V2,
    dma=DMA_V2,
    sbuf_reserved_partition_bytes=published(
        16 * _KIB, "bytes", "general/nki/nki_direct_allocation_guide.rst, SDK 2.26"
    ),
    quadrant_partitions=published(32, "partitions", _V2),
    max_free_elements=Table(
        {
            "sbuf": published(64 * _KIB, "elements", _V2),
            "psum": published(4 * _KIB, "elements", _V2),
        }
    ),
    max_free_dims=published(4, "dimensions", _ACCESS),
    slow_stride_bytes=published(16, "bytes", _V2),
    psum_accumulate_dtypes=("float32",),
    shared_sbuf_port=published(True, "flag", _V2),
    shared_psum_port=published(True, "flag", _V2),
    shared_mode_bus=inferred(False, "flag", f"{_V3} introduces the modes"),
    shared_psum_banks=inferred(True, "flag", "the whole PSUM is shared"),
    registers=published(64, "registers", "nki.isa register_alloc: v2 to v4"),
    start_stop_ns=extrapolated(12_800, "ns", "Trainium2 profiles", low=10_000, high=40_000),
    setup_ns=extrapolated(2_000, "ns", _SETUP, low=1_000, high=4_000),
)

NEURON_CORE_V3 = replace(
    NEURON_CORE_V2,
    name="NeuronCore-v3",
    partitions=published(128, "partitions", _V3),
    sbuf_partition_bytes=published(224 * _KIB, "bytes", f'{_V3}: "128 partitions of 224KiB"'),
    psum_banks=published(8, "banks", f"{_V3}: PSUM unchanged"),
    psum_bank_bytes=published(2 * _KIB, "bytes", f"{_V3}: PSUM unchanged"),
    generation=published(3, "generation", _V3),
    tensor=TENSOR_V3,
    vector=VECTOR_V3,
    scalar=SCALAR_V3,
    gpsimd=GPSIMD_V3,
    sync=SYNC_V3,
    dma=DMA_V3,
    sbuf_reserved_partition_bytes=rounded(
        16 * _KIB,
        "bytes",
        "nki-library core/mlp/mlp_cte/mlp_cte_constants.py: 16384 + 8, in places some 500 more",
        low=16 * _KIB,
        high=17 * _KIB,
    ),
    shared_sbuf_port=published(False, "flag", _V3),
    shared_psum_port=published(False, "flag", _V3),
    shared_mode_bus=published(True, "flag", _V3),
    shared_psum_banks=published(True, "flag", _V3),
    start_stop_ns=inferred(
        12_800, "ns", "three profiles: total time less active time", low=12_400, high=13_300
    ),
    setup_ns=inferred(2_000, "ns", _SETUP, low=1_800, high=2_200),
)

NEURON_CORE_V4 = replace(
    NEURON_CORE_V3,
    name="NeuronCore-v4",
    partitions=inferred(128, "partitions", f"32 MiB ({_V4}) of 256 KiB (glossary.rst) each"),
    sbuf_partition_bytes=published(256 * _KIB, "bytes", "about-neuron/arch/glossary.rst"),
    psum_banks=published(8, "banks", f"{_V4}: PSUM unchanged"),
    psum_bank_bytes=published(2 * _KIB, "bytes", f"{_V4}: PSUM unchanged"),
    generation=published(4, "generation", _V4),
    tensor=TENSOR_V4,
    vector=VECTOR_V4,
    scalar=SCALAR_V4,
    gpsimd=GPSIMD_V4,
    sync=SYNC_V4,
    dma=DMA_V4,
    sbuf_reserved_partition_bytes=extrapolated(
        16 * _KIB, "bytes", "Trainium1 and 2", low=16 * _KIB, high=32 * _KIB
    ),
    psum_accumulate_dtypes=("float32", "bfloat16"),
    start_stop_ns=extrapolated(12_800, "ns", "Trainium2 profiles", low=6_000, high=33_000),
    setup_ns=extrapolated(2_000, "ns", _SETUP, low=1_000, high=4_000),
)
