"""What lies in a device's HBM at the same time: parameters, results, and what is between them."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from .fusion import groups
from .graph import Body, DeviceProgram, Operation, Source, Tensor
from .group import Group


@dataclass(frozen=True)
class Resident:
    """A value in HBM when most is there."""

    bytes: int
    shape: tuple[int, ...]
    dtype: str
    what: str
    """"parameter 3", "result of dot_general"."""

    source: Source


@dataclass(frozen=True)
class Residency:
    """The most that a program has in HBM at once."""

    peak_bytes: int
    largest: tuple[Resident, ...]
    """What lies there then, the largest first."""


def residency(program: DeviceProgram) -> Residency:
    """Follows a program's values from where they are written to where they are last read.

    Values inside a group never reach HBM. A loop keeps what it carries in place. Results take the
    memory of donated parameters where they are as large.
    """
    named = {t.id: (f"parameter {k}", Source()) for k, t in enumerate(program.body.parameters)}
    body = program.body
    kept = {t.id for t in body.parameters} - program.donated_ids
    peak, alive = _peak(body, kept, named, program.donated_ids)
    largest = sorted(alive, key=lambda t: -t.bytes)[:20]
    residents = tuple(
        Resident(t.bytes, t.shape, t.dtype, *named.get(t.id, ("value", Source()))) for t in largest
    )
    return Residency(peak, residents)


def _peak(
    body: Body,
    kept: Collection[int],
    named: dict[int, tuple[str, Source]],
    donated: Collection[int] | None = None,
) -> tuple[int, list[Tensor]]:
    """The most bytes at once, and what they are. `kept` stay for the whole body."""
    parts = groups(body, donated)
    last = _last_uses(parts, body)
    alive = {t.id: t for t in body.parameters if _has_size(t)}
    now = sum(t.bytes for t in alive.values())
    peak, at_peak = now, list(alive.values())
    for place, part in enumerate(parts):
        inner, inside = _inside(part, named)
        dying = [n for n in last.get(place, ()) if n in alive and n not in kept]
        if _in_place(part):
            now -= sum(alive.pop(n).bytes for n in dying)
        same = _passed_on(part)
        for tensor in _written(part):
            named.setdefault(tensor.id, (f"result of {_name(part)}", part.source))
            if _has_size(tensor) and tensor.id not in same:
                alive[tensor.id] = tensor
                now += tensor.bytes
        if now + inner > peak:
            peak, at_peak = now + inner, [*alive.values(), *inside]
        now -= sum(alive.pop(n).bytes for n in last.get(place, ()) if n in alive and n not in kept)
    return peak, at_peak


def _in_place(part: Group | Operation) -> bool:
    """Whether results may take the memory of what is read for the last time. A product may not:
    it reads its operands again while it writes."""
    if isinstance(part, Group):
        return part.rule not in ("matmul", "convolution") and not part.rule.startswith("trn3.")
    return part.kind == "stablehlo.while"


def _passed_on(part: Group | Operation) -> set[int]:
    """Results of a loop that are what went into it."""
    if isinstance(part, Group) or part.kind != "stablehlo.while":
        return set()
    body = part.regions[-1]
    pairs = zip(part.results, body.parameters, body.results)
    return {result.id for result, before, after in pairs if before.id == after.id}


def _inside(
    part: Group | Operation, named: dict[int, tuple[str, Source]]
) -> tuple[int, list[Tensor]]:
    """What control flow needs beside what it carries, which is there already as its results."""
    if isinstance(part, Group) or not part.kind.startswith(("stablehlo.while", "stablehlo.case")):
        return 0, []
    found = []
    for region in part.regions:
        carried = sum(t.bytes for t in region.parameters if _has_size(t))
        peak, alive = _peak(region, set(), named)
        own = [t for t in alive if t not in region.parameters]
        found.append((max(0, peak - carried), own))
    return max(found, key=lambda pair: pair[0], default=(0, []))


def _last_uses(parts: Sequence[Group | Operation], body: Body) -> dict[int, list[int]]:
    """By place, the values that nothing after it reads."""
    last: dict[int, int] = {}
    for place, part in enumerate(parts):
        for tensor in (*_read(part), *_written(part)):
            last[tensor.id] = place
    for tensor in body.results:
        last[tensor.id] = len(parts)
    by_place: dict[int, list[int]] = {}
    for number, place in last.items():
        by_place.setdefault(place, []).append(number)
    return by_place


def _read(part: Group | Operation) -> Iterable[Tensor]:
    return part.inputs if isinstance(part, Group) else part.used


def _written(part: Group | Operation) -> tuple[Tensor, ...]:
    return part.outputs if isinstance(part, Group) else part.results


def _name(part: Group | Operation) -> str:
    return part.rule if isinstance(part, Group) else part.kind.partition(".")[2] or part.kind


def _has_size(tensor: Tensor) -> bool:
    return tensor.dtype != "token"
