"""Instructions on numpy arrays: tiles made to measure, checked, executed, costed."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jax_trn3.hardware import NEURON_CORE_V2, NEURON_CORE_V3, NEURON_CORE_V4, NeuronCore
from jax_trn3.isa import (
    Access,
    IllegalInstruction,
    Instruction,
    InstructionSpec,
    Tile,
    check,
    execute,
    state_name,
)
from jax_trn3.isa.dtypes import DTYPES

CORES = {2: NEURON_CORE_V2, 3: NEURON_CORE_V3, 4: NEURON_CORE_V4}
NAMES = {d.numpy: d.name for d in reversed(DTYPES.values()) if d.packed == 1}


def tile(*shape: int, dtype: str = "float32", memory: str = "sbuf", at: int = 0) -> Access:
    """All of a tile of that shape, from partition `at` on."""
    name = f"{memory}_{dtype}"
    return Tile(name, memory, shape, dtype, address=(at, 0))[tuple(slice(None) for _ in shape)]  # type: ignore[arg-type]


def like(array: Any, memory: str = "sbuf") -> Access:
    """A tile for an array."""
    return tile(*array.shape, dtype=NAMES[np.dtype(array.dtype)], memory=memory)


def run(
    spec: InstructionSpec,
    core: NeuronCore = NEURON_CORE_V4,
    *,
    previous: Any = None,
    state: Any = None,
    engine: str | None = None,
    **operands: Any,
) -> dict[str, Any]:
    """What an instruction writes: operands that are arrays it reads, those that are tiles it writes.

    `state` is what its engine remembers; what it remembers then is under "state".
    """
    arrays = {name: value for name, value in operands.items() if isinstance(value, np.ndarray)}
    tiles = {name: like(value) for name, value in arrays.items()}
    made = spec(**{**operands, **tiles}, engine=engine)
    check(made, core)
    if spec.state is None:
        return {name: np.asarray(v) for name, v in execute(made, arrays, previous).items()}
    where = state_name(made)
    given = arrays if state is None else {**arrays, where: state}
    results = execute(made, given, previous)
    remembered = results.pop(where)
    return {name: np.asarray(v) for name, v in results.items()} | {"state": remembered}


def refused(
    match: str, spec: InstructionSpec, generation: int = 4, engine: str | None = None, **named: Any
) -> None:
    """Asserts that a core refuses an instruction and says so."""
    with pytest.raises(IllegalInstruction, match=match):
        check(spec(**named, engine=engine), CORES[generation])


def cycles(made: Instruction, generation: int) -> float:
    """Cycles that an instruction, checked first, takes its engine."""
    check(made, CORES[generation])
    return float(made.spec.cost(made, CORES[generation]).cycles)


def floats(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Numbers around 0 that the dtype holds."""
    values = np.random.default_rng(seed).normal(size=shape)
    return np.asarray(jnp.asarray(values, jnp.float32).astype(dtype))


def wide(array: np.ndarray) -> np.ndarray:
    """[P, ...] in float64, [P, F]."""
    return array.astype(np.float64).reshape(array.shape[0], math.prod(array.shape[1:]))
