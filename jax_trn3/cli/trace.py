"""`jax-trn3 trace`: simulates a program of engine instructions out of a Python file."""

import argparse
import inspect
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from jax_trn3.hardware import TRAINIUM1, TRAINIUM2, TRAINIUM3, Chip
from jax_trn3.hardware.datasheet import with_figure
from jax_trn3.isa import IllegalInstruction
from jax_trn3.profiler import VIEWS, render, runs, save
from jax_trn3.simulator import IllegalProgram, Program, Timeline, simulate

from .python_file import RUN_NAME, Refused, load

_CHIPS: dict[str, Chip] = {"trn1": TRAINIUM1, "trn2": TRAINIUM2, "trn3": TRAINIUM3}


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describes the subcommand to the parser."""
    parser = commands.add_parser("trace", help="simulate a program of engine instructions")
    parser.add_argument(
        "program",
        metavar="file.py[:name]",
        help="a Python file, and what in it is the Program, or a function that returns it",
    )
    parser.add_argument(
        "-o", "--output", type=Path, help=f"write a view there; its suffix: {', '.join(VIEWS)}"
    )
    parser.add_argument(
        "--summary", action="store_true", help="print the summary (done anyway without -o)"
    )
    parser.add_argument("--chip", choices=_CHIPS, default="trn3", help="default: trn3")
    parser.add_argument(
        "--set",
        metavar="PATH=NUMBER",
        action="append",
        default=[],
        type=_setting,
        help="another number in the chip, e.g. core.tensor.clock_hz=3e9 (paths: jax-trn3 info)",
    )
    parser.add_argument(
        "--window",
        metavar="START:END",
        type=window,
        help="show the instructions that ran between these, in microseconds",
    )
    parser.set_defaults(run=_run)


def _setting(text: str) -> tuple[str, float]:
    path, equals, number = text.partition("=")
    try:
        return path.removeprefix("chip."), float(number)
    except ValueError:
        what = f"{number!r} is no number" if equals else "it has no ="
        raise argparse.ArgumentTypeError(f"{text!r}: {what}; write PATH=NUMBER") from None


def window(text: str) -> tuple[int, int]:
    """ "START:END" in microseconds as picoseconds, for a parser of arguments."""
    try:
        start, end = (round(float(us) * 1e6) for us in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write START:END in microseconds") from None
    if not 0 <= start < end:
        raise argparse.ArgumentTypeError(f"{text!r}: needs 0 <= START < END")
    return start, end


def _run(arguments: argparse.Namespace) -> int:
    try:
        _trace(arguments)
    except (Refused, IllegalProgram, IllegalInstruction) as error:
        print(f"jax-trn3 trace: {error}", file=sys.stderr)
        return 2
    return 0


def _trace(arguments: argparse.Namespace) -> None:
    output: Path | None = arguments.output
    if output is not None and output.suffix not in VIEWS:
        known = ", ".join(VIEWS)
        raise Refused(f"{output}: no view ends in {output.suffix!r}; these do: {known}")
    if arguments.window and output is None:
        raise Refused("--window is for what -o writes; the summary is of the whole program")
    chip = _CHIPS[arguments.chip]
    for path, number in arguments.set:
        try:
            chip = with_figure(chip, path, number)
        except ValueError as error:
            raise Refused(f"--set {path}: {error}") from None
    timeline = simulate(_program(arguments.program), chip)
    if output is not None:
        _write(timeline, output, arguments.window)
    if arguments.summary or output is None:
        Console().print(render(timeline))


def _write(timeline: Timeline, output: Path, window: tuple[int, int] | None) -> None:
    try:
        shown = runs(timeline, window)
        save(timeline, output, shown)
    except (ValueError, ModuleNotFoundError, OSError) as error:
        raise Refused(str(error)) from None
    print(f"{output}: {len(shown):,} of {timeline.num_instructions:,} instructions one by one")


def _program(where: str) -> Program:
    """The program that `file.py[:name]` means."""
    path, name, found = load(where)
    if name is not None:
        if name not in found:
            raise Refused(f"{path} has no {name!r}; {_candidates(found)}")
        return _called(path, name, found[name])
    choices = [key for key, value in found.items() if isinstance(value, Program)]
    choices = choices or [key for key, value in found.items() if _makes_program(value)]
    if len(choices) != 1:
        raise Refused(f"which program of {path}? Write {path}:name; {_candidates(found)}")
    return _called(path, choices[0], found[choices[0]])


def _makes_program(value: object) -> bool:
    """Whether it is a function of the file's own that needs no arguments."""
    if not inspect.isfunction(value) or value.__module__ != RUN_NAME:
        return False
    parameters = inspect.signature(value).parameters.values()
    return all(p.default is not p.empty or p.kind in (2, 4) for p in parameters)


def _candidates(found: dict[str, Any]) -> str:
    names = [key for key, x in found.items() if isinstance(x, Program) or _makes_program(x)]
    what = ", ".join(names) or "no Program, nor a function without arguments"
    return f"it has {what}"


def _called(path: Path, name: str, value: object) -> Program:
    made = value() if callable(value) else value
    if not isinstance(made, Program):
        what = "returns" if callable(value) else "is"
        raise Refused(f"{path}:{name} {what} a {type(made).__name__}, no Program")
    return made
