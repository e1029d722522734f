"""Numbers that remember their unit, their source and how far to trust them.

`published(128, "partitions", "trainium3_arch.rst")` is an `int` in every respect (equality, hash,
`repr`, `range`, shapes) that also has `.unit`, `.source`, `.confidence`, `.low` and `.high`.
Arithmetic gives plain numbers: what we derive claims no source.

A source is a page or file of the AWS Neuron SDK docs (github.com/aws-neuron/aws-neuron-sdk,
SDK 2.32.0) unless it names another place.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Generic, Literal, TypeVar

Confidence = Literal["published", "rounded", "inferred", "extrapolated"]

_Number = TypeVar("_Number", bool, int, float)
_Value = TypeVar("_Value", covariant=True)


class Figure:
    """What an `int` or a `float` with a memory has beside its value. See the constructors below."""

    unit: str
    """What it counts, e.g. "bytes", "Hz", "cycles"; "flag" where 1 is yes and 0 is no."""

    source: str
    """Where it stands, or what it is derived from."""

    confidence: Confidence
    """How it was had: "published", "rounded", "inferred" or "extrapolated"."""

    low: float
    """Lowest plausible value; the value itself where no band is known."""

    high: float
    """Highest plausible value."""


class _Int(Figure, int):
    pass


class _Float(Figure, float):
    pass


def _figure(
    value: Any, unit: str, source: str, confidence: Confidence, low: float, high: float
) -> Any:
    if not unit or not source:
        raise ValueError(f"the figure {value!r} needs a unit and a source")
    if not low <= value <= high:
        raise ValueError(f"the figure {value!r} is outside its own band {low!r} to {high!r}")
    figure = _Float(value) if isinstance(value, float) else _Int(value)
    vars(figure).update(unit=unit, source=source, confidence=confidence, low=low, high=high)
    return figure


def published(value: _Number, unit: str, source: str) -> _Number:
    """A number as the source prints it for this generation.

    AWS's guide to a generation says what is new in it: what it does not mention is unchanged, and
    stands in the guide to the one before.
    """
    return _figure(value, unit, source, "published", value, value)


def rounded(
    value: _Number, unit: str, source: str, *, low: float | None = None, high: float | None = None
) -> _Number:
    """A number that the source gives as "about"."""
    low, high = value if low is None else low, value if high is None else high
    return _figure(value, unit, source, "rounded", low, high)


def inferred(
    value: _Number, unit: str, source: str, *, low: float | None = None, high: float | None = None
) -> _Number:
    """A number that we derive from published ones; `source` says how."""
    low, high = value if low is None else low, value if high is None else high
    return _figure(value, unit, source, "inferred", low, high)


def extrapolated(value: _Number, unit: str, source: str, *, low: float, high: float) -> _Number:
    """A number nobody published for this generation; `source` says what it is carried over from."""
    return _figure(value, unit, source, "extrapolated", low, high)


class Table(Mapping[str, _Value], Generic[_Value]):
    """A mapping that never changes, so that the frozen dataclass around it can be hashed.

    Equal to any mapping with the same items.
    """

    def __init__(self, items: Mapping[str, _Value]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: str) -> _Value:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


# The end of a field's name says its unit, as in `clock_hz`.
_UNITS = {
    "hz": "Hz",
    "bytes": "bytes",
    "ns": "ns",
    "cycles": "cycles",
    "w": "W",
    "factor": "factor",
    "partitions": "partitions",
}


def unit_of_name(name: str) -> str | None:
    """The unit that the name of a field promises, or None if it promises none.

    >>> unit_of_name("clock_hz"), unit_of_name("engine_bytes_per_s"), unit_of_name("registers")
    ('Hz', 'bytes/s', None)
    """
    rate = re.fullmatch(r"(?:.*_)?([a-z]+s)_per_([a-z]+)", name)
    if rate:
        return f"{rate[1]}/{rate[2]}"
    return _UNITS.get(name.rpartition("_")[2])
