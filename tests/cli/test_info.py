"""`jax-trn3 info`, in this process."""

import json

import pytest

from jax_trn3.cli import main
from jax_trn3.hardware import get_topology, topology_names
from jax_trn3.hardware.datasheet import derived, rows

NAMES = [name.replace("<chips>", "1000000") for name in topology_names()]


@pytest.mark.parametrize("name", NAMES)
def test_json_has_every_row(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", name, "--json"]) == 0
    sheet = json.loads(capsys.readouterr().out)
    topology = get_topology(name)
    assert sheet["topology"] == name
    assert sheet["chip"] == topology.chip.name
    assert sheet["core"] == topology.chip.core.name
    assert len(sheet["rows"]) == len([*rows(topology), *derived(topology)])
    for row in sheet["rows"]:
        assert row.keys() == {"path", "value", "unit", "confidence", "source", "low", "high"}


def test_json_of_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    main(["info", "--json"])
    found = {row["path"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert found["chip.core.tensor.background_transpose"]["value"] is True
    assert found["chip.core.tensor.latency_cycles"] == {
        "path": "chip.core.tensor.latency_cycles",
        "value": 128,
        "unit": "cycles",
        "confidence": "extrapolated",
        "source": "the depth of the array: a row passes its 128 cells",
        "low": 64,
        "high": 256,
    }


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `jax-trn3 info trn3-gen2` prints on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["info", "trn3-gen2"]) == 0
    return capsys.readouterr().out.splitlines()


def test_tables_are_headed_by_the_parts(lines: list[str]) -> None:
    titles = [line.strip() for line in lines if line and not line.startswith(" ")]
    assert titles[:6] == [
        "Topology: trn3-gen2",
        "Server: Trn3 Gen2 sled",
        "Chip: Trainium3",
        "Links: NeuronLink-v4",
        "NeuronCore: NeuronCore-v4",
        "SBUF and PSUM",
    ]
    assert titles[6:] == ["TensorE", "VectorE", "ScalarE", "GpSimdE", "SyncE", "DMA"]


@pytest.mark.parametrize(
    "cells",
    [
        ["num_devices", "1,152 devices", "derived"],
        ["hbm_bandwidth_bytes_per_s", "4.9 TB/s", "published"],
        ["sbuf_partition_bytes", "256 KiB", "published", "glossary.rst"],
        ["passes[float32]", "4 cycles/row", "published", "profile-schema-reference.rst"],
        ["elements_per_cycle[reciprocal]", "0.125 elements/cycle", "published"],
        ["shared_sbuf_port", "no", "published", "trainium2_arch.rst"],
        ["power_w", "500 (400 to 1,000) W", "rounded"],
        ["power_w", "72 kW", "derived"],
        ["sbuf_reserved_partition_bytes", "16 (16 to 32) KiB", "extrapolated"],
        ["clock_hz", "2.4 GHz", "published"],
        ["lnc", "1", "own"],
    ],
)
def test_a_line_has_value_unit_confidence_and_source(lines: list[str], cells: list[str]) -> None:
    def matches(line: str) -> bool:
        at = 0
        for cell in cells:
            at = line.find(cell, at)
            if at < 0:
                return False
            at += len(cell)
        return True

    assert any(matches(line) for line in lines)


def test_a_narrow_terminal_cuts_nothing_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["info", "trn3-gen2"])
    assert "…" not in capsys.readouterr().out


def test_the_default_is_one_trainium3(capsys: pytest.CaptureFixture[str]) -> None:
    main(["info"])
    assert "Topology: trn3-chip" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["info", "trn4"], "jax-trn3 info: argument topology: unknown topology 'trn4'; known: "),
        (["info", "trn3-chip", "--yaml"], "jax-trn3: unrecognized arguments: --yaml"),
        (["information"], "jax-trn3: argument command: invalid choice: 'information'"),
        ([], "jax-trn3: the following arguments are required: command"),
    ],
)
def test_a_wrong_command_is_one_line_and_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1
