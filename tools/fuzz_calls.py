"""Drawn calls of clients, topologies and events; which function is drawn how; the beginning."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import fuzz_arrays as arrays
import fuzz_programs as programs
from fuzz_draws import ARENA_MIDDLE, CODE_WITHOUT_MESSAGE, HUGE, INTS, Draw, list_of, permanent
from fuzz_model import Handle, Violation
from pjrt_abi import STRUCTS


def client_create(d: Draw) -> None:
    good = [{"topology": "trn3-core"}, {"topology": "trn3-core", "lnc": 1}]
    d.named_values([*good, *good, {"topology": "trn9"}, {"topology": "trn3-core", "lnc": 7}])
    if "trn9" in d.notes[-1] or ": 7" in d.notes[-1]:
        d.bad("unknown")


def client_created(d: Draw) -> None:
    register_client(d.fuzzer, d.args.client)


def client_destroy(d: Draw) -> None:
    d.handle("client", "PJRT_Client", lambda handle: not permanent(handle))


def client_destroyed(d: Draw) -> None:
    client = d.inputs["client"]
    assert client
    d.model.destroyed(client)


def topology_create(d: Draw) -> None:
    names = [b"", b"trn3-core", b"trn3-core", b"trn3-chip", b"trn1-chip"]
    wrong = [b"trn9", b"\xff\xfe", b"trn3-ultracluster:0", b"trn3-ultracluster:99999999999", b"\0"]
    name = d.rng.choice(names + wrong)
    d.bytes_field("topology_name", name)
    if name in wrong:
        d.bad("no topology")
    d.named_values([{}, {}, {"lnc": 1}, {"lnc": 3}, {"lnc": "1"}, {"other": 1}, {"lnc": 2}])
    d.unsure()


def topology_deserialize(d: Draw) -> None:
    good = b'{"format": "trn3-topology-1", "name": "trn3-core", "lnc": 1}'
    odd = good.replace(b"1", b"[]")
    wrong = (b"", b"garbage", b"{}", b"[]", b"1", b"null", good[:-3], b"\xff", odd)
    data = d.rng.choice((good, *wrong))
    d.bytes_field("serialized_topology", data)
    if data != good:
        d.bad("not serialized")


def topology_made(d: Draw) -> None:
    register_topology(d.fuzzer, d.args.topology)


def default_device_assignment(d: Draw) -> None:
    client = d.handle("client", "PJRT_Client")
    pairs = ((1, 1), (2, 2), (4, 1), (1, 4), (0, 1), (1, 0), (-1, -1), (2, 9), (2**31 - 1,) * 2)
    replicas, partitions = d.rng.choice(pairs)
    n = replicas * partitions
    d.args.num_replicas, d.args.num_partitions = replicas, partitions
    d.args.default_assignment_size = d.rng.choice((n, n, n, 64, 0, n - 1)) if 0 < n < 64 else 64
    null = d.one_in(8)
    d.args.default_assignment = None if null else d.array(ctypes.c_int, [0] * 64)
    devices = len([h for h in client.lends if h.kind == "PJRT_Device"]) if client else 0
    if null or not 0 < n <= devices or replicas < 0 or d.args.default_assignment_size < n:
        d.bad(f"{replicas}x{partitions}")


def event_await(d: Draw) -> None:
    event = d.handle("event", "PJRT_Event")
    if event and not d.is_ready(event):
        d.args.event = 0
        d.bad("NULL")
    d.unsure()


def lookup(d: Draw) -> None:
    client = d.handle("client", "PJRT_Client")
    id = d.rng.choice(INTS)
    setattr(d.args, d.struct.numbers[0], id)
    devices = len([h for h in client.lends if h.kind == "PJRT_Device"]) if client else 0
    if not 0 <= id < devices:
        d.bad(f"id={id}")


def tracking_event(d: Draw) -> None:
    d.handle("device", "PJRT_Device")
    d.args.description, d.args.description_size = d.text(b"drawn"), 5


def event_error(d: Draw) -> None:
    d.handle("event", "PJRT_Event")
    d.unsure()


SEEN: dict[int, int] = {}


@ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
def on_ready(error: int | None, argument: int) -> None:
    SEEN[argument] = SEEN.get(argument, 0) + 1
    if error:
        block = (ctypes.c_size_t * 3)(24, 0, error)
        DESTROY_ERROR[0](ctypes.addressof(block))


DESTROY_ERROR: list[Any] = []


def event_on_ready(d: Draw) -> None:
    d.handle("event", "PJRT_Event")
    number = len(SEEN) + 1
    SEEN[number] = 0
    d.args.callback, d.args.user_arg = ctypes.cast(on_ready, ctypes.c_void_p), number
    if d.one_in(10):
        d.args.callback = None
        d.bad("callback=NULL")


def event_registered(d: Draw) -> None:
    if max(SEEN.values()) > 1:
        raise Violation("a callback was called twice")
    if len(SEEN) > 1000:
        SEEN.clear()


def event_set(d: Draw) -> None:
    d.handle("event", "PJRT_Event")
    args = d.args
    args.error_code = d.rng.choice((0, 0, *range(1, CODE_WITHOUT_MESSAGE), 16))
    args.error_message, args.error_message_size = d.text(b"drawn"), 5
    way = d.rng.randrange(12)
    if way == 0:
        args.error_code = d.rng.choice((17, -1, 2**31 - 1))
    elif way == 1:
        args.error_code = 3
        args.error_message, args.error_message_size = None, d.rng.choice((1, *HUGE))
    elif way == 2:
        args.error_code, args.error_message_size = CODE_WITHOUT_MESSAGE, 0
    if way < 2:
        d.bad(f"spoilt {way}")
    d.unsure()


def default_layout(d: Draw) -> None:
    field = "client" if d.name.endswith("Client_GetDefaultLayout") else "topology_description"
    d.handle(field, d.struct.handles[field])
    d.args.type = d.rng.choice((arrays.F32, *arrays.NO_TYPES))
    d.args.num_dims = d.rng.choice((0, 1, 3, 64, 65537, *HUGE))
    d.notes.append(f"num_dims={d.args.num_dims}")
    if d.args.num_dims > 65536:
        d.bad("too many")
    d.args.dims = d.array(ctypes.c_int64, [-1] * 64)
    d.unsure()


def nothing(d: Draw) -> None:
    pass


SPECIAL: dict[str, Callable[[Draw], None]] = {
    "Device_CreateAsyncTrackingEvent": tracking_event,
    "Client_Create": client_create,
    "Client_Destroy": client_destroy,
    "TopologyDescription_Create": topology_create,
    "TopologyDescription_Deserialize": topology_deserialize,
    "Client_LookupDevice": lookup,
    "Client_LookupAddressableDevice": lookup,
    "Client_DefaultDeviceAssignment": default_device_assignment,
    "Client_BufferFromHostBuffer": arrays.from_host,
    "Buffer_CopyToDevice": arrays.copy_to,
    "Buffer_CopyToMemory": arrays.copy_to,
    "Buffer_ToHostBuffer": arrays.to_host,
    "Buffer_UnsafePointer": arrays.pointer,
    "Buffer_OpaqueDeviceMemoryDataPointer": arrays.pointer,
    "Buffer_IncreaseExternalReferenceCount": arrays.pointer,
    "Buffer_DecreaseExternalReferenceCount": arrays.decrease,
    "Client_Compile": programs.compile,
    "Compile": programs.compile,
    "Executable_Serialize": programs.serialize,
    "Executable_DeserializeAndLoad": programs.deserialize,
    "Client_Load": programs.client_load,
    "Executable_OptimizedProgram": programs.optimized_program,
    "LoadedExecutable_Execute": programs.execute,
    "Event_Await": event_await,
    "Event_Error": event_error,
    "Event_OnReady": event_on_ready,
    "Event_Set": event_set,
    "Layouts_PJRT_Client_GetDefaultLayout": default_layout,
    "Layouts_PJRT_Topology_GetDefaultLayout": default_layout,
}
WORKED: dict[str, Callable[[Draw], None]] = {
    "Client_Create": client_created,
    "Client_Destroy": client_destroyed,
    "TopologyDescription_Create": topology_made,
    "TopologyDescription_Deserialize": topology_made,
    "Client_BufferFromHostBuffer": arrays.from_host_done,
    "Buffer_CopyToDevice": arrays.copied,
    "Buffer_CopyToMemory": arrays.copied,
    "Buffer_ToHostBuffer": arrays.to_host_done,
    "Buffer_IncreaseExternalReferenceCount": arrays.increased,
    "Buffer_DecreaseExternalReferenceCount": arrays.decreased,
    "Buffer_Delete": arrays.deleted,
    "LoadedExecutable_Delete": arrays.deleted,
    "Buffer_IsDeleted": arrays.is_deleted,
    "LoadedExecutable_IsDeleted": arrays.is_deleted,
    "Client_Compile": programs.compiled,
    "Compile": programs.compiled,
    "Executable_Serialize": programs.serialized,
    "Executable_DeserializeAndLoad": programs.loaded,
    "Client_Load": programs.loaded,
    "LoadedExecutable_GetExecutable": programs.got_executable,
    "LoadedExecutable_Execute": programs.executed,
    "Event_OnReady": event_registered,
    "Event_Await": nothing,
    "Device_CreateAsyncTrackingEvent": nothing,  # NULL is allowed there
    "ExecuteContext_Create": nothing,
    "ExecuteContext_Destroy": nothing,
}


# ---- At the beginning ----------------------------------------------------------------------------


def register_client(fuzzer: Any, address: int, permanent: bool = False) -> Handle:
    """A new client with everything that it lends."""
    model, call = fuzzer.model, fuzzer.call
    client = model.add("PJRT_Client", address, permanent=permanent)
    found = call("Client_Devices", client=address)
    for device in list_of(found.devices, found.num_devices):
        made = model.lend(client, "PJRT_Device", device)
        description = call("Device_GetDescription", device=device).device_description
        register_description(fuzzer, client, description)
        found = call("Device_AddressableMemories", device=device)
        for index, memory in enumerate(list_of(found.memories, found.num_memories)):
            model.lend(client, "PJRT_Memory", memory, device=made, index=index)
    topology = call("Client_TopologyDescription", client=address).topology
    model.lend(client, "PJRT_TopologyDescription", topology)
    return client


def register_description(fuzzer: Any, owner: Handle, address: int) -> None:
    fuzzer.model.lend(owner, "PJRT_DeviceDescription", address)
    found = fuzzer.call("DeviceDescription_MemoryDescriptions", device_description=address)
    for memory in list_of(found.memory_descriptions, found.num_memory_descriptions):
        fuzzer.model.lend(owner, "PJRT_MemoryDescription", memory)


def register_topology(fuzzer: Any, address: int) -> None:
    topology = fuzzer.model.add("PJRT_TopologyDescription", address)
    found = fuzzer.call("TopologyDescription_GetDeviceDescriptions", topology=address)
    for description in list_of(found.descriptions, found.num_descriptions):
        register_description(fuzzer, topology, description)


def set_up(fuzzer: Any) -> None:
    """Two clients that stay, and the event that is always ready."""
    DESTROY_ERROR[:] = [fuzzer.functions["Error_Destroy"]]
    made = STRUCTS["PJRT_NamedValue"].type
    for name, lnc in ((b"trn3-chip", 2), (b"trn3-core", 1)):
        keep = [ctypes.create_string_buffer(text) for text in (b"topology", name, b"lnc")]
        values = (made * 2)()
        values[0].struct_size = values[1].struct_size = ctypes.sizeof(made)
        values[0].name, values[0].name_size = ctypes.addressof(keep[0]), 8
        values[0].string_value, values[0].value_size = ctypes.addressof(keep[1]), len(name)
        values[1].name, values[1].name_size = ctypes.addressof(keep[2]), 3
        values[1].type, values[1].int64_value, values[1].value_size = 1, lnc, 1
        made_client = fuzzer.call(
            "Client_Create", create_options=ctypes.addressof(values), num_options=2
        ).client
        client = register_client(fuzzer, made_client, permanent=True)
    device = next(h for h in client.lends if h.kind == "PJRT_Device")
    events = set()
    for _ in range(2):
        args = fuzzer.call(
            "Client_BufferFromHostBuffer",
            client=client.address,
            device=device.address,
            data=ARENA_MIDDLE,
            type=arrays.F32,
        )
        buffer, done = args.buffer, args.done_with_host_buffer
        events.add(fuzzer.call("Buffer_ReadyEvent", buffer=buffer).event)
        fuzzer.call("Event_Destroy", event=done)
        fuzzer.call("Buffer_Destroy", buffer=buffer)
    if len(events) != 1:
        raise Violation("buffers that are ready have different events")
    fuzzer.model.make_immortal("PJRT_Event", events.pop())
