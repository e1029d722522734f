"""Kernels of programs that were lowered in this process, by the keys that the programs carry."""

from __future__ import annotations

import hashlib

from .kernel import Kernel

KERNELS: dict[str, Kernel] = {}
"""By key. A program that comes from another process names kernels that are not here."""


def remember(kernel: Kernel) -> str:
    """The kernel's key: its name, and a digest of its text."""
    text = f"{kernel.jaxpr}{kernel.grid_mapping}{kernel.params}{kernel.aliases}"
    key = f"{kernel.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    KERNELS[key] = kernel
    return key
