"""The client: devices, transfers, compilation."""

from __future__ import annotations

import threading
from typing import Any

from jax._src.lib import xla_client

from jax_trn3 import compiler, pjrt

from . import arrays
from .executable import Executable
from .flights import enough_threads, limit_for
from .topology import TopologyDescription


class Client:
    """Implements pjrt.Client on XLA:CPU, which has one device for each of the topology.

    The inner client is made when it is first needed, so that a program which has the platform
    installed, but does not use it, does not pay for it.
    """

    process_index = 0

    def __init__(self, topology: TopologyDescription):
        self.topology = topology
        self.flight_limit = limit_for(len(topology.devices))
        self._lock = threading.Lock()
        self._started: tuple[Any, arrays.Places] | None = None

    def _start(self) -> tuple[Any, arrays.Places]:
        """The inner client and its devices."""
        if self._started is None:
            with self._lock:
                if self._started is None:
                    num_devices = len(self.topology.devices)
                    with enough_threads(num_devices):
                        # Unlike _jax.get_tfrt_cpu_client, this also makes LAPACK's calls known.
                        inner = xla_client.make_cpu_client(num_devices=num_devices)
                    self._started = inner, arrays.Places(inner.local_devices())
        return self._started

    @property
    def _places(self) -> arrays.Places:
        return self._start()[1]

    def compile(self, code: bytes, format: str, options: bytes) -> Executable:
        inner, places = self._start()
        program = compiler.Program.parse(code, format)
        return Executable(compiler.compile_values(inner, program, options), places)

    def deserialize(self, data: bytes, options: bytes) -> Executable:
        raise NotImplementedError(
            "executables cannot be loaded from bytes yet; compile the program again"
        )

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
