"""Published kernels on published hardware, simulated: the calibration rows C1-C15.

Prints published and simulated figures, the error and what takes most of the time; then rows that no
constant was derived from. `--json` for programs.
"""

import argparse
import importlib
import json
import statistics
import time

from fidelity_kernels.row import Row, dma_active_ps

from jax_trn3.simulator import Timeline, simulate

FAMILIES = (
    "matmul",
    "vector_add",
    "dma",
    "elementwise",
    "gemm_fp32",
    "scan",
    "attention",
    "projection",
)


def rows(kind: str) -> list[Row]:
    """All rows of `kind`, ROWS or ASIDE, in order of their numbers."""
    families = [importlib.import_module(f"fidelity_kernels.{name}") for name in FAMILIES]
    found = [row for family in families for row in getattr(family, kind)]
    return sorted(found, key=lambda row: int("".join(c for c in row.id.split()[0] if c.isdigit())))


def dominant(timeline: Timeline) -> str:
    """What is busy for the largest share of the time."""
    busy = {name.split("/")[1]: spent.busy for name, spent in timeline.engines.items()}
    moving = dma_active_ps(timeline)
    queues: dict[str, int] = {}
    for lane, work, runs in zip(timeline.lanes, timeline.work, timeline.executions):
        if work.dma is not None:
            queues[lane] = queues.get(lane, 0) + int(runs) * int(work.dma.issue_ns * 1000)
    busy |= {f"issue on {lane.split('/')[1]}": held for lane, held in queues.items()}
    busy |= {"DMA engines": max((d.busy for d in timeline.dma.values()), default=0)}
    busy |= {"DMA latency": moving - busy["DMA engines"]}
    busy |= {"start and stop": timeline.overhead_ps}
    name, most = max(busy.items(), key=lambda item: item[1])
    return f"{name} {100 * most / timeline.time_ps:.0f} %"


def measure(row: Row) -> dict[str, object]:
    """One row, simulated."""
    began = time.perf_counter()
    timeline = simulate(row.program(), row.chip, active_cores=row.active_cores)
    figures = [
        {"name": f.name, "published": f.published, "simulated": f.read(timeline)}
        for f in row.figures
    ]
    for figure in figures:
        figure["error"] = figure["simulated"] / figure["published"] - 1
    return {
        "id": row.id,
        "kernel": row.kernel,
        "chip": row.chip.name,
        "figures": figures,
        "error": figures[0]["error"],
        "dominant": dominant(timeline),
        "source": row.source,
        "reason": row.reason,
        "seconds": time.perf_counter() - began,
    }


def line(result: dict) -> str:
    """A row and, below it, its other figures."""
    head = f"{result['id']:10}{result['kernel'][:40]:41}{result['chip'][-1]:2}"
    lines = []
    for figure in result["figures"]:
        numbers = f"{figure['published']:>11.5g}{figure['simulated']:>11.5g}"
        error = f"{100 * figure['error']:>+8.1f} %"
        tail = f"  {result['dominant']}" if not lines else ""
        lines.append(f"{head:53}{figure['name']:>13}{numbers}{error}{tail}")
        head = ""
    return "\n".join(lines)


def summary(results: list[dict]) -> str:
    """Median and largest error."""
    errors = {r["id"]: abs(r["error"]) for r in results}
    worst = max(errors, key=errors.get)
    median = statistics.median(errors.values())
    return f"median {100 * median:.1f} %, worst {100 * errors[worst]:.1f} % ({worst})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", default="", help="rows whose id starts with this")
    args = parser.parse_args()
    tables = {}
    for kind, title in (("ROWS", "calibration"), ("ASIDE", "aside")):
        tables[title] = [measure(r) for r in rows(kind) if r.id.startswith(args.only)]
    if args.json:
        print(json.dumps(tables, indent=2))
        return
    for title, results in tables.items():
        if not results:
            continue
        print(f"\n{title:53}{'':>13}{'published':>11}{'simulated':>11}{'error':>10}")
        print(*map(line, results), sep="\n")
        print(summary(results))
        for result in results:
            if result["reason"]:
                print(f"{result['id']}: {result['reason']}")
    print(f"{sum(r['seconds'] for t in tables.values() for r in t):.1f} s of simulation")


if __name__ == "__main__":
    main()
