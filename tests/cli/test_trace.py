"""`jax-trn3 trace`, in this process."""

import json
from pathlib import Path

import pytest

from jax_trn3.cli import main
from jax_trn3.hardware import TRAINIUM2
from jax_trn3.profiler.json_view import document
from jax_trn3.simulator import loop, program, simulate

PROGRAM = """
from jax_trn3.isa import TABLE, Tile
from jax_trn3.simulator import Program, loop, program
from beside import TIMES

memset = TABLE["memset"]
tile = Tile("tile", "sbuf", (128, 512), "float32", slots=2)

def clear(times: int = TIMES) -> Program:
    return program("clear", [loop(times, lambda i: [memset(dst=tile[i], value=0.0)])])
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("TIMES = 5\n")
    path = tmp_path / "made.py"
    path.write_text(PROGRAM)
    return path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What the command says when it ends with code 2: one line."""
    try:
        code = main(["trace", *map(str, arguments)])
    except SystemExit as end:
        code = end.code
    assert code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("jax-trn3 trace: ")
    assert error.count("\n") == 1
    return error


def test_summary_is_printed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(file)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("clear on one NeuronCore-v4 of a Trainium3\n")
    assert "5 instructions, 1 in the text" in out


@pytest.mark.parametrize("suffix", [".json", ".pftrace"])
def test_view_is_written(file: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = file.with_suffix(suffix)
    assert main(["trace", f"{file}:clear", "-o", str(output)]) == 0
    out = capsys.readouterr().out
    assert out == f"{output}: 5 of 5 instructions one by one\n"
    assert output.stat().st_size > 1000
    assert main(["trace", f"{file}:clear", "-o", str(output), "--summary"]) == 0
    assert "5 instructions, 1 in the text" in capsys.readouterr().out


def test_chip_and_its_numbers_are_choices(file: Path) -> None:
    file.write_text(file.read_text() + "made = clear(7)\nother = 3\n")
    output = file.with_suffix(".json")
    times = {}
    for chip in ("trn1", "trn2", "trn3"):
        assert main(["trace", f"{file}", "-o", str(output), "--chip", chip]) == 0
        times[chip] = json.loads(output.read_text())["time"]["active_ps"]
    assert times["trn1"] > times["trn3"]
    slow = ["--chip", "trn2", "--set", "core.vector.clock_hz=480e6"]
    assert main(["trace", f"{file}:made", "-o", str(output), *slow]) == 0
    found = json.loads(output.read_text())
    assert found["chip"] == TRAINIUM2.name
    assert found["time"]["active_ps"] == pytest.approx(2 * times["trn2"], rel=0.01)


def test_window(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = file.with_suffix(".json")
    assert main(["trace", f"{file}", "-o", str(output), "--window", "0.1:0.2"]) == 0
    found = json.loads(output.read_text())
    assert found["runs"]["window_ps"] == [100_000, 200_000]
    assert 0 < len(found["runs"]["run"]) < 5
    assert "of 5 instructions one by one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-o", "x.txt"], "x.txt: no view ends in '.txt'; these do: .json, .pftrace"),
        (["-o", "/nowhere/x.json"], "No such file or directory: '/nowhere/x.json'"),
        (["--set", "core.vector.clok_hz=1"], "no number at 'core.vector.clok_hz'; the nearest: "),
        (["--set", "core.vector.clock_hz"], "it has no =; write PATH=NUMBER"),
        (["--set", "core.vector.clock_hz=fast"], "'fast' is no number; write PATH=NUMBER"),
        (["--window", "1:2"], "--window is for what -o writes"),
        (["--window", "2:1", "-o", "x.json"], "needs 0 <= START < END"),
        (["--window", "2", "-o", "x.json"], "write START:END in microseconds"),
        (["--chip", "trn9"], "invalid choice: 'trn9'"),
    ],
)
def test_wrong_arguments(file: Path, more, message: str, capsys) -> None:
    assert message in refusal(capsys, file, *more)


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("", "", "it has no Program, nor a function without arguments"),
        ("", ":thing", "has no 'thing'; it has no Program, nor a function without arguments"),
        ("thing = 3", ":thing", "made.py:thing is a int, no Program"),
        ("def thing(): return 3", "", "made.py:thing returns a int, no Program"),
        ("def thing(n): return n", "", "it has no Program"),
        (
            "from jax_trn3.simulator import program\na, b = program('a', []), program('b', [])",
            "",
            "made.py:name; it has a, b",
        ),
        (
            PROGRAM + "big = Tile('big', 'sbuf', (128, 10**6), 'float32')\n"
            "made = program('big', [memset(dst=big[:, :], value=0.0)])",
            ":made",
            "memset",
        ),
        (
            PROGRAM + "big = Tile('big', 'sbuf', (128, 4096), 'float32', slots=30)\n"
            "made = program('big', [memset(dst=big[i], value=0.0) for i in range(30)])",
            ":made",
            "big needs ",
        ),
        (
            PROGRAM + "made = program('bad', [TABLE['tensor_copy'](dst=tile[0], src=tile[1])])",
            ":made",
            "reads tile, which nobody wrote",
        ),
    ],
)
def test_files_without_a_program_and_bad_programs(
    file: Path, source: str, name: str, message: str, capsys
) -> None:
    file.write_text(source)
    assert message in refusal(capsys, f"{file}{name}")


def test_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"there is no file {tmp_path}/none.py" in refusal(capsys, tmp_path / "none.py")


def test_what_it_writes_is_the_view(file: Path) -> None:
    from jax_trn3.isa import TABLE, Tile

    output = file.with_suffix(".json")
    main(["trace", str(file), "-o", str(output)])
    tile = Tile("tile", "sbuf", (128, 512), "float32", slots=2)
    memset = TABLE["memset"]
    same = program("clear", [loop(5, lambda i: [memset(dst=tile[i], value=0.0)])])
    expected = document(simulate(same))
    found = json.loads(output.read_text())
    assert found["time"] == expected["time"]
    assert found["engines"] == expected["engines"]
