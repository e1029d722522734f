"""Published kernels: the simulated times stay as close as the table of benchmarks/fidelity.py says."""

import statistics
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import fidelity

MEDIAN, WORST = 0.10, 0.30
ROWS = [row for row in fidelity.rows("ROWS") if not row.slow]


@pytest.fixture(scope="module")
def errors():
    return {row.id: abs(fidelity.measure(row)["error"]) for row in ROWS}


def test_every_calibration_row_is_there():
    numbers = {row.id.split()[0] for row in fidelity.rows("ROWS")}
    assert numbers == {f"C{k}" for k in range(1, 16)}


def test_median(errors):
    assert statistics.median(errors.values()) <= MEDIAN


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_no_row_is_far_off_without_a_reason(row, errors):
    assert errors[row.id] <= WORST or row.reason


def test_rows_that_no_constant_comes_from(errors):
    """Half of the rows aside within 15 %."""
    aside = [abs(fidelity.measure(row)["error"]) for row in fidelity.rows("ASIDE") if not row.slow]
    assert statistics.median(aside) <= 0.15


def test_extrapolation_changes_nothing():
    row = next(row for row in ROWS if row.id == "C10 2")
    exact = fidelity.simulate(row.program(), row.chip, extrapolate=False)
    assert exact.time_ps == fidelity.simulate(row.program(), row.chip).time_ps
