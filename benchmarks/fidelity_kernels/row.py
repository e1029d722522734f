"""A published figure, the program that it was measured on, and how to read it off a timeline."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jax_trn3.hardware import Chip
from jax_trn3.simulator import Program, Timeline

Reader = Callable[[Timeline], float]


@dataclass(frozen=True)
class Figure:
    """A published number and how to read the simulated one."""

    name: str
    published: float
    read: Reader


@dataclass(frozen=True)
class Row:
    """One line of the table. Its error is that of the first figure."""

    id: str
    kernel: str
    chip: Chip
    program: Callable[[], Program]
    figures: tuple[Figure, ...]
    source: str
    active_cores: int = 1
    reason: str = ""
    """Why the error is above the limit, if it is."""

    slow: bool = False
    """Whether it takes more than a few seconds to simulate."""


def total_us(published: float) -> Figure:
    """Time with the program's start and stop."""
    return Figure("us", published, lambda t: t.time_ps / 1e6)


def active_us(published: float) -> Figure:
    """Time without the program's start and stop, the engines' set-up included."""
    return Figure("active us", published, lambda t: (t.active_ps + _setup_ps(t)) / 1e6)


def engine_us(engine: str, published: float) -> Figure:
    """Time in which an engine works."""
    return Figure(f"{engine} us", published, lambda t: _busy(t, engine) / 1e6)


def engine_share(engine: str, published: float) -> Figure:
    """Share of the whole time in which an engine works."""
    return Figure(f"{engine} share", published, lambda t: _busy(t, engine) / t.time_ps)


def dma_us(published: float) -> Figure:
    """Time in which a DMA engine moves bytes."""
    return Figure("dma us", published, lambda t: dma_active_ps(t) / 1e6)


def dma_gb_per_s(published: float) -> Figure:
    """Bytes moved over the time in which a DMA engine moves bytes."""
    return Figure("dma GB/s", published, lambda t: t.dma_bytes / dma_active_ps(t) * 1e3)


def read_mb(published: float) -> Figure:
    """Bytes that were read from HBM."""
    return Figure("read MB", published, lambda t: t.hbm_read_bytes / 1e6)


def written_mb(published: float) -> Figure:
    """Bytes that were written to HBM."""
    return Figure("written MB", published, lambda t: t.hbm_write_bytes / 1e6)


def hfu(published: float, counted: float = 1.0) -> Figure:
    """Hardware FLOPs over the peak of the whole time; some profiles count a part of the passes."""

    def read(t: Timeline) -> float:
        return t.hardware_flops * counted / (t.chip.core.peak_flops() * t.time_s)

    return Figure("hfu", published, read)


def tensor_tflops(published: float) -> Figure:
    """Hardware FLOPs over the time in which TensorE works."""
    return Figure("TFLOPS", published, lambda t: t.hardware_flops / _busy(t, "tensor"))


def dma_active_ps(timeline: Timeline) -> int:
    """Time in which at least one transfer moves bytes: the union of their intervals."""
    events = timeline.expand()
    dma = np.array(["/dma:" in lane for lane in timeline.lanes])
    return _union(events[dma[events[:, 5]]][:, 1:3])


def _busy(timeline: Timeline, engine: str) -> int:
    """Time in which an engine sets itself up or an instruction of it is under way, up to its result
    being there: what profiles call active."""
    events = timeline.expand()
    own = np.array([lane == f"core0/{engine}" for lane in timeline.lanes])
    return _union(events[own[events[:, 5]]][:, [1, 3]]) + _setup_ps(timeline)


def _union(spans: np.ndarray) -> int:
    """Time that at least one of the intervals covers."""
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    covered = np.concatenate([[0], np.maximum.accumulate(spans[:, 1])[:-1]])
    return int(np.maximum(spans[:, 1] - np.maximum(spans[:, 0], covered), 0).sum())


def _setup_ps(timeline: Timeline) -> int:
    """Profiles count an engine as active while it sets itself up."""
    return int(timeline.chip.core.setup_ns * 1000)
