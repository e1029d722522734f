"""Writes docs/planning.md and its picture anew: `python tools/planning_page.py`, some ten minutes.

All on the page is what `examples/plan_training.py`, `plan_mesh.py` and `plan_decode.py` find.
"""

import os
import sys
from collections import Counter
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "trn3,cpu")  # JAX reads it when it is imported
sys.path.insert(0, str(Path(__file__).parents[1]))

from examples import plan_decode, plan_mesh, plan_training
from examples.planning.figures import markdown
from examples.planning.models import LLAMA3_70B
from jax_trn3.hardware import get_topology
from jax_trn3.hardware.datasheet import rows

PAGE = Path(__file__).parents[1] / "docs" / "planning.md"
CONTEXT = 8192

TEXT = """# Planning

What training and decoding of public models would cost, from the JAX programs in
`examples/planning/`: traced on shapes, partitioned by Shardy for the mesh, made into engine
instructions and simulated. Nothing runs, and nobody has measured a Trainium3: the numbers follow
from the machine's constants as `jax-trn3 info` prints them ({constants}). This page is written by
`python tools/planning_page.py`; each table by the example named.

## Training

`python examples/plan_training.py`. A step is {batch} sequences of {sequence} tokens: forward,
backward with every layer recomputed, gradients of microbatches summed, clipping, AdamW with
float32 parameters and moments (DeepSeek-V3: bfloat16 moments, as its report has). Products in
bfloat16, or in MXFP8 but for embedding, router and output layer. MFU counts what the model needs
(6 a parameter and token, and attention, half of it where the mask hides the rest), against the
peak of the type that products are in, and once more against bfloat16's; TensorE is the share of
the time in which the array multiplies (recomputation, masked tiles and experts' empty places
included); collectives, the share in which nothing else goes on. Energy is that of the chips
alone.

{training}

Nothing of Llama-3 405B or of DeepSeek-V3 divides by 9: they take 128 of the 144 chips. Mixtral
has places for 1.25 times an expert's average tokens, the DeepSeek-V3-like model for as many as it
has on average. The latter has no multi-token prediction, takes the best eight experts of all, and
pads values to the width of keys. Attention is computed in bfloat16 throughout.

Beside what is public, on other machines: MaxText trains Llama-3 70B with 507 TFLOP/s on each of
128 H100s, 51 % of their bfloat16 peak (NVIDIA's DGX Cloud recipe, 25.02); Llama-3 405B ran at 38
to 43 % on 8,192 to 16,384 H100s (arXiv:2407.21783, table 4); NeMo's FP8 recipe trains Llama-3 70B
with 734 TFLOP/s on 64 H100s, 37 % of their FP8 peak; DeepSeek-V3 took 180,000 H800 hours a
trillion tokens (arXiv:2412.19437), 35 % of the bfloat16 peak by the same count. An estimate has
no stragglers, no throttling, no host in the way and experts that are perfectly balanced: read it
as what a tuned program could reach.

## Which mesh

`python examples/plan_mesh.py`: every replica x fsdp x sequence x tensor mesh of {devices} cores
that divides {model}, in bfloat16, each with the fewest microbatches with which it fits. The best,
and why the others lose:

{mesh}

## Decoding

`python examples/plan_decode.py`: gpt-oss-120b with {context:,} tokens of context for every user,
experts shared by a group of 1 to 16 chips, users swept. Trainium3 multiplies the published MXFP4
weights as they are; Trainium2 has the experts in bfloat16, or in float8. AWS showed more than 5
times the tokens a megawatt at equal interactivity (re:Invent 2025, AIM3335; it did not say with
which software). A chip of either kind is taken to draw about 500 W, which AWS does not publish:
the ratios move with it.

![tokens a second and megawatt against tokens a second and user](planning_decode.png)

{comparison}

An estimate of decoding is on the slow side: groups of operations start one after another, so that
weights are not fetched ahead while the group before computes, a layer's slice of the cache is
copied before attention reads it, and keys are transposed on their way. What holds for both chips
takes away from their difference.

The points:

{points}
"""


def constants() -> str:
    """What the machine's constants rest on."""
    kinds = Counter(row.confidence for row in rows(get_topology("trn3-gen2")))
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def main() -> None:
    """Estimate everything, and write."""
    processes = os.cpu_count() or 1
    trained = plan_training.plans(list(plan_training.jobs()), processes)
    devices = get_topology("trn3-gen2").num_devices
    meshes, _ = plan_mesh.search(LLAMA3_70B, "trn3-gen2", "bfloat16", devices, processes)
    decoded = plan_decode.frontiers(plan_decode.points(CONTEXT, processes))
    plan_decode.plot(decoded, PAGE.with_name("planning_decode.png"))
    PAGE.write_text(
        TEXT.format(
            constants=constants(),
            batch=f"{plan_training.BATCH_SIZE:,}",
            sequence=f"{plan_training.SEQUENCE:,}",
            training=markdown(plan_training.HEADER, [plan_training.row(p) for p in trained]),
            devices=f"{devices:,}",
            model=LLAMA3_70B.name,
            mesh=markdown(plan_mesh.HEADER, plan_mesh.rows(meshes)[:12]),
            context=CONTEXT,
            comparison=markdown(plan_decode.COMPARED, plan_decode.comparison(decoded)),
            points=markdown(plan_decode.HEADER, plan_decode.rows(decoded)),
        )
    )


if __name__ == "__main__":
    main()
