"""Figures are numbers; tables are mappings that do not change."""

import copy
import dataclasses
import json
import operator
import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_trn3.hardware import (
    NEURON_CORE_V4,
    TRAINIUM3,
    Figure,
    Table,
    extrapolated,
    get_topology,
    inferred,
    published,
    rounded,
)
from jax_trn3.hardware.datasheet import rows
from jax_trn3.hardware.figure import unit_of_name

numbers = st.one_of(
    st.integers(-(10**18), 10**18), st.floats(allow_nan=False, allow_infinity=False)
)


@given(numbers)
def test_a_figure_is_its_number(value: float) -> None:
    figure = published(value, "bytes", "a page")
    assert figure == value
    assert value == figure
    assert hash(figure) == hash(value)
    assert repr(figure) == repr(value)
    assert f"{figure}" == f"{value}"
    assert f"{figure:,}" == f"{value:,}"
    assert isinstance(figure, type(value))
    assert json.dumps(figure) == json.dumps(value)
    assert {figure: 1}[value] == 1


@given(numbers, numbers)
def test_arithmetic_gives_plain_numbers(a: float, b: float) -> None:
    figure = published(a, "bytes", "a page")
    for function in (operator.add, operator.sub, operator.mul, max, operator.lt):
        result = function(figure, b)
        assert result == function(a, b)
        assert not isinstance(result, Figure) or result is figure
    assert not isinstance(-figure, Figure)
    assert not isinstance(abs(figure) + 0, Figure)


def test_an_int_figure_is_an_index_and_a_shape() -> None:
    three = published(3, "rows", "a page")
    assert list(range(three)) == [0, 1, 2]
    assert "abcd"[three] == "d"
    assert np.zeros((three, 2)).shape == (3, 2)
    assert divmod(7, three) == (2, 1)


@given(numbers)
def test_a_copy_and_a_pickle_remember(value: float) -> None:
    figure = extrapolated(value, "ns", "a page", low=value - 1, high=value + 1)
    for again in (
        copy.copy(figure),
        copy.deepcopy(figure),
        *(pickle.loads(pickle.dumps(figure, protocol)) for protocol in range(2, 6)),
    ):
        assert type(again) is type(figure)
        assert again == figure
        assert vars(again) == vars(figure)


@pytest.mark.parametrize(
    ("make", "confidence"), [(published, "published"), (rounded, "rounded"), (inferred, "inferred")]
)
def test_what_a_figure_remembers(make, confidence: str) -> None:
    figure = make(128, "partitions", "trainium3_arch.rst")
    assert isinstance(figure, Figure)
    assert figure.unit == "partitions"
    assert figure.source == "trainium3_arch.rst"
    assert figure.confidence == confidence
    assert (figure.low, figure.high) == (128, 128)


def test_a_band() -> None:
    figure = rounded(500, "W", "a talk", high=1_000)
    assert (figure.low, figure.high) == (500, 1_000)
    figure = extrapolated(1.5, "factor", "Trainium2", low=1, high=2)
    assert (figure.confidence, figure.low, figure.high) == ("extrapolated", 1, 2)


def test_a_flag_is_true_or_false() -> None:
    assert published(True, "flag", "a page")
    assert not published(False, "flag", "a page")
    assert published(True, "flag", "a page") == True  # noqa: E712


def test_a_figure_without_unit_or_source_is_refused() -> None:
    with pytest.raises(ValueError, match="the figure 1 needs a unit and a source"):
        published(1, "", "a page")
    with pytest.raises(ValueError, match="the figure 1 needs a unit and a source"):
        published(1, "bytes", "")


def test_a_figure_outside_its_band_is_refused() -> None:
    with pytest.raises(ValueError, match="the figure 5 is outside its own band 1 to 4"):
        extrapolated(5, "ns", "a page", low=1, high=4)


def test_a_table_is_a_mapping_that_can_be_hashed() -> None:
    table = Table({"a": 1, "b": published(2.5, "ns", "a page")})
    assert table == {"a": 1, "b": 2.5}
    assert dict(table) == {"a": 1, "b": 2.5}
    assert list(table) == ["a", "b"]
    assert hash(table) == hash(Table({"b": 2.5, "a": 1}))
    assert repr(table) == "{'a': 1, 'b': 2.5}"
    assert table != Table({"a": 1})
    with pytest.raises(TypeError):
        table["a"] = 2  # type: ignore[index]
    again = pickle.loads(pickle.dumps(table))
    assert again == table
    assert again["b"].unit == "ns"


@pytest.mark.parametrize("machine", [NEURON_CORE_V4, TRAINIUM3, get_topology("trn3-gen2", 2)])
def test_machines_are_values(machine: object) -> None:
    for again in (copy.deepcopy(machine), pickle.loads(pickle.dumps(machine))):
        assert again == machine
        assert hash(again) == hash(machine)
        assert list(rows(again)) == list(rows(machine))
    assert dataclasses.replace(machine) == machine  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("clock_hz", "Hz"),
        ("sbuf_partition_bytes", "bytes"),
        ("engine_bytes_per_s", "bytes/s"),
        ("load_columns_per_cycle", "columns/cycle"),
        ("latency_ns", "ns"),
        ("min_issue_cycles", "cycles"),
        ("accumulate_factor", "factor"),
        ("power_w", "W"),
        ("partitions", "partitions"),
        ("registers", None),
        ("rows", None),
    ],
)
def test_unit_of_name(name: str, unit: str | None) -> None:
    assert unit_of_name(name) == unit


@pytest.mark.parametrize("name", ["trn1-chip", "trn2-ultraserver", "trn3-gen1", "trn3-gen2"])
def test_units_agree_with_the_names_of_fields(name: str) -> None:
    checked = 0
    for row in rows(get_topology(name)):
        promised = unit_of_name(re.sub(r"\[.*?\]", "", row.path).rpartition(".")[2])
        if promised and row.confidence != "own":
            assert row.unit == promised, row.path
            checked += 1
    assert checked > 40
