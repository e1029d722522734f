"""`jax-trn3 check`: what the real Neuron SDK would refuse in a function out of a Python file."""

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from jax_trn3.neuron_sdk import check

from .python_file import Refused, load

_ARGUMENTS = "example_args"


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describes the subcommand to the parser."""
    parser = commands.add_parser(
        "check",
        help="what the real Neuron SDK would refuse or change in a program",
        description="What the real Neuron SDK would refuse or change in a function of JAX. It is "
        "traced and not run. Exit code 1 if anything would be refused.",
    )
    parser.add_argument(
        "function",
        metavar="file.py:name",
        help=f"a function in a Python file, which defines {_ARGUMENTS}, too: a tuple of arrays or "
        "jax.ShapeDtypeStructs, or a function that returns it",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        path, name, found = load(arguments.function)
        function = _function(path, name, found)
        given = _arguments(path, found)
    except Refused as error:
        print(f"jax-trn3 check: {error}", file=sys.stderr)
        return 2
    findings = check(function, *given)
    if arguments.json:
        print(findings.to_json())
    else:
        Console().print(findings)
    return 1 if findings.of("refused") else 0


def _function(path: Path, name: str | None, found: dict[str, Any]) -> Any:
    if name is None:
        raise Refused(f"which function of {path}? Write {path}:name")
    if not callable(found.get(name)):
        what = f"{path}:{name} is a {type(found[name]).__name__}" if name in found else ""
        raise Refused(f"{what}, no function" if what else f"{path} has no {name!r}")
    return found[name]


def _arguments(path: Path, found: dict[str, Any]) -> tuple[Any, ...]:
    if _ARGUMENTS not in found:
        raise Refused(
            f"{path} has no {_ARGUMENTS}: define there a tuple of arrays or jax.ShapeDtypeStructs"
        )
    given = found[_ARGUMENTS]
    given = given() if callable(given) else given
    if not isinstance(given, tuple | list):
        raise Refused(f"{_ARGUMENTS} of {path} is a {type(given).__name__}, no tuple of arguments")
    return tuple(given)
