"""Recorded scenarios stay what they are, whatever is made faster."""

import numpy as np
import pytest
from recorded_programs import FOLDER, SCENARIOS, simulate, trace


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_trace_is_what_it_was(name: str) -> None:
    recorded = np.load(FOLDER / f"{name}.npz")["trace"]
    now = trace(name)
    assert now.shape == recorded.shape
    changed = np.nonzero((now != recorded).any(axis=1))[0]
    assert not len(changed), (
        f"{len(changed)} of {len(now)} runs changed, the first is {changed[0]}: {recorded[changed[0]]} "
        f"became {now[changed[0]]}. If that is on purpose, run tests/simulator/recorded_programs.py"
    )


@pytest.mark.parametrize("name", SCENARIOS)
def test_it_does_not_depend_on_extrapolation(name: str) -> None:
    make, chip = SCENARIOS[name]
    assert np.array_equal(simulate(make(), chip, extrapolate=False).expand(), trace(name))


def test_nothing_is_recorded_that_is_not_tested() -> None:
    assert sorted(SCENARIOS) == sorted(path.stem for path in FOLDER.glob("*.npz"))
