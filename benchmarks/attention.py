"""Fused attention against jax.nn's: S = 8192, causal, 8 heads of 64, float32, on the CPU backend.

Times in one process, interleaved, the fastest of a few rounds. Peak memory (VmHWM) of each variant
in a process of its own, less what the process had when its operands were there; S = 65536, forward
and backward, as resident memory of the whole process.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp

from jax_trn3 import dot_product_attention

LENGTH, LONG = 8192, 65536
HEADS, FEATURES, ROUNDS = 8, 64, 3
ATTENTION = {"fused": dot_product_attention, "jax.nn": jax.nn.dot_product_attention}


def function(variant: str, direction: str):
    """Forward, or forward and backward."""
    attention = ATTENTION[variant]

    def forward(query, key, value, cotangent):
        return attention(query, key, value, is_causal=True)

    def both(query, key, value, cotangent):
        out, pull = jax.vjp(lambda *args: forward(*args, cotangent), query, key, value)
        return out, pull(cotangent)

    return jax.jit(forward if direction == "forward" else both)


def arguments(length: int):
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (1, length, HEADS, FEATURES)
    return jax.block_until_ready([jax.random.normal(key, shape, jnp.float32) for key in keys])


def seconds(direction: str) -> dict[str, float]:
    """The fastest call of each variant."""
    args = arguments(LENGTH)
    functions = {
        variant: function(variant, direction).lower(*args).compile() for variant in ATTENTION
    }
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(ROUNDS):
        for variant, run in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(run(*args))
            best[variant] = min(best[variant], time.perf_counter() - start)
    return best


def resident(peak: bool) -> int:
    field = "VmHWM:" if peak else "VmRSS:"
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024


def memory(variant: str, direction: str, length: int) -> dict[str, float]:
    """Of one call in this process: bytes at its peak, bytes of these beside operands; seconds."""
    args = arguments(length)
    run = function(variant, direction).lower(*args).compile()
    before = resident(peak=False)
    start = time.perf_counter()
    jax.block_until_ready(run(*args))
    elapsed = time.perf_counter() - start
    return {"peak": resident(peak=True), "own": resident(peak=True) - before, "seconds": elapsed}


def in_a_process(*arguments: object) -> dict[str, float]:
    command = [sys.executable, __file__, "memory", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    for direction in ("forward", "forward+backward"):
        times = seconds(direction)
        own = {v: in_a_process(v, direction, LENGTH)["own"] for v in ATTENTION}
        print(
            f"S={LENGTH} {direction:17s} fused {times['fused']:7.2f} s  "
            f"jax.nn {times['jax.nn']:7.2f} s  ratio {times['fused'] / times['jax.nn']:5.3f}   "
            f"memory {own['fused'] / 2**20:6.0f} MiB  {own['jax.nn'] / 2**20:6.0f} MiB  "
            f"ratio {own['fused'] / own['jax.nn']:5.3f}",
            flush=True,
        )
    long = in_a_process("fused", "forward+backward", LONG)
    print(
        f"S={LONG} forward+backward fused {long['seconds']:.1f} s, "
        f"{long['peak'] / 2**30:.2f} GiB resident at the peak (limit 4)"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        print(json.dumps(memory(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
    else:
        main()
