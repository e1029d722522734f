"""A body that is being cut into groups, and what is known of its values so far."""

from collections.abc import Collection
from dataclasses import dataclass, field

from .draft import Draft
from .graph import Body, Operation, Tensor
from .views import View


@dataclass
class Cut:
    """A body that is being cut."""

    body: Body
    views: dict[int, View]
    uses: dict[int, int]
    donated: Collection[int]
    made_by: dict[int, Operation] = field(default_factory=dict)
    known: set[int] = field(default_factory=set)
    """Ids of parameters, and of what has been placed."""
    drafts: list[Draft] = field(default_factory=list)
    producer: dict[int, Draft] = field(default_factory=dict)
    """By id of a value in memory."""
    readers: dict[int, Draft] = field(default_factory=dict)
    """The latest group of rows that reads a value from HBM."""
    last_use: dict[int, int] = field(default_factory=dict)
    renamed: dict[int, Tensor] = field(default_factory=dict)
    """What a group writes in place of a result: transposed, or straight into a larger value."""
    stored: set[int] = field(default_factory=set)
    """Values of which groups write parts: they are in HBM only."""
    original: dict[int, int] = field(default_factory=dict)
    """Of such a value, the id of the result."""


def sources_of(cut: Cut, view: View) -> list[Draft]:
    """The groups that must run before a view is read."""
    ids = (view.tensor.id, *view.needs)
    return [cut.producer[i].root() for i in ids if i in cut.producer]


def uses_of(cut: Cut, tensor: Tensor, view: View) -> int:
    """Uses of a value and of what it is a view of, through views of it."""
    count = cut.uses.get(tensor.id, 0)
    return max(count, cut.uses.get(view.tensor.id, 0))


def may_overwrite(cut: Cut, place: int, target: View) -> bool:
    number = target.tensor.id
    own = number in cut.producer or number in cut.donated
    return target.plain and not target.constant and own and cut.last_use.get(number, 0) <= place
