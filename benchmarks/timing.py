"""Ratios on a noisy machine: both sides in one process, interleaved, the fastest of many rounds."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import jax


@dataclass(frozen=True)
class Ratio:
    """What was measured: seconds per call on each platform, and the limit that we set ourselves."""

    name: str
    trn3_s: float
    cpu_s: float
    limit: float

    @property
    def ratio(self) -> float:
        return self.trn3_s / self.cpu_s


def compare(
    name: str,
    make: Callable[[jax.Device], Callable[[], object]],
    *,
    limit: float,
    rounds: int,
    calls: int,
) -> Ratio:
    """Times `make(device)()` on the first device of trn3 and of the CPU.

    rounds: how often both are measured, one after the other; the fastest round of each counts.
    calls: calls in a round.
    """
    functions = {platform: make(jax.devices(platform)[0]) for platform in ("trn3", "cpu")}
    for function in functions.values():
        function()  # compiles
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for platform, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls):
                function()
            best[platform] = min(best[platform], (time.perf_counter() - start) / calls)
    return Ratio(name, best["trn3"], best["cpu"], limit)


def report(ratios: list[Ratio]) -> None:
    """Prints a table, or with --json one object a line."""
    for r in ratios:
        if "--json" in sys.argv:
            print(json.dumps(asdict(r) | {"ratio": r.ratio}))
        else:
            verdict = "ok" if r.ratio <= r.limit else "over the limit"
            print(
                f"{r.name:44s} trn3 {r.trn3_s * 1e6:12.2f} us   cpu {r.cpu_s * 1e6:12.2f} us   "
                f"ratio {r.ratio:5.2f}   limit {r.limit:.2f}   {verdict}"
            )
