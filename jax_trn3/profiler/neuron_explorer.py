"""The summary in Neuron Explorer's words, for tools and people that know them.

Names and formulas: tools/neuron-explorer/profile-schema-reference.rst, schema 7.4.0. Two are read
more closely than they are written. The peak of MFU and HFU is that of the densest product in the
program, so that MX does not reach 400 %. MBU is of the HBM stacks that the program's cores are at.
"""

from collections.abc import Iterable

from jax_trn3.isa import Origin
from jax_trn3.simulator import Timeline
from jax_trn3.simulator.spill import RELOAD, SAVE

from .figures import access_bytes, compute, cores, queues, traffic


def neuron_summary(timeline: Timeline) -> dict[str, float]:
    """The metrics of Neuron Explorer's summary that a simulation has.

    **Returns:** by its names and in its units: times in seconds, sizes in bytes, "percent" a
    fraction of 1 as in its dumps.
    """
    seconds, done, moved = timeline.time_s, compute(timeline), traffic(timeline)
    hbm = moved.hbm_read_bytes + moved.hbm_write_bytes
    intensity = (done.hardware_flops - done.transpose_flops) / hbm if hbm else 0.0
    ratio = done.peak_flops_per_s / moved.hbm_bytes_per_s
    summary: dict[str, float] = {
        "total_time": seconds,
        "neuroncore_cycle_count": round(seconds * timeline.chip.core.tensor.clock_hz),
        "model_flops": done.model_flops,
        "hardware_flops": done.hardware_flops,
        "transpose_flops": done.transpose_flops,
        "mfu_estimated_percent": _share(done.model_flops, done.peak_flops_per_s * seconds),
        "hfu_estimated_percent": _share(done.hardware_flops, done.peak_flops_per_s * seconds),
        "mfu_max_achievable_estimated_percent": min(1.0, intensity / ratio) if hbm else 1.0,
        "mm_arithmetic_intensity": intensity,
        "peak_flops_bandwidth_ratio": ratio,
        "mbu_estimated_percent": _share(hbm, moved.hbm_bytes_per_s * seconds),
        "hbm_read_bytes": moved.hbm_read_bytes,
        "hbm_write_bytes": moved.hbm_write_bytes,
        "spill_save_bytes": _spilled(timeline, SAVE),
        "spill_reload_bytes": _spilled(timeline, RELOAD),
        "dma_transfer_count": moved.transfers,
        "dma_transfer_total_bytes": moved.bytes,
        "dma_transfer_average_bytes": moved.bytes / max(1, moved.transfers),
        "dma_queue_count": len(queues(timeline)),
        **access_bytes(timeline),
    }
    for kind in ("tensor", "vector", "scalar", "gpsimd", "sync"):
        summary |= _engine_summary(timeline, kind)
    named = [i.name for i in timeline.instructions]
    runs = timeline.executions.tolist()
    summary["matmul_instruction_count"] = _runs_of(named, runs, "nc_matmul")
    summary["activate_instruction_count"] = _runs_of(named, runs, "activat")
    return summary


def _engine_summary(timeline: Timeline, kind: str) -> dict[str, float]:
    spent = [t for name, t in timeline.engines.items() if name.partition("/")[2] == kind]
    busy = sum(t.busy for t in spent) / 1e12
    prefix = f"{kind}_engine"
    return {
        f"{prefix}_active_time": busy,
        f"{prefix}_active_time_percent": _share(busy, timeline.time_s * len(cores(timeline))),
        f"{prefix}_instruction_count": sum(t.instructions for t in spent),
    }


def _spilled(timeline: Timeline, origin: Origin) -> int:
    moved = zip(timeline.executions.tolist(), timeline.instructions, timeline.work)
    return sum(runs * w.dma.bytes for runs, i, w in moved if w.dma and i.origin == origin)


def _runs_of(names: Iterable[str], runs: Iterable[int], start: str) -> int:
    return sum(count for name, count in zip(names, runs) if name.startswith(start))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
