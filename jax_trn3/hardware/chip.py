"""One Trainium chip: its NeuronCores, its HBM and its links."""

from collections.abc import Mapping
from dataclasses import dataclass

from .core import NEURON_CORE_V2, NEURON_CORE_V3, NEURON_CORE_V4, NeuronCore
from .fabric import NEURONLINK_V2, NEURONLINK_V3, NEURONLINK_V4, Fabric
from .figure import Table, published, rounded

_GIB = 1024**3
_TERA = 10**12
_V2 = "nki/guides/architecture/trainium_inferentia2_arch.rst"
_V3 = "nki/guides/architecture/trainium2_arch.rst"
_V4 = "nki/guides/architecture/trainium3_arch.rst"
_CHIP1 = "about-neuron/arch/neuron-hardware/trainium.rst"
_CHIP2 = "about-neuron/arch/neuron-hardware/trainium2.rst"
_CHIP3 = "about-neuron/arch/neuron-hardware/trainium3.rst"
_LNC = "about-neuron/arch/neuron-features/logical-neuroncore-config.rst"


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

    fabric: Fabric
    """The links that join such chips, and their collective cores."""

    published_dma_bytes_per_s: int
    """DMA bandwidth of the chip as AWS gives it, bytes per second. Only for comparison: the time
    of a transfer comes from `DmaEngines`."""

    published_peak_flops: Mapping[str, float]
    """FLOP/s of the chip as AWS gives them, by kind as in `TensorEngine.passes`. Only for
    comparison: time comes from the cores, whose published peaks do not add up to these. Those of
    a Trainium3 make 2,517 TFLOPS in MX as given, but 629 in bfloat16 and not 671, and 157 in
    float32 and not 183. Nobody has explained it."""

    power_w: int | None
    """Power of the chip, W; None if nobody published it."""

    @property
    def hbm_bytes_per_core(self) -> int:
        """Even share of the chip's HBM that one physical core gets, bytes.

        A convention, not a wall: on the real machine both cores at a stack can address all of it
        (about-neuron/arch/neuron-features/logical-neuroncore-config.rst).
        """
        return self.hbm_bytes // self.num_cores

    @property
    def cores_per_stack(self) -> int:
        """Adjacent physical cores that share one HBM stack (a count)."""
        return -(-self.num_cores // self.hbm_stacks)

    @property
    def hbm_stack_bandwidth_bytes_per_s(self) -> float:
        """Peak bandwidth of one HBM stack, bytes per second."""
        return self.hbm_bandwidth_bytes_per_s / self.hbm_stacks

    @property
    def sbuf_bytes(self) -> int:
        """SBUF of all cores together, bytes."""
        return self.num_cores * self.core.sbuf_bytes

    def peak_flops(self, kind: str = "bfloat16") -> float:
        """FLOP/s of all cores together at full clock; see `NeuronCore.peak_flops`."""
        return self.num_cores * self.core.peak_flops(kind)


def _peaks(teraflops: Mapping[str, float], source: str) -> Table[float]:
    return Table(
        {kind: published(peak * _TERA, "FLOP/s", source) for kind, peak in teraflops.items()}
    )


TRAINIUM1 = Chip(
    name="Trainium1",
    core=NEURON_CORE_V2,
    num_cores=published(2, "cores", _V2),
    hbm_bytes=published(32 * _GIB, "bytes", _V2),
    hbm_stacks=published(2, "stacks", _V2),
    hbm_bandwidth_bytes_per_s=published(
        820 * 10**9, "bytes/s", f"{_V2}; {_CHIP1} has 820 GiB/s, {_CHIP2} 0.8 TB/s"
    ),
    supported_lnc=(published(1, "cores", "compiler/error-codes/EARG001.rst"),),
    fabric=NEURONLINK_V2,
    published_dma_bytes_per_s=published(1 * _TERA, "bytes/s", _CHIP1),
    published_peak_flops=_peaks({"bfloat16": 190, "float8": 190, "float32": 47.5}, _CHIP1),
    power_w=None,
)

TRAINIUM2 = Chip(
    name="Trainium2",
    core=NEURON_CORE_V3,
    num_cores=published(8, "cores", _V3),
    hbm_bytes=published(96 * _GIB, "bytes", _V3),
    hbm_stacks=published(4, "stacks", _V3),
    hbm_bandwidth_bytes_per_s=published(
        2_900 * 10**9, "bytes/s", f"{_CHIP2}, and 185.6 TB/s for 64 in trn2-arch.rst; {_V3} has 3"
    ),
    supported_lnc=(published(1, "cores", _LNC), published(2, "cores", _LNC)),
    fabric=NEURONLINK_V3,
    published_dma_bytes_per_s=published(3_500 * 10**9, "bytes/s", _CHIP2),
    published_peak_flops=_peaks(
        {"float8_double_row": 1_299, "bfloat16": 667, "float32": 181, "sparse": 2_563}, _CHIP2
    ),
    power_w=rounded(
        500,
        "W",
        'SemiAnalysis, "Amazon\'s AI Self Sufficiency: Trainium2" (2024): ~500 W',
        low=400,
        high=1_000,
    ),
)

TRAINIUM3 = Chip(
    name="Trainium3",
    core=NEURON_CORE_V4,
    num_cores=published(8, "cores", _V4),
    hbm_bytes=published(144 * _GIB, "bytes", _V4),
    hbm_stacks=published(4, "stacks", _V4),
    hbm_bandwidth_bytes_per_s=published(
        4_900 * 10**9,
        "bytes/s",
        f"{_CHIP3}, and 705.6 TB/s for 144 in trn3-arch.rst; {_V4} has 4.7",
    ),
    supported_lnc=(published(1, "cores", _LNC), published(2, "cores", _LNC)),
    fabric=NEURONLINK_V4,
    published_dma_bytes_per_s=published(4_900 * 10**9, "bytes/s", _CHIP3),
    published_peak_flops=_peaks(
        {"mx": 2_517, "bfloat16": 671, "float32": 183, "sparse": 2_517}, _CHIP3
    ),
    # In 2024 an AWS vice president expected more than 1,000 W (fierce-network.com).
    power_w=rounded(
        500, "W", "about 500 W, not in AWS's docs; 1,000 W was expected", low=400, high=1_000
    ),
)
