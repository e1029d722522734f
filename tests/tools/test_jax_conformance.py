"""tools/jax_conformance.py on a source tree of our own making."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import jax
import pytest
from conftest import RunPython

TOOL = Path(__file__).parents[2] / "tools" / "jax_conformance.py"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "jax").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "jax" / "version.py").write_text(f'_version = "{jax.__version__}"\n')
    return tmp_path


def write(tree: Path, name: str, code: str) -> None:
    (tree / "tests" / f"{name}.py").write_text(textwrap.dedent(code))


def run(run_python: RunPython, tree: Path, *arguments: str) -> tuple[int, str, dict]:
    out = tree / "out.json"
    command = [str(TOOL), "--jax", str(tree), "--out", str(tree / "out"), "--json", str(out)]
    process = run_python([*command, *arguments], timeout=120)
    result = json.loads(out.read_text()) if out.exists() else {}
    return process.returncode, process.stdout + process.stderr, result


def test_every_outcome_is_told_apart(run_python: RunPython, tree: Path) -> None:
    write(tree, "device_test", """
        import os
        import jax, jax._src.test_util as jtu, pytest

        on_trn3 = jax.devices()[0].platform == "trn3"

        def test_passes(): assert jtu.device_under_test() == "cpu"
        def test_fails_on_both(): assert False
        def test_fails_here(): assert not on_trn3, "only here"
        def test_dies_here(): os.abort() if on_trn3 else None
        def test_after_the_death(): assert len(jax.devices()) == 8
        def test_skipped(): pytest.skip("no")
        def test_repr(): assert not on_trn3  # in the manifest
        def test_str(): assert not on_trn3
    """)  # fmt: skip
    code, text, result = run(run_python, tree, "--markdown", str(tree / "table.md"))
    file = result["files"]["device_test"]
    assert file["cpu"] == {"passed": 6, "failed": 1, "skipped": 1}
    assert file["trn3-as-cpu"] == {"passed": 2, "failed": 5, "skipped": 1}
    unexpected = {d["test"]: d["message"] for d in file["unexpected"]}
    assert unexpected.keys() == {"test_fails_here", "test_dies_here"}
    assert "only here" in unexpected["test_fails_here"]
    assert "ended with code -6" in unexpected["test_dies_here"]
    assert {d["test"] for d in file["expected"]} == {"test_repr", "test_str"}
    assert (result["pass_on_both"], result["pass_on_cpu_and_run_on_trn3"]) == (2, 6)
    assert code == 1
    assert "2 of 6 tests that pass on the CPU" in text.replace("\n", " ")
    assert "| device_test | 6 / 1 / 1 | 2 / 5 / 1 |" in (tree / "table.md").read_text()


def test_the_platforms_own_name_and_what_no_longer_happens(
    run_python: RunPython, tree: Path
) -> None:
    write(tree, "device_test", """
        import jax, jax._src.test_util as jtu
        def test_name(): assert jtu.device_under_test() == jax.devices()[0].platform
    """)  # fmt: skip
    code, text, result = run(run_python, tree, "--dut", "own")
    assert result["files"]["device_test"]["trn3"] == {"passed": 1}
    assert result["files"]["device_test"]["stale"] == ["device_test: test_repr|test_str"]
    assert code == 1
    assert "did not happen: device_test: test_repr" in text


def test_a_tree_of_another_version(run_python: RunPython, tree: Path) -> None:
    (tree / "jax" / "version.py").write_text('_version = "0.1.2"\n')
    code, text, _ = run(run_python, tree)
    assert code == 1
    assert f"is JAX 0.1.2, installed is {jax.__version__}" in text.replace("\n", " ")


def test_no_such_file(run_python: RunPython, tree: Path) -> None:
    code, text, _ = run(run_python, tree, "nonsense_test")
    assert code == 1
    assert "no such test file" in text
