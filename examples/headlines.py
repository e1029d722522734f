"""What AWS says of Trainium2 and 3, and what the simulation of it finds.

    python examples/headlines.py [--json]

Claims are those of the re:Invent 2025 talk AIM3335, "AWS Trn3 UltraServers: Power next-generation
enterprise AI performance", of the launch, and of the AWS Neuron SDK's docs (SDK 2.32.0). Simulated
figures are times of the programs in `headline_programs` on one core with half an HBM stack's
bandwidth, of collectives on 64 chips, or sums over the data of a server. Where AWS gives no figure,
only a direction, there is none to compare with.
"""

import argparse
import functools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.collective_scenarios import moe_all_to_all, token_decode
from examples.headline_programs.matmul import matmul
from examples.headline_programs.quantized_matmul import ROWS, Memory, quantized_matmul
from examples.headline_programs.softmax import Exponentials, exponentials, softmax
from jax_trn3.hardware import Chip, get_topology
from jax_trn3.simulator import Program, Timeline, simulate

TALK = "AIM3335"
CORE2, CORE3 = "neuron-core-v3.rst", "neuron-core-v4.rst"
GUIDE2, GUIDE3 = "trainium2_arch.rst", "trainium3_arch.rst"
SERVERS = "trn3-arch.rst"


@dataclass(frozen=True)
class Headline:
    """A claim, and what the simulation says."""

    claim: str
    source: str
    unit: str
    """ "x" for how many times."""

    simulated: float
    published: float | None = None
    """None where the claim has no figure."""

    note: str = ""
    """Why the two differ, or what holds the simulated one."""

    @property
    def difference(self) -> float | None:
        """Simulated against published, as a share of the latter."""
        return None if self.published is None else self.simulated / self.published - 1


def trainium2() -> Chip:
    """The chip of a Trn2 UltraServer."""
    return get_topology("trn2-ultraserver").chip


def trainium3() -> Chip:
    """The chip of a Trn3 UltraServer."""
    return get_topology("trn3-gen2").chip


def run(program: Program, chip: Chip) -> Timeline:
    """The program on one core, the other one of its HBM stack being as busy."""
    return simulate(program, chip, active_cores=chip.cores_per_stack)


# Products.


@functools.cache
def product(size: int, precision: str, chip: Chip) -> Timeline:
    """A square product."""
    return run(matmul(size, size, size, precision), chip)


def products() -> Iterator[Headline]:
    """Rates of narrow formats, and how much of a core's peak a whole program reaches."""
    for name, chip, precision, published, source in (
        ("FP8 (double row)", trainium2(), "float8", 2.0, GUIDE2),
        ("MXFP8", trainium3(), "mxfp8", 4.0, GUIDE3),
    ):
        for size in (4096, 8192):
            plain, narrow = (product(size, kind, chip) for kind in ("bfloat16", precision))
            yield Headline(
                f"{name} against bfloat16, {chip.name}, {size}^3",
                f"{TALK}; {source}",
                "x",
                plain.time_ps / narrow.time_ps,
                published,
                f"{plain.active_ps / narrow.active_ps:.2f}x without start and stop",
            )
    for chip, precision, published, source in (
        (trainium2(), "bfloat16", 79, CORE2),
        (trainium2(), "float8", 158, CORE2),
        (trainium3(), "bfloat16", 79, CORE3),
        (trainium3(), "mxfp8", 315, CORE3),
    ):
        timeline = product(8192, precision, chip)
        yield Headline(
            f"{precision} peak of a {chip.core.name}, reached by 8192^3",
            source,
            "TFLOPS",
            timeline.flops / timeline.time_s / 1e12,
            published,
        )
    yield Headline(
        "more than 90 % of Trainium3's TensorE used",
        f"{TALK}, of Anthropic's kernels",
        "%",
        100 * product(8192, "mxfp8", trainium3()).engines["core0/tensor"].utilization,
        90,
        "here: MXFP8 8192^3",
    )


# Softmax.


def _speedup(scalar: Program, vector: Program) -> float:
    chip = trainium3()
    return run(scalar, chip).active_ps / run(vector, chip).active_ps


def softmaxes() -> Iterator[Headline]:
    """Exponentials on VectorE against ScalarE: alone, and as a part of softmax."""
    engines: tuple[Exponentials, Exponentials] = ("scalar", "vector")
    scalar, vector = (exponentials(64, 4096, on) for on in engines)
    yield Headline(
        "exponential on VectorE against ScalarE, instructions",
        f"{TALK}; {GUIDE3}",
        "x",
        _speedup(scalar, vector),
        4.0,
    )
    memories: tuple[Memory, Memory] = ("sbuf", "hbm")
    for memory, why in zip(memories, ("maxima and products remain", "DMA-bound either way")):
        scalar, vector = (softmax(4096, 8192, on, memory) for on in engines)
        yield Headline(
            f"  the same in a softmax of 4096 x 8192, rows in {memory.upper()}",
            "-",
            "x",
            _speedup(scalar, vector),
            note=why,
        )


# Quantization.

_USES = range(1, 17)
_FREE = 1.01
"""Time that counts as no more, in the steady state."""


def _quantized(uses: int, columns: int, memory: Memory, quantize: bool) -> Timeline:
    program = quantized_matmul(uses * ROWS, 2048, columns, quantize=quantize, memory=memory)
    return run(program, trainium3())


def cost_of_quantizing(uses: int, memory: Memory) -> float:
    """Time of a product quantized on line over one quantized before, in the steady state."""
    columns = 2048 if memory == "sbuf" else 8192
    online, before = (
        _quantized(uses, 2 * columns, memory, quantize).active_ps
        - _quantized(uses, columns, memory, quantize).active_ps
        for quantize in (True, False)
    )
    return online / before


def quantization() -> Iterator[Headline]:
    """What it takes from TensorE that VectorE quantizes the moving operand on line."""
    online, before = (_quantized(8, 4096, "sbuf", quantize) for quantize in (True, False))
    used, alone = (
        timeline.engines["core0/tensor"].busy / timeline.active_ps for timeline in (online, before)
    )
    yield Headline(
        "quantized on line or before: time of MXFP8 1024 x 2048 x 4096",
        f"{TALK}: no cost",
        "x",
        online.active_ps / before.active_ps,
        1.0,
        f"waits for its first tile; TensorE works {used:.1%}, {alone:.1%}",
    )
    once = f"{cost_of_quantizing(1, 'sbuf'):.2f}x the time if used once"
    cases: tuple[tuple[Memory, float | None, str, str], ...] = (
        ("sbuf", 2, "mxfp-matmul.rst", once),
        ("hbm", None, "-", "DMA of bfloat16 is slower than VectorE"),
    )
    for memory, published, source, note in cases:
        free = next(uses for uses in _USES if cost_of_quantizing(uses, memory) <= _FREE)
        yield Headline(
            f"  free if a tile from {memory.upper()} is used so often",
            source,
            "uses",
            free,
            published,
            note,
        )


# Chips together.


def collectives() -> Iterator[Headline]:
    """Switches against a torus, SBUF against HBM."""
    for tokens in (16, 256, 4096):
        compared = moe_all_to_all(tokens)
        yield Headline(
            f"all-to-all of experts, 64 chips, {tokens} tokens each: torus to switches",
            f"{TALK}; {SERVERS}",
            "x",
            compared.speedup,
            note=f"{compared.after.time_ps / 1e6:.0f} us, bound by {_bound(compared.after.bound)}",
        )
    for batch in (1, 16, 128):
        compared = token_decode(batch)
        yield Headline(
            f"all-reduce in decoding {batch} token{'s' * (batch > 1)}, one chip: HBM to SBUF",
            TALK,
            "x",
            compared.speedup,
            note=f"{compared.after.time_ps / 1e6:.1f} us, bound by {_bound(compared.after.bound)}",
        )


def _bound(name: str) -> str:
    return "the trigger" if name == "trigger" else name


def servers() -> Iterator[Headline]:
    """Sums over the data of servers, in AWS's units: a TB of HBM is 1,000 GiB."""
    new, old = get_topology("trn3-gen2"), get_topology("trn2-ultraserver")
    gib_1000 = 1000 * 2**30
    for topology, petaflops, capacity in (
        (get_topology("trn3-gen1"), 161, 9.2),
        (new, 362, 20.7),
    ):
        name = topology.name
        yield Headline(
            f"MXFP8 of {name}", SERVERS, "PFLOPS", topology.peak_flops("mx") / 1e15, petaflops
        )
        yield Headline(f"HBM of {name}", SERVERS, "TB", topology.hbm_bytes / gib_1000, capacity)
    compute = new.peak_flops("mx") / old.peak_flops("float8_double_row")
    given = new.published_peak_flops("mx") / old.published_peak_flops("float8_double_row")
    bandwidth = new.hbm_bandwidth_bytes_per_s / old.hbm_bandwidth_bytes_per_s
    against = "Trn3 Gen2 against Trn2 UltraServer"
    yield Headline(
        f"{against}: compute",
        "launch",
        "x",
        compute,
        4.4,
        f"by peaks of cores; AWS's of chips make {given:.2f}",
    )
    yield Headline(f"{against}: memory", "launch", "x", new.hbm_bytes / old.hbm_bytes, 3.4)
    yield Headline(f"{against}: bandwidth", "launch", "x", bandwidth, 3.9, "AWS's own tables")


def headlines() -> list[Headline]:
    """All of them."""
    parts = (products, softmaxes, quantization, collectives, servers)
    return [headline for part in parts for headline in part()]


def table(found: list[Headline]) -> Table:
    """For reading."""
    drawn = Table(box=SIMPLE_HEAD)
    for column in ("claim", "source"):
        drawn.add_column(column)
    for column in ("published", "simulated", "difference"):
        drawn.add_column(column, justify="right", no_wrap=True)
    drawn.add_column("note")
    for line in found:
        published = "-" if line.published is None else f"{line.published:g} {line.unit}"
        difference = "-" if line.difference is None else f"{line.difference:+.1%}"
        simulated = f"{line.simulated:.4g} {line.unit}"
        drawn.add_row(line.claim, line.source, published, simulated, difference, line.note)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    found = headlines()
    if parser.parse_args().json:
        print(json.dumps([asdict(line) | {"difference": line.difference} for line in found]))
    else:
        Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 130).print(
            table(found)
        )


if __name__ == "__main__":
    main()
