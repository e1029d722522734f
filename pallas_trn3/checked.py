"""A kernel under the checks, within a compiled program: the reference executor, called back."""

from __future__ import annotations

import functools
import logging
from typing import Any

import jax
import numpy as np

from jax_trn3.isa import IllegalInstruction

from .errors import KernelError
from jax_trn3.isa import IllegalInstruction

from .errors import KernelError
from .kernel import Kernel
from .reference import run


def evaluate(kernel: Kernel, *operands: Any) -> list[Any]:
    """The outputs of a kernel, as `values.evaluate` has them, by a callback to this process.

    **Raises:** where the program runs, JAX's error of a callback that failed; its text has the
    `KernelError`'s.
    """
    outputs = [block.mapping.array_aval for block in kernel.blocks if block.role == "output"]
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in outputs]
    found = jax.pure_callback(functools.partial(_run, kernel), tuple(shapes), *operands)
    return list(found)


def _run(kernel: Kernel, *operands: Any) -> tuple[np.ndarray, ...]:
    try:
        return tuple(run(kernel, [np.asarray(x) for x in operands], check=True))
    except (KernelError, IllegalInstruction) as error:
        raise type(error)(str(error)) from None  # the kernel's line is what counts, not ours


class _Raised(logging.Filter):
    """What a kernel does wrong is raised; JAX need not write it to stderr as well."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, (KernelError, IllegalInstruction))


logging.getLogger("jax._src.callback").addFilter(_Raised())
