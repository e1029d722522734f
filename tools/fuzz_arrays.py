"""Drawn calls that make, copy and read buffers."""

from __future__ import annotations

import ctypes

from fuzz_draws import ARENA_MIDDLE, HUGE, ROOM, SECOND_INPUT, Draw, owner_of, permanent
from fuzz_model import Violation

# PJRT_Buffer_Type: bytes of an element on the host.
ITEMSIZE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 2, 8: 4, 9: 8, 10: 2, 11: 4, 12: 8, 13: 2}
ITEMSIZE |= {14: 8, 15: 16} | dict.fromkeys((16, 17, 18, 19, 20, 21, 22, 24, 25, 26, 27, 28), 1)
SURE_TYPES = [type for type in ITEMSIZE if type <= 20]
NO_TYPES = (0, 23, 32, 77, -1, 2**31 - 1)
F32, S32 = 11, 4


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
        args.num_dims, dims = rng.choice((1, 2, 70000, *HUGE)), None
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
    assert buffer
    assert place
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
