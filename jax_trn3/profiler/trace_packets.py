"""Packets of a Perfetto trace: tracks, slices, flows, counters, and their arguments.

The format: https://perfetto.dev/docs/reference/trace-packet-proto. Perfetto counts nanoseconds, the
simulator picoseconds: a slice's ends are cut to whole nanoseconds, which keeps their order; exact
times are arguments. Which of two at the same nanosecond is first Perfetto sees from the order of
packets, so these are written in the order of picoseconds.
"""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

try:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
        InternedData,
        TrackDescriptor,
        TrackEvent,
    )
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Perfetto traces need the package perfetto: pip install 'jax-trn3[trace]'", name=error.name
    ) from error

Argument = int | float | str
Key = tuple[int, int]
"""Picosecond, and a number that decides between events of the same one."""

_SEQUENCE = 1
_CLEARED, _NEEDED = 1, 2  # TracePacket.SequenceFlags


@dataclass(frozen=True)
class Slice:
    """Something that takes time on a track."""

    name: str
    begin_ps: int
    end_ps: int
    order: int
    """Rank among events of the same picosecond."""

    arguments: Mapping[str, Argument]
    causes: tuple[int, ...] = ()
    """Flows that begin here."""

    cause: int | None = None
    """Flow that ends here."""


class Trace:
    """A trace while it is being made."""

    def __init__(self) -> None:
        self._builder = TraceProtoBuilder()
        self._names = _Interned()
        self._argument_names = _Interned()
        self._strings = _Interned()
        self._tracks: list[TrackDescriptor] = []
        self._slices: dict[int, list[Slice]] = {}
        self._counters: dict[int, list[tuple[int, float]]] = {}

    def process(self, name: str, pid: int) -> int:
        """A process, whose number for others it returns. `pid` is at least 1."""
        track = self._new()
        track.process.pid, track.process.process_name = pid, name
        return int(track.uuid)

    def thread(self, name: str, pid: int, tid: int) -> int:
        """A thread of a process."""
        track = self._new()
        track.thread.pid, track.thread.tid, track.thread.thread_name = pid, tid, name
        return int(track.uuid)

    def track(self, name: str, parent: int = 0) -> int:
        """A track of its own. The viewer shows those of one name and parent as one."""
        track = self._new(parent)
        track.name = name
        return int(track.uuid)

    def counter(self, name: str, unit: str, parent: int = 0) -> int:
        """A track of numbers."""
        track = self._new(parent)
        track.name, track.counter.unit_name = name, unit
        return int(track.uuid)

    def slice(self, track: int, piece: Slice) -> None:
        """A slice, after all others of its track."""
        self._slices.setdefault(track, []).append(piece)

    def values(self, counter: int, steps: Iterator[tuple[int, float]]) -> None:
        """(picosecond, value) of a counter, ascending."""
        self._counters[counter] = list(steps)

    def serialize(self) -> bytes:
        """The trace as a file's contents."""
        first = self._builder.add_packet()
        first.trusted_packet_sequence_id = _SEQUENCE
        first.sequence_flags = _CLEARED
        for track in self._tracks:
            self._packet().track_descriptor.CopyFrom(track)
        streams = [self._slice_events(t, s) for t, s in self._slices.items()]
        streams += [self._counter_events(t, s) for t, s in self._counters.items()]
        for (ps, _), event in heapq.merge(*streams, key=lambda pair: pair[0]):
            packet = self._packet()
            packet.timestamp = ps // 1000
            packet.track_event.MergeFrom(event)
        self._intern(first.interned_data)
        return bytes(self._builder.serialize())

    def _new(self, parent: int = 0) -> TrackDescriptor:
        track = TrackDescriptor(uuid=len(self._tracks) + 1)
        if parent:
            track.parent_uuid = parent
        self._tracks.append(track)
        return track

    def _packet(self) -> Any:
        packet = self._builder.add_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        packet.sequence_flags = _NEEDED
        return packet

    def _slice_events(self, track: int, pieces: list[Slice]) -> Iterator[tuple[Key, TrackEvent]]:
        for piece in pieces:
            event = self._begin(track, piece)
            event.flow_ids.extend(piece.causes)
            if piece.cause is not None:
                event.terminating_flow_ids.append(piece.cause)
            yield (piece.begin_ps, piece.order), event
            end = TrackEvent(type=TrackEvent.TYPE_SLICE_END, track_uuid=track)
            yield (piece.end_ps, piece.order), end

    def _counter_events(
        self, track: int, steps: list[tuple[int, float]]
    ) -> Iterator[tuple[Key, TrackEvent]]:
        for ps, value in steps:
            event = TrackEvent(type=TrackEvent.TYPE_COUNTER, track_uuid=track)
            if isinstance(value, int):
                event.counter_value = value
            else:
                event.double_counter_value = value
            yield (ps, 0), event

    def _begin(self, track: int, piece: Slice) -> TrackEvent:
        event = TrackEvent(type=TrackEvent.TYPE_SLICE_BEGIN, track_uuid=track)
        event.name_iid = self._names[piece.name]
        for name, value in piece.arguments.items():
            argument = event.debug_annotations.add(name_iid=self._argument_names[name])
            if isinstance(value, str):
                argument.string_value_iid = self._strings[value]
            elif isinstance(value, int):
                argument.int_value = value
            else:
                argument.double_value = value
        return event

    def _intern(self, data: InternedData) -> None:
        for name, iid in self._names.items():
            data.event_names.add(iid=iid, name=name)
        for name, iid in self._argument_names.items():
            data.debug_annotation_names.add(iid=iid, name=name)
        for text, iid in self._strings.items():
            data.debug_annotation_string_values.add(iid=iid, str=text.encode())


class _Interned(dict[str, int]):
    """A number for each text, from 1 on."""

    def __missing__(self, text: str) -> int:
        self[text] = number = len(self) + 1
        return number
