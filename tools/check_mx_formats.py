"""MX conversions at large: random float32 inputs, each format and rule, against two oracles.

    python tools/check_mx_formats.py [--inputs 10000000] [--seed 0] [--platform trn3]

Compares codes, scales and values bit for bit with gfloat and with the specification in integers
(tests/numerics/mx_oracle.py). A few minutes for each format; exits with 1 at a difference.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "trn3,cpu")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "numerics"))

import jax
import jax.numpy as jnp
import mx_oracle as oracle
import numpy as np

from jax_trn3 import numerics

CHUNK = 1 << 19


def differences(x: np.ndarray, format: str, rule: str, functions) -> int:
    """Blocks of x [n, 32] in which we and the oracles are not of one mind."""
    quantize, dequantize, direct = functions
    spec = oracle.SPECS[format]
    scale = oracle.scales(x, spec, rule)
    codes = oracle.elements(x, scale, spec)
    elements = oracle.values(codes, spec)
    wrong = (elements != oracle.gfloat_values(x, scale, spec)).any(-1)
    data, got_scale = quantize(x)
    got = np.asarray(data)
    got = got.astype(np.int64) if got.dtype == np.int8 else got.view(np.uint8).astype(np.int64)
    nan = scale == oracle.NAN_SCALE
    wrong |= (got != codes).any(-1) & ~nan
    wrong |= np.asarray(got_scale).view(np.uint8)[:, 0] != scale
    with np.errstate(over="ignore"):
        exponent = np.where(nan, 0, scale.astype(np.int64) - 127)[:, None]
        value = np.ldexp(elements, exponent).astype(np.float32)
    for back in (dequantize(data, got_scale), direct(x)):
        back = np.asarray(back)
        wrong |= (back.view(np.uint32) != value.view(np.uint32)).any(-1) & ~nan
        wrong |= ~np.isnan(back).all(-1) & nan
    return int(wrong.sum())


def check(format: str, rule: str, inputs: int, seed: int) -> int:
    functions = (
        jax.jit(lambda x: numerics.quantize(x, -1, format, scale_rule=rule)),
        jax.jit(lambda d, s: numerics.dequantize(d, s, -1, format)),
        jax.jit(
            lambda x: numerics.quantize_dequantize(
                x, -1, format, scale_rule=rule, dtype=jnp.float32
            )
        ),
    )
    found = differences(oracle.edges(), format, rule, functions)
    for chunk in range(-(-inputs // CHUNK)):
        x = oracle.random_float32(CHUNK, seed + chunk).reshape(-1, 32)
        found += differences(x, format, rule, functions)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--platform", default="trn3", choices=("trn3", "cpu"))
    parser.add_argument("--formats", nargs="*", default=list(oracle.SPECS))
    parser.add_argument("--rules", nargs="*", default=list(numerics.SCALE_RULES))
    arguments = parser.parse_args()
    jax.config.update("jax_default_device", jax.devices(arguments.platform)[0])
    total = 0
    for format in arguments.formats:
        for rule in arguments.rules:
            start = time.perf_counter()
            found = check(format, rule, arguments.inputs, arguments.seed)
            total += found
            seconds = time.perf_counter() - start
            print(f"{format:12s} {rule:7s} {found} wrong blocks   {seconds:.0f} s", flush=True)
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
