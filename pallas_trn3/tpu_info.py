"""What JAX's helpers for TPUs ask about a device, answered for NeuronCores.

`pltpu.emit_pipeline` and its like lay blocks out by `get_tpu_info()`. A device kind that JAX does
not know can answer for itself: `answer` registers ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from jax._src.pallas.mosaic import tpu_info

from jax_trn3.hardware import TRAINIUM1, TRAINIUM2, TRAINIUM3, Chip

# Of the generations that JAX knows, the first whose matmuls take the types that ours take
# (floats of 32, 16 and 8 bits), with blocks that need no more than 8 rows.
_GENERATION = 7


@dataclass(frozen=True)
class _Version(tpu_info.ChipVersionBase):  # type: ignore[misc]
    """A NeuronCore's, in place of a TPU's."""

    name: str
    is_lite: bool = False
    supports_megacore: bool = False
    num_physical_tensor_cores_per_chip: int = 1

    def __str__(self) -> str:
        return self.name


def answer() -> None:
    """Makes `pltpu.get_tpu_info()` work on a NeuronCore; once a process."""
    for chip in (TRAINIUM1, TRAINIUM2, TRAINIUM3):
        tpu_info.registry[chip.core.name] = lambda chip=chip: _info(chip)


def _info(chip: Chip) -> tpu_info.TpuInfo:
    core = chip.core
    sums = core.tensor.columns * 4
    return tpu_info.TpuInfo(
        chip_version=_Version(core.name),
        generation=_GENERATION,
        num_cores=1,
        num_lanes=128,
        num_sublanes=8,
        mxu_column_size=core.tensor.columns,
        num_mxus=1,
        num_accumulators=core.psum_bytes // (8 * sums),
        vmem_capacity_bytes=core.partitions * core.sbuf_usable_partition_bytes,
        cmem_capacity_bytes=0,
        smem_capacity_bytes=core.partitions * core.sbuf_usable_partition_bytes,
        hbm_capacity_bytes=chip.hbm_bytes_per_core,
        mem_bw_bytes_per_second=chip.hbm_bandwidth_bytes_per_s // chip.num_cores,
        bf16_ops_per_second=int(core.peak_flops("bfloat16")),
        int8_ops_per_second=0,
        fp8_ops_per_second=int(core.peak_flops("float8")),
        int4_ops_per_second=0,
    )
