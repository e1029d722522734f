"""The PJRT C API as ctypes, read from the shim's own header, so that the two cannot differ."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADER = Path(__file__).parent.parent / "jax_trn3" / "pjrt" / "shim" / "abi.h"

_SCALARS = {
    "size_t": ctypes.c_size_t,
    "uintptr_t": ctypes.c_size_t,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "int": ctypes.c_int,
    "bool": ctypes.c_bool,
    "float": ctypes.c_float,
}
_HEADER_FIELDS = [("struct_size", ctypes.c_size_t), ("extension_start", ctypes.c_void_p)]
_VTABLE_OFFSET = 40


@dataclass(frozen=True)
class Struct:
    """An argument struct.

    type: the ctypes.Structure.
    size: what the framework writes into struct_size.
    handles: field: "PJRT_Buffer", of fields that are a pointer to one.
    pointers: the other fields that are pointers.
    numbers: fields that are numbers.
    """

    type: Any
    size: int
    handles: dict[str, str]
    pointers: tuple[str, ...]
    numbers: tuple[str, ...]


def _field(declaration: str) -> tuple[str, str, bool]:
    """Name, type and whether it is a pointer."""
    function = re.fullmatch(r"void \(\*(\w+)\)\(.*\)", declaration)
    if function:
        return function[1], "void", True
    match = re.fullmatch(r"(?:const )?(\w+)((?:\*| const\*)*) (\w+)", declaration)
    assert match, declaration
    kind, stars, name = match.groups()
    if kind.endswith(("Callback", "Visitor", "Deleter")):
        return name, "void", True
    return name, kind if stars in ("", "*") else "list", bool(stars)


def _declarations(body: str) -> list[str]:
    body = " ".join(body.split()).removeprefix("PJRT_HEADER;")
    return [part.strip() for part in body.split(";") if part.strip()]


def _struct(name: str, body: str, size: int, known: dict[str, Struct]) -> Struct:
    fields: list[Any] = list(_HEADER_FIELDS) if "PJRT_HEADER" in body else []
    handles, pointers, numbers = {}, [], []
    anonymous = []
    union = re.search(r"union \{(.*?)\};", body, re.DOTALL)
    if union:
        body = body.replace(union[0], "int UNION;")
    for declaration in _declarations(body):
        if declaration == "int UNION":
            members = [_field(one) for one in _declarations(union[1])]
            of = [(n, ctypes.c_void_p if p else _type(k, known)) for n, k, p in members]
            fields.append(("union", type("Union", (ctypes.Union,), {"_fields_": of})))
            anonymous = ["union"]
            continue
        field, kind, is_pointer = _field(declaration)
        fields.append((field, ctypes.c_void_p if is_pointer else _type(kind, known)))
        if is_pointer and kind.startswith("PJRT_"):
            handles[field] = kind
        elif is_pointer:
            pointers.append(field)
        elif kind not in known:
            numbers.append(field)
    made = type(name, (ctypes.Structure,), {"_anonymous_": anonymous, "_fields_": fields})
    assert ctypes.sizeof(made) - size in range(8), name
    return Struct(made, size, handles, tuple(pointers), tuple(numbers))


def _type(kind: str, known: dict[str, Struct]) -> Any:
    if kind in known:
        return known[kind].type
    return _SCALARS.get(kind, ctypes.c_int)  # an enum


def _read(text: str) -> tuple[tuple[str, ...], dict[str, Struct]]:
    text = re.sub(r"//[^\n]*", "", text)
    macro = text[text.index("#define PJRT_FUNCTIONS") :]
    functions = re.findall(r"X\((\w+)\)", macro[: macro.index("\n\n")])[0:]
    structs: dict[str, Struct] = {}
    for part in text.split("typedef struct {")[1:]:
        match = re.match(r"(.*?)\} (PJRT_\w+);\s*PJRT_ENDS\(\2, \w+, (\d+)\);", part, re.DOTALL)
        if match and "typedef" not in match[1] and match[2] != "PJRT_Api":
            structs[match[2]] = _struct(match[2], match[1], int(match[3]), structs)
    return tuple(functions), structs


FUNCTIONS, STRUCTS = _read(HEADER.read_text())

# Extension type: its functions, in order.
EXTENSIONS = {
    4: (
        "Layouts_MemoryLayout_Destroy",
        "Layouts_MemoryLayout_Serialize",
        "Layouts_PJRT_Client_GetDefaultLayout",
        "Layouts_PJRT_Buffer_MemoryLayout",
        "Layouts_PJRT_Topology_GetDefaultLayout",
        "Layouts_PJRT_Executable_GetOutputLayouts",
        "Layouts_PJRT_Executable_GetParameterLayouts",
    ),
    6: ("DeviceDescription_MemoryDescriptions", "MemoryDescription_Kind"),
    19: (
        "Shardings_PJRT_Executable_ParameterShardings",
        "Shardings_PJRT_Executable_OutputShardings",
    ),
}

_VOID = {"Error_Destroy", "Error_Message"}


def struct_of(function: str) -> Struct | None:
    """The argument struct of a function; None if the shim does not know it, because it refuses."""
    return STRUCTS.get(f"PJRT_{function}_Args")


def load(path: str) -> dict[str, Any]:
    """Every function of the library and of its extensions, by name; each takes an address."""
    library = ctypes.CDLL(path)
    library.GetPjrtApi.restype = ctypes.c_void_p
    table = library.GetPjrtApi()
    addresses = dict(zip(FUNCTIONS, _words(table + _VTABLE_OFFSET, len(FUNCTIONS))))
    extension = _words(table + 8, 1)[0]
    while extension:
        names = EXTENSIONS.get(ctypes.c_int.from_address(extension + 8).value, ())
        addresses |= dict(zip(names, _words(extension + 24, len(names))))
        extension = _words(extension + 16, 1)[0]
    return {
        name: ctypes.CFUNCTYPE(None if name in _VOID else ctypes.c_void_p, ctypes.c_void_p)(address)
        for name, address in addresses.items()
    }


def _words(address: int, n: int) -> list[int]:
    return list((ctypes.c_size_t * n).from_address(address))
