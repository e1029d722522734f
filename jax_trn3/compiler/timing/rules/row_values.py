"""What a group of rows works on: its values, how long they live, and what they take of SBUF."""

import math
from collections import defaultdict
from dataclasses import dataclass, field

from jax_trn3.hardware import NeuronCore
from jax_trn3.isa import DTYPES

from .steps import Step, Value, Work
from .tiles import held_as, words


@dataclass(frozen=True)
class Share:
    """An operand that is repeated otherwise than row by row, loaded a part a tile."""

    number: int
    part: float
    """Its elements over those that go by."""


@dataclass
class Reading:
    """A group, as steps on values."""

    name: str
    elements: int
    """Of the largest values."""

    core: NeuronCore
    lengths: set[int] = field(default_factory=lambda: {1})
    work: Work = field(default_factory=Work)
    kept: list[int] = field(default_factory=list)
    """Values that go to HBM."""

    wide: set[int] = field(default_factory=set)
    """Values of one a row that operands of whole rows take."""

    far: dict[int, str] = field(default_factory=dict)
    """StableHLO's types of what is loaded and stored."""

    sizes: dict[int, int] = field(default_factory=dict)
    made: dict[int, str] = field(default_factory=dict)
    """Values that are made in SBUF: "iota", "number"."""

    narrow: set[int] = field(default_factory=set)
    """Values of one a row that are exact in bfloat16."""

    shares: list[Share] = field(default_factory=list)
    stages: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """By place of a step: how many tiles later it runs than the first."""

    spans: dict[int, int] = field(default_factory=dict)
    """Stages from where a value is written to where it is last read."""

    passes: int = 1
    tail: int = 0
    """Steps on what is known at the end."""

    late_size: int = 1
    flops: int = 0
    assumptions: tuple[str, ...] = ()
    lacks: str = ""

    @property
    def shared(self) -> set[int]:
        """Values of which each tile loads a part."""
        return {share.number for share in self.shares}

    def words_of(self, value: Value) -> int:
        """Words of an element in HBM."""
        return words(self.far.get(value.number, "f32"))

    def dtype(self, value: Value) -> str:
        """Of a value in SBUF."""
        return value.dtype

    def far_dtype(self, value: Value) -> str:
        """Of a value in HBM."""
        return held_as(self.far.get(value.number, "f32"), self.core)

    @property
    def num_stages(self) -> int:
        """Tiles in work at the same time."""
        return 1 + max(self.stages.values(), default=0)

    def put_in_stages(self, engines: list[str], most: int) -> None:
        """A new stage where a step goes on with what another engine made."""
        made: dict[int, int] = {}
        stages: list[int] = []
        for place, step in enumerate(self.work.steps):
            before = [made[r] for r in _read_by(step) if r in made]
            stages.append(
                max((stages[p] + (engines[p] != engines[place]) for p in before), default=0)
            )
            made |= {n: place for n in (step.writes, step.sums) if n is not None}
        count = 1 + max(stages, default=0)
        stages = [stage * min(most, count) // count for stage in stages]
        self.stages = defaultdict(int, enumerate(stages))
        last = {n: place for place, numbers in self.last_steps().items() for n in numbers}
        end = max(stages, default=0)
        self.spans = {
            n: (end if n in self.kept else stages[place]) - (stages[made[n]] if n in made else 0)
            for n, place in last.items()
        }

    def passing(self, number: int) -> bool:
        """Whether a value lives within a stage."""
        own = self.work.values[number].source == "step"
        return own and number not in self.kept and not self.spans.get(number, 0)

    def slots(self, value: Value) -> int:
        """Tiles of a value in rotation: powers of two, so that loops are soon periodic."""
        if value.source in ("column", "scalar"):
            return 1
        span = self.spans.get(value.number, 0)
        moves = value.source == "hbm" or value.number in self.kept
        return int(2 ** math.ceil(math.log2(span + (3 if moves else 2))))

    def last_steps(self) -> dict[int, list[int]]:
        """By place of a step the values that none after it reads."""
        last: dict[int, int] = {}
        for place, step in enumerate(self.work.steps):
            for number in (*_read_by(step), step.writes, step.sums):
                if number is not None:
                    last[number] = place
        found: dict[int, list[int]] = {}
        for number, place in last.items():
            found.setdefault(place, []).append(number)
        return found

    def bytes_of_an_element(self) -> int:
        """Bytes of a partition for an element of each value that must be in SBUF at one time."""

        def cost(number: int) -> int:
            value = self.work.values[number]
            if (value.every > 1 and number not in self.wide) or value.source == "late":
                return 0
            return DTYPES[value.dtype].bytes * self.slots(value)

        passing = {n for n in self.work.values if self.passing(n)}
        late = [s for s in self.work.steps if self.work.values[s.writes].source == "late"]
        select = any(step.op == "select" for step in self.work.steps)
        total = 4 * len(late) + 8 * select + sum(cost(n) for n in {*self.work.values} - passing)
        last, free = self.last_steps(), dict[tuple[int, int], int]()
        for place, step in enumerate(self.work.steps):
            made = {n for n in (step.writes, step.sums) if n is not None}
            for number in made & passing:
                key = cost(number), self.stages[place]
                if free.get(key, 0):
                    free[key] -= 1
                else:
                    total += cost(number)
            for number in passing.intersection(last.get(place, ())):
                key = cost(number), self.stages[place]
                free[key] = free.get(key, 0) + 1
        return total


def _read_by(step: Step) -> list[int]:
    return [r for r in (*step.reads, step.scale, step.bias) if isinstance(r, int)]
