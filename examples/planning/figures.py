"""What tables of plans say of an estimate, and how they are printed."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jax_trn3.estimates import Estimate
from jax_trn3.hardware import Topology

from .models import Model
from .parameters import active

GIB = 2**30


def model_flops(model: Model, tokens: int, sequence: int) -> float:
    """Operations that a training step needs, recomputation apart: 6 a parameter and token, and
    attention's two products, of which a causal mask leaves half (PaLM, arXiv:2204.02311, B)."""
    head = model.head_dim + (model.latent.rotary_dim / 2 if model.latent else 0)
    attention = 12 * model.layers * model.heads * head * sequence / 2
    return (6.0 * active(model) + attention) * tokens


@dataclass(frozen=True)
class Plan:
    """A training step on a machine, in the figures that people compare."""

    model: str
    precision: str
    topology: str
    layout: str
    devices: int
    time_s: float
    tokens_per_s: float
    mfu: float
    """Of the model's operations, without recomputation and places left empty, against the
    machine's peak in the precision of the products."""

    mfu_bf16: float
    """The same against the bfloat16 peak, as public figures are."""

    hfu: float
    """Share of the time in which TensorE multiplies."""

    peak_hbm_gib: float
    capacity_gib: float
    fits: bool
    energy_per_token_j: float | None
    exposed_collectives: float
    """Share of the time in which collectives are all that goes on."""

    bound: str


def peak_flops(topology: Topology, precision: str) -> float:
    """FLOP/s of one device in products of that precision."""
    kind = {"mxfp8": "mx"}.get(precision, "bfloat16")
    return topology.peak_flops(kind) / topology.num_devices


def plan(
    estimate: Estimate, model: Model, precision: str, layout: str, tokens: int, sequence: int
) -> Plan:
    """The figures of an estimated training step."""
    topology, needed = estimate.topology, model_flops(model, tokens, sequence)
    seconds = needed / estimate.num_devices / estimate.time_s
    energy = estimate.energy_j
    exposed = sum(line.time_ps for line in estimate.lines if line.kind == "collective")
    return Plan(
        model=model.name,
        precision=precision,
        topology=topology.name,
        layout=layout,
        devices=estimate.num_devices,
        time_s=estimate.time_s,
        tokens_per_s=estimate.tokens_per_s(tokens),
        mfu=seconds / peak_flops(topology, precision),
        mfu_bf16=seconds / peak_flops(topology, "bfloat16"),
        hfu=estimate.hfu,
        peak_hbm_gib=estimate.peak_hbm_bytes / GIB,
        capacity_gib=estimate.hbm_capacity_bytes / GIB,
        fits=estimate.fits,
        energy_per_token_j=None if energy is None else energy / tokens,
        exposed_collectives=exposed / estimate.time_ps,
        bound=estimate.bound,
    )


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    """On the terminal; numbers to the right."""
    table = Table(*header, title=title, box=SIMPLE_HEAD, title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console = Console()
    Console(width=max(console.width, 150) if not console.is_terminal else None).print(table)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a page."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
