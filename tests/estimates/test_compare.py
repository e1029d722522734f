"""Estimates side by side."""

import json
import re

import pytest
from hand_made import body, collective, compute, estimate_of

from jax_trn3.estimates import compare
from jax_trn3.estimates.json_view import document

BEFORE = estimate_of(body(compute("products", 30, 2), collective()))
AFTER = estimate_of(body(compute("products", 30, 1)))


def test_table_has_figures_and_ratios() -> None:
    found = compare(BEFORE, AFTER, names=("before", "after"), tokens=(100, 200))
    rows = {row.name: row for row in found.rows}
    assert rows["total_ps"].values == (BEFORE.time_ps, AFTER.time_ps)
    assert rows["total_ps"].ratios == (1, AFTER.time_ps / BEFORE.time_ps)
    assert rows["mfu_fraction"].values == (BEFORE.mfu, AFTER.mfu)
    assert rows["collectives"].values == (1, 0)
    assert rows["energy_j"].values == (BEFORE.energy_j, AFTER.energy_j)
    assert rows["tokens_per_s"].values == (BEFORE.tokens_per_s(100), AFTER.tokens_per_s(200))
    text = str(found)
    assert re.search(r"^ +before +after +ratio$", text, re.M)
    ratio = f"{AFTER.time_ps / BEFORE.time_ps:.3g}"
    assert re.search(rf"^ ?time .* {ratio}$", text, re.M)
    written = found.document()
    assert json.loads(json.dumps(written)) == written
    assert written["rows"][0]["values"] == [BEFORE.time_ps, AFTER.time_ps]


def test_without_tokens_there_are_none() -> None:
    assert "tokens" not in str(compare(BEFORE, AFTER))


def test_names_are_what_is_different() -> None:
    trn2 = estimate_of(BEFORE.schedule, "trn2-chip")
    assert compare(BEFORE, trn2).names == ("trn3-chip", "trn2-chip")
    assert compare(BEFORE, AFTER).names == ("1", "2")
    mesh = estimate_of(BEFORE.schedule, mesh=(("data", 8),))
    assert compare(BEFORE, mesh).names == ("data=4 x model=2", "data=8")
    assert compare(BEFORE, mesh, mesh).names == ("data=4 x model=2", "data=8 2", "data=8 3")


def test_many_with_one_missing_figure() -> None:
    without = document(BEFORE)
    without["machine"]["energy_j"] = None
    found = compare(BEFORE, without, AFTER)
    energy = next(row for row in found.rows if row.name == "energy_j")
    assert energy.values[1] is energy.ratios[1] is None
    assert energy.shown[1] == "-"
    assert energy.ratios[2] == AFTER.energy_j / BEFORE.energy_j


@pytest.mark.parametrize(
    ("estimates", "options", "message"),
    [
        ([BEFORE], {}, "needs two or more estimates; there are 1"),
        ([BEFORE, AFTER], {"names": ["one"]}, "1 names for 2 estimates"),
        ([BEFORE, AFTER], {"tokens": [1, 2, 3]}, "3 tokens for 2 estimates"),
        ([BEFORE, AFTER], {"tokens": 0}, "a run of 0 tokens"),
    ],
)
def test_bad_arguments(estimates, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(*estimates, **options)
