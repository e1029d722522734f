"""Which mesh trains a model fastest: every layout of a server, estimated and ranked.

    python examples/plan_mesh.py [--model llama-3-70b] [--topology trn3-gen2] [--precision mxfp8]

Layouts are replica x fsdp x sequence x tensor over all cores, each with the fewest microbatches
with which it fits (tensor stays within a chip). The table says of each that loses why. `--devices`
takes fewer cores, `--top` shows more lines, `--json` is for programs.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "trn3,cpu")  # JAX reads it when it is imported
sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.progress import track

from examples.plan_training import Job, estimated
from examples.planning import models
from examples.planning.figures import Plan, markdown, plan, print_table
from examples.planning.layout import Layout
from examples.planning.models import Model
from examples.planning.parameters import count
from examples.planning.training import BATCH_SIZE, SEQUENCE, training_step
from jax_trn3.hardware import get_topology

DENSE = {m.name.lower(): m for m in models.TRAINED if m.experts is None}
AT_A_TIME = (8, 4, 2, 1)
"""Sequences that a group of devices may take at a time; the rest waits for the next microbatch."""


@dataclass(frozen=True)
class Candidate:
    """A layout, and what it would do."""

    layout: str
    plan: Plan


def layouts(model: Model, devices: int, cores_per_chip: int) -> Iterator[Layout]:
    """All that divide the model, the batch and the heads."""
    for tensor in _divisors(min(cores_per_chip, model.kv_heads)):
        for sequence in (1, 2, 4):
            for fsdp in _divisors(devices // (tensor * sequence)):
                replica, rest = divmod(devices, tensor * sequence * fsdp)
                layout = Layout(replica=replica, fsdp=fsdp, sequence=sequence, tensor=tensor)
                if not rest and divides(model, layout):
                    yield layout


def divides(model: Model, layout: Layout) -> bool:
    """Whether every dimension of the model and the batch can be divided so."""
    if BATCH_SIZE % layout.batch or model.kv_heads % (layout.tensor * layout.sequence):
        return False
    try:
        training_step(model, layout)
    except ValueError:
        return False
    return True


def _divisors(number: int) -> list[int]:
    return [k for k in range(1, number + 1) if number % k == 0]


def state_bytes(model: Model, layout: Layout) -> int:
    """Of a device, for parameters, moments and gradients alone, all in float32."""
    return 16 * count(model) // (layout.fsdp * layout.sequence * layout.tensor)


def best(model: Model, topology: str, precision: str, layout: Layout) -> Candidate:
    """The layout with the fewest microbatches with which it fits, or with the most of all."""
    each = BATCH_SIZE // layout.batch
    for sequences in AT_A_TIME:
        if each % sequences == 0:
            found = _candidate(model, topology, precision, layout, each // sequences)
            if found.plan.fits:
                break
    return found


def _candidate(
    model: Model, topology: str, precision: str, layout: Layout, microbatches: int
) -> Candidate:
    job = Job(model, topology, dataclasses.replace(layout, microbatches=microbatches), precision)
    name = f"{layout}, {microbatches} microbatches"
    tokens = BATCH_SIZE * SEQUENCE
    return Candidate(str(layout), plan(estimated(job), model, precision, name, tokens, SEQUENCE))


def search(
    model: Model, topology: str, precision: str, devices: int, processes: int
) -> tuple[list[Candidate], list[Layout]]:
    """All layouts, the best first; and those whose parameters alone do not fit."""
    machine = get_topology(topology)
    every = list(layouts(model, devices, machine.devices_per_chip))
    capacity = machine.hbm_bytes_per_device
    hopeless = [layout for layout in every if state_bytes(model, layout) > capacity]
    todo = [layout for layout in every if layout not in hopeless]
    work = functools.partial(best, model, topology, precision)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(work, layout) for layout in todo]
        done = track(
            as_completed(futures), "estimating", total=len(todo), disable=not sys.stderr.isatty()
        )
        found = [future.result() for future in done]
    return ranked(found), hopeless


def ranked(found: Sequence[Candidate]) -> list[Candidate]:
    """What fits first, the fastest first."""
    return sorted(found, key=lambda c: (not c.plan.fits, c.plan.time_s, c.layout))


def reason(candidate: Candidate, winner: Candidate) -> str:
    """Why it is not the winner."""
    mine, first = candidate.plan, winner.plan
    if candidate == winner:
        return "fastest"
    if not mine.fits:
        return f"does not fit: {mine.peak_hbm_gib:.0f} GiB"
    waiting = mine.exposed_collectives * mine.time_s - first.exposed_collectives * first.time_s
    slower = mine.time_s - first.time_s
    if waiting > 0.5 * slower:
        return f"collectives: {waiting:+.1f} s exposed"
    if mine.hfu < first.hfu and mine.time_s * mine.hfu > 1.02 * first.time_s * first.hfu:
        return "small products: TensorE works longer for the same"
    return f"what is not a product: {slower - waiting:+.1f} s"


HEADER = ("layout", "", "step", "tokens/s", "MFU", "collectives", "HBM of a core", "why")


def rows(found: Sequence[Candidate]) -> list[list[str]]:
    """Lines of the table."""
    return [
        [
            c.plan.layout,
            str(number),
            f"{c.plan.time_s:.1f} s",
            f"{c.plan.tokens_per_s:,.0f}",
            f"{100 * c.plan.mfu:.0f} %",
            f"{100 * c.plan.exposed_collectives:.0f} %",
            f"{c.plan.peak_hbm_gib:.1f} of {c.plan.capacity_gib:.0f} GiB",
            reason(c, found[0]),
        ]
        for number, c in enumerate(found, 1)
    ]


def main() -> None:
    """Search, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama-3-70b", choices=sorted(DENSE))
    parser.add_argument("--topology", default="trn3-gen2")
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "mxfp8"))
    parser.add_argument("--devices", type=int, help="cores of the mesh; all by default")
    parser.add_argument("--top", type=int, default=12, help="lines of the table")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    flags = parser.parse_args()
    model, devices = DENSE[flags.model], flags.devices or get_topology(flags.topology).num_devices
    found, hopeless = search(model, flags.topology, flags.precision, devices, flags.processes)
    if not found:
        parser.error(f"no layout of {devices} cores divides {model.name}: try --devices")
    lines = rows(found)[: flags.top]
    if flags.json:
        print(json.dumps([dataclasses.asdict(c.plan) for c in found], indent=2))
    elif flags.markdown:
        print(markdown(HEADER, lines))
    else:
        print_table(HEADER, lines, f"{model.name} on {devices} cores of {flags.topology}")
        print(
            f"{len(found)} layouts estimated, {sum(c.plan.fits for c in found)} fit; of "
            f"{len(hopeless)} more the parameters, moments and gradients alone do not"
        )


if __name__ == "__main__":
    main()
