"""Drawn calls of the C API, with handles and arguments that are wrong in every way; see the tool."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

RunPython = Callable[..., CompletedProcess[str]]

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.parametrize("seed", [1, 2])
def test_drawn_calls_neither_crash_nor_hang_nor_leak(run_python: RunPython, seed: int) -> None:
    # Also run under the sanitizers, which hold freed memory back; `make fuzz` looks at growth.
    command = [str(TOOLS / "fuzz_capi.py"), "--calls", "20000", "--growth", "400", "--seed"]
    process = run_python([*command, str(seed)], timeout=250)
    assert process.returncode == 0, process.stdout[-4000:] + process.stderr[-8000:]
    assert "handles left: 0" in process.stdout


def test_fuzzer_finds_what_it_looks_for(run_python: RunPython) -> None:
    """A function that takes destroyed buffers, and things that are none, for live ones."""
    sabotage = f"""
import mmap, sys
sys.path.insert(0, {str(TOOLS)!r})
import fuzz_capi
from jax_trn3.pjrt import _shim

fuzzer = fuzz_capi.Fuzzer(_shim.__file__, 0, mmap.mmap(-1, 1 << 17))
fuzzer.functions["Buffer_Device"] = lambda address: 0
try:
    fuzzer.loop(20000, 400)
except fuzz_capi.Violation as violation:
    print("found:", violation)
"""
    process = run_python(sabotage, timeout=100)
    assert "found: Buffer_Device" in process.stdout, process.stdout + process.stderr


def test_structs_are_those_of_another_client(run_python: RunPython) -> None:
    """The fuzzer's table is read from the shim's header; pypjrt's comes from the original one."""
    compare = f"""
import sys
sys.path.insert(0, {str(TOOLS)!r})
import pjrt_abi
from pypjrt import _abi

theirs, _ = _abi.load(0, 112)
compared = 0
for name, struct in pjrt_abi.STRUCTS.items():
    other = getattr(theirs, name, None)
    for field, _ in struct.type._fields_ if other else ():
        if field != "union":
            assert getattr(struct.type, field).offset == getattr(other, field).offset, (name, field)
            compared += 1
print("compared", compared)
"""
    process = run_python(compare)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout.split()[-1]) > 400
