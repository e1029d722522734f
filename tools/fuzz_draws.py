"""Handles and parts of arguments, drawn; and what has to come of a call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from fuzz_model import DESTROY, Handle, Violation
from pjrt_abi import STRUCTS

GOOD = 0.85  # of the handles
DESTROYERS = {function for function, _ in DESTROY.values()}
LENT = {
    "PJRT_Device",
    "PJRT_Memory",
    "PJRT_DeviceDescription",
    "PJRT_MemoryDescription",
}
HANDLES = LENT | DESTROY.keys()
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


def list_of(address: int, n: int) -> list[int]:
    return list((ctypes.c_size_t * n).from_address(address)) if n else []


class Draw:
    """The arguments of one call.

    special: draws the arguments, where handles and numbers are not all there is.
    worked: looks at the results, where new handles are not all there is.
    must: "work", "fail", or "" if either is right.
    """

    def __init__(
        self,
        fuzzer: Any,
        name: str,
        struct: Any,
        args: Any,
        special: Callable[[Draw], None] | None,
        worked: Callable[[Draw], None] | None,
    ):
        self.fuzzer, self.name, self.struct, self.args = fuzzer, name, struct, args
        self.special, self.hook = special, worked
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
        if self.special:
            self.special(self)
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

    def worked(self) -> None:
        if self.args is None:
            return
        if self.hook:
            self.hook(self)
        elif self.is_destroy():
            (handle,) = self.inputs.values()
            if handle and self.whole:
                self.model.destroyed(handle)
        else:
            self.outputs()
        if not self.special and self.whole:
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
            made.struct_size = self.rng.choice((0, 16, *HUGE))  # jaxlib leaves it uninitialized
        elif way == 8 and rank > 1:
            self.rng.shuffle(order)
            if wants == "row-major" and order != sorted(order, reverse=True):
                self.bad("another layout")
        else:
            way = -1
        if 0 <= way < 7:
            if rank or wants == "row-major":
                self.bad(f"layout spoilt {way} {order}")
            else:
                self.unsure()
        if not (way == 4 and rank):
            tiled.minor_to_major = self.array(ctypes.c_int64, order)
            tiled.minor_to_major_size = len(order)
        return self.pointer(made)


def permanent(handle: Handle) -> bool:
    return bool(handle.about.get("permanent"))


def owner_of(handle: Handle | None) -> Handle | None:
    return handle.about.get("owner") if handle else None
