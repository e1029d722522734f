"""The wire format against Google's implementation and jaxlib's protos."""

import numpy as np
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st
from jaxlib import xla_client

from jax_trn3.compiler import protobuf

Field = tuple[int, int | bytes]

uint64s = st.integers(0, 2**64 - 1)
numbers = st.integers(1, 2**29 - 1)
messages = st.lists(st.tuples(numbers, uint64s | st.binary(max_size=300)), max_size=8)


def encoded(message: list[Field]) -> bytes:
    return b"".join(protobuf.field(number, value) for number, value in message)


def reference(data: bytes) -> list[Field]:
    """The fields as Google's parser sees them; fixed-size ones as their bytes."""
    empty = Empty.FromString(data)
    kinds = {1: 8, 5: 4}
    return [
        (f.field_number, f.data.to_bytes(kinds[f.wire_type], "little"))
        if f.wire_type in kinds
        else (f.field_number, f.data)
        for f in UnknownFieldSet(empty)
    ]


@given(messages)
def test_field_writes_what_google_reads(message: list[Field]) -> None:
    assert reference(encoded(message)) == message


@given(messages)
def test_fields_reads_what_field_writes(message: list[Field]) -> None:
    assert list(protobuf.fields(encoded(message))) == message


@given(numbers, st.binary(min_size=8, max_size=8), st.sampled_from([(1, 8), (5, 4)]))
def test_fields_of_fixed_size_are_bytes(number: int, content: bytes, wire: tuple[int, int]) -> None:
    kind, size = wire
    tag = protobuf.field(number, 0)[:-1]
    data = bytes([tag[0] | kind]) + tag[1:] + content[:size]
    assert list(protobuf.fields(data)) == reference(data) == [(number, content[:size])]


@given(messages.filter(bool), st.data())
def test_truncated_message_is_a_value_error_or_ends_between_fields(
    message: list[Field], data: st.DataObject
) -> None:
    whole = encoded(message)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        read = list(protobuf.fields(cut))
    except ValueError:
        with pytest.raises(DecodeError):
            Empty.FromString(cut)
    else:
        assert read == message[: len(read)]


@given(st.binary(max_size=40))
def test_any_bytes_are_fields_or_a_value_error(data: bytes) -> None:
    try:
        read = list(protobuf.fields(data))
    except ValueError:
        return
    assert sum(isinstance(v, bytes) for _, v in read) <= len(data)
    try:
        expected = reference(data)
    except DecodeError:
        return  # stricter than we are, e.g. about field number 0
    assert read == expected


@given(st.lists(uint64s, max_size=20))
def test_varints_are_the_packed_numbers(values: list[int]) -> None:
    packed = b"".join(protobuf.field(1, value)[1:] for value in values)
    assert list(protobuf.varints(packed)) == values


@given(st.lists(uint64s.filter(lambda n: n >= 0x80), min_size=1, max_size=5))
def test_varints_cut_in_the_middle_are_a_value_error(values: list[int]) -> None:
    packed = b"".join(protobuf.field(1, value)[1:] for value in values)
    with pytest.raises(ValueError, match="middle of a number"):
        list(protobuf.varints(packed[:-1]))


@given(st.integers(1, 4), st.integers(1, 70), st.randoms(use_true_random=False))
def test_device_ids_are_those_of_xlas_device_assignment(replicas, partitions, random) -> None:
    ids = list(range(replicas * partitions))
    random.shuffle(ids)
    table = np.array(ids, np.int32).reshape(replicas, partitions)
    serialized = xla_client.DeviceAssignment.create(table).serialize()
    assert protobuf.device_ids(serialized) == table.T.tolist()


def test_device_ids_of_no_devices_are_empty() -> None:
    assert protobuf.device_ids(b"") == []


@given(st.binary(max_size=50), st.binary(max_size=50), st.integers(1, 2**20), st.integers(1, 2**20))
def test_hlo_with_config_holds_module_layout_and_counts(
    shape: bytes, rest: bytes, replicas: int, partitions: int
) -> None:
    module = encoded([(1, b"name"), (4, shape), (9, rest)])
    (one, module_again), (two, config) = reference(
        protobuf.hlo_with_config(module, replicas, partitions)
    )
    assert (one, two, module_again) == (1, 2, module)
    assert dict(reference(config)) == {1: shape, 4: replicas, 5: partitions}


@pytest.mark.parametrize("value", [-1, -(2**63)])
def test_negative_number_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="range|negative"):
        protobuf.field(1, value)


def test_length_beyond_the_end_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="middle of a field"):
        list(protobuf.fields(protobuf.field(1, b"abc")[:-1]))
    huge = b"\x0a" + protobuf.field(1, 2**62)[1:] + b"abc"
    with pytest.raises(ValueError, match="middle of a field"):
        list(protobuf.fields(huge))
