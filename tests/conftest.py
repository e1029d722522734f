"""For every test: the platform trn3, with the CPU beside it as the oracle."""

import os

os.environ.setdefault("JAX_PLATFORMS", "trn3,cpu")  # JAX reads it when it is imported

import subprocess
import sys
from collections.abc import Callable

import hypothesis
import pytest

hypothesis.settings.register_profile("jax-trn3", deadline=None, print_blob=True)
hypothesis.settings.load_profile("jax-trn3")

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run_python() -> RunPython:
    """run_python(code, *arguments, timeout=60, **environment): a process of its own.

    `code` is a program, or a list of arguments for the interpreter. An environment variable that
    is None is taken away; those of JAX are, unless they are given.
    """

    def run(
        code: str | list[str], *, timeout: float = 60, **environment: str | None
    ) -> "subprocess.CompletedProcess[str]":
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
        given = {"JAX_PLATFORMS": "trn3,cpu"} | environment
        command = ["-c", code] if isinstance(code, str) else code
        return subprocess.run(
            [sys.executable, *command],
            env=clean | {k: v for k, v in given.items() if v is not None},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
