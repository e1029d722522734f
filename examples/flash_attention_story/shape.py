"""The layer of the story, as one core sees it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from jax_trn3.hardware import Chip, get_topology
from jax_trn3.simulator import Timeline
from pallas_trn3.timing import timeline_of

TOKENS, WIDTH = 4096, 4096
"""Of a prompt; and features of a token."""

HEADS, KV_HEADS, FEATURES = 8, 2, 128
"""Heads of queries, and of keys and values, of one core; features of a head."""

TRN2 = get_topology("trn2-ultraserver").chip
TRN3 = get_topology("trn3-gen2").chip


@dataclass(frozen=True)
class Step:
    """A kernel before and after a change."""

    name: str
    before: Timeline
    after: Timeline
    said: float
    """How many times as fast the talk says that it became."""

    @property
    def faster(self) -> float:
        """How many times as fast it became."""
        return self.before.active_ps / self.after.active_ps


def timed(function: Callable[..., Any], *shapes: Any, chip: Chip = TRN2) -> Timeline:
    """A kernel's time on one core, the other cores of its HBM stack being as busy."""
    return timeline_of(function, *shapes, chip=chip, active_cores=chip.cores_per_stack)


def array(*shape: int, dtype: Any = "bfloat16") -> jax.ShapeDtypeStruct:
    """An array of that shape, without values: time needs none."""
    return jax.ShapeDtypeStruct(shape, dtype)


def utilisation(timeline: Timeline) -> float:
    """Share of the time that TensorE would need at full clock for the kernel's products.

    Neither transposes count nor time lost by throttling: both are TensorE's work, but not ours.
    """
    clock = timeline.chip.core.tensor.clock_hz
    cycles = sum(
        int(runs) * work.cycles
        for instruction, work, runs in zip(
            timeline.instructions, timeline.work, timeline.executions
        )
        if instruction.name.startswith("nc_matmul") and not instruction.get("is_transpose")
    )
    return float(cycles / clock / (timeline.active_ps / 1e12))
