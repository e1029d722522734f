"""`jax-trn3 check`: what the real Neuron SDK would refuse in a function out of a Python file."""

import argparse
import sys

from rich.console import Console

from jax_trn3.neuron_sdk import check

from .python_file import ARGUMENTS_HELP, Refused, example


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describes the subcommand to the parser."""
    parser = commands.add_parser(
        "check",
        help="what the real Neuron SDK would refuse or change in a program",
        description="What the real Neuron SDK would refuse or change in a function of JAX. It is "
        "traced and not run. Exit code 1 if anything would be refused.",
    )
    parser.add_argument("function", metavar="file.py[:name]", help=ARGUMENTS_HELP)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        function, given = example(arguments.function)
    except Refused as error:
        print(f"jax-trn3 check: {error}", file=sys.stderr)
        return 2
    findings = check(function, *given)
    if arguments.json:
        print(findings.to_json())
    else:
        Console().print(findings)
    return 1 if findings.of("refused") else 0
