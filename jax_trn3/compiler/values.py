"""The values of a program: XLA:CPU, in this process, through jaxlib."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jax._src.lib import _jax
from jax._src.lib import xla_client

from . import callbacks, protobuf
from .program import Program


@dataclasses.dataclass(frozen=True)
class Values:
    """An XLA:CPU executable and what has to be known to run it.

    executable: jaxlib's LoadedExecutable.
    options: the compile options, as XLA understood them.
    device_assignment: serialized xla.DeviceAssignmentProto.
    devices: (device id, replica, partition) in the order of the shards.
    output_dims, output_dtypes: of one device's shard of each output.
    donated: parameters that the caller lets the program have.
    tells_when_done: whether the outputs being ready means that the program is finished.
    """

    name: str
    executable: Any
    options: Any
    device_assignment: bytes
    devices: tuple[tuple[int, int, int], ...]
    output_dims: tuple[tuple[int, ...], ...]
    output_dtypes: tuple[np.dtype, ...]
    donated: tuple[int, ...]

    @property
    def tells_when_done(self) -> bool:
        return bool(self.output_dims)


def compile_values(client: Any, program: Program, options: bytes) -> Values:
    """Compiles a program for the devices of an XLA:CPU client.

    options: a serialized xla.CompileOptionsProto, as JAX sends it; device ids are the client's.
    Raises what XLA raises, ValueError for options that are not such a proto.
    """
    parsed = _parse_options(options)
    assignment = parsed.device_assignment
    if assignment is None:
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
    devices = _jax.DeviceList(tuple(by_id[id] for id, _, _ in places))
    executable = callbacks.compile_with_callbacks(client, program, devices, parsed)
    (module,) = executable.hlo_modules()
    shape = _result_shape(module)
    return Values(
        name=module.name,
        executable=executable,
        options=parsed,
        device_assignment=serialized,
        devices=places,
        output_dims=tuple(tuple(s.dimensions()) for s in shape),
        output_dtypes=tuple(np.dtype(s.numpy_dtype()) for s in shape),
        donated=program.donated,
    )


def _parse_options(options: bytes) -> Any:
    if not options:
        return xla_client.CompileOptions()
    try:
        return xla_client.CompileOptions.ParseFromString(options)
    except Exception as error:
        raise ValueError(f"the compile options are not an xla.CompileOptionsProto: {error}") from None


def _places(assignment: bytes) -> tuple[tuple[int, int, int], ...]:
    ids = protobuf.device_ids(assignment)
    replicas = len(ids[0]) if ids else 0
    return tuple((ids[p][r], r, p) for r in range(replicas) for p in range(len(ids)))


def _result_shape(module: Any) -> list[Any]:
    """The shapes of the outputs."""
    proto = module.as_serialized_hlo_module_proto()
    shape = xla_client.XlaComputation(proto).program_shape().result_shape()
    return list(shape.tuple_shapes()) if shape.is_tuple() else [shape]
