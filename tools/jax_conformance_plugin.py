"""The pytest plugin of jax_conformance.py: runs inside the process of one of JAX's test files.

It tells JAX's tests which device is under test, finds the test helpers that JAX's wheel leaves out,
and writes a line of JSON for every test as it starts and as it ends, so that a process which dies
says where.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

_SOURCE = Path(os.environ["JAX_CONFORMANCE_SOURCE"])
_RESULTS = Path(os.environ["JAX_CONFORMANCE_RESULTS"])
_DUT = os.environ["JAX_CONFORMANCE_DUT"]


class _LeftOutOfTheWheel(importlib.abc.MetaPathFinder):
    """Finds modules of jax that only the source tree has, such as jax._src.pallas.*_test_util."""

    def find_spec(self, name, path=None, target=None):
        base = _SOURCE.joinpath(*name.split("."))
        if name.startswith("jax."):
            for file in (base.with_suffix(".py"), base / "__init__.py"):
                if file.exists():
                    return importlib.util.spec_from_file_location(name, file)
        return None


def _write(**record: object) -> None:
    with _RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    sys.meta_path.append(_LeftOutOfTheWheel())
    import jax
    import jax._src.test_util  # defines the option

    # Defines options of jax.config; JAX's tests object to options that come up in their middle,
    # when the first of them makes JAX load the plugin.
    import jax_trn3  # noqa: F401

    if _DUT:
        jax.config.update("jax_test_dut", _DUT)
    if os.environ.get("JAX_PLATFORMS", "").startswith("trn3"):
        _run_interpreted_kernels()


def _run_interpreted_kernels() -> None:
    """Kernels that the tests would have JAX interpret, because they know of no platform but GPU and
    TPU that runs them, run as trn3 runs kernels."""
    from pallas_trn3 import lowering

    own = lowering._pallas_call

    def rule(ctx, *args, interpret, **params):
        return own(ctx, *args, interpret=interpret is not True and interpret, **params)

    lowering._pallas_call = rule


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _RESULTS.exists():
        done = {json.loads(line)["test"] for line in _RESULTS.read_text().splitlines()}
        items[:] = [item for item in items if item.nodeid not in done]


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write(test=report.nodeid, outcome="failed", message=_last_line(report))


def pytest_runtest_logstart(nodeid: str) -> None:
    _write(test=nodeid, outcome="started")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # Set-up and tear-down count only when they do not pass.
    if report.when == "call" or not report.passed:
        message = "" if report.passed else _last_line(report)
        _write(test=report.nodeid, outcome=report.outcome, message=message, seconds=report.duration)


def _last_line(report: pytest.CollectReport | pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return report.longrepr[2]
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext.strip()
    return text[:600]
