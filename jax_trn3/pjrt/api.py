"""What a device implements so that the shim can answer the PJRT C API from it.

The shim (``shim/``) calls these methods by name, holding the GIL, from any thread: compilation
arrives on a thread pool of the framework's. Everything else the C API asks (identity, reference
counts, events, sizes) is answered natively from the dataclasses below, read once.

An exception from any method becomes a PJRT error; ``errors.status_of`` says with which code.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

# What ``attributes`` may hold: the value types of the C API's PJRT_NamedValue.
Attribute = str | int | float | bool | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class MemorySpace:
    """A memory that a device can address.

    kind: its name, such as "device" or "pinned_host".
    bytes_limit: its size in bytes, or 0 where none is enforced.
    """

    kind: str
    bytes_limit: int = 0


@dataclasses.dataclass(frozen=True)
class DeviceDescription:
    """A device, attached or not.

    id: unique over all processes.
    process_index: the process it is attached to.
    local_hardware_id: its number in this process, from 0, or -1 if it is not attached here.
    kind: the model, ``device.device_kind`` in JAX.
    to_string, debug_string: ``repr(device)`` and ``str(device)`` in JAX, in this order.
    attributes: become attributes of the JAX device object.
    memories: the first is the default.
    """

    id: int
    process_index: int
    local_hardware_id: int
    kind: str
    to_string: str
    debug_string: str
    attributes: dict[str, Attribute]
    memories: tuple[MemorySpace, ...]


class TopologyDescription(Protocol):
    """Devices and how they hang together, without a client."""

    @property
    def platform_name(self) -> str: ...
    @property
    def platform_version(self) -> str: ...
    @property
    def attributes(self) -> dict[str, Attribute]: ...
    @property
    def devices(self) -> tuple[DeviceDescription, ...]: ...
    def serialize(self) -> bytes: ...
    def fingerprint(self) -> int:
        """The same number for the same topology, in every process; 64 bits."""


class Array(Protocol):
    """Values on one device, or one shard on each of several. Opaque to the shim but for these."""

    def is_ready(self) -> bool: ...
    def is_deleted(self) -> bool: ...
    def block_until_ready(self) -> Any:
        """Waits without the GIL; raises what the computation failed with."""


@dataclasses.dataclass(frozen=True)
class ExecutableMetadata:
    """What a compiled program is. Shapes and layouts are those of one device's shard.

    output_types, parameter_types: PJRT_Buffer_Type numbers (see dtypes.py).
    output_kinds, parameter_kinds: memory kinds.
    output_layouts, parameter_layouts: as "{1,0}", minor to major.
    output_shardings, parameter_shardings: serialized xla.OpSharding, or both None. A program
      without outputs has one output sharding, that of the empty tuple.
    device_assignment: serialized xla.DeviceAssignmentProto.
    compile_options: serialized xla.CompileOptionsProto.
    donated: parameters whose memory an output may take over.
    code_bytes: size of the generated code.
    temporary_bytes: memory of the default kind that a run needs on each device, beside arguments
      and outputs.
    """

    name: str
    fingerprint: bytes
    compile_options: bytes
    device_assignment: bytes
    num_replicas: int
    num_partitions: int
    parameter_types: tuple[int, ...]
    parameter_dims: tuple[tuple[int, ...], ...]
    code_bytes: int
    temporary_bytes: int
    output_types: tuple[int, ...]
    output_dims: tuple[tuple[int, ...], ...]
    output_kinds: tuple[str, ...]
    parameter_kinds: tuple[str, ...]
    output_layouts: tuple[str, ...]
    parameter_layouts: tuple[str, ...]
    output_shardings: tuple[bytes, ...] | None
    parameter_shardings: tuple[bytes, ...] | None
    donated: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class MemoryStats:
    """PJRT_Executable_GetCompiledMemoryStats: bytes that a program needs on each device."""

    generated_code_size_in_bytes: int = 0
    argument_size_in_bytes: int = 0
    output_size_in_bytes: int = 0
    alias_size_in_bytes: int = 0
    temp_size_in_bytes: int = 0
    host_generated_code_size_in_bytes: int = 0
    host_argument_size_in_bytes: int = 0
    host_output_size_in_bytes: int = 0
    host_alias_size_in_bytes: int = 0
    host_temp_size_in_bytes: int = 0
    peak_memory_in_bytes: int = 0
    total_size_in_bytes: int = 0
    total_allocation_bytes: int = 0
    indefinite_allocations: int = 0
    peak_unpadded_heap_bytes: int = 0


class Results(Protocol):
    """What a program that has been started leaves behind; each method is called at most once."""

    def consume_token(self) -> Any:
        """Something whose block_until_ready() waits for the program. Called if it was asked for:
        where there are no outputs that would tell, and for programs with collectives."""

    def consume_with_handlers(self, handlers: list[Any]) -> list[Array]:
        """The outputs."""


class Executable(Protocol):
    """A compiled program."""

    @property
    def metadata(self) -> ExecutableMetadata: ...
    def cost_analysis(self) -> dict[str, Attribute]: ...
    def memory_stats(self) -> MemoryStats: ...
    def optimized_program(self) -> tuple[str, bytes]:
        """A format ("hlo", "hlo_with_config", "mlir") and the program in it."""

    def serialize(self) -> bytes: ...


class LoadedExecutable(Protocol):
    """A compiled program on its devices."""

    @property
    def executable(self) -> Executable: ...

    @property
    def devices(self) -> tuple[tuple[int, int, int], ...]:
        """(device id, replica, partition) of those attached here, in the order of the shards."""

    has_collectives: bool
    """Whether the devices wait for each other in it; see Client.flight_limit."""

    can_fail: bool
    """Whether an output can turn out to be an error although all arguments are good."""

    handlers: list[Any]
    """What Results.consume_with_handlers is called with."""

    runs: list[int]
    """One number: how often the program was started. The shim counts."""

    def launch(self, arguments: list[Array], with_token: bool) -> Results:
        """Starts the program; one array a parameter, with one shard for each device.

        Arrays of donated parameters then answer is_deleted() with True if the program took them.
        This and the two methods of Results should not be Python code: the user's Ctrl-C must not
        come between a program and its results. They have jaxlib's names, so that its own can serve.
        """


class Client(Protocol):
    """The devices of a topology, at work."""

    @property
    def process_index(self) -> int: ...
    @property
    def topology(self) -> TopologyDescription: ...

    @property
    def flight_limit(self) -> int:
        """How many programs with collectives may be in flight; a dispatch beyond waits for the
        oldest. A program in flight may hold a thread of the engine's on every device."""

    def compile(self, code: bytes, format: str, options: bytes) -> LoadedExecutable:
        """Compiles `code` ("mlir": a StableHLO portable artifact or text; "hlo"), with a
        serialized xla.CompileOptionsProto."""

    def deserialize(self, data: bytes, options: bytes) -> LoadedExecutable:
        """The inverse of Executable.serialize; `options`, unless they are empty, replace those
        that the program was compiled with."""

    # Below, `device` is a local_hardware_id and `index` the number of a shard.

    def from_host(
        self,
        host: Any,
        type: int,
        dims: tuple[int, ...],
        strides: tuple[int, ...] | None,
        semantics: int,
        device: int,
        memory: str,
    ) -> Array:
        """An array of the framework's memory.

        host: has window(before, after), which says how many bytes around the first element belong
        to the array and returns an object with a buffer of those. If the array lives in the
        memory, it keeps that object alive: its end is the end of the loan.
        type: PJRT_Buffer_Type. Elements of less than a byte take a byte each.
        strides: in bytes, may be negative or 0; None means row-major.
        semantics: PJRT_HostBufferSemantics; 0 and 1 mean that the memory may not be used after this
        call, 2 and 3 that the array may live in it.
        """

    def to_host(self, array: Array, index: int, minor_to_major: tuple[int, ...] | None) -> Any:
        """The values of a ready shard as an object with a contiguous buffer of bytes."""

    def copy(self, array: Array, index: int, device: int, memory: str) -> Array: ...

    def assemble(self, shards: list[tuple[Array, int]]) -> Array:
        """One array of shards that are on the devices 0, 1, ... of a program, without copying."""

    def duplicate(self, array: Array) -> Array:
        """A copy of all shards, to be donated instead of the array."""

    def pin(self, array: Array, index: int) -> tuple[Any, int]:
        """Waits for a shard; returns what keeps its memory alive, and the address of its values."""


class Platform(Protocol):
    """Where everything begins."""

    @property
    def attributes(self) -> dict[str, Attribute]:
        """PJRT_Plugin_Attributes: stablehlo_current_version, xla_version, ..."""

    def create_client(self, options: dict[str, Attribute]) -> Client: ...
    def create_topology(self, name: str, options: dict[str, Attribute]) -> TopologyDescription: ...
    def compile(self, topology: Any, code: bytes, format: str, options: bytes) -> Executable:
        """Compiles for a topology that need not be attached; see Client.compile."""

    def deserialize_topology(self, data: bytes) -> TopologyDescription: ...
