"""Collectives: against what AWS published, over sizes, and how long simulating them takes.

    python benchmarks/collectives.py [--json]

nccom-test.rst prints sample runs "that should not be considered up-to-date" and does not say on
what hardware. Assumed here: Trainium2 with LNC 2 (four ranks a chip, the default), the group on as
few chips of an instance as it fits, neighbours in rows; two instances joined by EFA for the run on
two nodes. Samples contain the launch by a host, which is not simulated: compare the slope (bytes
over the time between two sizes) for large messages, and take the rest for orders of magnitude.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from jax_trn3.hardware import Topology, get_topology
from jax_trn3.simulator.collectives import CollectiveTime, along, collective, simulate

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# Collective, ranks, nodes, and microseconds by size, as nccom-test.rst prints them.
SAMPLES: list[tuple[Any, int, int, dict[int, float]]] = [
    (
        "all_reduce",
        2,
        1,
        {KIB: 58, MIB: 68, 16 * MIB: 332, 64 * MIB: 1214, 256 * MIB: 4750, GIB: 18930},
    ),
    ("all_gather", 8, 1, {KIB: 10.0, 8 * KIB: 10.22, 64 * KIB: 11.31, 512 * KIB: 14.83}),
    ("all_gather", 32, 1, {KIB: 6.16, 8 * KIB: 6.48, 64 * KIB: 8.17, 512 * KIB: 23.16}),
    ("all_gather", 64, 1, {KIB: 101.14, 64 * KIB: 103.28, MIB: 117.67}),
    (
        "all_reduce",
        16,
        1,
        {
            8 * KIB: 299.74,
            128 * KIB: 574.15,
            2 * MIB: 686.32,
            32 * MIB: 2754.15,
            512 * MIB: 9689.51,
        },
    ),
    (
        "all_reduce",
        64,
        2,
        {8: 520, 64 * KIB: 1315, MIB: 1328, 64 * MIB: 3963, 512 * MIB: 21803, GIB: 41806},
    ),
    ("collective_permute", 8, 1, {32 * MIB: 894.24}),
]
PERMUTE = [(0, 1), (1, 0), (2, 3), (3, 2), (4, 4), (5, 5), (6, 6), (7, 7)]


def instances(nodes: int) -> Topology:
    """So many trn2.48xlarge that EFA joins."""
    server = get_topology("trn2-ultraserver", 2)
    return dataclasses.replace(
        server,
        name=f"{nodes} trn2 instances",
        num_chips=16 * nodes,
        chip_axes=("ultraserver", *server.chip_axes),
        chip_shape=(nodes, 1, 4, 4),
    )


def sample(kind: Any, ranks: int, nodes: int, size: int) -> CollectiveTime:
    """The simulated twin of one line."""
    each = ranks // nodes
    groups = along((nodes, 64 // each, each), (0, 2))
    if each < 64:  # one group alone, on the first chips
        groups = dataclasses.replace(groups, batch=())
    pairs = PERMUTE if kind == "collective_permute" else None
    return collective(kind, size, instances(nodes), groups=groups, pairs=pairs)


def published() -> Iterator[dict[str, Any]]:
    for kind, ranks, nodes, times in SAMPLES:
        before: tuple[int, float, float] | None = None
        for size, microseconds in times.items():
            result = sample(kind, ranks, nodes, size)
            row = {
                "collective": kind,
                "ranks": ranks,
                "nodes": nodes,
                "bytes": size,
                "published_us": microseconds,
                "simulated_us": result.time_ps / 1e6,
                "ratio": result.time_ps / 1e6 / microseconds,
                "algorithm": result.algorithm,
            }
            if before and size > MIB:
                row["published_slope_gb_per_s"] = (
                    (size - before[0]) / (microseconds - before[1]) / 1e3
                )
                row["simulated_slope_gb_per_s"] = (
                    (size - before[0]) / (row["simulated_us"] - before[2]) / 1e3
                )
            before = size, microseconds, row["simulated_us"]
            yield row


def curves() -> Iterator[dict[str, Any]]:
    """Bus bandwidth of all devices together, LNC 2, and how long the closed form takes."""
    for name in ("trn2-ultraserver", "trn3-gen1", "trn3-gen2", "trn3-ultracluster:1000000"):
        topology = get_topology(name, 2)
        for kind in ("all_reduce", "all_gather", "all_to_all"):
            for size in (64 * KIB, MIB, 16 * MIB, 256 * MIB, 4 * GIB):
                began = time.perf_counter()
                result = collective(kind, size, topology)  # type: ignore[arg-type]
                took = time.perf_counter() - began
                yield {
                    "topology": name,
                    "collective": kind,
                    "bytes": size,
                    "simulated_us": result.time_ps / 1e6,
                    "bus_gb_per_s": result.bus_bandwidth / 1e9,
                    "algorithm": result.algorithm,
                    "bound": result.bound,
                    "closed_form_ms": took * 1e3,
                }


def agreement() -> Iterator[dict[str, Any]]:
    """Closed form over event simulation, all devices, and the time each takes."""
    for name in ("trn2-instance", "trn2-ultraserver", "trn3-gen1", "trn3-gen2"):
        topology = get_topology(name, 2)
        for algorithm in ("ring", "kangaring", "mesh", "hierarchical"):
            if algorithm == "hierarchical" and name == "trn2-instance":
                continue
            began = time.perf_counter()
            closed = collective("all_reduce", 64 * MIB, topology, algorithm=algorithm)
            middle = time.perf_counter()
            event = simulate("all_reduce", 64 * MIB, topology, algorithm=algorithm)
            yield {
                "topology": name,
                "algorithm": algorithm,
                "ratio": closed.time_ps / event.time_ps,
                "closed_form_ms": (middle - began) * 1e3,
                "event_simulation_ms": (time.perf_counter() - middle) * 1e3,
            }


def show(title: str, rows: Iterator[dict[str, Any]]) -> None:
    if "--json" not in sys.argv:
        print(f"\n{title}")
    head: list[str] | None = None
    for row in rows:
        if "--json" in sys.argv:
            print(json.dumps(row))
            continue
        names = [name for name in row if not name.endswith("slope_gb_per_s")]
        if head is None:
            print("  ".join(f"{name:>18s}" for name in names))
            head = names
        cells = [
            f"{row[n]:18.2f}" if isinstance(row[n], float) else f"{row[n]!s:>18s}" for n in names
        ]
        slope = ""
        if "published_slope_gb_per_s" in row:
            slope = (
                f"   slope {row['published_slope_gb_per_s']:.1f} published, "
                f"{row['simulated_slope_gb_per_s']:.1f} simulated GB/s"
            )
        print("  ".join(cells) + slope)


if __name__ == "__main__":
    show("nccom-test samples (hardware not stated; Trainium2, LNC 2 assumed)", published())
    show("Bus bandwidth, all devices, LNC 2", curves())
    show("Closed form and event simulation, all-reduce of 64 MiB", agreement())
