"""What one device does, as plain data: operations on local shapes, and where they come from."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Bits of StableHLO's element types.
_BITS = {
    "i1": 8, "pred": 8, "f4E2M1FN": 4, "i4": 4, "ui4": 4, "i2": 2, "ui2": 2, "f32": 32, "f64": 64,
    "bf16": 16, "f16": 16, "complex<f32>": 64, "complex<f64>": 128, "f8E8M0FNU": 8,
    "token": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A value as one device holds it."""

    id: int
    """Different for every value of a program."""

    shape: tuple[int, ...]
    """Of the part that one device holds."""

    dtype: str
    """StableHLO's name of the element type: "bf16", "f32", "i32", "f8E4M3FN"."""

    @property
    def size(self) -> int:
        """Elements."""
        return int(np.prod(self.shape, dtype=object)) if self.shape else 1

    @property
    def bytes(self) -> int:
        """Bytes in HBM."""
        return -(-self.size * bits(self.dtype) // 8)


def bits(dtype: str) -> int:
    """Bits of an element in memory.

    **Raises:** `ValueError` for a type that has no size in memory (a quantized one). A token has 0.
    """
    if dtype in _BITS:
        return _BITS[dtype]
    if dtype.startswith("f8"):
        return 8
    digits = dtype.lstrip("usif")
    if digits.isdigit():
        return int(digits)
    raise ValueError(f"elements of type {dtype!r} have no size")


@dataclass(frozen=True)
class Source:
    """What a person wrote that an operation comes from."""

    file: str = ""
    line: int = 0
    function: str = ""
    name: str = ""
    """JAX's name stack: "jit(step)/transpose(jvp(layer))/dot_general"."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.file else self.name or "unknown line"


@dataclass(frozen=True)
class Operation:
    """One operation."""

    kind: str
    """"stablehlo.dot_general", "sdy.all_gather", "chlo.erf"; of an operation of trn3's own that was
    kept whole its name: "trn3.dot_product_attention"; of a custom call "custom_call:<target>"."""

    operands: tuple[Tensor, ...]
    results: tuple[Tensor, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """As Python values: integers, tuples, strings, nested mappings."""

    regions: tuple["Body", ...] = ()
    """Of while (condition, body), case (branches), reduce, sort, scatter; of an operation kept
    whole its decomposition."""

    source: Source = Source()

    @functools.cached_property
    def used(self) -> tuple[Tensor, ...]:
        """What it reads: its operands, and what its regions take from around them."""
        inside: set[int] = set()
        used = list(self.operands)
        for region in self.regions:
            inside |= {t.id for t in region.parameters}
            for inner in region.operations:
                used += [t for t in inner.used if t.id not in inside]
                inside |= {t.id for t in inner.results}
            used += [t for t in region.results if t.id not in inside]
        return tuple({tensor.id: tensor for tensor in used}.values())


@dataclass(frozen=True)
class Body:
    """A function, or the region of an operation."""

    parameters: tuple[Tensor, ...]
    operations: tuple[Operation, ...]
    results: tuple[Tensor, ...]

    def walk(self) -> Iterator[Operation]:
        """All operations, those in regions after the one they belong to."""
        for operation in self.operations:
            yield operation
            for region in operation.regions:
                yield from region.walk()


@dataclass(frozen=True)
class Mesh:
    """The devices that the program runs on, in rows and columns."""

    axes: tuple[tuple[str, int], ...] = ()
    """(name, size), the last one changing fastest."""

    device_ids: tuple[int, ...] | None = None
    """Which device is where, if not in order."""

    @property
    def size(self) -> int:
        """Devices."""
        return int(np.prod([size for _, size in self.axes], dtype=object)) if self.axes else 1


@dataclass(frozen=True)
class DeviceProgram:
    """A program as each of its devices runs it."""

    name: str
    body: Body
    mesh: Mesh
    donated: tuple[int, ...] = ()
    """Parameters whose memory results may take."""

    constants: Mapping[int, Any] = field(default_factory=dict, hash=False)
    """By tensor id the numbers of small constants (at most 64 elements), as numpy arrays."""

    trip_counts: Mapping[int, int | None] = field(default_factory=dict, hash=False)
    """By id of a while's first result (or -1 - its place if it has none) how often its body runs;
    None where data decide."""

    @property
    def donated_ids(self) -> frozenset[int]:
        """Numbers of the donated parameters."""
        return frozenset(self.body.parameters[k].id for k in self.donated)
