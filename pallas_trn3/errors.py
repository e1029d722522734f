"""What is wrong with a kernel: each error names its line, the tile, the numbers and the limit."""

from __future__ import annotations


class KernelError(ValueError):
    """A kernel that does something wrong."""


class OutOfBounds(KernelError):
    """Indices outside of a tile or an array."""


class UndefinedValue(KernelError):
    """A value that is used although nothing has written it."""


class UnwrittenOutput(KernelError):
    """An output with elements that the kernel never writes."""


class BrokenSum(KernelError):
    """A matmul that continues a sum in PSUM which is not there, or not the tensor engine's any
    more."""


class Race(KernelError):
    """Two accesses to the same elements, one of them a write, and nothing says which comes
    first."""


class EndlessWait(KernelError):
    """A wait that nobody signals."""


class SemaphoreLeft(KernelError):
    """A semaphore that is not zero when the kernel, or its own scope, ends."""


class MemoryOverflow(KernelError):
    """Tiles that need more memory than a NeuronCore has."""


class OverlappingTiles(KernelError):
    """Two live tiles of which a kernel puts one onto the other."""
