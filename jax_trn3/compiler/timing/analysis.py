"""What `Compiled.cost_analysis()` says of a program: its cost on the simulated machine."""

from typing import Any

from jax_trn3.hardware import Topology

from .read import device_program
from .schedule import Machine, schedule


def cost_analysis(module: Any, topology: Topology) -> dict[str, float]:
    """Figures of one run on one device, XLA's keys first.

    Loops whose count data decide are taken to run once; "loops of unknown length" says how many
    there are.

    **Arguments:**

    - `module`: StableHLO, not partitioned yet.
    - `topology`: The machine.
    """
    program = device_program(module)
    timed = schedule(
        program, Machine(topology, program.mesh, program.trip_counts, default_trip_count=1)
    )
    cost, seconds = timed.cost, timed.time_ps / 1e12
    figures = {
        "flops": float(cost.flops),
        "bytes accessed": float(cost.hbm_bytes),
        "optimal_seconds": seconds,
        "hardware flops": float(cost.hardware_flops),
        "hbm bytes read": float(cost.hbm_read_bytes),
        "hbm bytes written": float(cost.hbm_write_bytes),
        "instructions": float(cost.instructions),
        "loops of unknown length": float(sum(c is None for c in program.trip_counts.values())),
    }
    for name, busy in cost.engines.items():
        figures[f"{name} utilization"] = busy / timed.time_ps if timed.time_ps else 0.0
    return figures
