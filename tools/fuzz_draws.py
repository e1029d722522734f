"""What the fuzzer's calls are drawn from, and what has to come of them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from fuzz_model import Handle, Violation

GOOD = 0.85  # of the handles
# The handles that are destroyed: by what, in which field.
DESTROY = {
    "PJRT_Error": ("Error_Destroy", "error"),
    "PJRT_Event": ("Event_Destroy", "event"),
    "PJRT_Client": ("Client_Destroy", "client"),
    "PJRT_Executable": ("Executable_Destroy", "executable"),
    "PJRT_LoadedExecutable": ("LoadedExecutable_Destroy", "executable"),
    "PJRT_Buffer": ("Buffer_Destroy", "buffer"),
    "PJRT_TopologyDescription": ("TopologyDescription_Destroy", "topology"),
    "PJRT_Layouts_MemoryLayout": ("Layouts_MemoryLayout_Destroy", "layout"),
}
DESTROYERS = {function for function, _ in DESTROY.values()}
LENT = {
    "PJRT_Device",
    "PJRT_Memory",
    "PJRT_DeviceDescription",
    "PJRT_MemoryDescription",
}
HANDLES = LENT | DESTROY.keys()
KEPT = {"PJRT_Client": 4, "PJRT_LoadedExecutable": 24, "PJRT_TopologyDescription": 10}
NEVER: set[str] = set()
VOID = {"Error_Destroy", "Error_Message"}
ANY_SIZE = VOID | {"Plugin_Initialize"}

# Where a shorter struct will do: its size.
SHORTEST = {
    "AsyncTrackingEvent_Destroy": 0,
    "LoadedExecutable_Execute": 72,
    "Executable_DeserializeAndLoad": 48,
    "Error_ForEachPayload": 24,
}

# Refused, or not there yet: an error is right, and success too.
UNSURE = {
    "ExecuteContext_Create",
    "ExecuteContext_Destroy",
    "Compile",
    "Buffer_CopyRawToHost",
    "Executable_Serialize",
    "Executable_DeserializeAndLoad",
}
NO_INPUT = {
    "Client_Create",
    "Event_Create",
    "TopologyDescription_Create",
    "TopologyDescription_Deserialize",
}
OPTIONAL = {
    ("Client_BufferFromHostBuffer", "device"),
    ("Client_BufferFromHostBuffer", "memory"),
}
SECOND_INPUT = {"Buffer_CopyToDevice": "dst_device", "Buffer_CopyToMemory": "dst_memory"}
CODE_WITHOUT_MESSAGE = 15  # Event_Set makes errors with this code and no message

HUGE = (2**31, 2**62, 2**63, 2**64 - 1)
INTS = (0, 1, 2, 3, 7, 8, -1, -2, 99, 2**31 - 1, -(2**31))

ARENA = ctypes.create_string_buffer(1 << 17)  # host memory of all arrays, never freed
ARENA_MIDDLE = ctypes.addressof(ARENA) + (1 << 16)
ROOM = ctypes.create_string_buffer(1 << 20)  # where programs and arrays are copied
FOREIGN = (ctypes.c_uint64 * 64)(*range(64))  # memory that is not a handle
LAYOUT_SIZE = 76

# PJRT_Buffer_Type: bytes of an element on the host.
ITEMSIZE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 2, 8: 4, 9: 8, 10: 2, 11: 4, 12: 8, 13: 2}
ITEMSIZE |= {14: 8, 15: 16} | dict.fromkeys((16, 17, 18, 19, 20, 21, 22, 24, 25, 26, 27, 28), 1)
SURE_TYPES = [type for type in ITEMSIZE if type <= 20]
NO_TYPES = (0, 23, 32, 77, -1, 2**31 - 1)

F32, S32 = 11, 4
# Text, replicas, and what goes in and comes out: (type, dims).
PROGRAMS: dict[str, tuple[str, int, list[tuple[int, tuple[int, ...]]]]] = {
    "add": (
        "(%0: tensor<4xf32>) -> tensor<4xf32> {"
        " %1 = stablehlo.add %0, %0 : tensor<4xf32> return %1 : tensor<4xf32> }",
        1,
        [(F32, (4,))],
    ),
    "two": (
        "(%0: tensor<2x3xf32>, %1: tensor<i32>) -> (tensor<i32>, tensor<3x2xf32>) {"
        " %2 = stablehlo.transpose %0, dims = [1, 0] : (tensor<2x3xf32>) -> tensor<3x2xf32>"
        " return %1, %2 : tensor<i32>, tensor<3x2xf32> }",
        1,
        [(F32, (2, 3)), (S32, ())],
    ),
    "donates": (
        "(%0: tensor<4xf32> {tf.aliasing_output = 0 : i32}, %1: tensor<4xf32>) -> tensor<4xf32> {"
        " %2 = stablehlo.multiply %0, %1 : tensor<4xf32> return %2 : tensor<4xf32> }",
        1,
        [(F32, (4,)), (F32, (4,))],
    ),
    "constant": (
        "() -> tensor<4xf32> {"
        " %0 = stablehlo.constant dense<1.0> : tensor<4xf32> return %0 : tensor<4xf32> }",
        1,
        [],
    ),
    "nothing": ("(%0: tensor<4xf32>) { return }", 1, [(F32, (4,))]),
    "collective": (
        "(%0: tensor<4xf32>) -> tensor<4xf32> {"
        ' %1 = "stablehlo.all_reduce"(%0) ({ ^bb0(%a: tensor<f32>, %b: tensor<f32>):'
        " %c = stablehlo.add %a, %b : tensor<f32> stablehlo.return %c : tensor<f32> })"
        " {replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>} : (tensor<4xf32>) -> tensor<4xf32>"
        " return %1 : tensor<4xf32> }",
        2,
        [(F32, (4,))],
    ),
}
MALFORMED = (
    b"",
    b"\0",
    b"garbage",
    b"module {",
    b"module {}",
    b"ML\xefR",
    b"ML\xefR" + bytes(64),
    b"ML\xefR\x0dStableHLO_v1.0.0\0" + bytes(range(64)),
    b"module { func.func public @other() { return } }",
    b"module { func.func public @main() { call @other() : () -> () return } }",
)
BAD_OPTIONS = (b"\xff", b"\x0a", b"\x1a\xff\xff\xff\xff\x7f", b"garbage", bytes(range(1, 60)))


def source(name: str) -> bytes:
    return f"module @{name} {{ func.func public @main{PROGRAMS[name][0]} }}".encode()


def compile_options(ids: list[list[int]] | None = None, replicas: int = 1) -> bytes:
    from jaxlib import xla_client

    options = xla_client.CompileOptions()
    options.num_replicas = replicas
    if ids is not None:
        import numpy as np

        options.device_assignment = xla_client.DeviceAssignment.create(np.array(ids, np.int32))
    return options.SerializeAsString()


def _list_of(address: int, n: int) -> list[int]:
    return list((ctypes.c_size_t * n).from_address(address)) if n else []


class Draw:
    """The arguments of one call.

    must: "work", "fail", or "" if either is right.
    """

    def __init__(self, fuzzer: Any, name: str, struct: Any, args: Any):
        self.fuzzer, self.name, self.struct, self.args = fuzzer, name, struct, args
        self.rng, self.model = fuzzer.rng, fuzzer.model
        self.must = "work"
        self.notes: list[str] = []
        self.keep: list[Any] = []
        self.inputs: dict[str, Handle | None] = {}
        self.about: dict[str, Any] = {}
        self.whole = True  # struct_size covers all

    def one_in(self, n: int) -> bool:
        return self.rng.random() * n < 1

    def bad(self, note: str) -> None:
        self.must = "fail"
        self.notes.append(note)

    def unsure(self) -> None:
        if self.must == "work":
            self.must = ""

    def pointer(self, thing: Any) -> int:
        self.keep.append(thing)
        return ctypes.addressof(thing)

    def array(self, type: Any, values: Any) -> int:
        return self.pointer((type * max(len(values), 1))(*values))

    def handle(
        self, field: str, kind: str, choose: Callable[[Handle], bool] | None = None
    ) -> Handle | None:
        """Draws a handle; None if it is not a live one of the kind."""
        pool = self.model.pools[kind]
        if self.rng.random() < GOOD:
            fits = [handle for handle in pool if choose(handle)] if choose else pool
            if fits:
                handle = self.rng.choice(fits)
                setattr(self.args, field, handle.address)
                self.notes.append(f"{field}={handle.address:#x}")
                self.inputs[field] = handle
                return handle
        self.inputs[field] = None
        setattr(self.args, field, self.wrong(field, kind))
        return None

    def wrong(self, field: str, kind: str) -> int:
        """A handle that is not a live one of the kind."""
        way = self.rng.randrange(4)
        if way == 1:
            other = self.rng.choice(sorted(HANDLES - {kind}))
            if self.model.pools[other]:
                self.bad(f"{field}=another kind, {other}")
                return self.rng.choice(self.model.pools[other]).address
        elif way == 2:
            address = self.model.draw_stale(kind)
            if address:
                self.bad(f"{field}=destroyed {address:#x}")
                return address
        elif way == 3:
            self.bad(f"{field}=no handle")
            return ctypes.addressof(FOREIGN) + 8 * self.rng.randrange(32)
        self.notes.append(f"{field}=NULL")
        if (self.name, field) not in OPTIONAL:
            self.must = "fail"
        return 0

    def arguments(self) -> None:
        if self.args is None:
            self.must = "work" if self.name == "Plugin_Initialize" else ""
            return
        self.args.extension_start = 0
        special = SPECIAL.get(self.name)
        if special:
            special(self)
        else:
            self.generic()
        if self.name in UNSURE:
            self.unsure()
        if self.name in VOID:
            self.must = ""

    def generic(self) -> None:
        for field in self.struct.numbers:
            setattr(self.args, field, self.rng.choice(INTS))
        for field in self.in_fields():
            handle = self.handle(field, self.struct.handles[field])
            if handle and self.is_destroy() and not self.model.may_destroy(handle):
                self.bad("lent")

    def in_fields(self) -> list[str]:
        fields = [field for field, kind in self.struct.handles.items() if kind in HANDLES]
        first = [] if self.name in NO_INPUT else fields[:1]
        return first + [field for field in fields if field == SECOND_INPUT.get(self.name)]

    def struct_size(self) -> int:
        """Draws struct_size; returns how many bytes may be written."""
        full = self.struct.size if self.struct else 64
        if self.one_in(30):
            size = self.rng.randrange(full)
            self.whole = False
            self.notes.append(f"struct_size={size}")
            self.fuzzer.view[max(size, 8) :] = self.fuzzer.pattern[max(size, 8) :]
            self.set_size(size)
            if size >= SHORTEST.get(self.name, full):
                self.must = ""
            elif self.struct and self.name not in ANY_SIZE:
                self.must = "fail" if size < 24 or self.must == "fail" else ""
            return max(size, 8)
        if self.one_in(30):
            size = self.rng.choice((full + 1, full + 8, 4096, 2**63, 2**64 - 1))
            self.notes.append(f"struct_size={size}")
            self.set_size(size)
        return full

    def set_size(self, size: int) -> None:
        ctypes.c_size_t.from_address(self.fuzzer.address).value = size

    def keep_array(self, n: int) -> Any:
        self.keep.append((ctypes.c_size_t * max(n, 1))())
        return self.keep[-1]

    def is_ready(self, event: Handle) -> bool:
        """Asks in a block of its own: that of the call is being filled."""
        block = (ctypes.c_size_t * 4)(25, 0, event.address)
        self.fuzzer.functions["Event_IsReady"](ctypes.addressof(block))
        return bool(block[3] & 0xFF)

    # ---- What comes back ----

    def failed(self) -> None:
        if self.name == "LoadedExecutable_Execute":
            refresh(self)

    def worked(self) -> None:
        if self.args is None:
            return
        hook = WORKED.get(self.name)
        if hook:
            hook(self)
        elif self.is_destroy():
            (handle,) = self.inputs.values()
            if handle and self.whole:
                self.model.destroyed(handle)
        else:
            self.outputs()
        if self.name not in SPECIAL and self.whole:
            self.strings()

    def is_destroy(self) -> bool:
        return self.name in DESTROYERS

    def outputs(self) -> None:
        """New handles are added, lent ones must be known."""
        new = []
        inputs = self.in_fields()
        for field, kind in self.struct.handles.items():
            if kind not in HANDLES or field in inputs or field in self.inputs:
                continue
            address = getattr(self.args, field)
            if not address:
                raise Violation(f"{self.name} gave no {field}")
            if kind in LENT or self.name == "Client_TopologyDescription":
                known = self.model.by_address.get(address)
                if known is None or known.kind != kind:
                    raise Violation(f"{self.name} gave an unknown {kind}")
            else:
                new.append((kind, address))
        for kind, address in new:
            self.model.add(kind, address)

    def strings(self) -> None:
        args = self.args
        for field in self.struct.pointers:
            address, size = getattr(args, field), getattr(args, f"{field}_size", None)
            if field.endswith("_deleter"):
                owner = getattr(args, field.removesuffix("_deleter"), None)
                if field == "attributes_deleter":
                    owner = args.device_attributes
                ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(owner)
            elif size:
                ctypes.string_at(address, size)

    # ---- Parts of arguments ----

    def named_values(self, good: list[dict[str, Any]]) -> None:
        """create_options and num_options."""
        from pjrt_abi import STRUCTS

        made = STRUCTS["PJRT_NamedValue"].type
        args = self.args
        if self.one_in(8):
            args.create_options, args.num_options = None, self.rng.choice((1, 3, *HUGE))
            self.bad("options=NULL")
            return
        options = self.rng.choice(good)
        values = (made * 3)()
        for value, (key, content) in zip(values, options.items()):
            text = key.encode()
            value.struct_size = ctypes.sizeof(made)
            value.name, value.name_size = self.text(text), len(text)
            if isinstance(content, int):
                value.type, value.int64_value, value.value_size = 1, content, 1
            else:
                value.type, value.string_value = 0, self.text(content.encode())
                value.value_size = len(content)
        args.create_options, args.num_options = self.pointer(values), len(options)
        self.notes.append(f"options={options}")
        if options and self.one_in(3):
            self.spoil(values[0])

    def spoil(self, value: Any) -> None:
        way = self.rng.randrange(6)
        self.bad(f"option spoilt {way}")
        if way == 0:
            value.type = self.rng.choice((5, 77, -1))
        elif way == 1:
            value.name, value.name_size = None, self.rng.choice((5, *HUGE))
        elif way == 2:
            value.type, value.string_value, value.value_size = 0, None, self.rng.choice((1, *HUGE))
        elif way == 3:
            value.type, value.int64_array_value = 2, None
            value.value_size = self.rng.choice((1, *HUGE))
        elif way == 4:
            value.struct_size = self.rng.choice((0, 8, 48))
        else:
            value.name, value.name_size = self.text(b"\xff\xfe"), 2

    def text(self, data: bytes) -> int:
        return self.pointer(ctypes.create_string_buffer(data, len(data) + 1))

    def bytes_field(self, field: str, data: bytes) -> None:
        """Sets field and field_size; or to what cannot be."""
        args = self.args
        if self.one_in(20):
            setattr(args, field, None)
            setattr(args, f"{field}_size", self.rng.choice((1, 100, *HUGE)))
            self.bad(f"{field}=NULL")
        elif self.one_in(40):
            setattr(args, field, self.text(data))
            setattr(args, f"{field}_size", self.rng.choice((2**63, 2**64 - 1)))
            self.bad(f"{field}_size=huge")
        else:
            setattr(args, field, self.text(data))
            setattr(args, f"{field}_size", len(data))
            self.notes.append(f"{field}={data[:12]!r}")

    def layout(self, rank: int, wants: str) -> int:
        """A PJRT_Buffer_MemoryLayout; wants: "row-major", or "permutation"."""
        from pjrt_abi import STRUCTS

        made = STRUCTS["PJRT_Buffer_MemoryLayout"].type()
        made.struct_size, made.type = LAYOUT_SIZE, 0
        order = list(range(rank))[::-1]
        tiled, way = made.tiled, self.rng.randrange(12)
        if way == 0 and rank > 1:
            order[0] = order[1]
        elif way == 1 and rank:
            order[-1] = self.rng.choice((-1, rank, 2**40, -(2**63)))
        elif way == 2:
            order = [*order, rank]
        elif way == 3 and rank:
            order = order[1:]
        elif way == 4 and rank:
            order = []
            tiled.minor_to_major_size = self.rng.choice((rank, *HUGE))
        elif way == 5:
            tiled.num_tiles = self.rng.choice((1, *HUGE))
        elif way == 6:
            made.type = self.rng.choice((1, 2, -1, 77))
        elif way == 7:
            made.struct_size = self.rng.choice((0, 16, 72))
        elif way == 8 and rank > 1:
            self.rng.shuffle(order)
            if wants == "row-major" and order != sorted(order, reverse=True):
                self.bad("another layout")
        else:
            way = -1
        if 0 <= way < 8:
            if rank or wants == "row-major":
                self.bad(f"layout spoilt {way} {order}")
            else:
                self.unsure()
        if not (way == 4 and rank):
            tiled.minor_to_major = self.array(ctypes.c_int64, order)
            tiled.minor_to_major_size = len(order)
        return self.pointer(made)


# ---- Functions with arguments of their own -------------------------------------------------------


def permanent(handle: Handle) -> bool:
    return bool(handle.about.get("permanent"))


def owner_of(handle: Handle | None) -> Handle | None:
    return handle.about.get("owner") if handle else None


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
    names = [b"", b"trn3-core", b"trn3-core", b"trn3-chip", b"trn3-sled"]
    wrong = [b"trn9", b"\xff\xfe", b"trn3-ultracluster:0", b"trn3-ultracluster:99999999999", b"\0"]
    name = d.rng.choice(names + wrong)
    d.bytes_field("topology_name", name)
    if name in wrong:
        d.bad("no topology")
    d.named_values([{}, {}, {"lnc": 1}, {"lnc": 3}, {"lnc": "1"}, {"other": 1}, {"lnc": 2}])
    d.unsure()


def topology_deserialize(d: Draw) -> None:
    good = b'{"format": "trn3-topology-1", "name": "trn3-core", "lnc": 1}'
    wrong = (
        b"",
        b"garbage",
        b"{}",
        b"[]",
        b"1",
        b"null",
        good[:-3],
        b"\xff",
        good.replace(b"1", b"[]"),
    )
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


def from_host(d: Draw) -> None:
    args, rng = d.args, d.rng
    client = d.handle("client", "PJRT_Client", permanent)
    same = (lambda h: h.about["owner"] is client) if client and not d.one_in(15) else None
    place = None
    for field, kind in (("device", "PJRT_Device"), ("memory", "PJRT_Memory")):  # one will do
        if rng.random() < 0.6:
            place = d.handle(field, kind, same) or place
    if not args.device and not args.memory:
        d.bad("nowhere")
    if place and client and owner_of(place) is not client:
        d.bad("of another client")
    type = rng.choice(SURE_TYPES) if not d.one_in(6) else rng.choice((*ITEMSIZE, *NO_TYPES))
    dims = rng.choice(([4], [4], [4], [2, 3], [], [0], [1, 0, 5], [2, 2, 2, 2], [3, 5]))
    if rng.random() < 0.6 and type in ITEMSIZE:  # what programs take
        type, dims = rng.choice(((F32, [4]), (F32, [4]), (F32, [2, 3]), (S32, [])))
    dims = list(dims)
    item = ITEMSIZE.get(type, 1)
    strides: list[int] | None = None
    args.data, args.type, args.host_buffer_semantics = ARENA_MIDDLE, type, rng.randrange(4)
    if type in NO_TYPES:
        d.bad(f"type={type}")
    elif type not in SURE_TYPES:
        d.unsure()
    args.num_dims = len(dims)
    way = rng.randrange(24)
    if way == 0:
        dims.append(rng.choice((-1, -4, -(2**63))))
    elif way == 1:
        dims = rng.choice(([2**62, 2**62], [2**32, 2**32], [2**63 - 1], [3, 2**62], [2**21] * 3))
    elif way == 2:
        args.num_dims, dims = rng.choice((1, 2, 70000, *HUGE)), None  # type: ignore[assignment]
    elif way == 3:
        dims = [2**44]  # more than a device has; other memories have no limit of their own
    elif way == 4 and dims and 0 not in dims:
        args.data = None
    elif way == 5:
        args.host_buffer_semantics = rng.choice((-1, 4, 99))
    elif way == 6:
        args.num_byte_strides = rng.choice((1, 2, *HUGE))
    elif way == 7:
        strides = [item] * (len(dims) + rng.choice((-1, 1))) if dims else [item]
    elif way in (8, 9, 10):
        strides = [rng.choice((0, item, -item, 2 * item, 64, -64, 3)) for _ in dims]
    else:
        way = -1
    if way == 3 and (place is None or place.about.get("index", 0) != 0):
        way, dims = -1, [4]
    if dims is not None:
        args.dims = d.array(ctypes.c_int64, dims)
        args.num_dims = len(dims)
    if strides is not None:
        args.byte_strides = d.array(ctypes.c_int64, strides)
        args.num_byte_strides = len(strides)
    if way in (1, 3) and strides is None and dims:  # never read, whatever happens
        args.byte_strides = d.array(ctypes.c_int64, [0] * len(dims))
        args.num_byte_strides = len(dims)
    d.notes.append(f"type={type} dims={dims} strides={strides}")
    if 0 <= way < 8:
        d.bad(f"spoilt {way}")
    elif way >= 8:
        d.unsure()
    if dims is not None and d.one_in(6):
        args.device_layout = d.layout(len(dims), "row-major")
    d.about = {"type": type, "dims": tuple(dims or ()), "client": client, "place": place}


def from_host_done(d: Draw) -> None:
    args, place = d.args, d.about["place"]
    event, buffer = args.done_with_host_buffer, args.buffer
    if not event or not buffer:
        raise Violation("Client_BufferFromHostBuffer gave no event or buffer")
    d.model.add("PJRT_Event", event)
    if place.kind == "PJRT_Memory":
        place = place.about["device"]
    about = {key: d.about[key] for key in ("type", "dims", "client")}
    d.model.add("PJRT_Buffer", buffer, device=place, **about)


def copy_to(d: Draw) -> None:
    field = SECOND_INPUT[d.name]
    buffer = d.handle("buffer", "PJRT_Buffer")
    client = buffer.about.get("client") if buffer else None
    choose = (lambda h: h.about["owner"] is client) if client and not d.one_in(8) else None
    place = d.handle(field, d.struct.handles[field], choose)
    if buffer and buffer.about.get("deleted"):
        d.bad("deleted")
    if place and client and owner_of(place) is not client:
        d.bad("of another client")
    if buffer and buffer.about.get("odd"):
        d.unsure()


def copied(d: Draw) -> None:
    buffer, place = d.inputs["buffer"], d.inputs[SECOND_INPUT[d.name]]
    assert buffer and place
    device = place if place.kind == "PJRT_Device" else place.about["device"]
    about = {key: buffer.about[key] for key in ("type", "dims", "client")}
    d.model.add("PJRT_Buffer", d.args.dst_buffer, **about, device=device)


def to_host(d: Draw) -> None:
    buffer = d.handle("src", "PJRT_Buffer")
    args = d.args
    about = buffer.about if buffer else {"dims": (2, 3), "type": F32}
    size = ITEMSIZE.get(about["type"], 16)
    for dim in about["dims"]:
        size *= dim
    if d.one_in(6):
        args.dst, args.dst_size = None, d.rng.choice((0, size, *HUGE))
    else:
        args.dst, args.dst_size = ctypes.addressof(ROOM), d.rng.choice((size, size + 8, 1 << 20))
        if size and d.one_in(10):
            args.dst_size = d.rng.randrange(size)
            d.bad(f"dst_size={args.dst_size}")
        if about.get("deleted"):
            d.bad("deleted")
        if d.one_in(3):
            args.host_layout = d.layout(len(about["dims"]), "permutation")


def to_host_done(d: Draw) -> None:
    if d.args.dst:
        d.model.add("PJRT_Event", d.args.event)


def pointer(d: Draw) -> None:
    buffer = d.handle("buffer", "PJRT_Buffer")
    if buffer and buffer.about.get("deleted"):
        d.unsure()


def increased(d: Draw) -> None:
    buffer = d.inputs["buffer"]
    assert buffer
    buffer.about["external"] = buffer.about.get("external", 0) + 1


def decrease(d: Draw) -> None:
    buffer = d.handle("buffer", "PJRT_Buffer")
    if buffer and not buffer.about.get("external"):
        d.bad("no reference")


def decreased(d: Draw) -> None:
    buffer = d.inputs["buffer"]
    assert buffer
    buffer.about["external"] -= 1


def deleted(d: Draw) -> None:
    (handle,) = d.inputs.values()
    assert handle
    handle.about["deleted"] = True


def is_deleted(d: Draw) -> None:
    (handle,) = d.inputs.values()
    assert handle
    if d.whole and bool(d.args.is_deleted) != bool(handle.about.get("deleted")):
        raise Violation(f"{d.name} says {d.args.is_deleted}")


def program(d: Draw, name: str | None) -> None:
    """The field `program`."""
    from pjrt_abi import STRUCTS

    made = STRUCTS["PJRT_Program"].type()
    code = source(name) if name else d.rng.choice(MALFORMED)
    if name and d.one_in(12):
        code = code[: d.rng.randrange(len(code) - 20)]
        d.bad("truncated")
    made.struct_size, made.code, made.code_size = 48, d.text(code), len(code)
    made.format, made.format_size = d.text(b"mlir"), 4
    if not name:
        d.bad(f"program={code[:10]!r}")
    way = d.rng.randrange(30)
    if way == 0:
        made.format_size = 2
    elif way == 1:
        made.format, made.format_size = None, d.rng.choice((4, *HUGE))
    elif way == 2:
        made.code = None
    elif way == 3:
        made.code_size = d.rng.choice((2**63, 2**64 - 1))
    elif way == 4:
        made.struct_size = d.rng.choice((0, 16, 40))
    if way < 5:
        d.bad(f"program spoilt {way}")
    d.args.program = 0 if d.one_in(40) else d.pointer(made)
    if not d.args.program:
        d.bad("program=NULL")


def compile(d: Draw) -> None:
    if d.name == "Compile":
        d.handle("topology", "PJRT_TopologyDescription")
        devices = 1
    else:
        client = d.handle("client", "PJRT_Client", permanent)
        devices = len([h for h in client.lends if h.kind == "PJRT_Device"]) if client else 0
    name = None if d.one_in(4) else d.rng.choice(sorted(PROGRAMS))
    program(d, name)
    replicas = PROGRAMS[name][1] if name else 1
    ids = list(range(devices))
    d.rng.shuffle(ids)
    ids = ids[:replicas]
    way = d.rng.randrange(12)
    options = compile_options([[id] for id in ids], replicas) if ids else b""
    if way == 0:
        options = d.rng.choice(BAD_OPTIONS)
    elif way == 1:
        options = compile_options([[d.rng.choice((99, -1, 2**31 - 1))]] * replicas, replicas)
    elif way == 2:
        options = compile_options(None, d.rng.choice((0, -1, 99, 2**31 - 1)))
    elif way == 3:
        options = compile_options([[0]] * 2, 2)  # a device twice
    elif way == 4 and replicas == 1:
        options, ids = b"", [0]
    if way < 4 or len(ids) < replicas:
        d.bad(f"options spoilt {way}") if way != 0 else d.unsure()
    d.bytes_field("compile_options", options)
    if way in (0, 2, 3) and d.must == "fail":
        d.unsure()
    d.about = {"name": name, "ids": ids, "replicas": replicas}


def compiled(d: Draw) -> None:
    if d.name == "Compile":
        d.model.add("PJRT_Executable", d.args.executable)
        return
    name, client = d.about["name"], d.inputs["client"]
    loaded = d.model.add(
        "PJRT_LoadedExecutable",
        d.args.executable,
        client=client,
        program=name,
        odd=d.must != "work",
    )
    parameters = PROGRAMS[name][2] if name else []
    call = d.fuzzer.call
    made = call("LoadedExecutable_GetExecutable", loaded_executable=loaded.address).executable
    executable = d.model.add("PJRT_Executable", made)
    executable.keeper = loaded
    loaded.about |= {"executable": executable, "parameters": parameters}
    found = call("LoadedExecutable_AddressableDevices", executable=loaded.address)
    n, devices = found.num_addressable_devices, found.addressable_devices
    loaded.about["devices"] = [d.model.by_address[a] for a in _list_of(devices, n)]
    for which in ("Output", "Parameter"):
        found = call(f"Layouts_PJRT_Executable_Get{which}Layouts", executable=made)
        n = found.num_outputs if which == "Output" else found.num_parameters
        if which == "Output":
            loaded.about["num_outputs"] = n
        for address in _list_of(found.layouts, n):
            d.model.lend(executable, "PJRT_Layouts_MemoryLayout", address)


def got_executable(d: Draw) -> None:
    d.model.add("PJRT_Executable", d.args.executable)


def deserialize(d: Draw) -> None:
    d.handle("client", "PJRT_Client", permanent)
    d.bytes_field("serialized_executable", d.rng.choice((b"", b"garbage", bytes(100))))
    if d.one_in(2):
        d.bytes_field("overridden_serialized_compile_options", d.rng.choice(BAD_OPTIONS))


def deserialized(d: Draw) -> None:
    raise Violation("garbage was taken for an executable")


def optimized_program(d: Draw) -> None:
    from pjrt_abi import STRUCTS

    d.handle("executable", "PJRT_Executable")
    if d.one_in(8):
        d.args.program = 0
        d.bad("program=NULL")
        return
    made = STRUCTS["PJRT_Program"].type()
    made.struct_size = 48
    way = d.rng.randrange(5)
    if way == 0:
        made.struct_size = d.rng.choice((0, 16, 40))
        d.bad("program too short")
    elif way == 1:
        made.code, made.code_size = ctypes.addressof(ROOM), d.rng.randrange(16)
        d.bad("no room")
    elif way == 2:
        made.code, made.code_size = ctypes.addressof(ROOM), len(ROOM)
    d.args.program = d.pointer(made)


def execute(d: Draw) -> None:
    args, rng = d.args, d.rng
    loaded = d.handle("executable", "PJRT_LoadedExecutable")
    about = loaded.about if loaded else {"devices": [], "parameters": [], "num_outputs": 1}
    devices, parameters = about["devices"], about["parameters"]
    d.notes.append(f"program={about.get('program')} on {len(devices)}")
    if about.get("odd"):
        d.unsure()
    if about.get("deleted"):
        d.bad("deleted")
    n, used, rows = len(devices), [], []
    for device in devices:
        row = []
        for type, dims in parameters:
            row.append(argument(d, about, device, type, dims, used))
            used.append(row[-1])
        rows.append(d.array(ctypes.c_size_t, [h.address if h else 0 for h in row]))
    donated = [h for h in used if h]
    if about.get("program") == "donates" and len(set(donated)) < len(donated):
        d.unsure()
    outputs = [d.array(ctypes.c_size_t, [0] * (about["num_outputs"] + 1)) for _ in devices]
    d.about = {"outputs": outputs, "used": donated, "loaded": loaded}
    args.num_devices, args.num_args = n, len(parameters)
    args.argument_lists = d.array(ctypes.c_size_t, rows)
    args.output_lists = d.array(ctypes.c_size_t, outputs)
    if not d.one_in(4):
        d.about["events"] = d.keep_array(n)
        args.device_complete_events = ctypes.addressof(d.about["events"])
    way = rng.randrange(24)
    if way == 0:
        args.num_devices = rng.choice((0, n + 1, *HUGE))
    elif way == 1:
        args.num_args = rng.choice((len(parameters) + 1, *HUGE))
    elif way == 2 and parameters:
        args.argument_lists = None
    elif way == 3 and parameters:
        args.argument_lists = d.array(ctypes.c_size_t, [0] * n)
    elif way == 4 and about["num_outputs"]:
        args.output_lists = None
    elif way == 5 and about["num_outputs"]:
        args.output_lists = d.array(ctypes.c_size_t, [0] * n)
    elif way == 6:
        options(d)
        return
    elif way == 7:
        args.execute_device = d.wrong("execute_device", "PJRT_Device") or 8
    else:
        return
    d.bad(f"spoilt {way}")


def argument(
    d: Draw,
    about: dict[str, Any],
    device: Handle,
    type: int,
    dims: tuple[int, ...],
    used: list[Any],
) -> Handle | None:
    pool = d.model.pools["PJRT_Buffer"]
    fits = [
        h
        for h in pool
        if h.about.get("device") is device
        and (h.about["type"], h.about["dims"]) == (type, dims)
        and not h.about.get("deleted")
        and h not in used
    ]
    if fits and not d.one_in(12):
        return d.rng.choice(fits)
    if pool and not d.one_in(5):
        handle = d.rng.choice(pool)
        kind = f"{handle.about['type']}{list(handle.about['dims'])}".replace(" ", "")
        d.notes.append(f"argument={handle.address:#x}:{kind}")
        if handle.about.get("deleted") or handle.about["device"] is not device:
            d.bad("deleted or elsewhere")
        d.unsure()
        return handle
    wrong = Handle("", d.wrong("argument", "PJRT_Buffer"))
    return wrong if wrong.address else None


def options(d: Draw) -> None:
    from pjrt_abi import STRUCTS

    made = STRUCTS["PJRT_ExecuteOptions"].type()
    made.struct_size = 144
    way = d.rng.randrange(6)
    if way == 0:
        made.struct_size = d.rng.choice((0, 16, 40, 63))
    elif way == 1:
        made.num_send_ops = d.rng.choice((1, *HUGE))
    elif way == 2:
        made.num_recv_ops = d.rng.choice((1, *HUGE))
    elif way == 3:
        made.num_non_donatable_input_indices = d.rng.choice((1, *HUGE))
    elif way == 4:
        made.non_donatable_input_indices = d.array(ctypes.c_int64, [0, 0, 99, -1])
        made.num_non_donatable_input_indices = 4
    if way < 4:
        d.bad(f"options spoilt {way}")
    d.args.options = d.pointer(made)


def executed(d: Draw) -> None:
    loaded = d.about["loaded"]
    devices = loaded.about["devices"]
    for device, row in zip(devices, d.about["outputs"]):
        for address in _list_of(row, loaded.about["num_outputs"]):
            made = d.model.add("PJRT_Buffer", address, client=loaded.about["client"], device=device)
            d.about.setdefault("made", []).append(made)
    for event in d.about["events"][: len(devices)] if "events" in d.about else ():
        d.model.add("PJRT_Event", event)
    for made in d.about.get("made", ()):
        type = d.fuzzer.call("Buffer_ElementType", buffer=made.address).type
        found = d.fuzzer.call("Buffer_Dimensions", buffer=made.address)
        dims = (
            tuple((ctypes.c_int64 * found.num_dims).from_address(found.dims or 8))
            if found.num_dims
            else ()
        )
        made.about |= {"type": type, "dims": dims}
    refresh(d)


def refresh(d: Draw) -> None:
    """Which arguments were donated is the program's to say."""
    for handle in d.about.get("used", ()):
        if handle.kind:
            answer = d.fuzzer.call("Buffer_IsDeleted", buffer=handle.address)
            handle.about["deleted"] = bool(answer.is_deleted)


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
    d.args.type = d.rng.choice((F32, *NO_TYPES))
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
    "Client_BufferFromHostBuffer": from_host,
    "Buffer_CopyToDevice": copy_to,
    "Buffer_CopyToMemory": copy_to,
    "Buffer_ToHostBuffer": to_host,
    "Buffer_UnsafePointer": pointer,
    "Buffer_OpaqueDeviceMemoryDataPointer": pointer,
    "Buffer_IncreaseExternalReferenceCount": pointer,
    "Buffer_DecreaseExternalReferenceCount": decrease,
    "Client_Compile": compile,
    "Compile": compile,
    "Executable_DeserializeAndLoad": deserialize,
    "Executable_OptimizedProgram": optimized_program,
    "LoadedExecutable_Execute": execute,
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
    "Client_BufferFromHostBuffer": from_host_done,
    "Buffer_CopyToDevice": copied,
    "Buffer_CopyToMemory": copied,
    "Buffer_ToHostBuffer": to_host_done,
    "Buffer_IncreaseExternalReferenceCount": increased,
    "Buffer_DecreaseExternalReferenceCount": decreased,
    "Buffer_Delete": deleted,
    "LoadedExecutable_Delete": deleted,
    "Buffer_IsDeleted": is_deleted,
    "LoadedExecutable_IsDeleted": is_deleted,
    "Client_Compile": compiled,
    "Compile": compiled,
    "Executable_DeserializeAndLoad": deserialized,
    "LoadedExecutable_GetExecutable": got_executable,
    "LoadedExecutable_Execute": executed,
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
    for device in _list_of(found.devices, found.num_devices):
        made = model.lend(client, "PJRT_Device", device)
        description = call("Device_GetDescription", device=device).device_description
        register_description(fuzzer, client, description)
        found = call("Device_AddressableMemories", device=device)
        for index, memory in enumerate(_list_of(found.memories, found.num_memories)):
            model.lend(client, "PJRT_Memory", memory, device=made, index=index)
    topology = call("Client_TopologyDescription", client=address).topology
    model.lend(client, "PJRT_TopologyDescription", topology)
    return client


def register_description(fuzzer: Any, owner: Handle, address: int) -> None:
    fuzzer.model.lend(owner, "PJRT_DeviceDescription", address)
    found = fuzzer.call("DeviceDescription_MemoryDescriptions", device_description=address)
    for memory in _list_of(found.memory_descriptions, found.num_memory_descriptions):
        fuzzer.model.lend(owner, "PJRT_MemoryDescription", memory)


def register_topology(fuzzer: Any, address: int) -> None:
    topology = fuzzer.model.add("PJRT_TopologyDescription", address)
    found = fuzzer.call("TopologyDescription_GetDeviceDescriptions", topology=address)
    for description in _list_of(found.descriptions, found.num_descriptions):
        register_description(fuzzer, topology, description)


def set_up(fuzzer: Any) -> None:
    """Two clients that stay, and the event that is always ready."""
    from pjrt_abi import STRUCTS

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
            type=F32,
        )
        buffer, done = args.buffer, args.done_with_host_buffer
        events.add(fuzzer.call("Buffer_ReadyEvent", buffer=buffer).event)
        fuzzer.call("Event_Destroy", event=done)
        fuzzer.call("Buffer_Destroy", buffer=buffer)
    if len(events) != 1:
        raise Violation("buffers that are ready have different events")
    fuzzer.model.make_immortal("PJRT_Event", events.pop())
