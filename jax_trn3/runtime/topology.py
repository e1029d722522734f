"""A hardware topology as the PJRT C API describes it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping

from jax_trn3 import compiler, hardware, pjrt

from .processes import Process, devices_of

# JAX expects "device" to be the default memory, and knows the other two by these names.
HOST_MEMORIES = (pjrt.MemorySpace("pinned_host"), pjrt.MemorySpace("unpinned_host"))

# Each device is described by an object; a million of them would fill the memory of the host.
_MOST_DEVICES = 1 << 16

_FORMAT = "trn3-topology-1"  # of serialized topologies


def _describe(
    topology: hardware.Topology, location: hardware.CoreLocation, process: int, local_id: int
) -> pjrt.DeviceDescription:
    kind = topology.chip.core.name
    place = ", ".join(f"{axis}={i}" for axis, i in zip(topology.axes, location.coords))
    return pjrt.DeviceDescription(
        id=location.id,
        process_index=process,
        local_hardware_id=local_id,
        kind=kind,
        to_string=f"NeuronCore(id={location.id}, {place})",
        debug_string=f"trn3:{location.id}",
        attributes={
            "coords": location.coords,
            "chip": location.chip,
            "core": location.core,
            "core_on_chip": location.core,
            "server": location.server,
            "num_cores": topology.lnc,
        },
        memories=(pjrt.MemorySpace("device", topology.hbm_bytes_per_device), *HOST_MEMORIES),
    )


class TopologyDescription:
    """Implements pjrt.TopologyDescription.

    topology: what is described.
    version: of the platform; JAX makes it part of its cache keys.
    process: whose devices are attached to this process, or None if none are.
    """

    platform_name = "trn3"

    def __init__(self, topology: hardware.Topology, version: str, process: Process | None = None):
        if topology.num_devices > _MOST_DEVICES:
            raise ValueError(
                f"{topology.name} has {topology.num_devices} devices; at most {_MOST_DEVICES} can "
                "be described to JAX (jax_trn3.hardware.get_topology has no limit)"
            )
        self.hardware = topology
        self.platform_version = version
        self._process = process

    @property
    def attributes(self) -> dict[str, pjrt.api.Attribute]:
        return {
            "topology": self.hardware.name,
            "lnc": self.hardware.lnc,
            "num_chips": self.hardware.num_chips,
        }

    def devices_of(self, process: Process) -> range:
        """The ids of a process' devices. ValueError if they cannot be shared equally."""
        return devices_of(process, self.hardware.num_devices, self.hardware.name)

    @functools.cached_property
    def devices(self) -> tuple[pjrt.DeviceDescription, ...]:
        locations, process = self.hardware.devices(), self._process
        if process is None:
            return tuple(_describe(self.hardware, location, 0, -1) for location in locations)
        attached = self.devices_of(process)
        return tuple(
            _describe(
                self.hardware,
                location,
                process=location.id // len(attached),
                local_id=location.id - attached.start if location.id in attached else -1,
            )
            for location in locations
        )

    def check_fits(self, values: compiler.Values) -> None:
        """MemoryError if a program needs more memory than a device has."""
        limit = self.hardware.hbm_bytes_per_device
        compiler.check_fits(values, limit, self.hardware.chip.core.name)

    def serialize(self) -> bytes:
        name, lnc = self.hardware.name, self.hardware.lnc
        return json.dumps({"format": _FORMAT, "name": name, "lnc": lnc}).encode()

    def fingerprint(self) -> int:
        return int.from_bytes(hashlib.sha256(self.serialize()).digest()[:8], "little")


def topology_of(name: str, options: Mapping[str, object]) -> hardware.Topology:
    """The topology called `name`; the only option is lnc (1 or 2). ValueError for anything else."""
    unknown = set(options) - {"lnc"}
    if unknown:
        raise ValueError(
            f"topology {name!r}: unknown option {sorted(unknown)[0]!r}; there is only lnc (1 or 2)"
        )
    lnc = options.get("lnc", 1)
    if not isinstance(lnc, int):
        raise ValueError(f"topology {name!r}: lnc must be 1 or 2, got {lnc!r}")
    return hardware.get_topology(name, lnc=lnc)


def deserialize_topology(data: bytes) -> hardware.Topology:
    """The inverse of TopologyDescription.serialize. ValueError for anything else."""
    try:
        fields = json.loads(data)
        if fields["format"] != _FORMAT:
            raise ValueError(f"unknown format {fields['format']!r}")
        return topology_of(fields["name"], {"lnc": fields["lnc"]})
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"not a serialized {_FORMAT}: {error}") from None
