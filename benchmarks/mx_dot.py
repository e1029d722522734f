"""What mx_dot_general costs, against the float32 product and against PyTorch's emulation.

    python benchmarks/mx_dot.py [--json] [--torch-python /path/to/python]

The product is 2048^3, of float32 operands that are quantized to MXFP8. PyTorch's emulation is
torchao's MXTensor or the package `mx` (microxcaling) on the CPU, in a process of the given
interpreter (default: this one), as far as they are installed there. All are measured in turns; the
fastest round of each counts.
"""

import os

os.environ["JAX_PLATFORMS"] = "trn3,cpu"

import argparse
import json
import subprocess
import sys
import time

import jax
import numpy as np

from jax_trn3 import mx_dot_general

N = 2048
ROUNDS = 12
MATMUL = (((1,), (0,)), ((), ()))

# Prints "ready", or why not; then the seconds of a call for each line it reads.
EMULATION = """
import sys, time
try:
    import torch
    {imports}
except ImportError as error:
    print(error)
    sys.exit()
x, w = torch.randn({n}, {n}), torch.randn({n}, {n})
{setup}
{call}
print("ready", flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    {call}
    print(time.perf_counter() - start, flush=True)
"""
TORCHAO = EMULATION.format(
    n=N,
    imports="from torchao.prototype.mx_formats.mx_tensor import MXTensor",
    setup="mx = lambda a: MXTensor.to_mx(a, torch.float8_e4m3fn, 32)",
    call="torch.mm(mx(x), mx(w.t().contiguous()).t())",
)
MICROXCALING = EMULATION.format(
    n=N,
    imports="import mx",
    setup="""specs = mx.finalize_mx_specs({"w_elem_format": "fp8_e4m3", "a_elem_format": "fp8_e4m3",
    "block_size": 32, "scale_bits": 8, "custom_cuda": False})""",
    call="mx.matmul(x, w, mx_specs=specs)",
)


def jitted(function, platform):
    """Seconds of a call, waited for."""
    random = np.random.default_rng(0)
    device = jax.devices(platform)[0]
    x, w = (jax.device_put(random.normal(size=(N, N)).astype(np.float32), device) for _ in "xw")
    compiled = jax.jit(lambda x, w: function(x, w, MATMUL))
    compiled(x, w).block_until_ready()

    def seconds():
        start = time.perf_counter()
        compiled(x, w).block_until_ready()
        return time.perf_counter() - start

    return seconds


def emulated(code, python):
    """Seconds of a call in a process of another interpreter; None if it cannot."""
    process = subprocess.Popen(
        [python, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    answer = process.stdout.readline().strip()
    if answer != "ready":
        print(f"left out: {answer or 'it ended before it was ready'}", file=sys.stderr)
        return None

    def seconds():
        print(file=process.stdin, flush=True)
        return float(process.stdout.readline())

    return seconds


def measure(python):
    timers = {
        "float32 on cpu": jitted(jax.lax.dot_general, "cpu"),
        "mx_dot_general on cpu": jitted(mx_dot_general, "cpu"),
        "mx_dot_general on trn3": jitted(mx_dot_general, "trn3"),
        "torchao": emulated(TORCHAO, python),
        "microxcaling": emulated(MICROXCALING, python),
    }
    timers = {name: timer for name, timer in timers.items() if timer}
    best = dict.fromkeys(timers, float("inf"))
    for _ in range(ROUNDS):
        for name, timer in timers.items():
            best[name] = min(best[name], timer())
    return best


def report(best):
    plain, mx = best["float32 on cpu"], best["mx_dot_general on cpu"]
    for name, seconds in best.items():
        row = {"name": name, "seconds": seconds, "of_float32": seconds / plain}
        if "--json" in sys.argv:
            print(json.dumps(row))
        else:
            print(
                f"{name:24s} {seconds * 1e3:9.1f} ms   {seconds / plain:6.2f} x float32   "
                f"{seconds / mx:6.2f} x mx_dot_general"
            )
    print(f"limit: mx_dot_general at most 1.25 x float32, is {mx / plain:.2f}", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--torch-python", default=sys.executable)
    report(measure(parser.parse_args().torch_python))
