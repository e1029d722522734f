"""`jax-trn3 estimate` and `jax-trn3 report`, in this process."""

import json
from pathlib import Path

import pyarrow.parquet
import pytest

from jax_trn3.cli import main
from jax_trn3.estimates.json_view import document, read

PROGRAM = """
import jax, jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

mesh = AbstractMesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

def shape(dimensions, *spec):
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(dimensions, jnp.bfloat16, sharding=sharding)

@jax.jit
def step(x, up, down):
    return jnp.tanh(x @ up) @ down

def until(x, up, down):
    return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: step(x, up, down), x)

def example_args():
    return shape((256, 128), "data"), shape((128, 512), None, "model"), shape((512, 128), "model")
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("COLUMNS", "100")
    path = tmp_path / "made.py"
    path.write_text(PROGRAM)
    return path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What the command says when it ends with code 2: one line."""
    try:
        code = main([*map(str, arguments)])
    except SystemExit as end:
        code = end.code
    assert code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"jax-trn3 {arguments[0]}: ")
    assert error.count("\n") == 1
    return error


def test_summary_is_printed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", f"{file}:step", "--tokens", "256", "--topology", "trn3-gen2"]) == 0
    out = capsys.readouterr().out
    assert " on trn3-gen2, 4 devices of Trainium3, mesh data=2 x model=2\n" in out
    assert "made.py:13" in out
    assert "tokens/s/MW" in out


def test_views_are_written_and_reported(file: Path, capsys) -> None:
    paths = {suffix: file.with_suffix(suffix) for suffix in (".json", ".pftrace", ".parquet")}
    for path in paths.values():
        assert main(["estimate", f"{file}:step", "-o", str(path), "--tokens", "256"]) == 0
    first = capsys.readouterr().out
    assert paths[".pftrace"].stat().st_size > 1000
    (summary,) = pyarrow.parquet.read_table(paths[".parquet"] / "Summary.parquet").to_pylist()
    found = read(paths[".json"])
    assert found["summary"]["total_time"] == summary["total_time"]
    assert found["machine"]["tokens"] == 256
    assert main(["report", str(paths[".json"])]) == 0
    assert first == 3 * capsys.readouterr().out
    assert main(["report", str(paths[".json"]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_json(file: Path, capsys) -> None:
    assert main(["estimate", f"{file}:step", "--json", "--lnc", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == set(document.__annotations__["return"].__annotations__)
    assert found["lnc"] == 2


def test_loops_and_topologies_side_by_side(file: Path, capsys) -> None:
    loops = ["estimate", f"{file}:until", "--while-trip-count", "5"]
    assert main([*loops, "--compare-topology", "trn2-chip", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["estimates"] == ["trn3-chip", "trn2-chip"]
    assert main([*loops, "--compare-topology", "trn2-chip", "trn3-gen1"]) == 0
    out, error = capsys.readouterr()
    assert "trn3-chip" in out
    assert "trn3-gen1" in out
    assert error == ""


def test_reports_side_by_side(file: Path, capsys) -> None:
    for name in ("before", "after"):
        output = str(file.with_name(f"{name}.json"))
        assert main(["estimate", f"{file}:step", "-o", output]) == 0
    capsys.readouterr()
    both = [str(file.with_name(f"{name}.json")) for name in ("before", "after")]
    assert main(["report", *both]) == 0
    assert "before" in (out := capsys.readouterr().out)
    assert "after" in out
    assert main(["report", *both, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["ratios"] == [1, 1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-o", "x.txt"], "x.txt: no view ends in '.txt'; these do: .json, .pftrace, .parquet"),
        (["-o", "/nowhere/x.json"], "No such file or directory: '/nowhere/x.json'"),
        (["-o", "x.json", "--compare-topology", "trn2-chip"], "-o writes one estimate"),
        (["-o", "x.json", "--window", "0:1"], "JSON shows no instructions"),
        (["--window", "0:1"], "--window is for what -o writes"),
        (["--topology", "trn9"], "trn9"),
        (["--topology", "trn3-core"], "trn3-core has 1"),
        (["--lnc", "3"], "lnc=3 is not supported"),
        (["--tokens", "0"], "write a whole number, at least 1"),
    ],
)
def test_wrong_arguments(file: Path, more, message: str, capsys) -> None:
    assert message in refusal(capsys, "estimate", f"{file}:step", *more)


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (PROGRAM, "", "which function of"),
        (PROGRAM, ":nothing", "has no 'nothing'"),
        (PROGRAM, ":mesh", "made.py:mesh is a AbstractMesh, no function"),
        (PROGRAM, ":until", "UnknownTripCount: the loop at "),
        ("def step(x): return x", "", "has no example_args: define there"),
        ("def step(x): return x\nexample_args = 3", "", "is a int, no tuple of arguments"),
        ("def step(x): return x + 'a'\nexample_args = (1,)", "", "made.py: TypeError: "),
        ("raise RuntimeError('first\\nsecond')", "", "made.py: RuntimeError: first\n"),
        ("def step(:", "", "SyntaxError"),
    ],
)
def test_files_without_a_function(file: Path, source: str, name: str, message: str, capsys) -> None:
    file.write_text(source)
    assert message in refusal(capsys, "estimate", f"{file}{name}")


def test_bad_reports(file: Path, capsys) -> None:
    assert "no.json" in refusal(capsys, "report", file.with_name("no.json"))
    assert "is no JSON" in refusal(capsys, "report", file)
