"""Executables as bytes: a versioned, checked container. Nothing in it runs when it is loaded.

    8 bytes   "TRN3EXE\\n"
    4 bytes   version of the format, little-endian
    4 bytes   size of the header
    header    JSON: the sizes of the sections, in order, and the keyed digest
    sections  program   the StableHLO program, as it was compiled
              options   its xla.CompileOptionsProto
              native    XLA:CPU's executable, or nothing
    32 bytes  SHA-256 of everything before

The program alone makes the executable anywhere: on another machine, with another jaxlib. The
machine code saves compiling it, but XLA links whatever it is given ("loading may run arbitrary
code", says jaxlib), and a checksum proves no origin. So the sections carry a keyed digest, and the
machine code is used only where the same user made it, from this program, on the same kind of
processor, with the same jaxlib; otherwise the program is compiled again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import hmac
import json
import os
import platform
import secrets
import struct
from collections.abc import Sequence
from pathlib import Path

import jaxlib

VERSION = 1
_MAGIC = b"TRN3EXE\n"
_PREFIX = struct.Struct("<8sII")
_DIGEST = 32


@dataclasses.dataclass(frozen=True)
class Artifact:
    """What a serialized executable is made of; `native` may be empty."""

    program: bytes
    options: bytes
    native: bytes

    def pack(self) -> bytes:
        """The artifact as bytes. Leaves out machine code that nobody could trust later."""
        key = _key()
        sections = (self.program, self.options, self.native if key else b"")
        header = {"sizes": list(map(len, sections)), "mac": _mac(key, sections) if key else ""}
        text = json.dumps(header, sort_keys=True).encode()
        body = _PREFIX.pack(_MAGIC, VERSION, len(text)) + text + b"".join(sections)
        return body + hashlib.sha256(body).digest()

    @classmethod
    def unpack(cls, data: bytes) -> Artifact:
        """The inverse; without machine code that is not this user's, processor's and jaxlib's.

        ValueError if the bytes are not an executable, of a later format, cut short, or damaged.
        """
        if len(data) < _PREFIX.size + _DIGEST or not data.startswith(_MAGIC):
            raise ValueError(
                f"not a serialized trn3 executable: {len(data)} bytes that begin with "
                f"{data[: len(_MAGIC)]!r}, not {_MAGIC!r}"
            )
        _, version, size = _PREFIX.unpack_from(data)
        if version != VERSION:
            raise ValueError(
                f"the serialized executable has format {version}, this jax-trn3 reads {VERSION}: "
                "load it with the version that wrote it, or compile the program again"
            )
        if hashlib.sha256(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
            raise ValueError(
                f"the serialized executable ({len(data)} bytes) is damaged or cut short: its "
                "checksum does not match; compile the program again"
            )
        start = _PREFIX.size + size
        sizes, mac = _read_header(data[_PREFIX.size : start], len(data) - _DIGEST - start)
        sections, at = [], start
        for length in sizes:
            sections.append(data[at : at + length])
            at += length
        program, options, native = sections
        key = _key()
        trusted = bool(key) and hmac.compare_digest(mac, _mac(key, sections))
        return cls(program, options, native if trusted else b"")


def _read_header(text: bytes, room: int) -> tuple[list[int], str]:
    """The sizes of the sections and their keyed digest."""
    try:
        header = json.loads(text)
        sizes, mac = header["sizes"], header["mac"]
        if len(sizes) == 3 and min(sizes) >= 0 and sum(sizes) == room and mac.isascii():
            return sizes, mac
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise ValueError("the serialized executable has a header that does not fit what follows")


@functools.cache
def _maker() -> bytes:
    """The jaxlib, and the processor with its features, that machine code fits."""
    cpu = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu += next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        cpu += platform.processor()
    return f"{jaxlib.__version__}\n{cpu}".encode()


def _mac(key: bytes, sections: Sequence[bytes]) -> str:
    parts = (_maker(), *sections)
    message = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return hmac.new(key, message, hashlib.sha256).hexdigest()


@functools.cache
def _key() -> bytes:
    """This user's key, made at the first use; empty if there is no place to keep one."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(cache).expanduser() / "jax_trn3" / "artifact.key"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            # Linked into place, so that of several processes one wins and none reads half a key.
            draft = path.with_name(f"artifact.key.{os.getpid()}.{secrets.token_hex(4)}")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(32))
            try:
                os.link(draft, path)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        status = path.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            return b""  # somebody else may have it
        return path.read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: no home
        return b""
