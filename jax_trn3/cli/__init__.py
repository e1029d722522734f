"""The command `jax-trn3`: one module a subcommand, each with `add(commands)` that describes it."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from . import check, estimate, info, report, trace

_COMMANDS = (info, trace, estimate, report, check)


class _Parser(argparse.ArgumentParser):
    """Refuses in one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    **Raises:** `SystemExit` with code 2 for wrong arguments, after one line on standard error.
    """
    parser = _Parser(prog="jax-trn3", description="A simulated AWS Trainium as a JAX platform.")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    for command in _COMMANDS:
        command.add(commands)
    arguments = parser.parse_args(argv)
    code: int = arguments.run(arguments)
    return code
