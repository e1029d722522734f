"""`jax-trn3 check`, in this process."""

import json
from pathlib import Path

import pytest

from jax_trn3.cli import main

PROGRAM = """
import jax
import jax.numpy as jnp
from shapes_beside import SHAPE

def step(x):
    return jnp.argmax(x, axis=1)

def clean(x):
    return x + 1

NUMBER = 3
example_args = (jax.ShapeDtypeStruct(SHAPE, jnp.float32),)

assert __name__ != "__main__"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "shapes_beside.py").write_text("SHAPE = (4, 8)\n")
    path = tmp_path / "model.py"
    path.write_text(PROGRAM)
    return path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says when it ends with code 2: one line."""
    assert main(["check", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("jax-trn3 check: ")
    assert error.count("\n") == 1
    return error


def test_findings_are_printed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{file}:step"]) == 1
    out = capsys.readouterr().out
    assert "[variadic-reduction]" in out
    assert "model.py:7" in "".join(out.split())


def test_clean_program_ends_with_zero(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{file}:clean"]) == 0
    assert "nothing found" in capsys.readouterr().out


def test_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{file}:step", "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)
    assert (finding["rule"], finding["file"], finding["line"]) == (
        "variadic-reduction",
        str(file),
        7,
    )


def test_arguments_from_a_function(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(PROGRAM.replace("example_args = (", "example_args = lambda: ("))
    assert main(["check", f"{file}:step"]) == 1


def test_refusals(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "which function of" in refusal(capsys, str(file))
    assert "has no 'other'" in refusal(capsys, f"{file}:other")
    assert "model.py:NUMBER is a int, no function" in refusal(capsys, f"{file}:NUMBER")
    assert "there is no file" in refusal(capsys, f"{file}x:step")
    file.write_text(PROGRAM.replace("example_args", "other_args"))
    assert "has no example_args: define there" in refusal(capsys, f"{file}:step")
    file.write_text(PROGRAM.replace("example_args = (", "example_args = str; other = ("))
    assert "example_args of" in refusal(capsys, f"{file}:step")
