"""Host to device and back."""

import os

os.environ["JAX_PLATFORMS"] = "trn3,cpu"

import jax
import numpy as np
from timing import Ratio, compare, report

MIB = 1 << 20


def measure() -> list[Ratio]:
    def there_and_back(x):
        return lambda device: lambda: np.asarray(jax.device_put(x, device).block_until_ready())

    def there_and_copy(x):
        return lambda device: lambda: np.array(jax.device_put(x, device))

    aligned = np.ones(256 * MIB // 4 + 64, np.float32)
    offset = -aligned.ctypes.data % 64 // 4
    aligned = aligned[offset : offset + 256 * MIB // 4]
    unaligned = np.ones(256 * MIB // 4 + 1, np.float32)[1:]
    small = np.ones(256, np.float32)
    return [
        compare("256 MiB there and back", there_and_back(unaligned), limit=1.2, rounds=8, calls=1),
        compare(
            "256 MiB, aligned: nothing is copied",
            there_and_back(aligned),
            limit=2.0,
            rounds=8,
            calls=1,
        ),
        compare(
            "256 MiB there, back into new memory",
            there_and_copy(unaligned),
            limit=1.2,
            rounds=8,
            calls=1,
        ),
        compare("1 KiB there and back", there_and_back(small), limit=2.0, rounds=30, calls=300),
    ]


if __name__ == "__main__":
    report(measure())
