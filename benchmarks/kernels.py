"""The kernel library on simulated Trainium2 and 3: time, and how busy what bounds it is.

    python benchmarks/kernels.py [part of a name ...]

"of all" counts the program's start and stop, "of active" from the first instruction to the last
"""

import argparse
import time

import jax

from jax_trn3.hardware import TRAINIUM2, TRAINIUM3
from pallas_trn3.kernels import CATALOGUE, Entry
from pallas_trn3.timing import program_of, simulated
from pallas_trn3.timing.find import _kernels

CHIPS = {"trn2": TRAINIUM2, "trn3": TRAINIUM3}


def measured(entry: Entry, chip: str) -> tuple[float, float, float]:
    """Time in microseconds and the utilisation of what is reported, of all and of active time."""
    traced = jax.make_jaxpr(entry.function)(*entry.operands)
    total = active = busy = 0
    for kernel in _kernels(traced.jaxpr):
        timeline = simulated(program_of(kernel, CHIPS[chip]), CHIPS[chip])
        found = timeline.dma if entry.report == "hbm" else timeline.engines
        busy += found[f"core0/{entry.report}"].busy
        total, active = total + timeline.time_ps, active + timeline.active_ps
    return total / 1e6, busy / total, busy / active


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="parts of names; all if left out")
    chosen = parser.parse_args().names
    print(
        f"{'kernel':64} {'chip':5} {'us':>9} {'bound':>7} {'of all':>7} {'of active':>9} {'s':>5}"
    )
    for name, entry in CATALOGUE.items():
        if chosen and not any(part in name for part in chosen):
            continue
        for chip in entry.chips:
            start = time.perf_counter()
            us, whole, active = measured(entry, chip)
            spent = time.perf_counter() - start
            print(
                f"{name:64} {chip:5} {us:9.1f} {entry.report:>7} {whole:7.1%} {active:9.1%} "
                f"{spent:5.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
