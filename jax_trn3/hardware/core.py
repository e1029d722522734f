"""One NeuronCore: its generation and its two on-chip memories.

Sources are pages of the AWS Neuron SDK docs (github.com/aws-neuron/aws-neuron-sdk, SDK 2.32.0).
"""

from dataclasses import dataclass

_KIB = 1024


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

    @property
    def sbuf_bytes(self) -> int:
        """SBUF bytes of the whole core."""
        return self.partitions * self.sbuf_partition_bytes

    @property
    def psum_partition_bytes(self) -> int:
        """PSUM bytes in one partition, all banks together."""
        return self.psum_banks * self.psum_bank_bytes

    @property
    def psum_bytes(self) -> int:
        """PSUM bytes of the whole core."""
        return self.partitions * self.psum_partition_bytes


# nki/guides/architecture/trainium_inferentia2_arch.rst: 128 partitions, 192 KiB of SBUF and 16 KiB
# of PSUM in each, the latter in 8 banks of 512 float32.
NEURON_CORE_V2 = NeuronCore(
    name="NeuronCore-v2",
    partitions=128,  # trainium_inferentia2_arch.rst
    sbuf_partition_bytes=192 * _KIB,  # trainium_inferentia2_arch.rst; 24 MiB in all
    psum_banks=8,  # trainium_inferentia2_arch.rst
    psum_bank_bytes=2 * _KIB,  # 512 float32, trainium_inferentia2_arch.rst
)

# nki/guides/architecture/trainium2_arch.rst: SBUF is 28 MiB, "128 partitions of 224KiB"; PSUM
# "remains the same at 2MiB".
NEURON_CORE_V3 = NeuronCore(
    name="NeuronCore-v3",
    partitions=128,  # trainium2_arch.rst
    sbuf_partition_bytes=224 * _KIB,  # trainium2_arch.rst; 28 MiB in all
    psum_banks=8,  # unchanged since v2, trainium_inferentia2_arch.rst
    psum_bank_bytes=2 * _KIB,  # unchanged since v2; 2 MiB in all, trainium2_arch.rst
)

# nki/guides/architecture/trainium3_arch.rst: SBUF "is 32 MiB", PSUM
# "remains the same at 2 MiB". tools/neuron-explorer/glossary.rst: SBUF is "256 KiB per partition".
NEURON_CORE_V4 = NeuronCore(
    name="NeuronCore-v4",
    partitions=128,  # 32 MiB / 256 KiB
    sbuf_partition_bytes=256 * _KIB,  # tools/neuron-explorer/glossary.rst; 32 MiB in all
    psum_banks=8,  # unchanged since v2, trainium_inferentia2_arch.rst
    psum_bank_bytes=2 * _KIB,  # unchanged since v2; 2 MiB in all, trainium3_arch.rst
)
