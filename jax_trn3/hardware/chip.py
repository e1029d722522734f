"""One Trainium chip: its NeuronCores and its HBM.

Sources are pages of the AWS Neuron SDK docs (github.com/aws-neuron/aws-neuron-sdk, SDK 2.32.0).
"""

from dataclasses import dataclass

from .core import NEURON_CORE_V2, NEURON_CORE_V3, NEURON_CORE_V4, NeuronCore

_GIB = 1024**3


@dataclass(frozen=True)
class Chip:
    """A Trainium chip (AWS also says "device"): some NeuronCores that share HBM."""

    name: str
    """Product name, e.g. "Trainium3"."""

    core: NeuronCore
    """What each of the cores is."""

    num_cores: int
    """Physical NeuronCores on the chip (a count)."""

    hbm_bytes: int
    """HBM capacity of the chip, bytes."""

    hbm_stacks: int
    """HBM stacks on the chip (a count); on Trainium2 and 3 two adjacent cores share one."""

    hbm_bandwidth_bytes_per_s: int
    """Peak HBM bandwidth of the chip, all stacks together, bytes per second."""

    supported_lnc: tuple[int, ...]
    """Logical NeuronCore configurations: how many physical cores one device may fuse."""

    @property
    def hbm_bytes_per_core(self) -> int:
        """Even share of the chip's HBM that one physical core gets, bytes.

        A convention, not a wall: on the real machine both cores at a stack can address all of it
        (about-neuron/arch/neuron-features/logical-neuroncore-config.rst).
        """
        return self.hbm_bytes // self.num_cores


TRAINIUM1 = Chip(
    name="Trainium1",
    core=NEURON_CORE_V2,
    # The next four: nki/guides/architecture/trainium_inferentia2_arch.rst.
    num_cores=2,
    hbm_bytes=32 * _GIB,
    hbm_stacks=2,
    # "820 GB/s". In about-neuron/arch/neuron-hardware/, trainium.rst says 820 GiB/s and the table
    # of trainium2.rst 0.8 TB/s.
    hbm_bandwidth_bytes_per_s=820 * 10**9,
    supported_lnc=(1,),  # compiler/error-codes/EARG001.rst: "only lnc=1 is supported"
)

TRAINIUM2 = Chip(
    name="Trainium2",
    core=NEURON_CORE_V3,
    # The next three: nki/guides/architecture/trainium2_arch.rst.
    num_cores=8,
    hbm_bytes=96 * _GIB,
    hbm_stacks=4,
    # about-neuron/arch/neuron-hardware/trainium2.rst, and 185.6 TB/s for 64 chips in trn2-arch.rst.
    # trainium2_arch.rst rounds it to 3 TB/s.
    hbm_bandwidth_bytes_per_s=2_900 * 10**9,
    supported_lnc=(1, 2),  # about-neuron/arch/neuron-features/logical-neuroncore-config.rst
)

TRAINIUM3 = Chip(
    name="Trainium3",
    core=NEURON_CORE_V4,
    # The next three: nki/guides/architecture/trainium3_arch.rst.
    num_cores=8,
    hbm_bytes=144 * _GIB,
    hbm_stacks=4,
    # about-neuron/arch/neuron-hardware/trainium3.rst, and 705.6 TB/s for 144 chips in
    # trn3-arch.rst. trainium3_arch.rst alone says 4.7 TB/s.
    hbm_bandwidth_bytes_per_s=4_900 * 10**9,
    supported_lnc=(1, 2),  # about-neuron/arch/neuron-features/logical-neuroncore-config.rst
)
