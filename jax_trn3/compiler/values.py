"""The values of a program: XLA:CPU, in this process, through jaxlib."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax._src.lib import _jax, xla_client

from . import callbacks, protobuf
from .artifact import Artifact
from .attention_rewrite import rewrite_attention
from .program import Program

# XLA's opcodes, as they stand in a serialized module.
_COLLECTIVES = (
    b"all-reduce",
    b"all-gather",
    b"all-to-all",
    b"reduce-scatter",
    b"collective-permute",
    b"collective-broadcast",
)
# And those that run code which is not the program's.
_CUSTOM_CALLS = (b"custom-call", b"infeed", b"outfeed", b"send", b"recv")


@dataclasses.dataclass(frozen=True)
class Shard:
    """What one device has of a parameter or an output.

    layout: as "{1,0}", minor to major.
    """

    dims: tuple[int, ...]
    dtype: np.dtype
    layout: str


@dataclasses.dataclass(frozen=True)
class Values:
    """An XLA:CPU executable and what has to be known to run it.

    program: what was compiled.
    options: the compile options, as XLA understood them; device ids are the platform's.
    executable: jaxlib's LoadedExecutable.
    native: the machine code that it was loaded from; empty if it was compiled here.
    device_assignment: serialized xla.DeviceAssignmentProto.
    devices: (device id, replica, partition) of those attached here, in the order of the shards.
    outputs, parameters: one device's shard of each.
    parameter_kinds, output_kinds: their memories.
    has_collectives: whether the devices wait for each other in it.
    has_custom_calls: whether it calls code that may fail.
    temporary_bytes: what a run needs of a device beside outputs, by XLA:CPU's buffer assignment.
    aliased_bytes: of the outputs, what takes over the memory of donated arguments.
    """

    program: Program
    options: Any
    executable: Any
    native: bytes
    name: str
    device_assignment: bytes
    devices: tuple[tuple[int, int, int], ...]
    outputs: tuple[Shard, ...]
    parameters: tuple[Shard, ...]
    parameter_kinds: tuple[str, ...]
    output_kinds: tuple[str, ...]
    has_collectives: bool
    has_custom_calls: bool
    temporary_bytes: int
    aliased_bytes: int

    def serialize(self) -> bytes:
        """See artifact.py. NotImplementedError for programs that call back to Python."""
        if callbacks.has_callbacks(self.program):
            raise NotImplementedError(
                f"{self.name} calls Python functions of this process (pure_callback, io_callback, "
                "jax.debug, checkify) and cannot be serialized; take the callbacks out, or "
                "serialize the function with jax.export"
            )
        options = self.options.SerializeAsString()
        # XLA serializes an executable that was loaded without most of its functions.
        native = self.native or self.executable.serialize()
        return Artifact(self.program.code, options, native).pack()


def compile_values(client: Any, devices: Sequence[Any], program: Program, options: bytes) -> Values:
    """Compiles a program for an XLA:CPU client.

    devices: of the client, by the platform's device ids.
    options: a serialized xla.CompileOptionsProto with the platform's device ids.
    Raises what XLA raises, ValueError for options that are not such a proto.
    """
    return _values(client, devices, program, options, native=b"")


def load_values(client: Any, devices: Sequence[Any], data: bytes, options: bytes) -> Values:
    """The inverse of Values.serialize().

    options: instead of those that the program was compiled with; may be empty.
    ValueError if `data` is not a serialized executable, or one for other devices.
    """
    artifact = Artifact.unpack(data)
    program = Program.parse(artifact.program, "mlir")
    return _values(client, devices, program, options or artifact.options, artifact.native)


def _values(
    client: Any, devices: Sequence[Any], program: Program, options: bytes, native: bytes
) -> Values:
    parsed = _parse_options(options)
    assignment = parsed.device_assignment
    if assignment is None:
        replicas, partitions = parsed.num_replicas, parsed.num_partitions
        if not 0 < replicas * partitions <= client.local_device_count():
            raise ValueError(
                f"{replicas} replicas x {partitions} partitions on "
                f"{client.local_device_count()} devices"
            )
        ids = np.arange(parsed.num_replicas * parsed.num_partitions, dtype=np.int32)
        shape = (parsed.num_replicas, parsed.num_partitions)
        assignment = xla_client.DeviceAssignment.create(ids.reshape(shape))
        parsed.device_assignment = assignment
    serialized = assignment.serialize()
    places = _places(serialized)
    ids_in_order = [id for id, _, _ in places]
    if outside := [id for id in ids_in_order if not 0 <= id < len(devices)]:
        raise ValueError(f"the program is for device {outside[0]}; there are {len(devices)}")
    # XLA takes both, and then waits for a part that never runs, or runs two in one place.
    if len(places) != parsed.num_replicas * parsed.num_partitions:
        raise ValueError(
            f"{parsed.num_replicas} replicas x {parsed.num_partitions} partitions are assigned to "
            f"{len(places)} devices"
        )
    if len(set(ids_in_order)) < len(places):
        raise ValueError(f"a device has two parts of the program: {ids_in_order}")
    here = client.process_index()
    attached = [place for place in places if devices[place[0]].process_index == here]
    if not attached:
        raise ValueError(f"none of the program's devices is attached to process {here}")
    device_list = _jax.DeviceList(tuple(devices[id] for id in ids_in_order))
    inner_options = _with_inner_ids(parsed, places, devices)
    executable = _link(client, native, device_list, inner_options)
    if executable is None:
        native = b""
        blockwise = rewrite_attention(program)
        executable = callbacks.compile_with_callbacks(client, blockwise, device_list, inner_options)
    (module,) = executable.hlo_modules()
    proto = module.as_serialized_hlo_module_proto()
    outputs, parameters = _shards(proto)
    memory = executable.get_compiled_memory_stats()  # takes milliseconds: asked once
    parameter_kinds, output_kinds = program.memory_kinds(len(parameters), len(outputs))
    return Values(
        program=program,
        options=parsed,
        executable=executable,
        native=native,
        name=module.name,
        device_assignment=serialized,
        devices=tuple(attached),
        outputs=outputs,
        parameters=parameters,
        parameter_kinds=parameter_kinds,
        output_kinds=output_kinds,
        has_collectives=any(opcode in proto for opcode in _COLLECTIVES),
        has_custom_calls=any(opcode in proto for opcode in _CUSTOM_CALLS),
        temporary_bytes=memory.temp_size_in_bytes,
        aliased_bytes=memory.alias_size_in_bytes,
    )


def _link(client: Any, native: bytes, devices: Any, options: Any) -> Any:
    """XLA:CPU's executable from its machine code; None if there is none, or XLA refuses it."""
    if not native:
        return None
    try:
        return client.deserialize_executable(native, devices, options)
    except _jax.JaxRuntimeError:  # made with other XLA flags, say; the program is at hand
        return None


def _with_inner_ids(options: Any, places: Sequence[Any], devices: Sequence[Any]) -> Any:
    """The options with the inner client's device ids, which are others in several processes."""
    if all(devices[id].id == id for id, _, _ in places):
        return options
    inner = _parse_options(options.SerializeAsString())
    shape = (1 + max(r for _, r, _ in places), 1 + max(p for _, _, p in places))
    ids = np.zeros(shape, np.int32)
    for id, replica, partition in places:
        ids[replica, partition] = devices[id].id
    inner.device_assignment = xla_client.DeviceAssignment.create(ids)
    return inner


def _parse_options(options: bytes) -> Any:
    if not options:
        return xla_client.CompileOptions()
    try:
        return xla_client.CompileOptions.ParseFromString(options)
    except Exception as error:
        raise ValueError(f"not an xla.CompileOptionsProto: {error}") from None


def _places(assignment: bytes) -> tuple[tuple[int, int, int], ...]:
    ids = protobuf.device_ids(assignment)
    replicas = len(ids[0]) if ids else 0
    return tuple((ids[p][r], r, p) for r in range(replicas) for p in range(len(ids)))


def _shards(proto: bytes) -> tuple[tuple[Shard, ...], tuple[Shard, ...]]:
    """Of the outputs and of the parameters of an XLA module."""
    program = xla_client.XlaComputation(proto).program_shape()
    result = program.result_shape()
    results = result.tuple_shapes() if result.is_tuple() else [result]
    return tuple(map(_shard, results)), tuple(map(_shard, program.parameter_shapes()))


def _shard(shape: Any) -> Shard:
    if not shape.is_array():  # a token, which travels as an empty array
        return Shard((0,), np.dtype(bool), "{0}")
    minor_to_major = ",".join(map(str, shape.layout().minor_to_major()))
    return Shard(tuple(shape.dimensions()), np.dtype(shape.numpy_dtype()), f"{{{minor_to_major}}}")
