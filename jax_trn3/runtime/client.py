"""The client: devices, transfers, compilation."""

from __future__ import annotations

import functools
from typing import Any

from jax._src.lib import _jax

from jax_trn3 import compiler, pjrt

from . import arrays
from .executable import Executable
from .topology import TopologyDescription


class Client:
    """Implements pjrt.Client on XLA:CPU, which has one device for each of the topology.

    The inner client is made when it is first needed, so that a program which has the platform
    installed, but does not use it, does not pay for it.
    """

    process_index = 0

    def __init__(self, topology: TopologyDescription):
        self.topology = topology

    @functools.cached_property
    def inner(self) -> Any:
        return _jax.get_tfrt_cpu_client(
            asynchronous=True, num_devices=len(self.topology.devices), collectives=None
        )

    @functools.cached_property
    def _devices(self) -> list[Any]:
        return self.inner.local_devices()

    @functools.cached_property
    def _places(self) -> list[tuple[Any, Any]]:
        return [(_jax.DeviceList((d,)), arrays.single(d)) for d in self._devices]

    def compile(self, code: bytes, format: str, options: bytes) -> Executable:
        program = compiler.Program.parse(code, format)
        return Executable(compiler.compile_values(self.inner, program, options))

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
        return arrays.from_host(host, type, dims, strides, semantics, self._devices[device])

    def to_host(self, array: pjrt.Array, index: int, minor_to_major: tuple[int, ...] | None) -> Any:
        return arrays.to_bytes(array, index, minor_to_major)

    def copy(self, array: pjrt.Array, index: int, device: int, memory: str) -> pjrt.Array:
        return arrays.copy(array, index, *self._places[device])

    def assemble(self, shards: list[tuple[pjrt.Array, int]]) -> pjrt.Array:
        return arrays.assemble(shards)

    def duplicate(self, array: Any) -> pjrt.Array:
        copies = [
            (arrays.copy(array, i, *self._places[part.sharding._device.id]), 0)
            for i, part in enumerate(array._arrays)
        ]
        return arrays.assemble(copies)

    def pin(self, array: pjrt.Array, index: int) -> tuple[Any, int]:
        part = arrays.shard(array, index)
        # The view holds an external reference, which XLA respects when the array is donated.
        holder = arrays.to_numpy(part, 0)
        return holder, part.unsafe_buffer_pointer()
