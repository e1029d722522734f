"""What a program needs of a device's memory, and whether the device has it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from jax._src import dtypes

from .values import Shard, Values

_DEVICE = "device"  # the memory that is limited


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes of one device's memory; `aliased` are counted among arguments and outputs both."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs + self.temporaries - self.aliased


def footprint(values: Values) -> Footprint:
    return Footprint(
        arguments=sum(map(_bytes, _on_device(values.parameters, values.parameter_kinds))),
        outputs=sum(map(_bytes, _on_device(values.outputs, values.output_kinds))),
        temporaries=values.temporary_bytes,
        aliased=values.aliased_bytes,
    )


def check_fits(values: Values, limit: int, device_kind: str) -> None:
    """MemoryError, which names what is largest, if a program needs more than `limit` bytes."""
    needs = footprint(values)
    if needs.total <= limit:
        return
    size, largest = _largest(values)
    raise MemoryError(
        f"Out of memory: {values.name} needs {_readable(needs.total)} in the memory of each "
        f"device, {device_kind} has {_readable(limit)}: arguments {_readable(needs.arguments)}, "
        f"outputs {_readable(needs.outputs)}, temporaries {_readable(needs.temporaries)}, of which "
        f"{_readable(needs.aliased)} are shared by donation. The largest is {largest} with "
        f"{_readable(size)}. Shard over more devices, donate arguments (donate_argnums), "
        "rematerialize (jax.checkpoint), use a smaller dtype, or keep arrays in pinned_host memory."
    )


def _on_device(shards: Sequence[Shard], kinds: Sequence[str]) -> list[Shard]:
    return [shard for shard, kind in zip(shards, kinds) if kind == _DEVICE]


def _bytes(shard: Shard) -> int:
    return math.prod(shard.dims) * dtypes.itemsize_bits(shard.dtype) // 8


def _readable(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"


def _largest(values: Values) -> tuple[int, str]:
    """(bytes, description) among arguments, outputs and the results inside the program."""
    (module,) = values.executable.hlo_modules()
    found = [_largest_result(module)]
    for what, shards, kinds in (
        ("argument", values.parameters, values.parameter_kinds),
        ("output", values.outputs, values.output_kinds),
    ):
        found += [
            (_bytes(shard), f"{what} {i}, {shard.dtype}[{','.join(map(str, shard.dims))}],")
            for i, (shard, kind) in enumerate(zip(shards, kinds))
            if kind == _DEVICE
        ]
    # Of equals the last: an argument or output is also the result of an instruction.
    return max(reversed(found), key=lambda candidate: candidate[0])


# XLA's text has "%name = f32[2,3]{1,0} opcode(...), ... metadata={op_name="..." ...}".
_INSTRUCTION = re.compile(r"= ([a-z]+\d*\w*)\[([\d,]+)\]\S* ([\w-]+)\((.*)")
_NO_MEMORY = {"parameter", "bitcast", "get-tuple-element", "constant"}


def _largest_result(module: Any) -> tuple[int, str]:
    """(bytes, description) of the largest result of an instruction that is not inside a fusion."""
    size, shape, metadata = 0, "", ""
    in_fusion = False
    text = module.to_string()
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):  # the head of a computation
            in_fusion = "fused_computation" in line or "wrapped_" in line
        match = _INSTRUCTION.search(line)
        if match is None or in_fusion or match[3] in _NO_MEMORY:
            continue
        bits = int(re.sub(r"\D", "", match[1].partition("e")[0]) or 8)
        bytes = math.prod(map(int, match[2].split(","))) * bits // 8
        if bytes > size:
            size, shape, metadata = bytes, f"{match[1]}[{match[2]}]", match[4]
    name = re.search(r'op_name="([^"]*)"', metadata)
    origin = f" of {name[1]}" if name else ""
    return size, f"the result {shape}{origin}{_source(text, metadata)}"


def _source(text: str, metadata: str) -> str:
    """Where in the user's program an instruction comes from: " (file.py:12)", or nothing."""
    frame = re.search(r"stack_frame_id=(\d+)", metadata)
    line = frame and re.search(rf"^{frame[1]} {{file_location_id=(\d+)", text, re.MULTILINE)
    place = line and re.search(
        rf"^{line[1]} {{file_name_id=(\d+) .*?line=(\d+)", text, re.MULTILINE
    )
    file = place and re.search(rf'^{place[1]} "(.*)"$', text, re.MULTILINE)
    return f" ({file[1]}:{place[2]})" if file and place else ""
