"""Whether the process grows: over a million dispatches, and over minutes of compiles.

    python benchmarks/soak.py --minutes 10 --compare-cpu

Prints the resident memory after a warm-up and at the end, for each platform in a process of its
own. JAX and XLA grow with each program that is compiled, on every platform; what counts is the
difference to the CPU backend.
"""

import argparse
import gc
import os
import subprocess
import sys
import time

DISPATCHES, WARM_UP_DISPATCHES = 1_000_000, 50_000
WARM_UP_COMPILES = 2000  # until the allocators have their arenas, on the CPU backend too
COMPILES_PER_CLEAR = 50


def resident_mb() -> float:
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def report(what: str, count: int, seconds: float, before: float, after: float) -> None:
    platform = os.environ["JAX_PLATFORMS"].split(",")[0]
    print(
        f"{platform:5s} {what:10s} {count:8d} in {seconds:6.1f} s   resident {before:7.1f} MB -> "
        f"{after:7.1f} MB   {100 * (after - before) / before:+6.2f}%   "
        f"{1e6 * (after - before) / count:+9.1f} bytes each",
        flush=True,
    )


def dispatch(count: int) -> None:
    import jax
    import numpy as np

    function = jax.jit(lambda x: x + 1)
    x = jax.device_put(np.zeros(4, np.float32))

    def run(n: int) -> None:
        nonlocal x
        for _ in range(n):
            x = function(x)
        x.block_until_ready()

    run(WARM_UP_DISPATCHES)
    before, start = resident_mb(), time.perf_counter()
    run(count)
    seconds = time.perf_counter() - start
    assert np.asarray(x)[0] == min(count + WARM_UP_DISPATCHES, 2**24)  # x[0] would compile
    report("dispatches", count, seconds, before, resident_mb())


def compile_and_drop(seconds: float) -> None:
    import jax
    import numpy as np

    x = jax.device_put(np.ones(8, np.float32))

    def one(k: int) -> None:
        function = jax.jit(lambda x: (x * k).sum() + k)
        assert float(function(x)) == 9 * k
        if k % COMPILES_PER_CLEAR == 0:
            del function
            jax.clear_caches()

    for k in range(WARM_UP_COMPILES):
        one(k)
    jax.clear_caches()
    before, start, k = resident_mb(), time.perf_counter(), WARM_UP_COMPILES
    while time.perf_counter() - start < seconds:
        one(k)
        k += 1
    jax.clear_caches()
    took = time.perf_counter() - start
    report("compiles", k - WARM_UP_COMPILES, took, before, resident_mb())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="of compiling, on each platform")
    parser.add_argument("--dispatches", type=int, default=DISPATCHES)
    parser.add_argument("--compare-cpu", action="store_true")
    parser.add_argument("--part", choices=["dispatch", "compile"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "dispatch":
        dispatch(options.dispatches)
    elif options.part == "compile":
        compile_and_drop(60 * options.minutes)
    else:
        for part in ("dispatch", "compile"):
            for platforms in ("trn3,cpu", "cpu") if options.compare_cpu else ("trn3,cpu",):
                subprocess.run(
                    [sys.executable, *sys.argv, "--part", part],
                    env=os.environ | {"JAX_PLATFORMS": platforms},
                    check=True,
                )


if __name__ == "__main__":
    main()
