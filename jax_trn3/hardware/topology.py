"""Arrangements of chips that can be simulated, by name, and where each device sits in one.

Sources of the arrangements are trn2-arch.rst and trn3-arch.rst of the AWS Neuron SDK docs (under
about-neuron/arch/neuron-hardware/), with their figures.
"""

import dataclasses
import math
import re
from dataclasses import dataclass

from .chip import TRAINIUM1, TRAINIUM2, TRAINIUM3, Chip
from .figure import inferred, published

DEFAULT_TOPOLOGY = "trn3-chip"

_GIB = 1024**3
_GBIT = 10**9 // 8
_TRN1 = "about-neuron/arch/neuron-hardware/trn1-arch.rst"
_TRN2 = "about-neuron/arch/neuron-hardware/trn2-arch.rst"
_TRN3 = "about-neuron/arch/neuron-hardware/trn3-arch.rst"


@dataclass(frozen=True)
class Server:
    """What carries the chips: an instance of trn1 or trn2, a sled or server of trn3."""

    name: str
    """Name of the instance, or of the UltraServer it is part of."""

    num_chips: int
    """Chips in a full server (a count)."""

    host_vcpus: int
    """Virtual CPUs of the host (a count)."""

    host_memory_bytes: int
    """Memory of the host, bytes."""

    efa_bytes_per_s: int
    """Network (EFA) of the server, each direction, bytes per second."""


@dataclass(frozen=True, slots=True)
class CoreLocation:
    """One logical device (with lnc=1 one NeuronCore) and its place in a `Topology`."""

    id: int
    """Index of the device in the topology, from 0."""

    chip: int
    """Index of its chip in the topology, from 0."""

    core: int
    """Index of the device on its chip, from 0; fuses the cores from `core * lnc` up."""

    server: int
    """Index of its server (trn2 instance, trn3 sled) in the topology, from 0."""

    coords: tuple[int, ...]
    """Place along each of `Topology.axes`. Ids rise with coords, the last one fastest."""


@dataclass(frozen=True)
class Topology:
    """Chips of one kind, arranged in servers. Costs the same whatever its size, bar `devices()`.

    **Raises:** `ValueError` when made with figures that contradict each other, or with an `lnc`
    that the chip does not support.
    """

    name: str
    """Name as `get_topology` takes it."""

    chip: Chip
    """What each of the chips is."""

    num_chips: int
    """Chips in the topology (a count)."""

    chips_per_server: int
    """Chips of the topology in one server (a count; the last server may hold fewer)."""

    chip_axes: tuple[str, ...]
    """Names of the coordinates of a chip, outermost first."""

    chip_shape: tuple[int, ...]
    """Extent of each of `chip_axes`. Chips fill it in order; the end may stay empty."""

    cores_used_per_chip: int
    """Physical cores of each chip that take part (a count)."""

    server: Server
    """What each of the servers is; more chips may sit in it than take part."""

    lnc: int = 1
    """Logical NeuronCore configuration: adjacent physical cores that make up one device."""

    def __post_init__(self) -> None:
        if len(self.chip_axes) != len(self.chip_shape):
            raise ValueError(f"{self.name}: {self.chip_axes} do not match {self.chip_shape}")
        places = math.prod(self.chip_shape)
        if not 1 <= self.num_chips <= places:
            raise ValueError(f"{self.name}: num_chips={self.num_chips} must be 1 to {places}")
        if self.chips_per_server < 1:
            raise ValueError(f"{self.name}: chips_per_server={self.chips_per_server} must be >= 1")
        if not 1 <= self.cores_used_per_chip <= self.chip.num_cores:
            raise ValueError(
                f"{self.name}: cores_used_per_chip={self.cores_used_per_chip} must be 1 to "
                f"{self.chip.num_cores}, the cores of a {self.chip.name}"
            )
        if self.lnc not in self.chip.supported_lnc:
            supported = " or ".join(map(str, self.chip.supported_lnc))
            raise ValueError(
                f"{self.name}: lnc={self.lnc!r} is not supported; "
                f"{self.chip.name} takes {supported}"
            )
        if self.cores_used_per_chip % self.lnc:
            raise ValueError(
                f"{self.name}: lnc={self.lnc} cannot fuse {self.cores_used_per_chip} core(s) a chip"
            )

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the entries of `CoreLocation.coords`."""
        return (*self.chip_axes, "core")

    @property
    def num_servers(self) -> int:
        """Servers in the topology (a count)."""
        return -(-self.num_chips // self.chips_per_server)

    @property
    def devices_per_chip(self) -> int:
        """Logical devices on each chip (a count)."""
        return self.cores_used_per_chip // self.lnc

    @property
    def num_devices(self) -> int:
        """Logical devices in the topology (a count)."""
        return self.num_chips * self.devices_per_chip

    @property
    def hbm_bytes_per_device(self) -> int:
        """HBM of one logical device, bytes."""
        return self.chip.hbm_bytes_per_core * self.lnc

    @property
    def hbm_bytes(self) -> int:
        """HBM of all logical devices together, bytes."""
        return self.hbm_bytes_per_device * self.num_devices

    @property
    def hbm_bandwidth_bytes_per_s(self) -> int:
        """Peak HBM bandwidth of all chips together, bytes per second."""
        return self.num_chips * self.chip.hbm_bandwidth_bytes_per_s

    @property
    def power_w(self) -> int | None:
        """Power of all chips together, without hosts and network, W; None if not published."""
        return None if self.chip.power_w is None else self.num_chips * self.chip.power_w

    def peak_flops(self, kind: str = "bfloat16") -> float:
        """FLOP/s of all cores that take part, at full clock; see `NeuronCore.peak_flops`."""
        return self.num_chips * self.cores_used_per_chip * self.chip.core.peak_flops(kind)

    def published_peak_flops(self, kind: str = "bfloat16") -> float:
        """FLOP/s of all chips as AWS gives them; see `Chip.published_peak_flops`."""
        return self.num_chips * self.chip.published_peak_flops[kind]

    def devices(self) -> tuple[CoreLocation, ...]:
        """Every logical device, in the order of ids. Takes time and memory per device."""
        return tuple(map(self._locate, range(self.num_devices)))

    def _locate(self, device_id: int) -> CoreLocation:
        chip, core = divmod(device_id, self.devices_per_chip)
        return CoreLocation(
            id=device_id,
            chip=chip,
            core=core,
            server=chip // self.chips_per_server,
            coords=(*_digits(chip, self.chip_shape), core),
        )


def _digits(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Coordinates of the `index`-th place of a grid, the last coordinate fastest."""
    digits = []
    for extent in reversed(shape):
        index, digit = divmod(index, extent)
        digits.append(digit)
    return tuple(reversed(digits))


# trn3-arch.rst, "Routing": a chip is identified by (rack, server, chip). `server` counts within
# the rack, `chip` within the server.
_SWITCHED = ("rack", "server", "chip")

# trn2-arch.rst: 4x4 torus of rows and columns in an instance; chips at the same row and column of
# the four instances form a ring. Trn1 has no UltraServer.
_TORUS = ("instance", "row", "column")

# trn3-arch.rst: an UltraServer is 36 servers of 4 chips; figure trn3-ultraserver-gen2.png: servers
# 0-17 hang on one second-level switch and 18-35 on the other, linked chip to chip: two racks.
_GEN2_SHAPE = (2, 18, 4)


TRN1_2XLARGE = Server(
    name="trn1.2xlarge",
    num_chips=published(1, "chips", _TRN1),
    host_vcpus=published(8, "vCPUs", _TRN1),
    host_memory_bytes=published(32 * _GIB, "bytes", _TRN1),
    efa_bytes_per_s=published(25 * _GBIT, "bytes/s", f"{_TRN1}: up to 25 Gbps"),
)

TRN2_INSTANCE = Server(
    name="trn2.48xlarge",
    num_chips=published(16, "chips", _TRN2),
    host_vcpus=published(192, "vCPUs", _TRN2),
    host_memory_bytes=published(2_048 * _GIB, "bytes", _TRN2),
    # The same table has 3,200 Gbps for an UltraServer of four.
    efa_bytes_per_s=published(3_200 * _GBIT, "bytes/s", f"{_TRN2}: 3,200 Gbps"),
)

TRN3_GEN1_SERVER = Server(
    name="Trn3 Gen1 server",
    num_chips=published(16, "chips", _TRN3),
    host_vcpus=inferred(192, "vCPUs", f"{_TRN3}: 768 in four"),
    host_memory_bytes=inferred(2_048 * _GIB, "bytes", f"{_TRN3}: 8,192 GiB in four"),
    efa_bytes_per_s=inferred(3_200 * _GBIT, "bytes/s", f"{_TRN3}: 12,800 Gbps in four"),
)

TRN3_GEN2_SLED = Server(
    name="Trn3 Gen2 sled",
    num_chips=published(4, "chips", _TRN3),
    host_vcpus=inferred(64, "vCPUs", f"{_TRN3}: 2,304 in 36"),
    host_memory_bytes=inferred(768 * _GIB, "bytes", f"{_TRN3}: 27,648 GiB in 36"),
    efa_bytes_per_s=inferred(800 * _GBIT, "bytes/s", f"{_TRN3}: 28,800 Gbps in 36"),
)


def _topology(
    name: str,
    chip: Chip,
    server: Server,
    axes: tuple[str, ...],
    shape: tuple[int, ...],
    chips_per_server: int,
    cores: int | None = None,
) -> Topology:
    """A topology that fills its shape, with every core of a chip unless `cores` says how many."""
    return Topology(
        name=name,
        chip=chip,
        num_chips=math.prod(shape),
        chips_per_server=chips_per_server,
        chip_axes=axes,
        chip_shape=shape,
        cores_used_per_chip=chip.num_cores if cores is None else cores,
        server=server,
    )


def _whole(
    name: str,
    chip: Chip,
    server: Server,
    axes: tuple[str, ...],
    shape: tuple[int, ...],
    source: str,
) -> Topology:
    """A product as AWS describes it in `source`, in full servers."""
    full = _topology(name, chip, server, axes, shape, server.num_chips)
    return dataclasses.replace(
        full,
        num_chips=published(full.num_chips, "chips", source),
        chips_per_server=published(int(server.num_chips), "chips/server", source),
        chip_shape=tuple(
            inferred(extent, f"{axis}s", f"{source}, and its figure")
            for axis, extent in zip(axes, shape)
        ),
    )


_SLED = (TRAINIUM3, TRN3_GEN2_SLED, _SWITCHED)
_INSTANCE = (TRAINIUM2, TRN2_INSTANCE, _TORUS)

_KNOWN = {
    topology.name: topology
    for topology in (
        _topology("trn3-core", *_SLED, (1, 1, 1), chips_per_server=1, cores=1),
        _topology("trn3-chip", *_SLED, (1, 1, 1), chips_per_server=1),
        # "Intra-server connectivity": "Each server (sled) contains 4".
        _whole("trn3-sled", *_SLED, (1, 1, 4), f"{_TRN3}, Intra-server connectivity"),
        # "Four servers with 16"; figure trn3-ultraserver-gen1.png: servers 0 and 1 hang on one
        # switch, 2 and 3 on the other. We call the two halves racks as in Gen2.
        _whole("trn3-gen1", TRAINIUM3, TRN3_GEN1_SERVER, _SWITCHED, (2, 2, 16), f"{_TRN3}, Gen1"),
        _whole("trn3-gen2", *_SLED, _GEN2_SHAPE, f"{_TRN3}, Gen2"),
        _topology("trn2-chip", *_INSTANCE, (1, 1, 1), chips_per_server=1),
        # 16 chips in "4x4, 2D Torus"; an UltraServer is four such instances.
        _whole("trn2-instance", *_INSTANCE, (1, 4, 4), f"{_TRN2}: 4x4, 2D torus"),
        _whole("trn2-ultraserver", *_INSTANCE, (4, 4, 4), f"{_TRN2}, Trn2 UltraServer"),
        _topology("trn1-chip", TRAINIUM1, TRN1_2XLARGE, _TORUS, (1, 1, 1), chips_per_server=1),
    )
}


def _ultracluster(name: str, num_chips: int) -> Topology:
    """Gen2 UltraServers filled one after another (our inference: AWS publishes no layout)."""
    ultraservers = -(-num_chips // math.prod(_GEN2_SHAPE))
    shape = (ultraservers, *_GEN2_SHAPE)
    axes = ("ultraserver", *_SWITCHED)
    full = _topology(name, TRAINIUM3, TRN3_GEN2_SLED, axes, shape, chips_per_server=4)
    return dataclasses.replace(full, num_chips=num_chips)


def topology_names() -> tuple[str, ...]:
    """What `get_topology` knows; `<chips>` in the last one stands for a positive number."""
    return (*_KNOWN, "trn3-ultracluster:<chips>")


def get_topology(name: str, lnc: int = 1) -> Topology:
    """The topology of that name.

    **Arguments:**

    - `name`: `trn3-core`, `trn3-chip`, `trn3-sled`, `trn3-gen1`, `trn3-gen2`,
      `trn3-ultracluster:<chips>` (any positive number), `trn2-chip`, `trn2-instance`,
      `trn2-ultraserver` or `trn1-chip`.
    - `lnc`: Logical NeuronCore configuration. 1: each physical core is a device. 2: two adjacent
      cores make one device with the HBM of both (not on trn1, nor on `trn3-core`).

    **Returns:** A `Topology`, in constant time and memory.

    **Raises:** `ValueError` for a name that is not among these and for an `lnc` that the
    topology cannot have.

    >>> get_topology("trn3-gen2").num_devices
    1152
    """
    if name in _KNOWN:
        return dataclasses.replace(_KNOWN[name], lnc=lnc)
    cluster = re.fullmatch(r"trn3-ultracluster:([1-9][0-9]*)", name)
    if cluster:
        return dataclasses.replace(_ultracluster(name, int(cluster[1])), lnc=lnc)
    raise ValueError(f"unknown topology {name!r}; known: {', '.join(topology_names())}")
