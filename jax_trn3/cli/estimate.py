"""`jax-trn3 estimate`: what a function out of a Python file would cost."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from jax_trn3.estimates import VIEWS, Estimate, compare, estimate, render, save
from jax_trn3.estimates.json_view import document, save_document
from jax_trn3.hardware import Topology, get_topology, topology_names

from .python_file import ARGUMENTS_HELP, Refused, example
from .report import show
from .trace import window

_DEFAULT = "trn3-chip"


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describes the subcommand to the parser."""
    parser = commands.add_parser(
        "estimate",
        help="what a function of JAX would cost",
        description="What a function of JAX would cost on a machine, by shapes alone: nothing is "
        "run. The shardings of its arguments say which devices it runs on.",
    )
    parser.add_argument("function", metavar="file.py[:name]", help=ARGUMENTS_HELP)
    parser.add_argument(
        "--topology",
        default=_DEFAULT,
        metavar="NAME",
        help=f"one of {', '.join(topology_names())} (default: {_DEFAULT})",
    )
    parser.add_argument(
        "--compare-topology",
        nargs="+",
        default=[],
        metavar="NAME",
        help="compare with the same on these",
    )
    parser.add_argument(
        "--lnc", type=int, default=1, help="physical cores that make up a device (default: 1)"
    )
    parser.add_argument("--tokens", type=_tokens, help="tokens that one run handles")
    parser.add_argument(
        "--while-trip-count", type=int, help="how often to take loops whose count data decide"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "-o", "--output", type=Path, help=f"write a view there; its suffix: {', '.join(VIEWS)}"
    )
    parser.add_argument(
        "--window",
        metavar="START:END",
        type=window,
        help="what -o writes has the engine instructions between these, in microseconds",
    )
    parser.set_defaults(run=_run)


def _tokens(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number, at least 1")
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    try:
        _estimate(arguments)
    except Refused as error:
        print(f"jax-trn3 estimate: {error}", file=sys.stderr)
        return 2
    return 0


def _estimate(arguments: argparse.Namespace) -> None:
    output: Path | None = arguments.output
    names = [arguments.topology, *arguments.compare_topology]
    if output is not None and output.suffix not in VIEWS:
        known = ", ".join(VIEWS)
        raise Refused(f"{output}: no view ends in {output.suffix!r}; these do: {known}")
    if output is not None and len(names) > 1:
        raise Refused("-o writes one estimate; leave out --compare-topology, or -o")
    if arguments.window and output is None:
        raise Refused("--window is for what -o writes; the summary is of the whole run")
    topologies = [_topology(name, arguments.lnc) for name in names]
    function, given = _tried(arguments.function, example, arguments.function)
    found = _estimates(arguments, function, given, topologies)
    if output is not None:
        _write(found[0], output, arguments)
    console = Console()
    if len(found) > 1:
        comparison = compare(*found, tokens=arguments.tokens)
        show(comparison.document(), comparison.render(), console, arguments.json)
    else:
        one = document(found[0], arguments.tokens)
        show(one, render(one, console.width), console, arguments.json)


def _estimates(
    arguments: argparse.Namespace,
    function: Callable[..., Any],
    given: Sequence[Any],
    topologies: Sequence[Topology],
) -> list[Estimate]:
    console = Console(stderr=True)
    quiet = len(topologies) == 1 or not console.is_terminal
    bar = track(topologies, "estimating", console=console, transient=True, disable=quiet)
    count = arguments.while_trip_count
    return [
        _tried(arguments.function, estimate, function, *given, topology=one, while_trip_count=count)
        for one in bar
    ]


def _topology(name: str, lnc: int) -> Topology:
    try:
        return get_topology(name, lnc)
    except ValueError as error:
        raise Refused(str(error)) from None


def _write(found: Estimate, output: Path, arguments: argparse.Namespace) -> None:
    try:
        if output.suffix == ".json" and not arguments.window:
            save_document(document(found, arguments.tokens), output)
        else:
            save(found, output, arguments.window)
    except (ValueError, ModuleNotFoundError, OSError) as error:
        raise Refused(str(error)) from None


def _tried(where: str, call: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """What a call returns that runs the user's code, or the first line of its error."""
    try:
        return call(*given, **options)
    except Refused:
        raise
    except Exception as error:  # whatever the user's program raises
        text = str(error).strip() or "no message"
        raise Refused(f"{where}: {type(error).__name__}: {text.splitlines()[0]}") from None
