"""The shared library before another PJRT client: pypjrt's conformance checker."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from jax_trn3.pjrt import _shim

RunPython = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def report(run_python: RunPython, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("conform") / "report.json"
    command = ["-m", "pypjrt.conform", _shim.__file__, "-v", "--json", str(path)]
    process = run_python(command, timeout=100)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "0 FAIL" in process.stdout, process.stdout
    return json.loads(Path(path).read_text())


def test_no_check_fails(report: dict[str, Any]) -> None:
    results = {check["id"]: check["result"] for check in report["checks"]}
    assert {id for id, result in results.items() if result == "fail"} == set()
    assert list(results.values()).count("pass") >= 40


def test_library_is_the_platform_with_the_extensions_that_jax_needs(
    report: dict[str, Any],
) -> None:
    assert report["platform"] == "trn3"
    assert {"Layouts", "Shardings"} <= {e["name"] for e in report["extensions"]}
    assert tuple(report["api_version"]) >= (0, 112)
