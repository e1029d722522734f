"""Feeds the plugin's C API drawn calls, without JAX's client in between, and holds it to a model.

    python tools/fuzz_capi.py --calls 1000000 --seed 0

Every function of the table and of the extensions is called with handles that are live, NULL, of
another kind, destroyed, lent (to be destroyed with their owner only) or no handles at all; with
struct sizes that are too small and too large; with NULL for arrays that have a count, and sizes
that no memory has; with malformed programs, compile options, options and topologies; with devices,
dimensions, types, strides, layouts and lists of arguments that are wrong in the ways that
fuzz_draws.py and fuzz_calls.py list. Not drawn, because no C library can tell: addresses of
unreadable memory, counts beyond the end of an array that is there, memory of a handle that has been
used again (the shim remembers the last 512 that were destroyed), handles in two threads at once.
Nor are events that nobody will set for Event_Await, which has to wait for them, and arrays that
would fill this machine, in memories that have no limit.

Checked at each call: what must fail fails, what must work works, an error has a code from 1 to 16
and a message, nothing is written beyond struct_size, handles that are not new are the known ones.
At the end: all handles are destroyed, none is left in the shim, no device has a byte in use, and
the process has not grown. The calls are made in a child process; a crash or a hang is attributed by
a ring of the last calls, in a file that both map.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import faulthandler
import gc
import itertools
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, os.path.dirname(__file__))  # PYTHONSAFEPATH takes it away

import fuzz_calls
from fuzz_draws import CODE_WITHOUT_MESSAGE, Draw
from fuzz_model import DESTROY, Handle, Model, Violation
from fuzz_programs import refresh
from pjrt_abi import load, struct_of

RING, ENTRY = 256, 256  # calls in the ring, bytes of each
SHOWN = 25
BLOCK = 512  # memory that argument structs are laid in
UNTOUCHED = 0xA5
WARM_UP = 40  # programs that are compiled first; XLA keeps some memory from then on
HANG_S = 120

# How often, where it is not 1. Those without a struct are refused, whatever they are given.
REFUSED = 0.2
WEIGHTS = {
    "Client_Create": 0.05,
    "Client_Destroy": 0.05,
    "Client_Compile": 0.5,
    "Compile": 0.2,
    "Client_Load": 0.2,
    "Executable_DeserializeAndLoad": 0.2,
    "LoadedExecutable_Destroy": 0.15,
    "LoadedExecutable_Delete": 0.1,
    "Executable_Destroy": 0.5,
    "Buffer_Destroy": 0.4,
    "Buffer_Delete": 0.3,
    "TopologyDescription_Create": 0.2,
    "TopologyDescription_Deserialize": 0.2,
    "TopologyDescription_Destroy": 0.2,
    "Client_BufferFromHostBuffer": 6,
    "LoadedExecutable_Execute": 10,
    "Buffer_ToHostBuffer": 2,
    "Event_Create": 2,
}


class Fuzzer:
    """Calls functions of the library with drawn arguments and compares with the model."""

    def __init__(self, path: str, seed: int, ring: mmap.mmap):
        self.rng = random.Random(seed)
        self.functions = load(path)
        self.ring = ring
        self.model = Model(self.rng)
        self.block = ctypes.create_string_buffer(BLOCK)
        self.view = memoryview(self.block).cast("B")
        self.address = ctypes.addressof(self.block)
        self.pattern = bytes([UNTOUCHED]) * BLOCK
        self.structs = {name: struct_of(name) for name in self.functions}
        self.laid = {
            name: struct.type.from_buffer(self.block) if struct else None
            for name, struct in self.structs.items()
        }
        self.n = 0
        self.calls: collections.Counter[str] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()
        self.codes: collections.Counter[int] = collections.Counter()

    # ---- Calls ----

    def call(self, name: str, **fields: Any) -> Any:
        """A call that must work; returns the argument struct."""
        struct, args = self.structs[name], self.lay(name)
        for field, value in fields.items():
            setattr(args, field, value)
        error = self.run(name, struct.size, f"setup {fields}")
        if error:
            raise Violation(f"{name}({fields}): {self.text_of(error)}")
        return args

    def lay(self, name: str) -> Any:
        self.view[:] = self.pattern
        struct = self.structs[name]
        size = struct.size if struct else 64
        self.view[:size] = bytes(size)
        args = self.laid[name]
        if args is None:
            ctypes.c_size_t.from_address(self.address).value = size
        else:
            args.struct_size = size
        return args

    def run(self, name: str, size: int, notes: str) -> int:
        """The address of the error, or 0."""
        self.n += 1
        at = 64 + self.n % RING * ENTRY
        text = f"{self.n} {name} {notes}".encode()[: ENTRY - 1]
        self.ring[at : at + ENTRY] = text.ljust(ENTRY, b"\0")
        self.ring[:8] = self.n.to_bytes(8, "little")
        self.calls[name] += 1
        error = self.functions[name](self.address) or 0
        if self.view[size:] != self.pattern[size:]:
            raise Violation(f"{name} wrote beyond the {size} bytes of its struct")
        return error

    def text_of(self, error: int) -> str:
        """Checks an error, and destroys it now or later."""
        block = (ctypes.c_size_t * 6)(40, 0, error)
        self.functions["Error_Message"](ctypes.addressof(block))
        text = ctypes.string_at(block[3], block[4]).decode() if block[4] else ""
        block[0] = 28
        failed = self.functions["Error_GetCode"](ctypes.addressof(block))
        code = block[3] & 0xFFFFFFFF
        if failed or not 1 <= code <= 16:
            raise Violation(f"an error with code {code}: {text!r}")
        if not text and code != CODE_WITHOUT_MESSAGE:
            raise Violation(f"an error with code {code} and no message")
        self.codes[code] += 1
        if self.rng.random() < 0.02 and self.model.room("PJRT_Error"):
            self.model.add("PJRT_Error", error)
        else:
            self.model.was_destroyed("PJRT_Error", error)
            block[0] = 24
            self.functions["Error_Destroy"](ctypes.addressof(block))
        return text

    def step(self, name: str) -> None:
        """One drawn call."""
        args = self.lay(name)
        special, worked = fuzz_calls.SPECIAL.get(name), fuzz_calls.WORKED.get(name)
        draw = Draw(self, name, self.structs[name], args, special, worked)
        draw.arguments()
        size = draw.struct_size()
        error = self.run(name, size, " ".join(draw.notes))
        if error:
            self.errors[name] += 1
            text = self.text_of(error)
            if draw.must == "work":
                raise Violation(f"{name} must work: {text}")
            if name == "LoadedExecutable_Execute":
                refresh(draw)
        elif draw.must == "fail":
            raise Violation(f"{name} must fail: {' '.join(draw.notes)}")
        else:
            draw.worked()

    # ---- The whole ----

    def loop(self, calls: int, growth_mb: float) -> None:
        names = list(self.functions)
        usual = {name: 1.0 if self.structs[name] else REFUSED for name in names}
        weights = list(itertools.accumulate((usual | WEIGHTS)[name] for name in names))
        memory, start = 0.0, time.perf_counter()
        fuzz_calls.set_up(self)
        for _ in range(WARM_UP):
            for name in (
                "Client_Compile",
                "LoadedExecutable_Execute",
                "TopologyDescription_Create",
            ):
                self.step(name)
            for _ in range(4):  # one for each size of topology makes an XLA client
                self.step("Compile")
        first = self.n
        while self.n - first < calls:
            name = self.model.overfull() or self.rng.choices(names, cum_weights=weights)[0]
            self.step(name)
            if not memory and self.n - first > calls // 5:
                memory = resident_mb()
        end = resident_mb()
        seconds = time.perf_counter() - start
        self.report(seconds, memory, end)
        self.tear_down()
        if end - memory > growth_mb:
            raise Violation(f"the process grew from {memory:.0f} to {end:.0f} MB")

    def report(self, seconds: float, before: float, after: float) -> None:
        print(f"{'function':58s} {'calls':>8s} {'errors':>8s}")
        for name in self.functions:
            print(f"{name:58s} {self.calls[name]:8d} {self.errors[name]:8d}")
        codes = ", ".join(f"{code}: {n}" for code, n in sorted(self.codes.items()))
        print(f"errors by code: {codes}")
        print(f"{self.n} calls, {self.n / seconds:.0f} a second")
        print(f"resident memory: {before:.1f} MB after 20% of the calls, {after:.1f} MB at the end")

    def tear_down(self) -> None:
        from jax_trn3.pjrt import _shim

        model = self.model
        for kind in ("PJRT_LoadedExecutable", "PJRT_Executable", "PJRT_Buffer"):
            self.destroy_all(kind)
        for client in list(model.pools["PJRT_Client"]):
            for device in [h for h in client.lends if h.kind == "PJRT_Device"]:
                used = self.call("Device_MemoryStats", device=device.address).bytes_in_use
                if used:
                    raise Violation(f"{used} bytes in use on a device without buffers")
        for kind in sorted(model.pools):
            self.destroy_all(kind)
        deadline = time.monotonic() + 20
        while _shim.live_handles() and time.monotonic() < deadline:
            gc.collect()  # arrays that still hold a loan, and with it its event
            self.call("TopologyDescription_Create", topology_name=None)  # empties the graveyard
            self.call(
                "TopologyDescription_Destroy",
                topology=self.laid["TopologyDescription_Create"].topology,
            )
            time.sleep(0.05)
        print(f"handles left: {_shim.live_handles()}")
        if _shim.live_handles():
            raise Violation(f"{_shim.live_handles()} handles left")

    def destroy_all(self, kind: str) -> None:
        for handle in list(self.model.pools[kind]):
            while handle.owned > 0:
                self.destroy(handle)

    def destroy(self, handle: Handle) -> None:
        function, field = DESTROY[handle.kind]
        self.call(function, **{field: handle.address})
        self.model.destroyed(handle)


def resident_mb() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


# ---- Two processes -------------------------------------------------------------------------------


def child(options: argparse.Namespace) -> int:
    faulthandler.enable()
    with open(options.ring, "r+b") as file:
        ring = mmap.mmap(file.fileno(), 0)
    from jax_trn3.pjrt import _shim

    fuzzer = Fuzzer(_shim.__file__, options.seed, ring)
    try:
        fuzzer.loop(options.calls, options.growth)
    except Violation as violation:
        print(f"VIOLATION: {violation}", flush=True)
        os._exit(3)
    sys.stdout.flush()
    os._exit(0)  # the interpreter's end is another test's subject


def last_calls(ring: mmap.mmap) -> list[str]:
    n = int.from_bytes(ring[:8], "little")
    entries = [ring[64 + i * ENTRY : 64 + (i + 1) * ENTRY].rstrip(b"\0") for i in range(RING)]
    return [entries[i % RING].decode(errors="replace") for i in range(max(1, n - SHOWN + 1), n + 1)]


def parent(options: argparse.Namespace) -> int:
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(64 + RING * ENTRY)
        ring = mmap.mmap(file.fileno(), 0)
        command = [sys.executable, __file__, "--ring", file.name]
        command += ["--calls", str(options.calls), "--seed", str(options.seed)]
        command += ["--growth", str(options.growth)]
        process = subprocess.Popen(command)
        seen, since, why = b"", time.monotonic(), ""
        while process.poll() is None:
            time.sleep(0.1)
            if ring[:8] != seen:
                seen, since = ring[:8], time.monotonic()
            elif time.monotonic() - since > HANG_S and not why:
                why = f"no call has returned for {HANG_S} s"
                process.send_signal(signal.SIGABRT)  # faulthandler prints where
        if process.returncode == 0:
            return 0
        why = why or f"the process ended with {process.returncode}"
        print(f"{why}; seed {options.seed}. The last calls:", file=sys.stderr)
        for line in last_calls(ring):
            print(f"  {line}", file=sys.stderr)
        return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--growth",
        type=float,
        default=24,
        help="MB by which the process may grow between a fifth of the calls and the end, for what "
        "the allocators and XLA keep (default: %(default)s; sanitizers need more)",
    )
    parser.add_argument("--ring", help=argparse.SUPPRESS)
    options = parser.parse_args()
    run: Callable[[argparse.Namespace], int] = child if options.ring else parent
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
