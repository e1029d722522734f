"""How fast the simulator is: instructions a second, a large matmul, and beside SCALE-Sim.

    python benchmarks/simulator.py [--json] [--scalesim-python /path/to/python]

SCALE-Sim (PyPI's `scalesim`, a simulator of systolic arrays) runs in a process of the given
interpreter (default: this one), if it is installed there (pip install scalesim "numpy<2.4"): the
same product on an array of 128 x 128, without traces. Both sides are measured in turns; the fastest
round of each counts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.headline_programs.matmul import matmul
from jax_trn3.simulator import Timeline, simulate

SCALESIM = """
import contextlib, io, sys, time
try:
    from scalesim.scale_sim import scalesim
except ImportError as error:
    print(error)
    sys.exit()
print("ready", flush=True)
for line in sys.stdin:
    config, topology, layout, logs = line.split()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        start = time.perf_counter()
        run = scalesim(save_disk_space=True, verbose=False, config=config, topology=topology,
                       layout=layout, input_type_gemm=True)
        run.run_scale(top_path=logs)
        seconds = time.perf_counter() - start
    print(seconds, flush=True)
"""

# An array like TensorE's with operand memories of SBUF's size.
CONFIG = """[general]
run_name = trn3
[architecture_presets]
ArrayHeight = 128
ArrayWidth = 128
IfmapSramSzkB = 8192
FilterSramSzkB = 8192
OfmapSramSzkB = 8192
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Bandwidth = 256
Dataflow = ws
MemoryBanks = 1
ReadRequestBuffer = 512
WriteRequestBuffer = 512
[layout]
IfmapCustomLayout = False
FilterCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = false
SparseRep = ellpack_block
OptimizedMapping = false
BlockSize = 8
RandomNumberGeneratorSeed = 40
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
"""


def fastest(function: Callable[[], Timeline], rounds: int) -> tuple[float, Timeline]:
    """Seconds of the fastest of some rounds, and what came out."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        timeline = function()
        best = min(best, time.perf_counter() - start)
    return best, timeline


def scalesim_seconds(python: str, size: int, rounds: int) -> tuple[list[float], list[float]] | str:
    """Seconds of each round of SCALE-Sim and of ours, in turns; or why not."""
    process = subprocess.Popen(
        [python, "-c", SCALESIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    ready = process.stdout.readline().strip()
    if ready != "ready":
        return ready
    theirs, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "trn3.cfg").write_text(CONFIG)
        (place / "gemm.csv").write_text(f"Layer, M, N, K,\nproduct, {size}, {size}, {size},\n")
        (place / "layout.csv").write_text("Layer,\n" + "product," + "1," * 20 + "\n")
        paths = [str(place / name) for name in ("trn3.cfg", "gemm.csv", "layout.csv", "logs")]
        for _ in range(rounds):
            process.stdin.write(" ".join(paths) + "\n")
            process.stdin.flush()
            theirs.append(float(process.stdout.readline()))
            ours.append(fastest(lambda: simulate(matmul(size, size, size)), 1)[0])
    process.stdin.close()
    process.wait()
    return theirs, ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scalesim-python", default=sys.executable)
    arguments = parser.parse_args()
    results: dict[str, float | int | str] = {}

    middle = matmul(16384, 16384, 16384)
    seconds, timeline = fastest(lambda: simulate(middle, extrapolate=False), 3)
    results["instructions a second, nothing extrapolated"] = round(
        timeline.num_instructions / seconds
    )
    large = matmul(32768, 32768, 32768)
    seconds, timeline = fastest(lambda: simulate(large), 3)
    results["seconds for 32768^3"] = seconds
    results["instructions of 32768^3"] = timeline.num_instructions

    size = 1024
    beside = scalesim_seconds(arguments.scalesim_python, size, rounds=3)
    if isinstance(beside, str):
        results["SCALE-Sim"] = f"not measured: {beside}"
    else:
        theirs, ours = map(min, beside)
        results[f"seconds of SCALE-Sim for {size}^3"] = theirs
        results[f"seconds of ours for {size}^3"] = ours
        results["times faster than SCALE-Sim"] = theirs / ours

    if arguments.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        shown = (
            value if isinstance(value, str) else f"{value:,.4g}" if value < 1e4 else f"{value:,}"
        )
        print(f"{name:48s} {shown}")


if __name__ == "__main__":
    main()
