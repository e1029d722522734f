"""Groups of operations that run as one, and what a rule makes of a group."""

from dataclasses import dataclass

from jax_trn3.simulator import Program

from .graph import Operation, Source, Tensor


@dataclass(frozen=True)
class Group:
    """Operations between which nothing goes through HBM."""

    rule: str
    """Name of the rule that makes instructions of it, a key of `rules.RULES`."""

    operations: tuple[Operation, ...]
    """In an order in which they can run."""

    inputs: tuple[Tensor, ...]
    """What it reads from HBM."""

    outputs: tuple[Tensor, ...]
    """What it writes to HBM."""

    @property
    def source(self) -> Source:
        """The line of its heaviest operation, or of the first."""
        return max(self.operations, key=lambda op: sum(t.bytes for t in op.operands)).source


@dataclass(frozen=True)
class Plan:
    """A group as engine instructions."""

    program: Program
    """For one core."""

    repeat: int = 1
    """How often it runs, one after another."""

    flops: int = 0
    """Operations that the results need, however computed (a multiply-add counts as two)."""

    assumptions: tuple[str, ...] = ()
    """What was assumed that the program does not say, a sentence each."""

    lacks: str = ""
    """What the hardware lacks for this, and how it would have to run; "" if it lacks nothing."""

    authored: bool = False
    """Whether its instructions are lines that a user wrote, in a kernel."""
