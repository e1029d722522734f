"""What a program needs of a device's memory, and whether the device has it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from .values import Shard, Values

_DEVICE = "device"  # the memory that is limited


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes of one device's memory. Temporaries are those of XLA:CPU's buffer assignment.

    aliased: outputs that take over the memory of donated arguments.
    """

    arguments: int
    outputs: int
    temporaries: int
    aliased: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs + self.temporaries - self.aliased


def footprint(values: Values) -> Footprint:
    stats = values.executable.get_compiled_memory_stats()
    return Footprint(
        arguments=sum(map(_bytes, _on_device(values.parameters, values.parameter_kinds))),
        outputs=sum(map(_bytes, _on_device(values.outputs, values.output_kinds))),
        temporaries=stats.temp_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
    )


def check_fits(values: Values, limit: int, device_kind: str) -> None:
    """MemoryError, which names what is largest, if a program needs more than `limit` bytes."""
    needs = footprint(values)
    if needs.total <= limit:
        return
    largest = max(_candidates(values), key=lambda candidate: candidate[0])
    raise MemoryError(
        f"Out of memory: {values.name} needs {_readable(needs.total)} in the memory of each "
        f"device, {device_kind} has {_readable(limit)}: arguments {_readable(needs.arguments)}, "
        f"outputs {_readable(needs.outputs)}, temporaries {_readable(needs.temporaries)}, of which "
        f"{_readable(needs.aliased)} are shared by donation. The largest is {largest[1]} with "
        f"{_readable(largest[0])}. Shard over more devices, donate arguments (donate_argnums), "
        "rematerialize (jax.checkpoint), use a smaller dtype, or keep arrays in pinned_host memory."
    )


def _on_device(shards: Sequence[Shard], kinds: Sequence[str]) -> list[Shard]:
    return [shard for shard, kind in zip(shards, kinds) if kind == _DEVICE]


def _bytes(shard: Shard) -> int:
    return math.prod(shard.dims) * shard.dtype.itemsize


def _readable(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"


def _candidates(values: Values) -> list[tuple[int, str]]:
    """(bytes, description) of arguments, outputs and the results inside the program."""
    found = [(0, "nothing")]
    for what, shards, kinds in (
        ("argument", values.parameters, values.parameter_kinds),
        ("output", values.outputs, values.output_kinds),
    ):
        found += [
            (_bytes(shard), f"{what} {i}, {shard.dtype}[{','.join(map(str, shard.dims))}],")
            for i, (shard, kind) in enumerate(zip(shards, kinds))
            if kind == _DEVICE
        ]
    (module,) = values.executable.hlo_modules()
    return found + _intermediates(module)


# An instruction of XLA's text: "%name = f32[2,3]{1,0} opcode(...), ... metadata={op_name="..." ...}".
_INSTRUCTION = re.compile(r"= ([a-z]+\d*\w*)\[([\d,]+)\]\S* ([\w-]+)\((.*)")
_NO_MEMORY = {"parameter", "bitcast", "get-tuple-element", "constant"}


def _intermediates(module: Any) -> list[tuple[int, str]]:
    found = []
    in_fusion = False
    text = module.to_string()
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):  # the head of a computation
            in_fusion = "fused_computation" in line or "wrapped_" in line
        match = _INSTRUCTION.search(line)
        if match is None or in_fusion or match[3] in _NO_MEMORY:
            continue
        bits = int(re.sub(r"\D", "", match[1].partition("e")[0]) or 8)
        size = math.prod(map(int, match[2].split(","))) * bits // 8
        name = re.search(r'op_name="([^"]*)"', match[4])
        where = _source(text, match[4])
        origin = f" of {name[1]}{where}" if name else where
        found.append((size, f"the result {match[1]}[{match[2]}]{origin}"))
    return found


def _source(text: str, metadata: str) -> str:
    """Where in the user's program an instruction comes from: " (file.py:12)", or nothing."""
    frame = re.search(r"stack_frame_id=(\d+)", metadata)
    line = frame and re.search(rf"^{frame[1]} {{file_location_id=(\d+)", text, re.MULTILINE)
    place = line and re.search(
        rf"^{line[1]} {{file_name_id=(\d+) .*?line=(\d+)", text, re.MULTILINE
    )
    file = place and re.search(rf'^{place[1]} "(.*)"$', text, re.MULTILINE)
    return f" ({file[1]}:{place[2]})" if file and place else ""
