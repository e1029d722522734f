"""What each scale rule costs in accuracy: Gaussian bfloat16 values in blocks of 32.

    python benchmarks/scale_rules.py [--json] [--blocks 262144] [--seed 0]

For each format and rule: the signal-to-noise ratio of all values in dB, 10 log10(sum x^2 / sum
error^2), and the largest error of any value relative to the amax of its block, in percent.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jax_trn3 import numerics


def errors(x, format, rule):
    """SNR in dB and worst error in percent of amax, of [blocks, 32] bfloat16."""
    on_the_grid = jax.jit(
        lambda x: numerics.quantize_dequantize(x, -1, format, scale_rule=rule, dtype=jnp.float32)
    )
    exact = np.asarray(x).astype(np.float64)
    error = np.abs(np.asarray(on_the_grid(x)).astype(np.float64) - exact)
    snr = 10 * np.log10((exact**2).sum() / (error**2).sum())
    worst = (error.max(-1) / np.abs(exact).max(-1)).max()
    return float(snr), float(100 * worst)


def measure(blocks, seed):
    x = np.random.default_rng(seed).standard_normal((blocks, 32), np.float32)
    x = jnp.asarray(x).astype(jnp.bfloat16)
    return [
        {"format": fmt.name, "rule": rule, "snr_db": snr, "worst_percent_of_amax": worst}
        for fmt in numerics.ELEMENT_FORMATS
        for rule in numerics.SCALE_RULES
        for snr, worst in [errors(x, fmt, rule)]
    ]


def table(rows, blocks, seed):
    table = Table(
        title=f"MX by scale rule: SNR in dB, and worst error in % of the block's amax\n"
        f"{blocks} blocks of 32 Gaussian bfloat16 values, nearest even, seed {seed}"
    )
    table.add_column("format")
    for rule in numerics.SCALE_RULES:
        table.add_column(rule, justify="right")
    for fmt in numerics.ELEMENT_FORMATS:
        cells = [r for r in rows if r["format"] == fmt.name]
        table.add_row(
            fmt.name, *(f"{c['snr_db']:.2f} dB {c['worst_percent_of_amax']:5.2f} %" for c in cells)
        )
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--blocks", type=int, default=1 << 18)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = measure(arguments.blocks, arguments.seed)
    if arguments.json:
        print("\n".join(json.dumps(row) for row in rows))
    else:
        Console().print(table(rows, arguments.blocks, arguments.seed))


if __name__ == "__main__":
    main()
