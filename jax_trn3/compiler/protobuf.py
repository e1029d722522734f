"""Protocol buffers' wire format: just enough for the protos that jaxlib leaves opaque."""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def varints(data: bytes) -> Iterator[int]:
    """The values of a packed repeated integer field. ValueError if it is cut short."""
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            yield value
            value = shift = 0
    if shift:
        raise ValueError("a protocol buffer ends in the middle of a number")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7
    raise ValueError("a protocol buffer ends in the middle of a number")


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) in order; the value is an int or the bytes of a field with a length.

    ValueError if the message is malformed.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == _VARINT:
            value, at = _varint(data, at)
        else:
            if kind == _LENGTH:
                size, at = _varint(data, at)
            elif kind in (_FIXED64, _FIXED32):
                size = 8 if kind == _FIXED64 else 4
            else:
                raise ValueError(f"a protocol buffer has a field of unknown wire type {kind}")
            value, at = data[at : at + size], at + size
            if at > len(data):
                raise ValueError("a protocol buffer ends in the middle of a field")
        yield number, value


def device_ids(assignment: bytes) -> list[list[int]]:
    """ids[partition][replica] of a serialized xla.DeviceAssignmentProto.

    DeviceAssignmentProto.computation_devices is field 3, its replica_device_ids field 1
    (openxla/xla, xla/xla_data.proto).
    """
    ids = []
    for number, value in fields(assignment):
        if number != 3 or isinstance(value, int):
            continue
        row: list[int] = []
        for inner, entry in fields(value):
            if inner == 1:
                row.extend([entry] if isinstance(entry, int) else varints(entry))
        ids.append(row)
    return ids


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, value: int | bytes) -> bytes:
    """One field, the way `fields` reads it."""
    if isinstance(value, int):
        return _encoded(number << 3 | _VARINT) + _encoded(value)
    return _encoded(number << 3 | _LENGTH) + _encoded(len(value)) + value


def hlo_with_config(module: bytes, num_replicas: int, num_partitions: int) -> bytes:
    """A serialized xla.HloModuleProtoWithConfig around a serialized xla.HloModuleProto.

    The config gets the three fields that the framework cannot do without: without the entry
    computation's layout it aborts the process (openxla/xla, xla/service/hlo.proto, xla.proto).
    """
    program_shape = next(value for number, value in fields(module) if number == 4)
    config = field(1, program_shape) + field(4, num_replicas) + field(5, num_partitions)
    return field(1, module) + field(2, config)
