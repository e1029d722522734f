"""The rows of a machine, and a machine with one number changed."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_trn3.hardware import NEURON_CORE_V3, NEURON_CORE_V4, TRAINIUM3, get_topology
from jax_trn3.hardware.datasheet import Row, derived, extrapolated_figures, rows, with_figure

GEN2 = get_topology("trn3-gen2")
ROWS = {row.path: row for row in rows(GEN2)}


def test_a_row_of_a_figure() -> None:
    row = ROWS["chip.core.tensor.throttle_ramp_ns"]
    source = "tools/neuron-explorer/overview-summary-page.rst"
    assert row == Row(row.path, 3000, "ns", "rounded", source, 3000, 3000)
    assert type(row.value) is int


def test_a_flag_is_shown_as_a_bool() -> None:
    assert ROWS["chip.core.tensor.background_transpose"].value is True


def test_a_plain_number_is_the_users_own() -> None:
    core = dataclasses.replace(NEURON_CORE_V4, sbuf_partition_bytes=512 * 1024)
    row = next(row for row in rows(core) if row.path == "sbuf_partition_bytes")
    assert row == Row(row.path, 524_288, "bytes", "own", "", 524_288, 524_288)
    assert ROWS["lnc"].confidence == "own"


def test_paths_are_unique_and_lead_through_mappings_and_tuples() -> None:
    assert len(ROWS) == len(list(rows(GEN2)))
    assert ROWS["chip.core.vector.elements_per_cycle[4x]"].value == 4
    assert ROWS["chip.supported_lnc[1]"].value == 2


def test_names_and_none_are_left_out() -> None:
    assert not any(path.endswith("name") for path in ROWS)
    assert "chip.power_w" not in {row.path for row in rows(get_topology("trn1-chip"))}


def test_the_numbers_of_a_core_are_those_of_its_topology() -> None:
    of_core = {f"chip.core.{row.path}" for row in rows(NEURON_CORE_V4)}
    assert of_core == {path for path in ROWS if path.startswith("chip.core.")}


CHIP_ROWS = {row.path: row for row in rows(TRAINIUM3)}


@given(st.sampled_from(sorted(CHIP_ROWS)))
def test_any_number_can_be_changed_alone(path: str) -> None:
    row = CHIP_ROWS[path]
    new = not row.value if row.unit == "flag" else row.value * 2
    changed = {other.path: other for other in rows(with_figure(TRAINIUM3, path, new))}
    assert changed[path].value == new
    assert changed[path].confidence == "own"
    assert type(changed[path].value) is type(row.value)
    del changed[path]
    assert changed == {other: CHIP_ROWS[other] for other in CHIP_ROWS if other != path}


def test_a_machine_with_another_number() -> None:
    core = with_figure(NEURON_CORE_V4, "vector.elements_per_cycle[exponential]", 8)
    assert core.vector.elements_per_cycle["exponential"] == 8
    assert core.vector.elements_per_cycle["4x"] == 4
    assert core.tensor is NEURON_CORE_V4.tensor
    assert NEURON_CORE_V4.vector.elements_per_cycle["exponential"] == 4
    assert hash(core) != hash(NEURON_CORE_V4)
    chip = with_figure(TRAINIUM3, "hbm_bandwidth_bytes_per_s", 8e12)
    assert chip.hbm_bandwidth_bytes_per_s == 8 * 10**12
    assert type(chip.hbm_bandwidth_bytes_per_s) is int


def test_a_path_to_nothing_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no number at 'tensor.clock'.*tensor\.clock_hz"):
        with_figure(NEURON_CORE_V4, "tensor.clock", 1)
    with pytest.raises(ValueError, match="no number at 'tensor'"):
        with_figure(NEURON_CORE_V4, "tensor", 1)
    with pytest.raises(ValueError, match="no number at 'vector.elements_per_cycle.exponential'"):
        with_figure(NEURON_CORE_V3, "vector.elements_per_cycle.exponential", 4)


def test_a_fraction_of_what_is_counted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tensor.rows is a whole number \(128\), not 1.5"):
        with_figure(NEURON_CORE_V4, "tensor.rows", 1.5)


def test_a_topology_still_holds_its_rules() -> None:
    with pytest.raises(ValueError, match="lnc=3 is not supported"):
        with_figure(GEN2, "lnc", 3)


def test_extrapolated_figures_are_those_to_doubt() -> None:
    figures = extrapolated_figures(NEURON_CORE_V4)
    paths = {row.path for row in figures}
    assert "tensor.latency_cycles" in paths
    assert "dma.issue_ns[none]" in paths
    assert "tensor.clock_hz" not in paths
    for row in figures:
        for value in (row.low, row.high):
            assert with_figure(NEURON_CORE_V4, row.path, value) != NEURON_CORE_V4 or (
                value == row.value
            )


def test_derived_rows_follow() -> None:
    before = {row.path: row for row in derived(GEN2)}
    assert before["num_devices"].value == 1152
    assert before["peak_flops[mx]"].value == GEN2.peak_flops("mx")
    assert not before.keys() & ROWS.keys()
    assert {row.confidence for row in before.values()} == {"derived"}
    after = {row.path: row for row in derived(with_figure(GEN2, "chip.core.dma.count", 32))}
    path = "chip.core.dma.practical_bytes_per_s"
    assert after[path].value == 2 * before[path].value


def test_derived_rows_of_a_chip_without_published_power() -> None:
    assert "power_w" not in {row.path for row in derived(get_topology("trn1-chip"))}
