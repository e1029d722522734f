"""What MX quantization costs, against a copy-and-cast pass and against PyTorch's emulation.

    python benchmarks/quantize.py [--json] [--torch-python /path/to/python]

The array is 4096 x 4096 float32. PyTorch's emulation is torchao's `to_mx` (PyPI) on the CPU, in a
process of the given interpreter (default: this one), if it is installed there. All are measured in
turns; the fastest round of each counts.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import argparse
import functools
import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from jax_trn3 import numerics

SHAPE = (4096, 4096)
ROUNDS = 12

# Prints "ready", or why not; then the seconds of a call for each line it reads.
TORCHAO = f"""
import sys, time
try:
    import torch
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import to_mx
except ImportError as error:
    print(error)
    sys.exit()
x = torch.randn({SHAPE})
to_mx(x, torch.float8_e4m3fn, 32, ScaleCalculationMode.FLOOR)
print("ready", flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    to_mx(x, torch.float8_e4m3fn, 32, ScaleCalculationMode.FLOOR)
    print(time.perf_counter() - start, flush=True)
"""


def jitted(function):
    """Seconds of a call, waited for."""
    x = jax.device_put(np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32))
    compiled = jax.jit(function).lower(x).compile()
    compiled(x)

    def seconds():
        start = time.perf_counter()
        jax.block_until_ready(compiled(x))
        return time.perf_counter() - start

    return seconds


def torchao(python):
    """The same of torchao in another process, or None."""
    process = subprocess.Popen(
        [python, "-W", "ignore", "-c", TORCHAO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    answer = process.stdout.readline().strip()
    if answer != "ready":
        print(f"no torchao in {python}: {answer or 'it ended'}", file=sys.stderr)
        return None

    def seconds():
        process.stdin.write("go\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    return seconds


def cast(x):
    return x.astype(jnp.float8_e4m3fn)


def cases():
    """Name, function, what it is measured against, the limit of the ratio that we set ourselves."""
    quantize, on_the_grid = numerics.quantize, numerics.quantize_dequantize
    for axis, place in ((-1, "last"), (0, "first")):
        yield f"quantize, {place} axis", functools.partial(quantize, axis=axis), "cast", 2.0
        yield f"on the grid, {place} axis", functools.partial(on_the_grid, axis=axis), "copy", 2.0
    for fmt in numerics.ELEMENT_FORMATS[1:]:
        against = "cast to float4" if fmt.bits == 4 else "cast"
        yield f"quantize, {fmt.name}", functools.partial(quantize, format=fmt), against, 2.0


def measure(python):
    timers = {
        "cast": jitted(cast),
        "cast to float4": jitted(lambda x: x.astype(jnp.float4_e2m1fn)),
        "copy": jitted(lambda x: x * 2),
    }
    timers |= {name: jitted(function) for name, function, _, _ in cases()}
    if emulation := torchao(python):
        timers["torchao to_mx"] = emulation
    best = dict.fromkeys(timers, float("inf"))
    for _ in range(ROUNDS):
        for name, seconds in timers.items():
            best[name] = min(best[name], seconds())
    rows = [
        (name, best[name], against, best[against], limit) for name, _, against, limit in cases()
    ]
    if emulation:
        ours = best["quantize, last axis"]
        rows.append(("quantize, last axis", ours, "torchao to_mx", best["torchao to_mx"], 0.1))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter with torchao")
    arguments = parser.parse_args()
    for name, seconds, against, other, limit in measure(arguments.torch_python):
        ratio = seconds / other
        if arguments.json:
            row = {"name": name, "seconds": seconds, "against": against, "against_seconds": other}
            print(json.dumps(row | {"ratio": ratio, "limit": limit}))
        else:
            verdict = "ok" if ratio <= limit else "over the limit"
            print(
                f"{name:26s} {seconds * 1e3:8.2f} ms   {against:14s} {other * 1e3:8.2f} ms   "
                f"ratio {ratio:5.2f}   limit {limit:.2f}   {verdict}"
            )


if __name__ == "__main__":
    main()
