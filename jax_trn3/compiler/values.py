"""The values of a program: XLA:CPU, in this process, through jaxlib."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jax._src.lib import _jax, xla_client

from . import callbacks, protobuf
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

    executable: jaxlib's LoadedExecutable.
    options: the compile options, as XLA understood them.
    device_assignment: serialized xla.DeviceAssignmentProto.
    devices: (device id, replica, partition) in the order of the shards.
    outputs, parameters: one device's shard of each.
    parameter_kinds, output_kinds: their memories.
    donated: parameters that the caller lets the program have.
    has_collectives: whether the devices wait for each other in it.
    """

    name: str
    executable: Any
    options: Any
    device_assignment: bytes
    devices: tuple[tuple[int, int, int], ...]
    outputs: tuple[Shard, ...]
    parameters: tuple[Shard, ...]
    parameter_kinds: tuple[str, ...]
    output_kinds: tuple[str, ...]
    donated: tuple[int, ...]
    has_collectives: bool


def compile_values(client: Any, program: Program, options: bytes) -> Values:
    """Compiles a program for the devices of an XLA:CPU client.

    options: a serialized xla.CompileOptionsProto, as JAX sends it; device ids are the client's.
    Raises what XLA raises, ValueError for options that are not such a proto.
    """
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
    by_id = {device.id: device for device in client.local_devices()}
    missing = [id for id, _, _ in places if id not in by_id]
    if missing:
        raise ValueError(f"the program is for device {missing[0]}; there are {len(by_id)} devices")
    # XLA takes both, and then waits for a part that never runs, or runs two in one place.
    ids_in_order = [id for id, _, _ in places]
    if len(places) != parsed.num_replicas * parsed.num_partitions:
        raise ValueError(
            f"{parsed.num_replicas} replicas x {parsed.num_partitions} partitions are assigned to "
            f"{len(places)} devices"
        )
    if len(set(ids_in_order)) < len(places):
        raise ValueError(f"a device has two parts of the program: {ids_in_order}")
    devices = _jax.DeviceList(tuple(by_id[id] for id, _, _ in places))
    executable = callbacks.compile_with_callbacks(client, program, devices, parsed)
    (module,) = executable.hlo_modules()
    proto = module.as_serialized_hlo_module_proto()
    outputs, parameters = _shards(proto)
    parameter_kinds, output_kinds = program.memory_kinds(len(parameters), len(outputs))
    return Values(
        name=module.name,
        executable=executable,
        options=parsed,
        device_assignment=serialized,
        devices=places,
        outputs=outputs,
        parameters=parameters,
        parameter_kinds=parameter_kinds,
        output_kinds=output_kinds,
        donated=program.donated,
        has_collectives=any(opcode in proto for opcode in _COLLECTIVES),
    )


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
