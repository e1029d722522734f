"""Reads a .pftrace back with Perfetto's own protos, for the tests."""

import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

from jax_trn3.profiler import perfetto


@dataclass
class Slice:
    name: str
    begin: int
    args: dict[str, Any]
    end: int = -1
    inside: "Slice | None" = None


@dataclass
class Read:
    """What a trace says: everything by track uuid or flow id."""

    tracks: dict[int, Any] = field(default_factory=dict)
    slices: dict[int, list[Slice]] = field(default_factory=lambda: defaultdict(list))
    counters: dict[int, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    flow_begins: dict[int, Slice] = field(default_factory=dict)
    flow_ends: dict[int, Slice] = field(default_factory=dict)

    def name(self, uuid: int) -> str:
        track = self.tracks[uuid]
        return track.thread.thread_name or track.process.process_name or track.name

    def of(self, name: str) -> list[Slice]:
        """The slices of all tracks of that name."""
        return [s for uuid in self.tracks if self.name(uuid) == name for s in self.slices[uuid]]

    def counter(self, name: str) -> list[tuple[int, float]]:
        (uuid,) = [uuid for uuid in self.tracks if self.name(uuid) == name]
        return self.counters[uuid]


def trace_bytes(timeline, shown=None) -> bytes:
    """The contents of the trace that is written of a timeline."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace.pftrace"
        perfetto.write(timeline, path, shown)
        return path.read_bytes()


def read(contents: bytes, nested: str = "") -> Read:
    """Parses a trace; asserts that each track's slices begin and end in turn, those of the track
    `nested` inside of others."""
    trace = Trace.FromString(contents)
    found = Read()
    unfinished: dict[int, list[Slice]] = defaultdict(list)
    assert trace.packet[0].sequence_flags == 1
    names, keys, strings = {}, {}, {}
    for packet in trace.packet:  # interned texts are read in the order of the file
        data, event = packet.interned_data, packet.track_event
        names |= {entry.iid: entry.name for entry in data.event_names}
        keys |= {entry.iid: entry.name for entry in data.debug_annotation_names}
        strings |= {e.iid: e.str.decode() for e in data.debug_annotation_string_values}
        assert not event.name_iid or event.name_iid in names
        assert all(a.name_iid in keys for a in event.debug_annotations)
        assert all(a.string_value_iid in {0, *strings} for a in event.debug_annotations)
    # Perfetto sorts by time, and leaves packets of the same nanosecond in the order of the file.
    for packet in sorted(trace.packet, key=lambda p: p.timestamp):
        assert packet.trusted_packet_sequence_id == 1
        if packet.HasField("track_descriptor"):
            assert packet.track_descriptor.uuid not in found.tracks
            found.tracks[packet.track_descriptor.uuid] = packet.track_descriptor
        if not packet.HasField("track_event"):
            continue
        event = packet.track_event
        if event.type == TrackEvent.TYPE_COUNTER:
            value = event.counter_value or event.double_counter_value
            found.counters[event.track_uuid].append((packet.timestamp, value))
            continue
        on_track, stack = found.slices[event.track_uuid], unfinished[event.track_uuid]
        if event.type == TrackEvent.TYPE_SLICE_END:
            stack.pop().end = packet.timestamp
            continue
        assert event.type == TrackEvent.TYPE_SLICE_BEGIN
        alone = found.name(event.track_uuid) != nested
        assert not (stack and alone), "overlapping slices on a track"
        args = {}
        for argument in event.debug_annotations:
            kind = argument.WhichOneof("value")
            value = getattr(argument, kind)
            args[keys[argument.name_iid]] = strings[value] if kind == "string_value_iid" else value
        around = stack[-1] if stack else None
        on_track.append(Slice(names[event.name_iid], packet.timestamp, args, inside=around))
        stack.append(on_track[-1])
        for flow in event.flow_ids:
            assert flow not in found.flow_begins
            found.flow_begins[flow] = on_track[-1]
        for flow in event.terminating_flow_ids:
            assert flow in found.flow_begins, "a flow that ends before it begins"
            assert flow not in found.flow_ends
            found.flow_ends[flow] = on_track[-1]
    assert not any(unfinished.values())
    assert all(s.end >= s.begin for slices in found.slices.values() for s in slices)
    return found
