"""`jax-trn3 report`: estimates that were saved as JSON, one by itself or several side by side."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console, RenderableType

from jax_trn3.estimates import compare, render
from jax_trn3.estimates.json_view import read

from .python_file import Refused


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describes the subcommand to the parser."""
    parser = commands.add_parser("report", help="print a saved estimate, or compare several")
    parser.add_argument(
        "estimates",
        nargs="+",
        type=Path,
        metavar="saved.json",
        help="what `jax-trn3 estimate -o`, or an estimate's save(), wrote",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        _report(arguments.estimates, arguments.json)
    except Refused as error:
        print(f"jax-trn3 report: {error}", file=sys.stderr)
        return 2
    return 0


def _report(paths: list[Path], as_json: bool) -> None:
    try:
        found = [read(path) for path in paths]
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from None
    console = Console()
    if len(found) == 1:
        show(found[0], render(found[0], console.width), console, as_json)
        return
    # The files' names, where those alone tell them apart.
    stems = [path.stem for path in paths]
    comparison = compare(*found, names=stems if len(set(stems)) == len(stems) else None)
    show(comparison.document(), comparison.render(), console, as_json)


def show(found: object, table: RenderableType, console: Console, as_json: bool) -> None:
    """Prints one of the two faces of a report."""
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        console.print(table)
