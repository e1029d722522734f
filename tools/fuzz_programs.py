"""Drawn calls that compile and execute."""

from __future__ import annotations

import ctypes
from typing import Any

from fuzz_arrays import F32, S32
from fuzz_draws import HUGE, ROOM, Draw, list_of, permanent
from fuzz_model import Handle
from pjrt_abi import STRUCTS

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


def program(d: Draw, name: str | None) -> None:
    """The field `program`."""
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
    name = d.about["name"]
    if d.name == "Compile":
        d.model.add("PJRT_Executable", d.args.executable, program=name)
    else:
        register_loaded(d, d.args.executable, d.inputs["client"], name)


def register_loaded(d: Draw, address: int, client: Handle | None, name: str | None) -> None:
    """A new loaded executable, of a program of ours or of another."""
    about = {"client": client, "program": name, "odd": d.must != "work"}
    loaded = d.model.add("PJRT_LoadedExecutable", address, **about)
    parameters = PROGRAMS[name][2] if name else []
    call = d.fuzzer.call
    made = call("LoadedExecutable_GetExecutable", loaded_executable=loaded.address).executable
    executable = d.model.add("PJRT_Executable", made, program=name)
    executable.keeper = loaded
    loaded.about |= {"executable": executable, "parameters": parameters}
    found = call("LoadedExecutable_AddressableDevices", executable=loaded.address)
    n, devices = found.num_addressable_devices, found.addressable_devices
    loaded.about["devices"] = [d.model.by_address[a] for a in list_of(devices, n)]
    for which in ("Output", "Parameter"):
        found = call(f"Layouts_PJRT_Executable_Get{which}Layouts", executable=made)
        n = found.num_outputs if which == "Output" else found.num_parameters
        if which == "Output":
            loaded.about["num_outputs"] = n
        for address in list_of(found.layouts, n):
            d.model.lend(executable, "PJRT_Layouts_MemoryLayout", address)


def got_executable(d: Draw) -> None:
    d.model.add("PJRT_Executable", d.args.executable)


SERIALIZED: list[tuple[bytes, str | None]] = []  # the latest, and their programs


def serialize(d: Draw) -> None:
    executable = d.handle("executable", "PJRT_Executable")
    d.about = {"name": executable.about.get("program") if executable else None}


def serialized(d: Draw) -> None:
    data = ctypes.string_at(d.args.serialized_bytes, d.args.serialized_bytes_size)
    d.strings()  # frees it
    SERIALIZED.append((data, d.about["name"]))
    del SERIALIZED[:-5]


def deserialize(d: Draw) -> None:
    d.handle("client", "PJRT_Client", permanent)
    data, d.about["name"] = d.rng.choice(SERIALIZED or [(b"garbage", None)])
    way = d.rng.randrange(4)
    if way == 0:
        data = data[: d.rng.randrange(len(data))]
    elif way == 1:
        at = d.rng.randrange(len(data))
        data = data[:at] + bytes([data[at] ^ 1 << d.rng.randrange(8)]) + data[at + 1 :]
    if way < 2 or not SERIALIZED:
        d.bad(f"serialized_executable spoilt {way}")
    d.bytes_field("serialized_executable", data)
    if d.one_in(3):
        d.bytes_field("overridden_serialized_compile_options", d.rng.choice(BAD_OPTIONS))
    d.unsure()  # its devices may be another client's


def client_load(d: Draw) -> None:
    d.handle("client", "PJRT_Client", permanent)
    executable = d.handle("executable", "PJRT_Executable")
    d.bytes_field("compile_options", d.rng.choice((b"", b"", *BAD_OPTIONS)))
    d.about = {"name": executable.about.get("program") if executable else None}
    d.unsure()


def loaded(d: Draw) -> None:
    register_loaded(d, d.args.loaded_executable, d.inputs["client"], d.about["name"])


def optimized_program(d: Draw) -> None:
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
            row.append(argument(d, device, type, dims, used))
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
    d: Draw, device: Handle, type: int, dims: tuple[int, ...], used: list[Any]
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
        for address in list_of(row, loaded.about["num_outputs"]):
            made = d.model.add("PJRT_Buffer", address, client=loaded.about["client"], device=device)
            d.about.setdefault("made", []).append(made)
    for event in d.about["events"][: len(devices)] if "events" in d.about else ():
        d.model.add("PJRT_Event", event)
    for made in d.about.get("made", ()):
        type = d.fuzzer.call("Buffer_ElementType", buffer=made.address).type
        found = d.fuzzer.call("Buffer_Dimensions", buffer=made.address)
        dims = list_of(found.dims, found.num_dims)
        made.about |= {"type": type, "dims": tuple(dims)}
    refresh(d)


def refresh(d: Draw) -> None:
    """Which arguments were donated is the program's to say."""
    for handle in d.about.get("used", ()):
        if handle.kind:
            answer = d.fuzzer.call("Buffer_IsDeleted", buffer=handle.address)
            handle.about["deleted"] = bool(answer.is_deleted)
