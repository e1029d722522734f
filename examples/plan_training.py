"""What training steps of public models would cost on a server of Trainium3, and of Trainium2.

    python examples/plan_training.py [--json] [--only llama-3-70b]

A step: 1,152 sequences of 8,192 tokens, forward, backward with recomputation of every layer, AdamW
in float32; products in bfloat16, or in MXFP8, but for the embedding, the router and the output
layer. Simulated from the program that JAX makes, partitioned for the mesh (`examples/planning/`);
nothing runs.
"""

import argparse
import dataclasses
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

import jax_trn3
from examples.planning import models
from examples.planning.figures import Plan, markdown, plan, print_table
from examples.planning.layout import Layout
from examples.planning.models import Model
from examples.planning.training import BATCH_SIZE, SEQUENCE, training_step
from jax_trn3.estimates import Estimate, estimate

UNQUANTIZED = ("embedding", "router", "lm_head")
"""Scopes whose products stay in bfloat16."""


@dataclass(frozen=True)
class Job:
    """A model on a machine."""

    model: Model
    topology: str
    layout: Layout
    precision: str


def jobs() -> Iterator[Job]:
    """Every model, with the layout that fits it; MXFP8 where the chip has it.

    Nothing of Llama-3 405B or DeepSeek-V3 divides by 9: they take 128 of the 144 chips.
    """
    gen2 = {
        models.LLAMA3_70B: Layout(replica=9, fsdp=16, tensor=8, microbatches=8),
        models.LLAMA3_405B: Layout(fsdp=128, tensor=8, microbatches=9),
        models.MIXTRAL_8X22B: Layout(replica=3, fsdp=12, expert=8, tensor=4, microbatches=4),
        models.DEEPSEEK_V3: Layout(fsdp=16, expert=8, tensor=8, microbatches=9),
    }
    trn2 = {
        models.LLAMA3_70B: Layout(fsdp=64, tensor=8, microbatches=18),
        models.LLAMA3_405B: Layout(fsdp=64, tensor=8, microbatches=18),
        models.MIXTRAL_8X22B: Layout(fsdp=16, expert=8, tensor=4, microbatches=9),
        models.DEEPSEEK_V3: Layout(fsdp=8, expert=8, tensor=8, microbatches=18),
    }
    for model in models.TRAINED:
        for precision in ("bfloat16", "mxfp8"):
            yield Job(model, "trn3-gen2", gen2[model], precision)
        yield Job(model, "trn2-ultraserver", trn2[model], "bfloat16")


def estimated(job: Job) -> Estimate:
    """The training step on the machine."""
    step, shapes = training_step(job.model, job.layout)
    precision = {"bfloat16": "default"}.get(job.precision, job.precision)
    with jax_trn3.matmul_precision(precision, except_scopes=UNQUANTIZED):
        return estimate(step, *shapes, topology=job.topology)


def planned(job: Job) -> Plan:
    """Its figures."""
    tokens = BATCH_SIZE * SEQUENCE
    layout = f"{job.layout}, {job.layout.microbatches} microbatches"
    return plan(estimated(job), job.model, job.precision, layout, tokens, SEQUENCE)


def plans(todo: Sequence[Job], processes: int) -> list[Plan]:
    """The figures of all jobs, in processes of their own."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        found = {pool.submit(planned, job): number for number, job in enumerate(todo)}
        done = {}
        for future in track(
            as_completed(found), "estimating", total=len(todo), disable=not sys.stderr.isatty()
        ):
            done[found[future]] = future.result()
    return [done[number] for number in range(len(todo))]


HEADER = (
    "model", "machine, layout", "products", "step", "tokens/s", "MFU", "of bf16", "TensorE",
    "collectives", "HBM of a core", "J/token",
)  # fmt: skip


def row(plan: Plan) -> list[str]:
    """A line of the table."""
    fits = "" if plan.fits else ", does not fit"
    energy = plan.energy_per_token_j
    return [
        plan.model,
        f"{plan.topology}, {plan.devices} cores: {plan.layout}",
        plan.precision,
        f"{plan.time_s:.1f} s",
        f"{plan.tokens_per_s:,.0f}",
        f"{100 * plan.mfu:.0f} %",
        f"{100 * plan.mfu_bf16:.0f} %",
        f"{100 * plan.hfu:.0f} %",
        f"{100 * plan.exposed_collectives:.0f} %",
        f"{plan.peak_hbm_gib:.1f} of {plan.capacity_gib:.0f} GiB{fits}",
        "-" if energy is None else f"{energy:.3f}",
    ]


def main() -> None:
    """Estimate, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--markdown", action="store_true", help="print the table of the page")
    parser.add_argument("--only", default="", help="models whose name has this in it")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="at once")
    flags = parser.parse_args()
    todo = [job for job in jobs() if flags.only.lower() in job.model.name.lower()]
    if not todo:
        parser.error(f"no model named {flags.only!r}: {[m.name for m in models.TRAINED]}")
    found = plans(todo, min(flags.processes, len(todo)))
    if flags.json:
        print(json.dumps([dataclasses.asdict(plan) for plan in found], indent=2))
    elif flags.markdown:
        print(markdown(HEADER, [row(plan) for plan in found]))
    else:
        print_table(HEADER, [row(plan) for plan in found], "Training steps")


if __name__ == "__main__":
    main()
