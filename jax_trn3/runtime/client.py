"""The client: devices, transfers, compilation."""

from __future__ import annotations

import dataclasses
import functools
import threading
from typing import Any

from jax._src.lib import xla_client

from jax_trn3 import compiler, pjrt

from . import arrays, processes
from .executable import LoadedExecutable
from .flights import enough_threads, limit_for
from .processes import Process
from .topology import TopologyDescription


@dataclasses.dataclass(frozen=True)
class _Inner:
    """XLA:CPU's client at work.

    devices: its devices by the platform's ids, those of other processes included.
    places: of this process.
    """

    client: Any
    devices: list[Any]
    places: arrays.Places


def _start(topology: TopologyDescription, process: Process) -> _Inner:
    own = topology.devices_of(process)
    kept: list[Any] = []
    peer, collectives = None, None
    if process.count > 1:
        lose = functools.partial(_lose_peer, process, kept)
        peer, collectives = processes.connect(process, lose)
    with enough_threads(len(own)):
        # Unlike _jax.get_tfrt_cpu_client, this also makes LAPACK's calls known.
        client = xla_client.make_cpu_client(
            num_devices=len(own),
            distributed_client=peer,
            collectives=collectives,
            node_id=process.index,
            num_nodes=process.count,
        )
    kept.append(client)
    devices = sorted(client.devices(), key=lambda device: (device.process_index, device.id))
    return _Inner(client, devices, arrays.Places(devices[own.start : own.stop], own.start))


def _lose_peer(process: Process, kept: list[Any], lost: int) -> None:
    """Ends the waiting for collectives that another process, now gone, will never join."""
    pjrt.keep(kept)  # the inner client's threads may never return
    pjrt.give_up(
        f"process {lost} of the {process.count} that share this platform is gone (it crashed, was "
        "killed, or ended by an exception). What was in flight here, and what needs all processes, "
        "cannot be computed any more: save what you have, and start all processes again."
    )


class Client:
    """Implements pjrt.Client on XLA:CPU, which has one device for each of the topology.

    The inner client is made when it is first needed, so that a program which has the platform
    installed, but does not use it, does not pay for it. Several processes make theirs together, at
    once, because each waits for the others.
    """

    def __init__(self, topology: TopologyDescription, process: Process):
        self.topology = topology
        self.process_index = process.index
        self.flight_limit = limit_for(len(topology.devices_of(process)))
        self._process = process
        self._lock = threading.Lock()
        self._started: _Inner | None = None
        if process.count > 1:
            self._inner()

    def _inner(self) -> _Inner:
        if self._started is None:
            with self._lock:
                if self._started is None:
                    self._started = _start(self.topology, self._process)
        return self._started

    @property
    def _places(self) -> arrays.Places:
        return self._inner().places

    def compile(self, code: bytes, format: str, options: bytes) -> LoadedExecutable:
        inner = self._inner()
        program = compiler.Program.parse(code, format)
        values = compiler.compile_values(inner.client, inner.devices, program, options)
        return self._loaded(values, inner.places)

    def deserialize(self, data: bytes, options: bytes) -> LoadedExecutable:
        inner = self._inner()
        values = compiler.load_values(inner.client, inner.devices, data, options)
        return self._loaded(values, inner.places)

    def _loaded(self, values: compiler.Values, places: arrays.Places) -> LoadedExecutable:
        self.topology.check_fits(values)
        return LoadedExecutable(values, places, self.topology.hardware)

    def from_host(
        self,
        host: Any,
        type: int,
        dims: tuple[int, ...],
        strides: tuple[int, ...] | None,
        semantics: int,
        device: int,
        memory: str,
    ) -> pjrt.Array:
        # All memories of a device are host memory here; the shim keeps account of which is which.
        return arrays.from_host(host, type, dims, strides, semantics, device, self._places)

    def to_host(self, array: pjrt.Array, index: int, minor_to_major: tuple[int, ...] | None) -> Any:
        return arrays.to_bytes(array, index, minor_to_major)

    def copy(self, array: pjrt.Array, index: int, device: int, memory: str) -> pjrt.Array:
        return arrays.copy(array, index, device, self._places)

    def assemble(self, shards: list[tuple[pjrt.Array, int]]) -> pjrt.Array:
        return arrays.assemble(shards, self._places)

    def duplicate(self, array: Any) -> pjrt.Array:
        return arrays.duplicate(array, self._places)

    def pin(self, array: pjrt.Array, index: int) -> tuple[Any, int]:
        part = arrays.shard(array, index)
        # The view holds an external reference, which XLA respects when the array is donated.
        holder = arrays.to_numpy(part, 0)
        return holder, part.unsafe_buffer_pointer()
