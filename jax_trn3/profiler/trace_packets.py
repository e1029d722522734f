"""Packets of a Perfetto trace: tracks, slices, flows, counters, and their arguments.

The format: https://perfetto.dev/docs/reference/trace-packet-proto. Perfetto counts nanoseconds, the
simulator picoseconds: a slice's ends are cut to whole nanoseconds, which keeps their order; exact
times are arguments. Which of two at the same nanosecond is first Perfetto sees from the order of
packets, so these are written in the order of picoseconds.
"""

import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO

try:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
        TracePacket,
        TrackDescriptor,
        TrackEvent,
    )
    from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Perfetto traces need the package perfetto: pip install 'jax-trn3[trace]'", name=error.name
    ) from error

Argument = int | float | str
Key = tuple[int, int]
"""Picosecond, and a number that decides between events of the same one."""

_SEQUENCE = 1


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

    end_order: int | None = None
    """The same of its end, where that is not `order`: an end that others lie around."""


class Trace:
    """Tracks and what is on them, until it is written."""

    def __init__(self) -> None:
        self._tracks: list[TrackDescriptor] = []
        self._slices: list[tuple[int, Iterable[Slice]]] = []
        self._counters: list[tuple[int, Iterable[tuple[int, float]]]] = []
        self._names = _Interned()
        self._argument_names = _Interned()
        self._texts = _Interned()

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

    def counter(
        self, name: str, unit: str, parent: int, steps: Iterable[tuple[int, float]]
    ) -> None:
        """A track of numbers: (picosecond, value), ascending."""
        track = self._new(parent)
        track.name, track.counter.unit_name = name, unit
        self._counters.append((track.uuid, steps))

    def slices(self, track: int, pieces: Iterable[Slice]) -> None:
        """What is on a track, one after another. Read when the trace is written. Slices inside of
        these are given in another call for the same track."""
        self._slices.append((track, pieces))

    def write(self, file: IO[bytes]) -> None:
        """Writes the trace. It can be written once."""
        builder = StreamingTraceProtoBuilder(file)
        first = TracePacket(sequence_flags=TracePacket.SEQ_INCREMENTAL_STATE_CLEARED)
        packets = [first, *(TracePacket(track_descriptor=track) for track in self._tracks)]
        streams = [self._of_slices(track, pieces) for track, pieces in self._slices]
        streams += [self._of_counter(track, steps) for track, steps in self._counters]
        merged = heapq.merge(*streams, key=lambda pair: pair[0])
        for packet in itertools.chain(packets, (packet for _, packet in merged)):
            packet.trusted_packet_sequence_id = _SEQUENCE
            self._introduce(packet)
            builder.write_packet(packet)

    def _new(self, parent: int = 0) -> TrackDescriptor:
        track = TrackDescriptor(uuid=len(self._tracks) + 1)
        if parent:
            track.parent_uuid = parent
        self._tracks.append(track)
        return track

    def _of_slices(self, track: int, pieces: Iterable[Slice]) -> Iterator[tuple[Key, TracePacket]]:
        for piece in pieces:
            packet = _packet(piece.begin_ps, track, TrackEvent.TYPE_SLICE_BEGIN)
            self._describe(packet.track_event, piece)
            yield (piece.begin_ps, piece.order), packet
            packet = _packet(piece.end_ps, track, TrackEvent.TYPE_SLICE_END)
            end_order = piece.order if piece.end_order is None else piece.end_order
            yield (piece.end_ps, end_order), packet

    def _of_counter(
        self, track: int, steps: Iterable[tuple[int, float]]
    ) -> Iterator[tuple[Key, TracePacket]]:
        for ps, value in steps:
            packet = _packet(ps, track, TrackEvent.TYPE_COUNTER)
            if isinstance(value, int):
                packet.track_event.counter_value = value
            else:
                packet.track_event.double_counter_value = value
            yield (ps, 0), packet

    def _describe(self, event: TrackEvent, piece: Slice) -> None:
        event.name_iid = self._names[piece.name]
        event.flow_ids.extend(piece.causes)
        if piece.cause is not None:
            event.terminating_flow_ids.append(piece.cause)
        for name, value in piece.arguments.items():
            argument = event.debug_annotations.add(name_iid=self._argument_names[name])
            if isinstance(value, str):
                argument.string_value_iid = self._texts[value]
            elif isinstance(value, int):
                argument.int_value = value
            else:
                argument.double_value = value

    def _introduce(self, packet: TracePacket) -> None:
        """Says what the numbers mean that stand for texts from this packet on."""
        data = packet.interned_data
        for text, iid in self._names.news():
            data.event_names.add(iid=iid, name=text)
        for text, iid in self._argument_names.news():
            data.debug_annotation_names.add(iid=iid, name=text)
        for text, iid in self._texts.news():
            data.debug_annotation_string_values.add(iid=iid, str=text.encode())


def _packet(ps: int, track: int, kind: int) -> TracePacket:
    packet = TracePacket(
        timestamp=ps // 1000, sequence_flags=TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
    )
    packet.track_event.track_uuid, packet.track_event.type = track, kind
    return packet


class _Interned(dict[str, int]):
    """A number for each text, from 1 on."""

    def __init__(self) -> None:
        self._new: list[tuple[str, int]] = []

    def __missing__(self, text: str) -> int:
        self[text] = number = len(self) + 1
        self._new.append((text, number))
        return number

    def news(self) -> list[tuple[str, int]]:
        """The numbers that were given since this was asked last."""
        new, self._new = self._new, []
        return new
