"""What the modules beside this one are made of: kernels that are wrong, and right ones near them.

A wrong kernel says which words its error has; the lines that the error has to name are marked
`# wrong`. A right one returns what it found and what that should be.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn

F32, BF16, I32 = jnp.float32, jnp.bfloat16, jnp.int32
HBM = pl.BlockSpec(memory_space=pltrn.HBM)


@dataclass(frozen=True)
class Case:
    """A kernel, ready to run under the checks."""

    name: str
    run: Callable[[], Any]
    said: tuple[str, ...] = ()
    """Words of its error; none if it is right."""

    file: str = ""
    lines: tuple[int, ...] = ()
    """That the error names."""


WRONG: list[Case] = []
RIGHT: list[Case] = []


def wrong(*said: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """A kernel whose error has these words in it, and names the lines marked `# wrong`."""

    def register(run: Callable[[], Any]) -> Callable[[], Any]:
        text, first = inspect.getsourcelines(run)
        lines = tuple(first + k for k, line in enumerate(text) if "# wrong" in line)
        assert lines, f"{run.__name__} marks no line as wrong"
        WRONG.append(Case(_name(run), run, said, run.__code__.co_filename, lines))
        return run

    return register


def right(run: Callable[[], Any]) -> Callable[[], Any]:
    """A kernel without an error; returns what it found and what it should."""
    RIGHT.append(Case(_name(run), run))
    return run


def _name(run: Callable[[], Any]) -> str:
    return f"{run.__module__.rpartition('.')[2]}.{run.__name__}"


def run(
    kernel: Callable[..., None],
    *inputs: Any,
    out: Any = None,
    scratch: Any = (),
    grid: tuple[int, ...] = (),
    in_specs: Any = None,
    out_specs: Any = None,
    explicit: bool = False,
    **more: Any,
) -> Any:
    """The kernel on these inputs, checked. `out`: like the first input if it is left out."""
    params = pltrn.CompilerParams(
        check=True, synchronization="explicit" if explicit else "automatic"
    )
    first = inputs[0] if inputs else None
    shape = like(first.shape, first.dtype) if out is None else out
    specs = {} if in_specs is None else {"in_specs": in_specs}
    specs |= {} if out_specs is None else {"out_specs": out_specs}
    function = pl.pallas_call(
        kernel, out_shape=shape, grid=grid, scratch_shapes=scratch, compiler_params=params,
        **specs, **more,
    )  # fmt: skip
    return jax.tree.map(np.asarray, function(*inputs))


def moved(kernel: Callable[..., None], *inputs: Any, **more: Any) -> Any:
    """The same with all arrays in HBM: the kernel moves them."""
    return run(kernel, *inputs, in_specs=[HBM] * len(inputs), out_specs=HBM, **more)


def like(shape: tuple[int, ...], dtype: Any = F32) -> jax.ShapeDtypeStruct:
    """An output."""
    return jax.ShapeDtypeStruct(shape, dtype)


def numbers(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Small whole numbers: every operation on them is exact."""
    count = int(np.prod(shape))
    return (np.arange(count) % 13 - 6).reshape(shape).astype(dtype)
